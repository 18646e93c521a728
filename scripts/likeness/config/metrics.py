"""Names of all metrics, and which way each is better: what settings may name, and what the register of metrics measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from likeness.errors import nearest

Direction = Literal["higher", "lower", "near 0", "near 1"]
DIRECTIONS: Mapping[str, Direction] = {
    "background_ssim": "higher",
    "bleed_csim": "lower",
    "clip_score": "higher",
    "colour_shift": "lower",
    "contrast": "near 1",
    "copying": "lower",
    "csim": "higher",
    "descriptor_cosine": "higher",
    "detected": "higher",
    "diversity": "higher",
    "drift_dino": "higher",
    "grain": "near 1",
    "hair_delta_e": "lower",
    "head_ratio": "near 1",
    "likeness": "higher",
    "lpips": "lower",
    "shift_px": "lower",
    "skin_delta_e": "lower",
    "style_similarity": "higher",
    "target_error": "lower",
}
RANGES: Mapping[str, tuple[float | None, float | None]] = {
    "background_ssim": (-1.0, 1.0),
    "clip_score": (0.0, 2.5),
    "colour_shift": (0.0, None),
    "contrast": (0.0, None),
    "csim": (-1.0, 1.0),
    "descriptor_cosine": (-1.0, 1.0),
    "detected": (0.0, 1.0),
    "diversity": (0.0, None),
    "drift_dino": (-1.0, 1.0),
    "grain": (0.0, None),
    "hair_delta_e": (0.0, None),
    "head_ratio": (0.0, None),
    "lpips": (0.0, None),
    "shift_px": (0.0, None),
    "skin_delta_e": (0.0, None),
    "style_similarity": (-1.0, 1.0),
    "target_error": (0.0, None),
}
"""What a metric can be at least and at most; the others are open both ways."""
ONLY_OF_RECIPES: Mapping[str, tuple[str, ...]] = {
    "likeness": ("character", "style"),
    "copying": ("character", "style"),
    "target_error": ("edit",),
}
"""Metrics that mean nothing for other recipes, and are null there."""


def lower_is_better(name: str) -> bool:
    """Whether smaller values of a metric are better; unknown names count as higher is better."""
    return DIRECTIONS.get(name) in ("lower", "near 0")


def check_ranking_metric(name: str) -> str:
    """Refuse what checkpoints cannot be ranked by: names of no metric, and metrics whose best value lies in the middle."""
    direction = DIRECTIONS.get(name)
    rankable = [one for one, way in DIRECTIONS.items() if way in ("higher", "lower")]
    if direction is None:
        raise ValueError(f"no metric {name!r}; {nearest(name, rankable)}")
    if name not in rankable:
        raise ValueError(
            f"{name} is best {direction}, so that neither its highest nor its lowest value ranks first. Allowed: "
            f"{', '.join(rankable)}"
        )
    return name

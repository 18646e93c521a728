"""Which blocks take content and which take style from the prompt: the prompt-swap probe over every block, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from likeness.config.evaluation import ScoreStage
from likeness.config.surgery import ProbeStage
from likeness.evaluation.draw import Drawer, Inputs, Request, Sample
from likeness.evaluation.models import Models
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.prompts import SELECT, GridPoint, fill
from likeness.photos.images import ImageRef
from likeness.program import as_about
from likeness.store import Store, item_key
from likeness.tables import write_table
from likeness.tables_surgery import PROBE

if TYPE_CHECKING:
    import torch

VERSION = 1


class Role(NamedTuple):
    """How far one block takes the picture from one prompt to another: 0 not at all, 1 all the way.

    `change` is by pixels; `clip` by how much closer to the other prompt's text, null without a CLIP model or where the
    whole swap brings it no closer.
    """

    block: str
    change: float
    clip: float | None


class SwapDrawer(Drawer):
    """Draws with another prompt's text inside chosen blocks."""

    def __init__(
        self, stage: ScoreStage, store: Store, images: Mapping[str, ImageRef], other: str, blocks: Sequence[str]
    ) -> None:
        super().__init__(stage, store, images)
        self.other, self.blocks = other, tuple(sorted(blocks))
        self._inputs: Inputs | None = None

    def key(self, request: Request) -> str:
        own = super().key(request)
        return item_key("swapped", VERSION, None, own, [self.other, list(self.blocks)]) if self.blocks else own

    def _encode(self, requests: Sequence[Request]) -> Inputs:
        other = replace(requests[0], point=replace(requests[0].point, prompt=self.other))
        self._inputs = super()._encode([*requests, other])
        return self._inputs

    def _latents(self, sample: Sample, points: Sequence[GridPoint], grid: tuple[int, int]) -> torch.Tensor:
        import torch

        from likeness.klein.probe import text_swapped

        assert self._inputs is not None
        own_BTD = torch.stack([self._inputs.embedding(point.prompt) for point in points])
        other_BTD = self._inputs.embedding(self.other)[None].expand_as(own_BTD)
        device, dtype = self._base.device, self._base.dtype
        with text_swapped(self._base.transformer, own_BTD.to(device, dtype), other_BTD.to(device, dtype), self.blocks):
            return sample(guidance_scale=self.guidance)


class Prober:
    """Swaps prompts in one base model, block by block, and measures how far each block takes the picture."""

    def __init__(self, scoring: ScoreStage, store: Store) -> None:
        self._scoring, self._models = scoring, Models(scoring.evaluation, store, scoring.offline)
        self._pictures, self._drawer = Pictures(store, {}, None), SwapDrawer(scoring, store, {}, "", ())

    @property
    def fingerprint(self) -> str:
        """The base model's."""
        return self._drawer.fingerprint

    @property
    def models_loaded(self) -> int:
        return self._drawer.models_loaded + self._models.loaded

    def roles(self, prompt: str, other: str, seeds: Sequence[int]) -> list[Role]:
        """Swap `prompt` for `other` in every block alone, over seeds, and say how far each brings the picture there."""
        from likeness.lora.blocks import blocks_of

        size_px = (self._scoring.evaluation.width_px, self._scoring.evaluation.height_px)
        points = [GridPoint("probe", "neutral", prompt, seed, SELECT, *size_px) for seed in seeds]
        blocks = blocks_of(self._drawer.layout)
        own, whole = (self._drawn(points, other, chosen) for chosen in ([], blocks))
        far, before, after = self._distance(own, whole), self._closeness(own, other), self._closeness(whole, other)
        roles = []
        for block in blocks:
            images = self._drawn(points, other, [block])
            now = self._closeness(images, other)
            is_measured = before is not None and after is not None and now is not None and after > before
            clip = (now - before) / (after - before) if is_measured else None  # type: ignore[operator]
            roles.append(Role(block, self._distance(own, images) / far if far else 0.0, clip))
        return roles

    def _drawn(self, points: Sequence[GridPoint], other: str, blocks: Sequence[str]) -> list[str]:
        self._drawer.other, self._drawer.blocks = other, tuple(sorted(blocks))
        found = self._drawer.draw([Request(point) for point in points])
        return [found[Request(point)] for point in points]

    def _distance(self, first: Sequence[str], second: Sequence[str]) -> float:
        raw = self._pictures.raw
        return float(
            np.mean([np.abs(raw(a).astype(float) - raw(b)).mean() for a, b in zip(first, second, strict=True)])
        )

    def _closeness(self, images: Sequence[str], text: str) -> float | None:
        clip = self._models.clip
        if clip is None:
            return None
        text_D = clip.text_embedding(text)
        cosines = [clip.image_embedding(one, lambda one=one: self._pictures.raw(one)) @ text_D for one in images]
        return float(np.mean(cosines))


def probe_blocks(prober: Prober, stage: ProbeStage, subject: str, output: Path) -> list[dict[str, Any]]:
    """Write how far every block takes content and style from the prompt; returns the rows."""
    probe, scoring = stage.probe, stage.scoring
    texts = [fill(text, scoring.trigger, scoring.class_word) for text in (probe.prompt, probe.content, probe.style)]
    content, style = (prober.roles(texts[0], other, probe.seeds) for other in texts[1:])
    split = split_by_swaps(content, style)
    rows = [
        {
            "subject": subject,
            "probe": output.stem,
            "base_model": prober.fingerprint,
            "swap": swap,
            "place": place,
            "role": "content" if role.block in split["content_blocks"] else "style",
            **role._asdict(),
        }
        for swap, roles in (("content", content), ("style", style))
        for place, role in enumerate(roles)
    ]
    write_table(output, PROBE, rows, as_about("probe", VERSION, probe))
    return rows


def split_by_swaps(content: Sequence[Role], style: Sequence[Role]) -> dict[str, list[str]]:
    """Content and style blocks: each goes where its part of all blocks' shifts is the larger one."""

    def parts(roles: Sequence[Role]) -> dict[str, float]:
        shifts: dict[str, Any] = {
            role.block: max(0.0, role.change if role.clip is None else role.clip) for role in roles
        }
        total = sum(shifts.values())
        return {block: shift / total if total else 0.0 for block, shift in shifts.items()}

    of_content, of_style = parts(content), parts(style)
    chosen = {
        block: "content_blocks" if of_content[block] >= of_style[block] else "style_blocks" for block in of_content
    }
    return {key: [block for block in chosen if chosen[block] == key] for key in ("content_blocks", "style_blocks")}

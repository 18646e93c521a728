"""Score rows of images: every metric of every image, null with its reason where it could not be measured.

Metrics that cost are stored, one item an image and group of metrics, keyed by the pictures they look at; metrics that
are arithmetic on embeddings are worked out anew each time, so that they follow the subject's reference.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from likeness.evaluation.metrics import REGISTRY, Measured, Metric, measure
from likeness.evaluation.sample import Sample
from likeness.evaluation.scores import Checkpoint
from likeness.store import Store, item_key

STORED_GROUPS = ("pixels", "lpips", "clip", "diversity")


@dataclass(frozen=True)
class Drawn:
    """A measured image's identity in the score table."""

    checkpoint: Checkpoint
    lora_sha256: str
    lora_scale: float
    base_model: str
    sample: Sample


def score_rows(subject_name: str, images: Iterable[Drawn], store: Store) -> list[dict[str, Any]]:
    """Measure all metrics of all images; rows of the SCORES table."""
    return [row for drawn in images for row in _rows_of(subject_name, drawn, store)]


def _rows_of(subject_name: str, drawn: Drawn, store: Store) -> list[dict[str, Any]]:
    sample = drawn.sample
    measured = measure_all(sample, store)
    common = {
        "subject": subject_name,
        "variant": drawn.checkpoint.variant,
        "phase": drawn.checkpoint.phase,
        "step": drawn.checkpoint.step,
        "lora_sha256": drawn.lora_sha256,
        "base_model": drawn.base_model,
        "lora_scale": drawn.lora_scale,
        "prompt_id": sample.point.prompt_id,
        "source_id": sample.point.source_id,
        "prompt": sample.point.prompt,
        "seed": sample.point.seed,
        "split": sample.point.split,
        "image": sample.image_sha256,
    }
    return [
        {
            **common,
            "metric": name,
            "value": found.value,
            "status": found.status,
            "metric_version": version_of(REGISTRY[name], sample),
        }
        for name, found in sorted(measured.items())
    ]


def measure_all(sample: Sample, store: Store) -> dict[str, Measured]:
    """Every registered metric of one image."""
    found: dict[str, Measured] = {}
    for group in dict.fromkeys(metric.group for metric in REGISTRY.values()):
        members = [metric for metric in REGISTRY.values() if metric.group == group]
        found |= _stored(group, members, sample, store) if group in STORED_GROUPS else _measured(members, sample)
    return found


def _measured(members: Sequence[Metric], sample: Sample) -> dict[str, Measured]:
    return {metric.name: measure(metric, sample) for metric in members}


def _stored(group: str, members: Sequence[Metric], sample: Sample, store: Store) -> dict[str, Measured]:
    fingerprint = _fingerprint(group, sample)
    if fingerprint is None:
        return _measured(members, sample)
    stage = f"score-{group}"
    versions = {metric.name: metric.version for metric in members}
    key = item_key(stage, 1, [versions, sample.pictures.enlarge_to_px], fingerprint, _content(group, sample))

    def compute() -> tuple[dict[str, Any], dict[str, bytes]]:
        return {name: [found.value, found.status] for name, found in _measured(members, sample).items()}, {}

    record = store.load_or_compute(stage, key, compute).record
    return {name: Measured(*record[name]) for name in versions}


def _fingerprint(group: str, sample: Sample) -> str | None:
    """The model that a group's numbers depend on; None where it is absent, and then nothing is worth storing."""
    if group == "lpips":
        return sample.models.lpips.fingerprint if sample.models.lpips else None
    if group == "clip":
        return sample.models.clip.fingerprint if sample.models.clip else None
    return sample.recogniser.fingerprint if group == "pixels" else ""


def _content(group: str, sample: Sample) -> list[Any]:
    """The pictures that a group looks at, by content."""
    common = [sample.image_sha256, sample.point.kind, list(sample.size_px)]
    if group == "diversity":
        return [*common, sorted(sample.sibling_sha256s)]
    if group == "clip":
        return [*common, sample.plain_prompt, sorted(sample.subject.photo_sha256s)]
    against = [sample.against_sha256, sample.is_own_base]
    if group == "lpips":
        return [*common, against]
    return [
        *common,
        against,
        sample.recipe,
        sample.point.target_sha256,
        sample.point.mask_sha256,
        sample.recogniser.identity,
    ]


def version_of(metric: Metric, sample: Sample) -> str:
    """Version of a metric with what it used: the recogniser, the region, or the model."""
    parts = [f"{metric.name}-{metric.version}"]
    if metric.group == "derived":
        parts.append(sample.recogniser.name)
    if metric.name == "background_ssim":
        region = "stored mask" if sample.point.mask_sha256 else "region estimated from the face box"
        parts += [region, sample.recogniser.name]
    if metric.name in ("skin_delta_e", "hair_delta_e"):
        parts.append(sample.recogniser.name)
    if metric.name == "head_ratio":
        body = sample.models.body
        parts.append("face height over frame height" if body is None else f"face height over shoulders; {body.name}")
    if metric.name == "diversity":
        parts.append("32 px thumbnails")
    if metric.group == "lpips" and sample.models.lpips:
        parts.append(f"alex-{sample.models.lpips.fingerprint[:12]}")
    if metric.group == "clip" and sample.models.clip:
        parts.append(sample.models.clip.name)
    return "; ".join(parts)

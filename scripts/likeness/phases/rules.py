"""The rules that make a sample usable at all, in the order in which they are named as the reason of a drop.

A measure that is null was not taken (no face, no hair, unknown yaw) and cannot be held against a sample; what must be
there has a rule of its own (`no_face`, `mask`, `caption`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from likeness.config.phases import DecisionStage
from likeness.config.quality import QualityLimits
from likeness.phases.samples import Sample

BLINDING = frozenset({"face_px", "sharpness", "clipped"})
"""Defects that make embeddings unreliable: named before any doubt about the person."""


@dataclass(frozen=True)
class Drop:
    """Why a sample is not trained on: the rule, the value held against a threshold where there is one, and a sentence."""

    rule: str
    reason: str
    value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class Limit:
    """A measure that must not lie beyond a threshold; `above` tells on which side it is dropped."""

    column: str
    threshold: float | None
    above: bool
    what: str

    def broken_by(self, sample: Sample) -> Drop | None:
        value = sample[self.column]
        if self.threshold is None or value is None:
            return None
        value = abs(float(value)) if self.column == "yaw_deg" else float(value)
        if value <= self.threshold if self.above else value >= self.threshold:
            return None
        side = "above" if self.above else "below"
        return Drop(
            self.column, f"{self.what}: {value:.4g} is {side} {self.threshold:.4g}", value, float(self.threshold)
        )


def limits_of(limits: QualityLimits, kind: str) -> list[Limit]:
    """The configured limits in the order in which they decide; those of pairs only for pairs."""
    photo = [
        Limit("face_px", limits.min_face_px, False, "the face is small (height in px)"),
        Limit("sharpness", limits.min_sharpness, False, "the face is blurred"),
        Limit("clipped", limits.max_clipped, True, "the face is black or burnt out (share of its pixels)"),
        Limit("yaw_deg", limits.max_yaw_deg, True, "the head is turned (degrees)"),
    ]
    pair = [
        Limit("pair_identity", limits.min_pair_identity, False, "another person than before (cosine)"),
        Limit("change", limits.min_change, False, "nothing was changed (mean absolute change)"),
        Limit("shift_px", limits.max_shift_px, True, "the picture is shifted (px)"),
        Limit("background_ssim", limits.min_background_ssim, False, "the background changed (SSIM)"),
        Limit("skin_delta_e", limits.max_skin_delta_e, True, "the skin has another colour (CIEDE2000)"),
        Limit("hair_delta_e", limits.max_hair_delta_e, True, "the hair has another colour (CIEDE2000)"),
        Limit("hair_area_ratio", limits.max_hair_area_ratio, True, "the hair has another size (ratio of areas)"),
        Limit("pose_delta_deg", limits.max_pose_delta_deg, True, "the head is turned otherwise (degrees)"),
    ]
    return photo + (pair if kind == "pairs" else [])


def unusable(sample: Sample, stage: DecisionStage, limits: Sequence[Limit]) -> Drop | None:
    """The first rule that a sample breaks, near duplicates aside; None when it can be trained on."""
    return next(_broken(sample, stage, limits), None)


def untrainable(sample: Sample) -> Drop | None:
    """What not even a hand can overrule: a file that cannot be read, and a missing caption."""
    if sample["status"] not in ("ok", "duplicate") or sample.image_sha256 is None:
        return Drop("status", sample["reason"] or f"status {sample['status']}")
    if sample.sample_id is None:
        return Drop("caption", sample["caption_reason"] or "it has no caption")
    return None


def _broken(sample: Sample, stage: DecisionStage, limits: Sequence[Limit]) -> Iterator[Drop]:
    if sample["status"] != "ok":
        rule = "duplicate" if sample["status"] == "duplicate" else "status"
        yield Drop(rule, sample["reason"] or f"status {sample['status']}")
    if stage.recipe != "style" and not sample.has_face:
        yield Drop("no_face", "no face was found")
    broken = [drop for limit in limits if (drop := limit.broken_by(sample))]
    yield from (drop for drop in broken if drop.rule in BLINDING)
    if stage.recipe != "style" and sample.has_face:
        yield from _broken_by_face(sample, stage)
    yield from (drop for drop in broken if drop.rule not in BLINDING)
    if stage.mask_kind and sample.has_face and sample.mask_sha256 is None:
        yield Drop("mask", f"it has no {stage.mask_kind} mask, so that the background would be trained as well")
    if sample["caption_status"] != "ok" or sample.sample_id is None:
        yield Drop("caption", sample["caption_reason"] or f"caption {sample['caption_status'] or 'missing'}")
    if sample.id in stage.never:
        yield Drop("never", "dropped by hand (never)")


def _broken_by_face(sample: Sample, stage: DecisionStage) -> Iterator[Drop]:
    """Another person; for pairs also a crop of too few real pixels (whole photos are trained on without crops)."""
    cosine = sample["subject_cosine"] if sample["subject_cosine"] is not None else sample["identity_cosine"]
    if stage.recipe == "character" and cosine is not None and cosine < stage.min_identity:
        reason = f"another person: cosine {cosine:.3f} to the subject is below {stage.min_identity:g}"
        yield Drop("identity", reason, cosine, stage.min_identity)
    if stage.kind == "pairs" and sample["face_status"] not in ("ok", "other_person", None):
        yield Drop(sample["face_status"], sample.face_reason or f"face status {sample['face_status']}")

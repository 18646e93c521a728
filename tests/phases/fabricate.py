"""Tables of photos and pairs made up for the tests of the phases: no image is needed to decide."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from likeness.config.phases import DecisionStage, PhaseSettings
from likeness.config.quality import QualityLimits
from likeness.phases.decide import Decision, HeldOut, decide
from likeness.phases.samples import join_samples
from likeness.tables import CAPTIONS, FACES, MASKS, PAIRS, PHOTOS, QUALITY, Table

GOOD: dict[str, Any] = {
    "face": 0,
    "sharpness": 400.0,
    "brightness": 60.0,
    "clipped": 0.01,
    "face_px": 300.0,
    "face_fraction": 0.4,
    "framing": "close",
    "framing_by": "face ratio",
    "pose": "front",
    "yaw_deg": 2.0,
    "pitch_deg": 0.0,
    "roll_deg": 0.0,
    "light": "even",
    "light_cluster": 0,
    "background_cluster": 0,
    "identity_cosine": 0.8,
    "status": "ok",
    "reason": "",
}
GOOD_PAIR: dict[str, Any] = {
    "background_ssim": 0.98,
    "shift_px": 0.1,
    "skin_delta_e": 2.0,
    "hair_delta_e": 3.0,
    "hair_area_ratio": 1.1,
    "pose_delta_deg": 3.0,
    "pair_identity": 0.8,
    "change": 0.05,
}


def sha(*parts: Any) -> str:
    """A hash made of anything."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def row_of(table: Table, **values: Any) -> dict[str, Any]:
    """A full row of a table: unnamed columns are null."""
    unknown = set(values) - set(table.schema.names)
    assert not unknown, unknown
    return {name: values.get(name) for name in table.schema.names}


@dataclass
class World:
    """Merged tables of one subject; `add` makes a good photo or pair with some measures changed."""

    kind: str = "photos"
    images: list[dict[str, Any]] = field(default_factory=list)
    faces: list[dict[str, Any]] = field(default_factory=list)
    masks: list[dict[str, Any]] = field(default_factory=list)
    quality: list[dict[str, Any]] = field(default_factory=list)
    captions: list[dict[str, Any]] = field(default_factory=list)

    def add(
        self,
        name: str,
        image: dict[str, Any] | None = None,
        found: dict[str, Any] | None = None,
        caption: dict[str, Any] | None = None,
        **measures: Any,
    ) -> None:
        """Add one photo or pair."""
        pair = self.kind == "pairs"
        facts = {"id": name, "repeats": 1, "sha256": sha(name), "width_px": 512, "height_px": 512}
        facts |= {"status": "ok", "reason": ""} | (image or {})
        if pair:
            facts = {"source_sha256": sha(name, "source"), "reference_sha256s": []} | facts
        self.images.append(row_of(PAIRS if pair else PHOTOS, **facts))
        quality = {"id": name, **GOOD, **(GOOD_PAIR if pair else {}), **measures}
        if quality["face"] is None:
            quality = {"id": name, "face": None, "status": "no_face", "reason": "no face was found"}
        self.quality.append(row_of(QUALITY, **quality))
        role = "target" if pair else "photo"
        if quality["face"] is not None:
            facts = {"is_subject": True, "subject_cosine": None if pair else 0.8, "status": "ok", "reason": ""}
            self.faces.append(row_of(FACES, id=name, role=role, face=0, score=0.9, **(facts | (found or {}))))
            for kind in ("face", "head", "person"):
                mask = {"mask_sha256": sha(name, kind), "area_fraction": 0.3, "status": "ok", "reason": ""}
                self.masks.append(row_of(MASKS, id=name, role=role, face=0, kind=kind, **mask))
        line = {"caption": f"caption of {name}", "caption_by": "facts", "status": "ok", "reason": ""}
        self.captions.append(row_of(CAPTIONS, id=name, **(line | (caption or {}))))

    def change(self, name: str, table: str, **values: Any) -> None:
        """Change cells of one sample."""
        for row in getattr(self, table):
            if row["id"] == name:
                row.update(values)

    def rename(self, name: str, other: str) -> None:
        """Give a sample another name in all tables."""
        for rows in (self.images, self.faces, self.masks, self.quality, self.captions):
            for row in rows:
                if row["id"] == name:
                    row["id"] = other

    def decide(
        self, phases: dict[str, dict[str, Any]] | None = None, held_before: Sequence[HeldOut] = (), **stage: Any
    ) -> Decision:
        """Decide with these phases and settings of the slice."""
        settings = stage_of(self.kind, phases, **stage)
        samples = join_samples(self.images, self.faces, self.masks, self.quality, self.captions, settings)
        return decide(samples, settings, held_before)


def stage_of(kind: str, phases: dict[str, dict[str, Any]] | None = None, **stage: Any) -> DecisionStage:
    """A slice with defaults fit for tests: nothing held out, default limits."""
    values: dict[str, Any] = {
        "kind": kind,
        "recipe": "edit" if kind == "pairs" else "character",
        "phases": {name: PhaseSettings(**phase) for name, phase in (phases or {"main": {}}).items()},
        "limits": QualityLimits(),
        "min_identity": 0.35,
        "held_out": 0,
        "mask_kind": "person",
    }
    return DecisionStage(**(values | stage))


def names_kept(decision: Decision, phase: str = "main") -> list[str]:
    """Names that a phase keeps, in the manifest's order."""
    kept = [row for row in decision.decisions if row["phase"] == phase and row["kept"]]
    return [row["id"] for row in sorted(kept, key=lambda row: row["position"])]


def row_for(decision: Decision, name: str, phase: str = "main") -> dict[str, Any]:
    """The decision on one sample in one phase."""
    return next(row for row in decision.decisions if (row["phase"], row["id"]) == (phase, name))

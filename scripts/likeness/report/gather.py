"""Gather what the pages show from the tables of a run: one typed view a subject, nothing measured anew."""

from __future__ import annotations

import csv
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from likeness.config.subject import Subject as SubjectSettings
from likeness.config.surgery import SURGERY, Surgery
from likeness.decisions import read_refined, settled_decisions
from likeness.evaluation.scores import Checkpoint, Scores
from likeness.report.archive import Previous, previous_loras
from likeness.tables import CANDIDATE, CAPTIONS, DECISIONS, FACES, HOLDOUT, MASKS, QUALITY, SCORES, read_rows
from likeness.tables_surgery import ABLATION, CROSSTALK, OVERLAPS, PROBE

Row = dict[str, Any]
FACTS = ("framing", "pose", "light", "background")
MEASURES = (
    ("sharpness", 0),
    ("face_px", 0),
    ("identity_cosine", 2),
    ("background_ssim", 2),
    ("shift_px", 1),
    ("pair_identity", 2),
)


@dataclass(frozen=True)
class Photo:
    """One photo or pair as the pages show it; `files` are (role, path), `measures` (column, value, digits).

    `doubts` are the rules that a caption by hand breaks; those of a model were mended.
    """

    name: str
    files: tuple[tuple[str, str], ...]
    kept_in: tuple[str, ...]
    rule: str
    reason: str
    caption: str
    caption_by: str
    mask_sha256: str | None
    facts: tuple[tuple[str, str], ...]
    measures: tuple[tuple[str, float, int], ...]
    light_cluster: int | None = None
    background_cluster: int | None = None
    repeats: int = 1
    doubts: tuple[str, ...] = ()

    @property
    def fate(self) -> str:
        if self.kept_in:
            return "kept"
        return "held out" if self.rule == "held_out" else "dropped"

    def fact(self, name: str) -> str | None:
        return dict(self.facts).get(name)


@dataclass(frozen=True)
class Funnel:
    """How many samples were found, and how many each phase trains on; `dropped` counts rules of the first phase.

    In `unsettled` phases these are candidates, of which the losses of a training will drop some.
    """

    found: int
    phases: tuple[tuple[str, int], ...]
    dropped: tuple[tuple[str, int], ...]
    unsettled: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Subject:
    """All that one subject's part of a page needs; `rows` are its score rows, of the distilled model as well.

    `operations` are the records of what surgery made; `ablations` and `probes` are tables, `crosstalks` pairs of tables
    (losses, overlaps of modules) of what was measured beside the choice; all by name. `refined` are the candidates of the
    phases that read training losses, by name of the phase, each with its own name as `id`. `steps_taken` are the last steps
    of finished trainings, by variant and phase. `samples_held_out` leaves out their near duplicates; None where the page does
    not ask.
    """

    name: str
    settings: dict[str, Any]
    photos: tuple[Photo, ...]
    funnel: Funnel
    rows: tuple[Row, ...] = ()
    best: dict[str, Any] | None = None
    previous: tuple[Previous, ...] = ()
    timings: tuple[tuple[str, int, float], ...] = ()
    operations: Mapping[str, Row] = field(default_factory=dict)
    ablations: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    crosstalks: Mapping[str, tuple[Sequence[Row], Sequence[Row]]] = field(default_factory=dict)
    probes: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    refined: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    steps_taken: Mapping[tuple[str, str], int] = field(default_factory=dict)
    samples_held_out: int | None = None

    @cached_property
    def resolved(self) -> SubjectSettings:
        """The settings as the jobs read them, with what they derive."""
        return SubjectSettings.model_validate(self.settings)

    @property
    def recipe(self) -> str:
        return self.settings["recipe"]

    @property
    def sample_word(self) -> str:
        return "pair" if self.recipe == "edit" else "photo"

    @property
    def kept(self) -> list[Photo]:
        return [photo for photo in self.photos if photo.kept_in]

    @property
    def held_out(self) -> int:
        return sum(photo.fate == "held out" for photo in self.photos)

    @property
    def chosen(self) -> Checkpoint | None:
        if not self.best or self.best.get("variant") is None:
            return None
        return Checkpoint(self.best["variant"], self.best["phase"], self.best["step"])

    @cached_property
    def scores(self) -> Scores:
        """Scores on the base model that training used."""
        return Scores(self.rows)

    @cached_property
    def distilled(self) -> Scores | None:
        """The finalists' scores on the distilled model, where one is configured."""
        others = [row for row in self.rows if row["base_model"] != self.scores.base_model]
        return Scores(others) if others else None


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def gather_curation(results: Path, name: str, settings: dict[str, Any]) -> Subject:
    """What curation wrote of one subject."""
    folder = results / name
    held = [row for row in read_rows(folder / "phases" / "holdout.parquet", HOLDOUT) if row["use"] == "held_out"]
    decided = decided_subject(folder, settings, read_rows(folder / "phases" / "decisions.parquet", DECISIONS))
    return replace(decided, samples_held_out=len(held))


def decided_subject(folder: Path, settings: dict[str, Any], decisions: Sequence[Row]) -> Subject:
    """A subject with what these decisions made of its photos."""
    photos = gather_photos(folder, settings, decisions)
    return Subject(folder.name, settings, photos, gather_funnel(settings, decisions))


def gather_subject(results: Path, name: str, settings: dict[str, Any]) -> Subject:
    """What curation, evaluation, choice and publishing wrote of one subject."""
    folder = results / name
    best = read_json(folder / "best.json")
    decisions = settled_decisions(folder / "phases")
    return replace(
        decided_subject(folder, settings, decisions),
        rows=tuple(row for path in score_tables(folder, settings) for row in read_rows(path, SCORES)),
        best=best,
        previous=tuple(previous_loras(folder / "lora", (best or {}).get("lora_sha256"))),
        timings=tuple(gather_timings(results, name)),
        operations={one: read_json(folder / "surgery" / f"{one}.json")[0] for one in candidates_of(settings)},
        ablations={
            one: read_rows(folder / "ablation" / f"{one}.parquet", ABLATION) for one in settings.get("ablation", {})
        },
        crosstalks={one: read_crosstalk(folder / "crosstalk" / one) for one in settings.get("crosstalk", {})},
        probes={one: read_rows(folder / "probe" / f"{one}.parquet", PROBE) for one in settings.get("probe", {})},
        refined={phase: gather_refined(folder, phase, decisions) for phase in phases_with_losses(settings)},
        steps_taken=gather_steps(folder, settings),
    )


def gather_steps(folder: Path, settings: Mapping[str, Any]) -> dict[tuple[str, str], int]:
    """The last step that each training listed, by variant and phase."""
    found: dict[tuple[str, str], int] = {}
    for variant, own in settings["variants"].items():
        for phase in () if own["lora"] else phases_of(settings, variant):
            listed = read_json(folder / "train" / variant / phase / "steps.json")
            found |= {(variant, phase): max(one["step"] for one in listed)} if listed else {}
    return found


def phases_with_losses(settings: Mapping[str, Any]) -> list[str]:
    """Phases that read the losses of a training."""
    return [name for name, phase in settings["phases"].items() if phase.get("losses_of")]


def gather_refined(folder: Path, phase: str, decisions: Sequence[Row]) -> list[Row]:
    """Candidates of a phase with their losses, by name; the worst learned first."""
    refined = read_refined(folder / "phases", phase)
    own = (row for row in decisions if row["phase"] == phase and row["sample_id"] in refined)
    found = [refined[row["sample_id"]] | {"id": row["id"]} for row in own]
    return sorted(found, key=lambda row: (-(row["train_loss_percentile"] or 0), row["id"]))


def read_crosstalk(folder: Path) -> tuple[Sequence[Row], Sequence[Row]]:
    """Losses and overlaps of one pair of LoRAs."""
    return read_rows(folder / "losses.parquet", CROSSTALK), read_rows(folder / "overlaps.parquet", OVERLAPS)


def score_tables(folder: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Every score table of a subject in the order of the configuration: tables of variants that are gone stay out."""
    evaluation = folder / "evaluation"
    names = ["base"]
    for variant, own in settings["variants"].items():
        phases = ["files"] if own["lora"] else phases_of(settings, variant)
        names += [f"{variant}/{phase}" for phase in phases]
    names += [f"{name}/{SURGERY}" for name in candidates_of(settings)]
    return [evaluation / name / "scores.parquet" for name in [*names, "report-half"]]


def candidates_of(settings: Mapping[str, Any]) -> list[str]:
    """Names of everything that surgery makes."""
    entries = settings.get("surgery", {}).items()
    return [one for name, entry in entries for one, _ in Surgery.model_validate(entry).candidates(name)]


def phases_of(settings: Mapping[str, Any], variant: str) -> list[str]:
    """Phases that a trained variant runs, in order."""
    chosen = settings["variants"][variant]["phases"]
    return [name for name in settings["phases"] if not chosen or name in chosen]


def gather_funnel(settings: Mapping[str, Any], decisions: Sequence[Row]) -> Funnel:
    phases = list(settings["phases"])
    kept = Counter(row["phase"] for row in decisions if row["kept"])
    first = [row for row in decisions if row["phase"] == phases[0]]
    dropped = Counter(row["rule"] for row in first if not row["kept"])
    ordered = sorted(dropped.items(), key=lambda entry: (-entry[1], entry[0]))
    unsettled = frozenset(row["phase"] for row in decisions if row["rule"] == CANDIDATE)
    return Funnel(len(first), tuple((phase, kept[phase]) for phase in phases), tuple(ordered), unsettled)


def gather_photos(folder: Path, settings: Mapping[str, Any], decisions: Sequence[Row]) -> tuple[Photo, ...]:
    """One entry a photo or pair: its files, fate, caption and mask."""
    pairs = settings["recipe"] == "edit"
    images = read_rows(folder / ("pairs.parquet" if pairs else "photos.parquet"))
    captions = {row["id"]: row for row in read_rows(folder / "captions.parquet", CAPTIONS)}
    quality = {row["id"]: row for row in read_rows(folder / "quality.parquet", QUALITY)}
    masks = masks_of(folder, settings["training"]["masked_loss"]["kind"] or "head")
    by_name: defaultdict[str, list[Row]] = defaultdict(list)
    for row in decisions:
        by_name[row["id"]].append(row)
    first_phase = next(iter(settings["phases"]))
    found = []
    for image in images:
        name, own = image["id"], by_name[image["id"]]
        undecided = {"rule": image["status"], "reason": image["reason"]}
        first = next((row for row in own if row["phase"] == first_phase), undecided)
        caption, measures = captions.get(name, {}), quality.get(name, {})
        found.append(
            Photo(
                name=name,
                files=files_of(image, pairs),
                kept_in=tuple(row["phase"] for row in own if row["kept"]),
                rule=first["rule"],
                reason=first["reason"] or "",
                caption=caption.get("caption") or "",
                caption_by=caption.get("caption_by") or "",
                mask_sha256=masks.get(name),
                facts=tuple((key, str(measures[key])) for key in FACTS if measures.get(key)),
                measures=tuple(
                    (key, measures[key], digits) for key, digits in MEASURES if measures.get(key) is not None
                ),
                light_cluster=measures.get("light_cluster"),
                background_cluster=measures.get("background_cluster"),
                repeats=image["repeats"] or 1,
                doubts=doubts_of(caption),
            )
        )
    return tuple(found)


def doubts_of(caption: Row) -> tuple[str, ...]:
    """The rules that a caption breaks as training reads it: a hand's alone, which has no raw form."""
    by_hand = bool(caption.get("caption")) and caption.get("caption_raw") is None
    return tuple(caption.get("violations") or ()) if by_hand else ()


def masks_of(folder: Path, kind: str) -> dict[str, str]:
    """The stored mask of each photo's subject, or of each pair's target."""
    faces = read_rows(folder / "faces.parquet", FACES)
    subjects = {(row["id"], row["role"], row["face"]) for row in faces if row["is_subject"]}
    return {
        row["id"]: row["mask_sha256"]
        for row in read_rows(folder / "masks.parquet", MASKS)
        if row["kind"] == kind
        and row["role"] in ("photo", "target")
        and (row["id"], row["role"], row["face"]) in subjects
    }


def files_of(image: Row, pairs: bool) -> tuple[tuple[str, str], ...]:
    """(role, path) of the files behind one row."""
    if not pairs:
        return (("photo", image["path"]),)
    references = [(f"reference {place}", path) for place, path in enumerate(image["reference_paths"] or [], 1)]
    files = [("source", image["source_path"]), *references, ("target", image["target_path"])]
    return tuple((role, path) for role, path in files if path)


def gather_timings(results: Path, name: str) -> Iterable[tuple[str, int, float]]:
    """(rule, jobs, seconds) from Snakemake's benchmark files of one subject."""
    for rule in sorted(path for path in (results / ".benchmarks").glob("*") if path.is_dir()):
        files = [path for path in sorted(rule.rglob("*.tsv")) if belongs(path.relative_to(rule), name)]
        seconds = 0.0
        for path in files:
            with path.open(encoding="utf-8", newline="") as file:
                seconds += sum(float(row["s"]) for row in csv.DictReader(file, delimiter="\t"))
        if files:
            yield rule.name, len(files), seconds


def belongs(path: Path, subject: str) -> bool:
    """Whether a benchmark file is a subject's: its path below the rule's folder starts with the name."""
    return path.with_suffix("").parts[0] == subject

"""The three scoring programs: the bare base, all checkpoints on the select half, the finalists on the report half.

All draw through one `Workplace`, which knows the grid, the subject's photos and the models; what is in the store is
neither drawn nor measured again, and a program with nothing to do loads no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from likeness.config.evaluation import ChoiceStage, ScoreStage
from likeness.errors import DamagedFileError, UserError
from likeness.evaluation.calibration import calibration_of, subject_of_photos
from likeness.evaluation.choice import finalists, rank, recommended_scale
from likeness.evaluation.draw import Drawer, LoraFile, Request, Weights
from likeness.evaluation.measure import Drawn, score_rows
from likeness.evaluation.models import Models
from likeness.evaluation.pictures import Pictures
from likeness.evaluation.prompts import REPORT, SELECT, GridPoint, edit_grid, photo_grid
from likeness.evaluation.recognise import Recogniser
from likeness.evaluation.sample import Sample, Subject
from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint, Scores
from likeness.evaluation.sheet import write_images, write_sheet
from likeness.locks import writing
from likeness.photos.images import ImageRef, read_image_rows, read_images
from likeness.program import as_about
from likeness.store import Store, Work, sha256_of_file, write_atomically
from likeness.tables import HOLDOUT, MANIFEST, SCORES, read_rows, write_table

VERSION = 1
LARGEST_STEP = 2**63 - 1
"""A larger number in a file's name, such as a date with a random tail, is no step: the table holds none."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Entry:
    """A checkpoint with its LoRA file (None for the bare base), and weights by block where not every block counts 1."""

    checkpoint: Checkpoint
    lora: LoraFile | None
    weights: Weights = ()


BASE_ENTRY = Entry(BASE_CHECKPOINT, None)


class Workplace:
    """The grid, the photos and the models of one subject's scoring."""

    def __init__(self, stage: ScoreStage, holdout: Path, manifests: Sequence[Path], images: Path, store: Store) -> None:
        self.stage, self.store = stage, store
        self._holdout = read_rows(holdout, HOLDOUT)
        self._training = [row for manifest in sorted(manifests) for row in read_rows(manifest, MANIFEST)]
        self._image_rows = read_image_rows(images)
        by_sha256 = {image.sha256: image for image in reversed(read_images(images))}
        self.images: dict[str, ImageRef] = by_sha256
        self.pictures = Pictures(store, by_sha256, stage.evaluation.enlarge_to_px)
        self.recogniser = Recogniser(stage.evaluation, store, stage.offline)
        self.models = Models(stage.evaluation, store, stage.offline)
        self.drawer = Drawer(stage, store, by_sha256)
        self._drawers = [self.drawer]

    @property
    def models_loaded(self) -> int:
        drawn_with = sum(drawer.models_loaded for drawer in self._drawers)
        return drawn_with + self.recogniser.models_loaded + self.models.loaded

    def work(self) -> Work:
        """What was drawn, measured and loaded."""
        return self.store.work(self.models_loaded)

    @cached_property
    def points(self) -> list[GridPoint]:
        """All images of the grid, both halves."""
        stage = self.stage
        if stage.kind == "pairs":
            if stage.prompts:
                print(f"an edit is measured on its held-out pairs; its {len(stage.prompts)} prompts are not drawn")
            pairs = [row for row in self._image_rows if row["status"] == "ok"]
            return edit_grid(self._holdout, pairs, stage.evaluation.seeds, self._size_of_pair)
        size_px = (stage.evaluation.width_px, stage.evaluation.height_px)
        return photo_grid(stage.prompts, stage.evaluation.seeds, stage.trigger, stage.class_word, size_px)

    def calibration(self, base_folder: Path) -> dict[str, Any]:
        """Read calibration.json; UserError where it is absent, or made by another kind of recogniser than is at hand."""
        path = base_folder / "calibration.json"
        if not path.is_file():
            raise UserError(f"{path} is missing. Run score_base first.")
        found = json.loads(path.read_text("utf-8"))
        self.recogniser.check_calibration(found["recogniser"])
        return found

    def half(self, split: str) -> list[GridPoint]:
        return [point for point in self.points if point.split == split]

    def _size_of_pair(self, pair: Mapping[str, Any]) -> tuple[int, int]:
        from likeness.training.buckets import assign_bucket, bucket_sizes

        sizes = bucket_sizes(self.stage.buckets, self.drawer.token_px)
        return assign_bucket(pair["width_px"], pair["height_px"], sizes)

    @cached_property
    def photos(self) -> Subject:
        """The subject as its photos show it; an edit's pairs show many people, so only the recipe is known."""
        about = Subject(self.stage.recipe, self.stage.trigger, self.stage.class_word)
        if self.stage.kind == "pairs":
            return about
        held_out = list(dict.fromkeys(row["image_sha256"] for row in self._holdout))
        training = sorted({row["image_sha256"] for row in self._training})
        return subject_of_photos(about, held_out, training, self.pictures, self.recogniser, self.models)

    def draw(
        self, entries: Sequence[Entry], points: Sequence[GridPoint], scales: Sequence[float] = (1.0,)
    ) -> list[Shot]:
        """Draw every entry at every point and scale."""
        return self.draw_with(self.drawer, entries, points, scales)

    def draw_with(
        self, drawer: Drawer, entries: Sequence[Entry], points: Sequence[GridPoint], scales: Sequence[float] = (1.0,)
    ) -> list[Shot]:
        """The same by another drawer, whose models count as well."""
        if drawer not in self._drawers:
            self._drawers.append(drawer)
        wanted = [
            (entry, Request(point, entry.lora, scale if entry.lora else 1.0, entry.weights))
            for entry in entries
            for scale in (scales if entry.lora else (1.0,))
            for point in points
        ]
        found = drawer.draw([request for _, request in wanted])
        return [Shot(entry, request, found[request], drawer.fingerprint) for entry, request in wanted]

    def draw_distilled(self, entries: Sequence[Entry], points: Sequence[GridPoint]) -> list[Shot]:
        """The same with the distilled model, the bare one among them; nothing where none is configured."""
        model = self.stage.evaluation.distilled_model
        if model is None or not entries:
            return []
        drawer = Drawer(self.stage, self.store, self.images, model)
        return self.draw_with(drawer, [BASE_ENTRY, *entries], points)

    def rows(
        self, name: str, shots: Sequence[Shot], calibration: dict[str, Any], base_shots: Sequence[Shot]
    ) -> list[Row]:
        """Measure shots against the base's images of the same points and model."""
        subject = replace(self.photos, calibration=calibration)
        base = {shot.against_key: shot.sha256 for shot in base_shots}
        groups: dict[Any, list[Shot]] = {}
        for shot in shots:
            groups.setdefault(shot.group, []).append(shot)
        drawn = []
        for shot in shots:
            siblings = tuple(
                other.sha256 for other in groups[shot.group] if other.request.point.seed != shot.request.point.seed
            )
            sample = Sample(
                point=shot.request.point,
                image_sha256=shot.sha256,
                base_sha256=base.get(shot.against_key),
                sibling_sha256s=siblings,
                is_base=shot.entry.lora is None,
                subject=subject,
                pictures=self.pictures,
                recogniser=self.recogniser,
                models=self.models,
            )
            sha256 = shot.entry.lora.sha256 if shot.entry.lora else ""
            scale = shot.request.scale
            drawn.append(Drawn(shot.entry.checkpoint, sha256, scale, shot.base_model, sample))
        return score_rows(name, drawn, self.store)


NO_SETTINGS = {"base_model", "has_recogniser"}
"""What of the slice tables tell otherwise: by the model's fingerprint, and by each row's status."""


@dataclass(frozen=True)
class Shot:
    """One drawn image."""

    entry: Entry
    request: Request
    sha256: str
    base_model: str

    @property
    def against_key(self) -> tuple[str, GridPoint]:
        """Which base image it is compared with."""
        return (self.base_model, self.request.point)

    @property
    def group(self) -> tuple[Any, ...]:
        """Images of one prompt that differ by their seed only."""
        point = self.request.point
        return (self.base_model, self.entry, self.request.scale, point.prompt_id, point.split)


def score_base(workplace: Workplace, output_folder: Path) -> None:
    """Draw and measure the bare base on both halves; write scores.parquet, calibration.json, images and the sheet."""
    with writing(output_folder):
        shots = workplace.draw([BASE_ENTRY], workplace.points)
        calibration = calibrate(workplace, shots)
        text = json.dumps(calibration, indent=1, sort_keys=True) + "\n"
        write_atomically(output_folder / "calibration.json", text.encode())
        rows = workplace.rows(subject_name(output_folder), shots, calibration, shots)
        write_scores(workplace, rows, shots, output_folder)


def calibrate(workplace: Workplace, base_shots: Sequence[Shot]) -> dict[str, Any]:
    """Genuine level from the photos, impostor level from the base's people on the select half."""
    recogniser, subject = workplace.recogniser, workplace.photos
    shots = [shot for shot in base_shots if shot.request.point.split == SELECT and shot.request.point.kind != "neutral"]
    embeddings = []
    for shot in shots if workplace.stage.kind == "photos" else []:
        face = recogniser.face(shot.sha256, lambda sha256=shot.sha256: workplace.pictures.generated(sha256))
        if face is not None and face.embedding_D is not None:
            embeddings.append(face.embedding_D.astype(np.float64))
    return calibration_of(subject, np.stack(embeddings) if embeddings else None, recogniser)


def score_checkpoints(workplace: Workplace, entries: Sequence[Entry], base_folder: Path, output_folder: Path) -> None:
    """Draw and measure checkpoints on the select half; write scores.parquet, images and the sheet."""
    calibration = workplace.calibration(base_folder)
    with writing(output_folder):
        points = workplace.half(SELECT)
        base_shots = workplace.draw([BASE_ENTRY], points)
        shots = workplace.draw(entries, points)
        rows = workplace.rows(subject_name(output_folder), shots, calibration, base_shots)
        write_scores(workplace, rows, shots, output_folder, base_shots)


def score_finalists(
    workplace: Workplace,
    choice: ChoiceStage,
    score_tables: Sequence[Path],
    loras: dict[str, LoraFile],
    base_folder: Path,
    output_folder: Path,
) -> None:
    """Draw the finalists over strengths (select half) and on the report half, and on the distilled model if there is one.

    `loras` maps a LoRA's sha256 to its file. Without a choice the table is empty and the reason is printed.
    """
    tables = dict.fromkeys([*score_tables, base_folder / "scores.parquet"])
    known = [row for table in tables for row in read_rows(table, SCORES)]
    scores, calibration = Scores(known), workplace.calibration(base_folder)
    ranking = rank(scores, choice)
    chosen = finalists(ranking, choice, scores.candidates)
    if ranking.chosen is None:
        print(f"no finalists by rule: {ranking.reason}")
    with writing(output_folder):
        entries = [Entry(one, lora_of(scores.sha256s[one], loras, workplace.store, str(one))) for one in chosen]
        select, report = workplace.half(SELECT), workplace.half(REPORT)
        if entries and not report:
            print("no image belongs to the report half: add a prompt or a seed, else best.json has no numbers")
        strengths = [scale for scale in workplace.stage.evaluation.strengths if scale != 1.0]
        name = subject_name(output_folder)
        base_select = workplace.draw([BASE_ENTRY], select) if entries else []
        shots = workplace.draw(entries, select, strengths) if strengths else []
        rows = workplace.rows(name, shots, calibration, base_select)
        combined = Scores([*known, *rows])
        base_report = workplace.draw([BASE_ENTRY], report) if entries else []
        reported = []
        for entry in entries:
            scale = recommended_scale(combined, entry.checkpoint, ranking.metric, choice) if ranking.metric else 1.0
            reported += workplace.draw([entry], report, sorted({1.0, scale}))
        rows += workplace.rows(name, reported, calibration, base_report)
        distilled = workplace.draw_distilled(entries, select)
        rows += workplace.rows(name, distilled, calibration, [shot for shot in distilled if shot.entry == BASE_ENTRY])
        write_scores(workplace, rows, [*shots, *reported, *distilled], output_folder, [*base_select, *base_report])


def write_scores(
    workplace: Workplace, rows: Sequence[Row], shots: Sequence[Shot], folder: Path, base_shots: Sequence[Shot] = ()
) -> None:
    """Write the table, the folder of images and the contact sheet."""
    about = as_about(
        "scores", VERSION, workplace.stage.model_dump(mode="json", exclude=NO_SETTINGS, exclude_unset=True)
    )
    own = workplace.drawer.fingerprint
    models = {shot: "" if shot.base_model == own else "-distilled" for shot in [*base_shots, *shots]}
    write_images(folder / "images", {image_name(shot, models[shot]): shot.sha256 for shot in shots}, workplace.store)
    labels = {shot: column_label(shot, model, names_phase(models)) for shot, model in models.items()}
    sheet = {(row_label(shot), label): shot.sha256 for shot, label in labels.items()}
    lines = list(dict.fromkeys(row for row, _ in sheet))
    columns = list(dict.fromkeys(column for _, column in sheet))
    write_sheet(folder / "sheet.jpg", lines, columns, sheet, workplace.store)
    write_table(folder / "scores.parquet", SCORES, rows, about | {"base_model": own})


def image_name(shot: Shot, model: str) -> str:
    """Name of an image's file below images/, without its ending; `model` is empty for the base that was trained on."""
    point, checkpoint = shot.request.point, shot.entry.checkpoint
    of = f"{checkpoint.variant}-{checkpoint.phase}-{checkpoint.step:06d}" if shot.entry.lora else "base"
    strength = "" if shot.request.scale == 1.0 else f"-strength-{shot.request.scale:g}"
    return f"{of}{strength}{model}/{point.split}-{point.prompt_id}-{point.seed}"


def row_label(shot: Shot) -> str:
    return f"{shot.request.point.prompt_id} {shot.request.point.seed}"


def names_phase(shots: Iterable[Shot]) -> bool:
    """Whether headings need the phase: where a variant was drawn after several of them."""
    phases = {(shot.entry.checkpoint.variant, shot.entry.checkpoint.phase) for shot in shots if shot.entry.lora}
    return len(phases) > len({variant for variant, _ in phases})


def column_label(shot: Shot, model: str, with_phase: bool) -> str:
    """Heading of a column: variant, phase where asked for, and step, or base; strengths and the distilled model are named."""
    if shot.entry.lora is None:
        return f"base{model}"
    checkpoint = shot.entry.checkpoint
    of = f"{checkpoint.variant} {checkpoint.phase}" if with_phase else checkpoint.variant
    strength = "" if shot.request.scale == 1.0 else f" x{shot.request.scale:g}"
    return f"{of} {checkpoint.step}{strength}{model}"


def subject_name(output_folder: Path) -> str:
    """The subject's name: the folder above `evaluation`."""
    parts = output_folder.parts
    if "evaluation" not in parts[1:]:
        raise UserError(
            f"--output-folder: {output_folder} must lie below <subject>/evaluation, which names the subject."
        )
    return parts[len(parts) - 1 - parts[::-1].index("evaluation") - 1]


def entries_of_steps(variant: str, phase: str, steps_json: Path, store: Store) -> list[Entry]:
    """Checkpoints that training listed in steps.json, by step."""
    listed = json.loads(steps_json.read_text("utf-8"))
    entries = [
        Entry(Checkpoint(variant, phase, one["step"]), existing(steps_json.parent / one["file"], one["sha256"], store))
        for one in listed
    ]
    return sorted(entries, key=lambda entry: entry.checkpoint.step)


def entries_of_files(variant: str, phase: str, files: Sequence[Path], store: Store) -> list[Entry]:
    """Finished LoRA files as checkpoints: the step is the last number of the name, or the file's place where names repeat one.

    Their bytes are kept in the store, so that finalists and publishing find them by hash. Raises UserError without a file.
    """
    if not files:
        raise UserError(f"variants.{variant}.lora: no file matches. Give a glob of .safetensors files.")
    ordered = sorted(files)
    numbers = [int(found[-1]) if (found := re.findall(r"\d+", path.stem)) else -1 for path in ordered]
    numbers = [number if number <= LARGEST_STEP else -1 for number in numbers]
    if len(set(numbers)) < len(numbers) or -1 in numbers:
        numbers = list(range(1, len(ordered) + 1))
    entries = []
    for step, path in zip(numbers, ordered, strict=True):
        sha256 = store.save_blob(path.read_bytes())
        entries.append(Entry(Checkpoint(variant, phase, step), LoraFile(path, sha256)))
    return sorted(entries, key=lambda entry: entry.checkpoint.step)


def loras_by_hash(steps_jsons: Sequence[Path], files: Sequence[Path], store: Store) -> dict[str, LoraFile]:
    """Every checkpoint that training listed, and every finished file, by its sha256."""
    found = {sha256: LoraFile(path, sha256) for path in files for sha256 in [sha256_of_file(path)]}
    for steps_json in steps_jsons:
        for one in json.loads(steps_json.read_text("utf-8")):
            found[one["sha256"]] = existing(steps_json.parent / one["file"], one["sha256"], store)
    return found


def lora_of(sha256: str, loras: dict[str, LoraFile], store: Store, name: str) -> LoraFile:
    """A LoRA by hash, from the listed files or the store; UserError where neither has it."""
    if sha256 in loras:
        return loras[sha256]
    try:
        return LoraFile(store.path_of(sha256), sha256)
    except DamagedFileError as error:
        raise UserError(
            f"the LoRA of {name} (sha256 {sha256[:12]}…) is in no steps.json and not in the store. Train or score it again."
        ) from error


def existing(path: Path, sha256: str, store: Store) -> LoraFile:
    """A by-product, or its copy in the store where the by-product was deleted or changed."""
    if path.is_file() and sha256_of_file(path) == sha256:
        return LoraFile(path, sha256)
    return LoraFile(store.path_of(sha256), sha256)

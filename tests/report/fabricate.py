"""A small but complete results folder, made up: a character with two variants (one over-trained) and an edit in three phases.

Nothing is trained or drawn by a model. Scores follow smooth curves with noise from a hash, and go through the real
choice and the real model card, so that the shapes are those of a real run.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from likeness.config.evaluation import ChoiceStage, PublishStage
from likeness.config.subject import Subject
from likeness.evaluation.card import write_card
from likeness.evaluation.choice import best_record, finalists, rank
from likeness.evaluation.scores import BASE_CHECKPOINT, Checkpoint, Scores
from likeness.store import Store, write_atomically
from likeness.tables import (
    CAPTIONS,
    DECISIONS,
    FACES,
    HOLDOUT,
    MASKS,
    PAIRS,
    PHOTOS,
    QUALITY,
    SCORES,
    Table,
    write_table,
)

BASE_MODEL, DISTILLED = "miniature-0123456789abcdef", "distilled-fedcba9876543210"
PREVIOUS = "ab12cd34ef56"
Row = dict[str, Any]
SUBJECT_PROMPTS = ("red", "green", "blue", "white", "black", "yellow", "left", "right")


def noise(*key: Any) -> float:
    """A number in -1..1 that belongs to a key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") / 2**31 - 1


def draw_face(key: str, width_px: int, height_px: int, smiling: bool = False, white: bool = False) -> Image.Image:
    """A face of few strokes before a plain background; colours belong to the key."""
    hue = int(abs(noise(key, "hue")) * 255)
    back = (255, 255, 255) if white else Image.new("HSV", (1, 1), (hue, 110, 190)).convert("RGB").getpixel((0, 0))
    image = Image.new("RGB", (width_px, height_px), back)
    pen = ImageDraw.Draw(image)
    x, y, size = width_px * (0.5 + 0.08 * noise(key, "x")), height_px * 0.45, min(width_px, height_px) * 0.27
    pen.ellipse((x - size * 1.1, y - size * 1.35, x + size * 1.1, y + size * 0.8), fill=(60, 40, 30))
    pen.rectangle((x - size * 0.4, y + size * 0.6, x + size * 0.4, height_px), fill=(70, 80, 120))
    pen.ellipse((x - size * 0.9, y - size, x + size * 0.9, y + size * 1.2), fill=(226, 180, 150))
    for side in (-1, 1):
        pen.ellipse(
            (x + side * size * 0.4 - 0.1 * size, y - 0.1 * size, x + side * size * 0.4 + 0.1 * size, y + 0.1 * size),
            fill=(30, 30, 40),
        )
    mouth = (x - size * 0.4, y + size * 0.2, x + size * 0.4, y + size * 0.75)
    width = max(1, round(size * 0.1))
    if smiling:
        pen.arc(mouth, 20, 160, fill=(150, 40, 50), width=width)
    else:
        pen.line((mouth[0], mouth[3] - 0.1 * size, mouth[2], mouth[3] - 0.1 * size), fill=(150, 40, 50), width=width)
    return image


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@dataclass
class Run:
    """One fabricated run; `settings` are the resolved settings by subject, as the pages get them."""

    folder: Path
    settings: dict[str, dict[str, Any]]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def store(self) -> Store:
        return Store(self.results / ".store")

    def write(self, subject: str, kind: Table, rows: list[Row], name: str | None = None) -> None:
        write_table(self.results / subject / f"{name or kind.name}.parquet", kind, rows)

    def arguments(self) -> list[str]:
        """Flags of both programs."""
        settings = json.dumps({"settings": {"subjects": self.settings}, "code": ""})
        return ["--settings", settings, "--results", str(self.results), "--store", str(self.store.root)]


def fabricate(folder: Path) -> Run:
    """Write the whole results folder below `folder`."""
    run = Run(folder, {"robin": character_settings(folder), "robin-smiles": edit_settings(folder)})
    curate_character(run, "robin")
    curate_edit(run, "robin-smiles")
    evaluate_character(run, "robin")
    evaluate_edit(run, "robin-smiles")
    archive(run, "robin")
    for name in run.settings:
        for rule, seconds in (("train_lora", 61.25), ("score_base", 7.5)):
            path = run.results / ".benchmarks" / rule / name / "main" / "main.tsv"
            write_atomically(path, f"s\th:m:s\n{seconds + len(name)}\t0:01:01\n".encode())
    return run


def character_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "recipe": "character",
        "trigger": "r0bin",
        "photos": [{"path": str(folder / "data" / "robin")}],
        "base_model": {"source": "miniature"},
        "training": {"steps": 200, "save_every": 50, "batch_size": 8, "masked_loss": {"kind": "head"}},
        "variants": {"main": {}, "long": {"training": {"steps": 300, "learning_rate": 0.01}}},
    }
    return Subject.model_validate(values | changes).model_dump(mode="json")


def edit_settings(folder: Path, **changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "recipe": "edit",
        "trigger": "sm1le",
        "pairs": [{"path": str(folder / "data" / "robin-smiles")}],
        "base_model": {"source": "miniature"},
        "phases": {"broad": {"steps": 150}, "clean": {"steps": 100}, "best": {"steps": 50}},
        "training": {"save_every": 50},
    }
    return Subject.model_validate(values | changes).model_dump(mode="json")


# ---- curation ----------------------------------------------------------------------------------------------------------

DROPPED: dict[str, tuple[str, str]] = {
    "robin-01": ("held_out", "held out to measure against"),
    "robin-02": ("held_out", "held out to measure against"),
    "blurred": ("sharpness", "the face is blurred: 11.4 is below 60"),
    "coffee": ("no_face", "no face was found"),
    "near-copy": ("near_duplicate", "a near duplicate of robin-05, which is kept"),
    "stranger": ("identity", "another person: cosine 0.185 to the subject is below 0.5"),
}
LONG_NAME = "holiday-2019-with-a-very-long-folder-name-that-nobody-shortened-img-20190714-184523-edited-final"


def curate_character(run: Run, subject: str, kept: int = 11, side_px: int = 240, **quality: Any) -> None:
    """Photos, masks and decisions; `quality` replaces columns of every kept photo, by a value or a function of its place."""
    names = [f"robin-{place:02d}" for place in range(1, kept + 2)] + [LONG_NAME] + [*DROPPED][2:]
    photos, faces, masks, captions, measures, decisions = [], [], [], [], [], []
    for place, name in enumerate(names):
        path = run.folder / "data" / subject / f"{name}.png"
        image = draw_face(name, side_px, side_px + 60 * (place % 3))
        write_atomically(path, png(image))
        mask = Image.new("L", image.size)
        ImageDraw.Draw(mask).ellipse(
            (0.2 * image.width, 0.08 * image.height, 0.8 * image.width, 0.8 * image.height), fill=255
        )
        photos.append({"id": name, "path": str(path), "repeats": 1, "status": "ok", "reason": "", "format": "png"})
        faces.append({"id": name, "role": "photo", "face": 0, "is_subject": True, "status": "ok", "reason": ""})
        masks.append(
            {
                "id": name,
                "role": "photo",
                "face": 0,
                "kind": "head",
                "status": "ok",
                "reason": "",
                "mask_sha256": run.store.save_blob(png(mask)),
            }
        )
        rule, reason = DROPPED.get(name, ("kept", ""))
        if rule == "kept":
            text = (
                f"r0bin person, {('close portrait', 'half body', 'full body')[place % 3]}, even light, red background"
            )
            captions.append({"id": name, "caption": text, "caption_by": "facts", "status": "ok", "reason": ""})
        measures.append(
            {
                "id": name,
                "face": 0,
                "framing": ("close", "half", "full")[place % 3],
                "pose": "front",
                "light": "even",
                "background": "red",
                "sharpness": 120.0 + place,
                "face_px": 96.0,
                "identity_cosine": 0.8 + 0.01 * place,
                "light_cluster": place % 4,
                "background_cluster": place % 5,
                "status": "ok",
                "reason": "",
            }
            | (
                {key: value(place) if callable(value) else value for key, value in quality.items()}
                if rule == "kept"
                else {}
            )
        )
        decisions.append(
            {"phase": "main", "id": name, "sample_id": name, "kept": rule == "kept", "rule": rule, "reason": reason}
        )
    for kind, rows in ((PHOTOS, photos), (FACES, faces), (MASKS, masks), (CAPTIONS, captions), (QUALITY, measures)):
        run.write(subject, kind, rows)
    run.write(subject, DECISIONS, decisions, "phases/decisions")
    hold_out(run, subject, [row["id"] for row in decisions if row["rule"] == "held_out"])


def curate_edit(run: Run, subject: str, count: int = 16) -> None:
    """Pairs of which the last are dropped phase by phase."""
    pairs, decisions, captions, measures = [], [], [], []
    for place in range(count):
        name = f"{place + 1:02d}"
        paths = [run.folder / "data" / subject / f"{name}_{role}.png" for role in ("start", "end")]
        for path, smiling in zip(paths, (False, True), strict=True):
            write_atomically(path, png(draw_face(name, 180, 180, smiling, smiling)))
        pairs.append(
            {
                "id": name,
                "source_path": str(paths[0]),
                "target_path": str(paths[1]),
                "reference_paths": [],
                "repeats": 1,
                "status": "ok",
                "reason": "",
            }
        )
        captions.append(
            {"id": name, "caption": "make the person smile", "caption_by": "table", "status": "ok", "reason": ""}
        )
        measures.append(
            {
                "id": name,
                "face": 0,
                "background_ssim": 0.9,
                "shift_px": 0.1 * place,
                "pair_identity": 0.7,
                "status": "ok",
                "reason": "",
            }
        )
        for phase, kept in (("broad", 12), ("clean", 8), ("best", 5)):
            rule = "held_out" if place >= count - 2 else "where" if place >= kept else "kept"
            reason = {"held_out": "held out to measure against", "where": "shift_px < 1 is not met: 1.2"}.get(rule, "")
            decisions.append({"phase": phase, "id": name, "kept": rule == "kept", "rule": rule, "reason": reason})
    for kind, rows in ((PAIRS, pairs), (FACES, []), (MASKS, []), (CAPTIONS, captions), (QUALITY, measures)):
        run.write(subject, kind, rows)
    run.write(subject, DECISIONS, decisions, "phases/decisions")
    hold_out(run, subject, [row["id"] for row in decisions if row["rule"] == "held_out" and row["phase"] == "broad"])


def hold_out(run: Run, subject: str, names: Sequence[str]) -> None:
    """The samples that are held out, or with none the references."""
    rows = [{"sample_id": name, "caption": "", "repeats": 1, "use": "held_out"} for name in names]
    run.write(
        subject,
        HOLDOUT,
        rows or [{"sample_id": "any", "caption": "", "repeats": 1, "use": "reference"}],
        "phases/holdout",
    )


# ---- evaluation --------------------------------------------------------------------------------------------------------

Value = Callable[[Checkpoint, float, str, int], Mapping[str, float | str]]


def character_values(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
    """Metrics of one image: `main` learns and stays, `long` peaks at step 100 and falls."""
    if at == BASE_CHECKPOINT:
        gain = 0.0
    elif at.variant == "main":
        gain = 0.8 * min(1.0, at.step / 150)
    else:
        gain = 0.7 * min(1.0, at.step / 100) - 0.5 * max(0.0, at.step / 100 - 1)
    gain *= 1 - 0.8 * (scale - 0.95) ** 2
    wobble = 0.04 * noise(at, prompt, seed)
    return {
        "csim": 0.1 + 0.7 * (gain + wobble),
        "likeness": gain + wobble,
        "descriptor_cosine": 0.3 + 0.2 * gain,
        "detected": 1.0,
        "diversity": 0.2 - 0.03 * gain + 0.01 * wobble,
        "head_ratio": 1.05 + 0.05 * wobble,
        "background_ssim": 0.95 - 0.1 * gain + wobble / 4,
        "copying": 0.02 + wobble / 10,
        "lpips": "no_weights: evaluation.lpips names no file",
        "style_similarity": "not_applicable: for a style only",
    }


def edit_values(at: Checkpoint, scale: float, prompt: str, seed: int) -> dict[str, float | str]:
    """Metrics of one edited image: the error to the target falls in every phase."""
    done = 0 if at == BASE_CHECKPOINT else {"broad": 0, "clean": 150, "best": 250}[at.phase] + at.step
    error = 0.06 * 0.4 ** (done / 80) + 0.0018 * (1.2 + noise(at, prompt, seed)) + 0.01 * (scale - 1) ** 2
    return {
        "target_error": error,
        "csim": 0.75 + 0.02 * noise(at, prompt),
        "likeness": "not_applicable: an edit shows many people",
        "background_ssim": 0.8 + 0.1 * min(1, done / 200) + 0.01 * noise(prompt, seed),
        "detected": 1.0,
        "shift_px": 0.01 + 0.005 * noise(prompt, at),
    }


def prompts_of(edit: bool, split: str) -> tuple[str, ...]:
    """Prompts of one half, or held-out pairs."""
    if edit:
        return tuple(f"{place:02d}" for place in range(1, 13))[(split == "report") :: 2]
    return (*SUBJECT_PROMPTS[(split == "report") :: 2], f"someone-{split}")


def score_rows(
    run: Run, subject: str, at: Checkpoint, split: str, values: Value, scale: float = 1.0, base_model: str = BASE_MODEL
) -> list[Row]:
    """Score rows of one checkpoint on one half, with an image in the store for each."""
    edit = run.settings[subject]["recipe"] == "edit"
    prompts = prompts_of(edit, split)
    rows = []
    for prompt in prompts:
        bleed = prompt.startswith("someone")
        text = (
            "make the person smile"
            if edit
            else f"{'a' if bleed else 'r0bin'} person, close portrait, {prompt} background"
        )
        for seed in (1, 2) if split == "select" else (3, 4):
            image = run.store.save_blob(
                png(
                    draw_face(
                        f"{prompt}{seed}{'' if edit else at.variant}", 16, 16, edit and at != BASE_CHECKPOINT, edit
                    )
                )
            )
            measured: dict[str, float | str] = dict(values(at, scale, prompt, seed))
            if not edit:
                unlike = "not_applicable: {} is not measured on {} prompts"
                measured["bleed_csim"] = (
                    0.08 + 0.02 * noise(at, seed) if bleed else unlike.format("bleed_csim", "subject")
                )
                if bleed:
                    measured |= {
                        name: unlike.format(name, "bleed")
                        for name in measured
                        if name not in ("bleed_csim", "detected")
                    }
            common = {
                "subject": subject,
                "variant": at.variant,
                "phase": at.phase,
                "step": at.step,
                "base_model": base_model,
                "lora_scale": scale,
                "prompt_id": prompt,
                "source_id": f"face-{int(prompt) // 4}" if edit else "",
                "prompt": text,
                "seed": seed,
                "split": split,
                "image": image,
            }
            common["lora_sha256"] = "" if at == BASE_CHECKPOINT else hashlib.sha256(repr(at).encode()).hexdigest()
            rows += [
                {
                    **common,
                    "metric": name,
                    "value": None if isinstance(found, str) else found,
                    "status": found if isinstance(found, str) else "ok",
                    "metric_version": f"{name}-1",
                }
                for name, found in sorted(measured.items())
            ]
    return rows


def evaluate(
    run: Run, subject: str, checkpoints: list[Checkpoint], values: Value, strengths: tuple[float, ...]
) -> None:
    """Write every score table, and best.json by the real choice."""

    def scored(at: Checkpoint, split: str, scale: float = 1.0, base_model: str = BASE_MODEL) -> list[Row]:
        return score_rows(run, subject, at, split, values, scale, base_model)

    tables = {"base": [*scored(BASE_CHECKPOINT, "select"), *scored(BASE_CHECKPOINT, "report")]}
    for at in checkpoints:
        tables.setdefault(f"{at.variant}/{at.phase}", []).extend(scored(at, "select"))
    known = [row for rows in tables.values() for row in rows]
    settings = run.settings[subject]
    stage = ChoiceStage.model_validate({"choice": settings["choice"], "finalists": 3, "recipe": settings["recipe"]})
    scores = Scores(known)
    final = finalists(rank(scores, stage), stage, scores.candidates)
    half = [row for at in final for scale in strengths if scale != 1.0 for row in scored(at, "select", scale)]
    half += [row for at in final for scale in (1.0, 0.8) for row in scored(at, "report", scale)]
    half += [row for at in (BASE_CHECKPOINT, *final) for row in scored(at, "select", 1.0, DISTILLED)]
    for name, rows in (tables | {"report-half": half}).items():
        run.write(subject, SCORES, rows, f"evaluation/{name}/scores")
    best = best_record([*known, *half], stage, CALIBRATION if settings["recipe"] == "character" else NO_LEVELS)
    write_best(run, subject, best)


CALIBRATION = {"genuine": 0.812, "impostor": 0.113, "n_genuine": 11, "n_impostor": 8, "recogniser": "miniature-judge"}
NO_LEVELS = {"genuine": None, "impostor": None, "n_genuine": 0, "n_impostor": 0, "recogniser": "miniature-judge"}


def write_best(run: Run, subject: str, best: dict[str, Any]) -> None:
    """Write best.json and published.json."""
    folder = run.results / subject
    write_atomically(folder / "best.json", json.dumps(best, indent=1).encode())
    published = {
        "subject": subject,
        **{key: best[key] for key in ("variant", "phase", "step", "lora_scale", "lora_sha256")},
        "files": {},
    }
    write_atomically(folder / "lora" / "published.json", json.dumps(published).encode())


def read_best(run: Run, subject: str) -> dict[str, Any]:
    return json.loads((run.results / subject / "best.json").read_text("utf-8"))


def evaluate_character(run: Run, subject: str, values: Value = character_values) -> None:
    checkpoints = [Checkpoint("main", "main", step) for step in (50, 100, 150, 200)]
    checkpoints += [Checkpoint("long", "main", step) for step in (50, 100, 150, 200, 250, 300)]
    evaluate(run, subject, checkpoints, values, (0.6, 0.8, 1.0, 1.2, 1.5))


def evaluate_edit(run: Run, subject: str, values: Value = edit_values) -> None:
    steps = {"broad": (50, 100, 150), "clean": (50, 100), "best": (50,)}
    checkpoints = [Checkpoint("main", phase, step) for phase, own in steps.items() for step in own]
    evaluate(run, subject, checkpoints, values, (0.8, 1.0, 1.2))


def archive(run: Run, subject: str) -> None:
    """What publishing leaves of the LoRA before: its card, made by the real writer."""
    before = read_best(run, subject)
    before |= {"variant": "main", "step": 100, "lora_scale": 1.0, "lora_sha256": PREVIOUS + "0" * 52}
    before["metrics"] = {
        name: {part: None if value is None else value if part == "n" else value - 0.1 for part, value in found.items()}
        for name, found in before["metrics"].items()
    }
    settings = run.settings[subject]
    stage = PublishStage.model_validate(
        {key: settings[key] for key in ("recipe", "trigger", "class_word", "base_model", "training")}
    )
    folder = run.results / subject / "lora" / "archive" / PREVIOUS
    write_atomically(folder / "README.md", write_card(subject, stage, before, [], [], 12).encode())

"""Publish the chosen checkpoint: both file formats, checked by loading, the card, and the archive of what was there before.

A checkpoint that is already in diffusers' layout keeps its bytes, so that its hash is the one in the score table. All
files are by-products; published.json lists them with their hashes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from likeness.config.evaluation import PublishStage
from likeness.decisions import settled_decisions
from likeness.evaluation.card import write_card
from likeness.evaluation.draw import LoraFile
from likeness.evaluation.prompts import REPORT
from likeness.evaluation.score import lora_of
from likeness.locks import writing
from likeness.store import Store, sha256_of_file, write_atomically
from likeness.tables import SCORES, read_rows
from likeness.trigger import trigger_pattern

VERSION = 1
MOST_SAMPLES = 6
RECORD = "published.json"


def publish_lora(
    stage: PublishStage,
    subject: str,
    best_json: Path,
    score_tables: Sequence[Path],
    loras: Mapping[str, LoraFile],
    decisions: Path,
    store: Store,
    output_folder: Path,
) -> dict[str, Any]:
    """Write the files below `output_folder` and return the content of published.json.

    Without a choice nothing is published: published.json says why, and what lay there goes to the archive. Raises
    UserError where the LoRA cannot be found, loaded back in full, or written for ComfyUI.
    """
    best = json.loads(best_json.read_text("utf-8"))
    with writing(output_folder):
        if best["variant"] is None:
            archive(output_folder, subject, keep_sha256=None)
            return write_record(output_folder, {"subject": subject, "reason": best["rule"], "files": {}})
        found = lora_of(best["lora_sha256"], dict(loras), store, f"{best['variant']}/{best['phase']}/{best['step']}")
        staging = output_folder / ".staging"
        shutil.rmtree(staging, ignore_errors=True)
        modules = write_files(staging, subject, found, stage, provenance_of(subject, best))
        archive(output_folder, subject, keep_sha256=sha256_of_file(staging / f"{subject}.safetensors"))
        comfyui = f"{subject}.comfyui.safetensors"
        if not (staging / comfyui).exists():
            (output_folder / comfyui).unlink(missing_ok=True)
        for path in sorted(staging.iterdir()):
            path.replace(output_folder / path.name)
        staging.rmdir()
        rows = [row for table in score_tables for row in read_rows(table, SCORES)]
        samples = write_samples(output_folder / "images", best, rows, store, stage.trigger)
        missing = "" if (output_folder / comfyui).exists() else no_comfyui()
        card = write_card(subject, stage, best, settled_decisions(decisions.parent), samples, modules, missing)
        write_atomically(output_folder / "README.md", card.encode())
        write_atomically(output_folder / "best.json", best_json.read_bytes())
        chosen = {name: best[name] for name in ("variant", "phase", "step", "lora_scale", "lora_sha256")}
        return write_record(
            output_folder, {"subject": subject, **chosen, "modules": modules, "files": listed(output_folder)}
        )


def provenance_of(subject: str, best: Mapping[str, Any]) -> dict[str, str]:
    """Where the weights come from, for the files' metadata."""
    return {
        "likeness_subject": subject,
        "likeness_checkpoint": f"{best['variant']}/{best['phase']}/{best['step']}",
        "likeness_lora_sha256": best["lora_sha256"],
    }


def write_files(folder: Path, subject: str, found: LoraFile, stage: PublishStage, provenance: Mapping[str, str]) -> int:
    """Write and check both formats; returns how many modules diffusers loads, which are all.

    What diffusers loads as it is keeps its bytes; of a LoKr the ComfyUI file is the LoRA that it equals. Of a DoRA there
    is none.
    """
    from likeness.errors import UserError
    from likeness.lora.comfyui import write_comfyui
    from likeness.lora.dora import is_dora, verify_dora
    from likeness.lora.files import read_lora, save_lora, verify_lora
    from likeness.lora.lokr import is_own_lokr
    from likeness.training.base import open_base

    if sha256_of_file(found.path) != found.sha256:
        raise UserError(f"{found.path}: its bytes are not those that were scored. Run the training's command again.")
    base = open_base(stage.base_model, offline=stage.offline)
    ours = folder / f"{subject}.safetensors"
    if is_dora(found.path):
        write_atomically(ours, found.path.read_bytes())
        return verify_dora(ours, base).modules
    lora = read_lora(found.path)
    if is_own_lokr(found.path) or (lora.format == "diffusers" and "lora_adapter_metadata" in lora.metadata):
        write_atomically(ours, found.path.read_bytes())
    else:
        save_lora(ours, lora, {**own_metadata(lora.metadata), **provenance})
    verified = verify_lora(ours, base, len(lora.modules))
    write_comfyui(
        folder / f"{subject}.comfyui.safetensors", lora, base.layout, {**own_metadata(lora.metadata), **provenance}
    )
    return verified.modules


def no_comfyui() -> str:
    """Why a published LoRA has no ComfyUI file: only a DoRA has none."""
    from likeness.lora.dora import NO_COMFYUI

    return NO_COMFYUI


def own_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A file's metadata without the keys that the writers set themselves."""
    return {key: value for key, value in metadata.items() if key not in ("format", "lora_adapter_metadata")}


def write_samples(
    folder: Path, best: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], store: Store, trigger: str
) -> list[tuple[str, str]]:
    """Restore a few report-half images of the chosen checkpoint, one a prompt; returns (relative file, prompt).

    Prompts with the trigger come first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    found: dict[str, Mapping[str, Any]] = {}
    for row in rows:
        is_ours = (row["variant"], row["phase"], row["step"]) == (best["variant"], best["phase"], best["step"])
        if is_ours and row["split"] == REPORT and row["lora_scale"] == best["lora_scale"]:
            first = found.get(row["prompt_id"])
            if first is None or row["seed"] < first["seed"]:
                found[row["prompt_id"]] = row
    samples = []
    is_with = trigger_pattern(trigger).search
    ordered = sorted(found.items(), key=lambda item: (is_with(item[1]["prompt"]) is None, item[0]))
    for prompt_id, row in ordered[:MOST_SAMPLES]:
        store.restore(row["image"], folder / f"{prompt_id}.png")
        samples.append((f"{folder.name}/{prompt_id}.png", row["prompt"]))
    return samples


def archive(folder: Path, subject: str, keep_sha256: str | None) -> None:
    """Move what was published before to archive/<first 12 digits of its hash>/, unless it is the same LoRA.

    The LoRA itself moves last: as long as it is there, a job that was killed on the way goes on.
    """
    old = folder / f"{subject}.safetensors"
    if not old.is_file() or sha256_of_file(old) == keep_sha256:
        return
    target = folder / "archive" / sha256_of_file(old)[:12]
    target.mkdir(parents=True, exist_ok=True)
    for name in (f"{subject}.comfyui.safetensors", "README.md", "best.json", "images", old.name):
        if (folder / name).exists():
            if (target / name).is_dir():
                shutil.rmtree(target / name)
            (folder / name).replace(target / name)


def listed(folder: Path) -> dict[str, str]:
    """Every published and archived file by relative path, with its sha256."""
    return {
        path.relative_to(folder).as_posix(): sha256_of_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }


def write_record(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    write_atomically(
        folder / RECORD, (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
    )
    return record

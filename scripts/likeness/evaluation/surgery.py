"""Candidates made of finished LoRAs: the arithmetic of `lora`, as stored items that compete like checkpoints.

A candidate's key names its method and the bytes of its parents, so that a renamed entry, a retrained parent with the
same result or deleted results compute nothing. The file is a by-product, listed with its hash, its parents and what was
done in a record that is shaped like a training's steps.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from likeness.config.surgery import Surgery, SurgeryStage
from likeness.errors import UserError
from likeness.evaluation.draw import read_checked
from likeness.evaluation.parents import Found
from likeness.program import as_about
from likeness.store import Store, canonical_json, item_key, write_atomically
from likeness.tables import write_table
from likeness.tables_surgery import SURGERY

if TYPE_CHECKING:
    from likeness.klein.load import BaseModel
    from likeness.lora.adapter import Lora
    from likeness.lora.operation import Operation

VERSION = 3
STAGE = "surgery"
FILE = "lora.safetensors"
_FULL_RANK = 1024


def make_surgery(stage: SurgeryStage, parents: Sequence[Found], store: Store, output: Path) -> dict[str, Any]:
    """Make one candidate beside `output` (`<name>.safetensors`) and write its record there; returns the entry.

    `<name>.modules.parquet` says what became of every module; both files are by-products. `parents` come in the order of
    the settings, the background last. Raises UserError for parents that do not fit the base model or each other, and
    for a result that would change nothing.
    """
    surgery = stage.surgery
    settings = surgery.model_dump(mode="json", exclude={"of", "background"})
    key = item_key(STAGE, VERSION, settings, "", [parent.lora.sha256 for parent in parents])
    item = store.load_or_compute(STAGE, key, lambda: _computed(stage, parents))
    file = output.with_suffix(".safetensors")
    store.restore(item.files[FILE], file)
    record = dict(item.record)
    rows = record.pop("table")
    about = as_about(STAGE, VERSION, settings)
    write_table(output.with_suffix(".modules.parquet"), SURGERY, rows, about)
    entry = {
        "step": 0,
        "file": file.name,
        "sha256": item.files[FILE],
        "method": surgery.method,
        "parents": [parent.as_record() for parent in parents],
        **record,
    }
    write_atomically(output, (json.dumps([entry], indent=1, sort_keys=True) + "\n").encode())
    return entry


def _computed(stage: SurgeryStage, parents: Sequence[Found]) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The file, read back through diffusers' own loader, and how its ranks and energy came out."""
    from likeness.lora.files import verify_lora
    from likeness.lora.operation import write_operation
    from likeness.lora.resize import low_ranks
    from likeness.training.base import open_base

    base = open_base(stage.base_model, offline=stage.offline)
    loras = [read_checked(parent.lora, base.layout) for parent in parents]
    operation = operation_of(stage.surgery, loras, base)
    provenance = {"likeness_parents": canonical_json([parent.lora.sha256 for parent in parents])}
    with TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        written = write_operation(path, operation, provenance)
        verified = verify_lora(path, base)
        data = path.read_bytes()
    for warning in [*low_ranks(written.rows), *written.warnings]:
        print(f"warning: {warning}")
    record = {"about": dict(operation.about), "modules": verified.modules, "table": written.rows}
    return record | summary_of(written.rows), {FILE: data}


def operation_of(surgery: Surgery, loras: Sequence[Lora], base: BaseModel) -> Operation:
    """The arithmetic that an entry asks for; `loras` in the order of its parents."""
    from likeness.lora.average import average_loras, ema_weights
    from likeness.lora.blocks import expand_blocks, weigh_operation
    from likeness.lora.merge import MergeRule, merge_loras
    from likeness.lora.resize import resize_lora
    from likeness.lora.subtract import project_out, subtract_lora

    if surgery.method == "resize":
        return resize_lora(loras[0], rank_rule(surgery))
    if surgery.method == "subtract":
        if surgery.project is not None:
            return project_out(loras[0], loras[1], surgery.project)
        return subtract_lora(loras[0], loras[1], surgery.alpha[0])
    if surgery.method == "weigh-blocks":
        return weigh_operation(loras[0], expand_blocks(surgery.blocks, base.layout, "surgery blocks"))
    if surgery.method == "average":
        smoothed = ema_weights(len(loras), surgery.ema) if surgery.ema is not None else None
        return average_loras(loras, surgery.weights or smoothed, surgery.rank)
    is_sum = surgery.combine == "sum"
    rule = MergeRule(
        surgery.combine,
        surgery.rank,
        None if is_sum else surgery.density,
        surgery.convention if surgery.combine == "ties" else None,
        surgery.seed,
    )
    return merge_loras(loras, surgery.weights or [1.0] * len(loras), rule)


def rank_rule(surgery: Surgery) -> Any:
    """How a resize chooses ranks; without `rank` only the threshold bounds them."""
    from likeness.lora.resize import RankRule

    for criterion in ("ratio", "frobenius", "cumulative"):
        threshold = getattr(surgery, criterion)
        if threshold is not None:
            return RankRule(surgery.rank or _FULL_RANK, criterion, threshold, surgery.rule)
    if surgery.rank is None:
        raise UserError("surgery: resize needs `rank`, `ratio`, `frobenius` or `cumulative`.")
    return RankRule(surgery.rank)


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a reader wants to know of all modules: the commonest rank, the largest, and the least energy kept."""
    ranks = Counter(row["rank_after"] for row in rows if row.get("rank_after") is not None)
    kept = [row["retained_energy"] for row in rows if row.get("retained_energy") is not None]
    found: dict[str, Any] = {"ranks": {str(rank): count for rank, count in sorted(ranks.items())}}
    return found | ({"least_energy_kept": min(kept)} if kept else {})

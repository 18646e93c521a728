"""An adapter's weights as a file and back: LoRA, DoRA and LoKr each in the layout that diffusers and peft load."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.klein.family import Layout
from likeness.klein.load import BaseModel
from likeness.klein.targets import target_regex
from likeness.lora.adapter import Lora, LoraModule
from likeness.lora.dora import MAGNITUDE, Dora, is_dora, read_adapter, save_dora, verify_dora
from likeness.lora.files import Verified, save_lora, verify_lora, write_tensors
from likeness.lora.lokr import lokr_parts, lokr_tensors
from likeness.lora.stream import MappedTensors
from likeness.training.adapter import FUSED
from likeness.training.shape import shape_adapter

Weights = Mapping[str, torch.Tensor]


def save_weights(
    path: Path,
    weights: Weights,
    settings: TrainingSettings,
    layout: Layout,
    provenance: Mapping[str, str],
    only: Collection[str] | None = None,
) -> int:
    """Write adapter weights in the base's precision, of the modules `only` or of all; returns how many modules there are.

    Row lengths of a DoRA stay float32.
    """
    shapes = {name: one for name, one in shape_adapter(settings, layout).items() if only is None or name in only}
    dtype = getattr(torch, settings.precision)
    held = {name: weight.detach().to("cpu", dtype) for name, weight in weights.items()}
    if settings.adapter.kind == "lokr":
        modules = {name: sides_of(name, held) for name in shapes}
        write_tensors(path, lokr_tensors(modules, {name: one.scale for name, one in shapes.items()}), provenance)
        return len(shapes)
    lora = Lora(
        {
            name: LoraModule(held[f"{name}.lora_A.weight"], held[f"{name}.lora_B.weight"], one.scale)
            for name, one in sorted(shapes.items())
        }
    )
    regex, rank = (target_regex(settings.targets, layout), settings.rank) if only is None else (None, None)
    if settings.adapter.kind == "dora":
        lengths = {name: weights[f"{name}.{MAGNITUDE}.weight"].detach().cpu() for name in shapes}
        save_dora(path, Dora(lora, lengths), provenance, regex, rank)
    else:
        save_lora(path, lora, provenance, regex, rank)
    return len(shapes)


def sides_of(name: str, weights: Weights) -> dict[str, torch.Tensor]:
    """A LoKr module's matrices by side."""
    start = f"{name}.lokr_"
    return {key.removeprefix(start): weight for key, weight in weights.items() if key.startswith(start)}


def verify_weights(path: Path, base: BaseModel, modules: int, may_change_nothing: bool = False) -> Verified:
    """Load a written file back through diffusers' own loader; UserError where anything arrives changed or not at all.

    Only before a training's first step with a rate above 0 may its file change nothing.
    """
    if is_dora(path):
        return verify_dora(path, base, modules)
    return verify_lora(path, base, modules, may_change_nothing)


def starting_weights(path: Path, settings: TrainingSettings, layout: Layout) -> dict[str, torch.Tensor]:
    """Read a file as adapter weights in float32; where its scale differs from ours, the last factors make up for it.

    UserError where the file holds another kind of adapter.
    """
    own, kind = shape_adapter(settings, layout), settings.adapter.kind
    parts = lokr_parts(MappedTensors(path)) if not path.is_dir() else {}
    if bool(parts) != (kind == "lokr"):
        raise _other_kind(path, "a LoKr" if parts else "no LoKr of this pipeline", kind)
    if parts:
        return {
            f"{name}.lokr_{side}": matrix.float() / (own[name].scale if name in own and side == "w1" else 1.0)
            for name, sides in parts.items()
            for side, matrix in sides.items()
        }
    adapter = read_adapter(path)
    if isinstance(adapter, Dora) != (kind == "dora"):
        raise _other_kind(path, "a DoRA" if isinstance(adapter, Dora) else "a LoRA", kind)
    lora = adapter.lora if isinstance(adapter, Dora) else adapter
    found: dict[str, torch.Tensor] = {}
    for name, module in lora.modules.items():
        scale = module.scale / own[name].scale if name in own else 1.0
        found[f"{name}.lora_A.weight"] = module.A_RI.float()
        found[f"{name}.lora_B.weight"] = module.B_OR.float() * scale
        outside = module.B_OR[3 * layout.width :] if name.endswith(FUSED) else module.B_OR[:0]
        if settings.adapter.rows == "qkv" and outside.any():
            raise UserError(
                f"{path}: {name} changes rows of the MLP, but training.adapter.rows is qkv. Set rows: all, or init: scratch."
            )
    if isinstance(adapter, Dora):
        found |= {f"{name}.{MAGNITUDE}.weight": length_O for name, length_O in adapter.magnitudes.items()}
    return found


def _other_kind(path: Path, found: str, kind: str) -> UserError:
    return UserError(
        f"{path}: it is {found}, but training.adapter.kind is {kind}. Train the same kind, or set the phase's init: scratch."
    )

"""DoRA files: a LoRA with a length for every row of the weight (arXiv:2402.09353), in PEFT's own keys.

The adapted weight is m · (W + s·B·A) / ‖W + s·B·A‖, row by row. Its change depends on W, so it is no LoRA: nothing that
adds, resizes or fuses LoRAs reads such a file, and no ComfyUI file is made of one. diffusers loads it through PEFT; a
strength other than 1 multiplies s, so strength 0 is not the bare model.

Axes: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.files import (
    Verified,
    adapter_config,
    check_loaded,
    loaded_modules,
    loaded_skeleton,
    module_keys,
    read_lora,
    sha256_of,
    write_tensors,
)
from likeness.lora.formats import METADATA_KEY, outline_lora
from likeness.lora.stream import MappedTensors

if TYPE_CHECKING:
    from likeness.klein.load import BaseModel

MAGNITUDE = "lora_magnitude_vector"
_PREFIX = "transformer."
NO_COMFYUI = (
    "it is a DoRA: ComfyUI divides its rows by the length of the bare weight, not of the adapted one, so the same values "
    "would mean another adapter there"
)
"""Why no ComfyUI file is written (comfy/weight_adapter/base.py, `weight_decompose`)."""


@dataclass(frozen=True)
class Dora:
    """The LoRA inside, and the length of every row (O,) by module name, in float32."""

    lora: Lora
    magnitudes: Mapping[str, torch.Tensor]


def is_dora(path: Path) -> bool:
    """Whether a LoRA file holds lengths of rows in PEFT's keys; only its header is read."""
    return any(key.endswith(f".{MAGNITUDE}") for key in MappedTensors(path))


def read_adapter(path: Path) -> Lora | Dora:
    """Read a LoRA file of any known format, or a DoRA in PEFT's keys; UserError as `read_lora` raises it."""
    return read_dora(path) if is_dora(path) else read_lora(path)


def read_dora(path: Path) -> Dora:
    """Read a DoRA in diffusers' layout; UserError where a module lacks its row lengths."""
    tensors = MappedTensors(path)
    where = f"DoRA file {path}"
    found = {key: tensors[key] for key in tensors}
    lengths = {
        key.removeprefix(_PREFIX).removesuffix(f".{MAGNITUDE}"): found.pop(key)
        for key in list(found)
        if key.endswith(f".{MAGNITUDE}")
    }
    metadata = dict(tensors.metadata)
    if METADATA_KEY in metadata:
        config = json.loads(metadata[METADATA_KEY])
        metadata[METADATA_KEY] = json.dumps({**config, f"{_PREFIX}use_dora": False})
    lora = outline_lora(found, metadata, where).loaded()
    if set(lengths) != set(lora.modules):
        one = sorted(set(lengths) ^ set(lora.modules))[0]
        raise UserError(f"{where}: {one!r} has factors without row lengths, or lengths without factors.")
    return Dora(lora, {name: length_O.float() for name, length_O in sorted(lengths.items())})


def save_dora(
    path: Path, dora: Dora, provenance: Mapping[str, str], targets: str | None = None, rank: int | None = None
) -> str:
    """Write a DoRA in the keys and with the config that diffusers hands to PEFT; returns the file's sha256.

    Row lengths stay float32: rounded to bfloat16 they would rescale every row by up to 0.4 %.
    """
    tensors = {}
    for name, module in dora.lora.modules.items():
        tensors.update(zip(module_keys(name), (module.A_RI, module.B_OR), strict=True))
        tensors[f"{_PREFIX}{name}.{MAGNITUDE}"] = dora.magnitudes[name].float()
    config = {**adapter_config(dora.lora, targets, rank), "use_dora": True}
    about = json.dumps({f"{_PREFIX}{key}": value for key, value in config.items()}, sort_keys=True)
    # The loader tells PEFT's keys by the first tensor in the file; at row lengths it would rename those of to_out.
    factors = next(iter(dora.lora.modules.values())).A_RI.dtype
    return write_tensors(path, tensors, {**provenance, METADATA_KEY: about}, first=factors)


def verify_dora(path: Path, base: BaseModel, expected_count: int | None = None) -> Verified:
    """Load a DoRA through diffusers' own loader into a copy of the model without weights, and compare with the file.

    Raises UserError unless every module arrives with its factors, scale and row lengths, and there are `expected_count`.
    """
    dora = read_dora(path)
    skeleton = loaded_skeleton(path, base)
    loaded = loaded_modules(skeleton)
    wanted = len(dora.lora.modules) if expected_count is None else expected_count
    if len(loaded) != wanted or set(loaded) != set(dora.lora.modules):
        raise UserError(f"DoRA file {path}: diffusers loads {len(loaded)} of {wanted} modules.")
    layers: dict[str, Any] = dict(skeleton.named_modules())
    for name, module in dora.lora.modules.items():
        check_loaded(path, name, module, loaded[name])
        length_O = layers[name].lora_magnitude_vector["file"].weight
        if length_O.is_meta or not torch.allclose(length_O.float(), dora.magnitudes[name], rtol=1e-2):
            raise UserError(f"DoRA file {path}: {name!r} arrives with other row lengths. Write the file again.")
    return Verified(len(loaded), None, sha256_of(path))

"""LoRA files: written so that diffusers keeps the scale, read whatever trainer made them, verified by loading back.

A file with alpha other than rank loads at scale 1 in diffusers unless its metadata holds the adapter's config, and some
layouts load no module at all with a mere warning; so every written file carries that config and is read back through
diffusers' own loader. Bytes are a function of the content: tensors and metadata are sorted.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from likeness.errors import UserError
from likeness.klein.family import Layout, transformer_config
from likeness.klein.fingerprint import sha256_of_file
from likeness.klein.load import BaseModel
from likeness.lora.adapter import Lora, LoraModule, lora_of, relative_difference
from likeness.lora.formats import METADATA_KEY, outline_lora
from likeness.lora.lokr import SIDES, lokr_module
from likeness.lora.stream import MappedTensors, write_stream

if TYPE_CHECKING:
    from likeness.klein.libraries import Flux2Transformer2DModel

__all__ = [
    "Lora",
    "LoraModule",
    "Verified",
    "open_lora",
    "read_lora",
    "save_lora",
    "sha256_of",
    "verify_lora",
    "write_lora",
]
_RESERVED = {METADATA_KEY, "format"}
_LOADED_TOLERANCE = 1e-3
_SAVED_NAMES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")


class Verified(NamedTuple):
    """What diffusers loaded from a file: how many modules, and their one scale (None where scales differ)."""

    modules: int
    scale: float | None
    sha256: str


def sha256_of(path: Path) -> str:
    """Hash a file's bytes; returns 64 hex digits."""
    return sha256_of_file(path)


def write_lora(
    path: Path,
    state_dict: Mapping[str, torch.Tensor],
    rank: int,
    alpha: float,
    targets: str,
    provenance: Mapping[str, str],
) -> str:
    """Write PEFT's state dict in diffusers' layout with the adapter's config, and return the file's sha256.

    Keys are `<module>.lora_A.weight` and `.lora_B.weight`, with or without `transformer.`; every module has the scale
    alpha / rank. `targets` is the regular expression that was trained. `provenance` goes to the file's metadata. The
    file appears whole or not at all. Layout and config keys: diffusers Flux2LoraLoaderMixin.
    """
    return save_lora(path, lora_of(state_dict, alpha / rank), provenance, targets, rank)


def save_lora(
    path: Path, lora: Lora, provenance: Mapping[str, str], targets: str | None = None, rank: int | None = None
) -> str:
    """Write a Lora in diffusers' layout and return the file's sha256; ranks and scales may differ between modules.

    `targets` defaults to the list of its modules, `rank` (the config's `r`) to the most common one. A Lora that was
    read and is saved again gives the same tensors bit for bit.
    """
    if not lora.modules:
        raise ValueError("a LoRA without modules cannot be written")
    tensors = {}
    for name, module in lora.modules.items():
        tensors.update(zip(module_keys(name), module.cast()[:2], strict=True))
    return write_tensors(path, tensors, {**_checked(provenance), **adapter_metadata(lora, targets, rank)})


def module_keys(name: str) -> tuple[str, str]:
    """The keys of a module's A and B in diffusers' layout."""
    return f"transformer.{name}.lora_A.weight", f"transformer.{name}.lora_B.weight"


def adapter_metadata(lora: Lora, targets: str | None = None, rank: int | None = None) -> dict[str, str]:
    """The metadata by which diffusers resolves the scales of a LoRA's modules; only shapes and scales are read."""
    config = adapter_config(lora, targets, rank)
    return {METADATA_KEY: json.dumps({f"transformer.{key}": value for key, value in config.items()}, sort_keys=True)}


def adapter_config(lora: Lora, targets: str | None = None, rank: int | None = None) -> dict[str, Any]:
    """PEFT's LoraConfig of a Lora, with only the keys that carry information, so that other versions can read it."""
    ranks = {name: module.rank for name, module in lora.modules.items()}
    alphas = {name: _tidy(module.scale * module.rank) for name, module in lora.modules.items()}
    common_rank = rank or _most_common(ranks.values())
    common_alpha = _most_common([alphas[name] for name in ranks if ranks[name] == common_rank] or alphas.values())
    return {
        "r": common_rank,
        "lora_alpha": common_alpha,
        "rank_pattern": {_pattern(name): value for name, value in ranks.items() if value != common_rank},
        "alpha_pattern": {_pattern(name): value for name, value in alphas.items() if value != common_alpha},
        "target_modules": targets or sorted(lora.modules),
    }


def write_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str],
    first: torch.dtype | None = None,
    check: Callable[[Path], object] | None = None,
) -> str:
    """Write a safetensors file whose bytes depend on its content alone, atomically; returns its sha256.

    Tensors of the type `first` lie before all others, where it is given; else the largest type does. `check` as for
    `write_stream`.
    """
    ordered = ((key, tensors[key]) for key in sorted(tensors))
    return write_stream(path, ordered, lambda: metadata, first=first, check=check)


def read_lora(path: Path) -> Lora:
    """Read a LoRA of any known format; UserError names the file and what is wrong with it (see `parse_lora`).

    Of a folder the file is read that PEFT or diffusers saved there; an adapter_config.json beside a file counts for
    PEFT's layout only. Tensors keep the type of the file, except for floats of one byte, which become bfloat16.
    """
    return open_lora(path).loaded()


def file_of(path: Path) -> Path:
    """The file itself, or the one inside a folder that PEFT or diffusers saved; UserError for any other folder."""
    if not path.is_dir():
        return path
    found = [path / name for name in _SAVED_NAMES if (path / name).is_file()]
    if not found:
        raise UserError(f"folder {path} holds no {' and no '.join(_SAVED_NAMES)}. Name the LoRA file itself.")
    return found[0]


def open_lora(path: Path, lokr_rank: int | None = None) -> Lora:
    """The same Lora with modules that are mapped from the file when asked for, so that it need not fit into memory.

    A LoKr of a higher rank than `lokr_rank` is read as its best approximation of that rank. Errors about keys are
    raised here, errors about values when a module is asked for.
    """
    path = file_of(path)
    tensors = MappedTensors(path)
    return outline_lora(tensors, tensors.metadata, f"LoRA file {path}", peft_config(path, tensors), lokr_rank)


def verify_lora(
    path: Path,
    base_or_transformer: BaseModel | Flux2Transformer2DModel | Layout,
    expected_count: int | None = None,
    may_change_nothing: bool = False,
) -> Verified:
    """Load a file through diffusers' own loader into a copy of the model without weights, and compare with the file.

    Raises UserError unless every module of the file arrives with the same values and scale, one of them changes anything
    (or the file `may_change_nothing`), and there are `expected_count` modules. The given model is left as it is; of a known
    layout none is needed.
    """
    modules, scale = compare_loaded(path, base_or_transformer, expected_count, may_change_nothing)
    return Verified(modules, scale, sha256_of_file(path))


def compare_loaded(
    path: Path,
    base_or_transformer: BaseModel | Flux2Transformer2DModel | Layout,
    expected_count: int | None = None,
    may_change_nothing: bool = False,
) -> tuple[int, float | None]:
    """`verify_lora` without the file's hash: how many modules were loaded, and their one scale."""
    lora = open_lora(path)
    loaded = loaded_modules(loaded_skeleton(path, base_or_transformer))
    wanted = len(lora.modules) if expected_count is None else expected_count
    if len(loaded) != wanted or set(loaded) != set(lora.modules):
        raise UserError(f"LoRA file {path}: diffusers loads {len(loaded)} of {wanted} modules.")
    changes = False
    for name, module in lora.modules.items():
        check_loaded(path, name, module, loaded[name])
        changes = changes or bool(module.A_RI.any() and module.B_OR.any())
    if not changes and not may_change_nothing:
        raise UserError(
            f"LoRA file {path} changes nothing: every change of weight in it is zero. Train longer, or take a later checkpoint."
        )
    scales = {round(module.scale, 9) for module in loaded.values()}
    return len(loaded), scales.pop() if len(scales) == 1 else None


def check_loaded(path: Path, name: str, own: LoraModule, loaded: LoraModule) -> None:
    """UserError where diffusers loaded another change of weight than the file's."""
    # Factors may differ where the changes of weight do not: the loader moves kohya's alpha into them and repeats A.
    if not relative_difference(own, loaded) <= _LOADED_TOLERANCE:
        raise UserError(
            f"LoRA file {path}: {name!r} has scale {own.scale:g} in the file, but diffusers loads scale "
            f"{loaded.scale:g} "
            "or other values. Write the file again with its adapter config."
        )


def loaded_skeleton(
    path: Path, base_or_transformer: BaseModel | Flux2Transformer2DModel | Layout
) -> Flux2Transformer2DModel:
    """A transformer without weights that wears a file's adapter, named `file`, as diffusers' loader puts it on."""
    from likeness.klein.libraries import Flux2Transformer2DModel, pipeline_class

    if isinstance(base_or_transformer, BaseModel):
        assert base_or_transformer.layout
        config = base_or_transformer.config_of("transformer")
    elif isinstance(base_or_transformer, Layout):
        config = transformer_config(base_or_transformer)
    else:
        config = dict(base_or_transformer.config)
    with torch.device("meta"):
        skeleton = Flux2Transformer2DModel.from_config(config)
    assert isinstance(skeleton, Flux2Transformer2DModel)
    _give_weights_of_no_size(skeleton, _type_of(path))
    try:
        with _quiet_loader():
            pipeline = pipeline_class()(None, None, None, None, skeleton)  # pyright: ignore[reportArgumentType]
            pipeline.load_lora_weights(str(path), adapter_name="file")
    except Exception as error:
        raise UserError(f"LoRA file {path}: diffusers cannot load it: {error}") from error
    return skeleton


def loaded_modules(skeleton: torch.nn.Module) -> dict[str, LoraModule]:
    """The change of weight that PEFT holds in every wrapped layer; a LoKr's as the LoRA that it equals."""
    from likeness.klein.libraries import BaseTunerLayer

    loaded = {}
    for name, module in skeleton.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        scale = float(layer.scaling["file"])
        if hasattr(layer, "lokr_w1"):
            sides = {side: getattr(layer, f"lokr_{side}") for side in SIDES}
            parts = {side: held["file"].detach() for side, held in sides.items() if "file" in held}
            loaded[name] = lokr_module(parts, None, f"{name!r} as diffusers loads it")._replace(scale=scale)
        else:
            down_RI, up_OR = layer.lora_A["file"].weight, layer.lora_B["file"].weight
            loaded[name] = LoraModule(down_RI.detach(), up_OR.detach(), scale)
    return loaded


def _type_of(path: Path) -> torch.dtype:
    """The one type of 16 bits of a file's tensors, else float32, which holds the values of every type that is read."""
    tensors = MappedTensors(file_of(path))
    types = {tensors.type_name(key) for key in tensors}
    return {"BF16": torch.bfloat16, "F16": torch.float16}.get("".join(types), torch.float32)


def _give_weights_of_no_size(skeleton: torch.nn.Module, dtype: torch.dtype) -> None:
    """Put one number, repeated by stride 0, behind every weight: PEFT moves adapters to the weights' device and type.

    In the file's own type the adapter stays mapped from the file; in another it would be a copy.
    """
    for module in skeleton.modules():
        for name, parameter in module.named_parameters(recurse=False):
            repeated = torch.zeros((), dtype=dtype).expand(parameter.shape)
            setattr(module, name, torch.nn.Parameter(repeated, requires_grad=False))


@contextmanager
def _quiet_loader():
    """What the loader would warn about is checked here and raised as an error."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def peft_config(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any] | None:
    """The adapter_config.json beside a file in PEFT's layout; None where there is none, UserError where it is torn."""
    config = path.parent / "adapter_config.json"
    if not config.is_file() or not any(key.startswith("base_model.model.") for key in tensors):
        return None
    try:
        return json.loads(config.read_text("utf-8"))
    except ValueError:
        raise UserError(f"{config} is not valid JSON; it belongs to {path}. Copy both again.") from None


def _checked(provenance: Mapping[str, str]) -> dict[str, str]:
    reserved = _RESERVED & set(provenance)
    if reserved or not all(isinstance(value, str) for value in provenance.values()):
        raise ValueError(f"provenance must map strings to strings and not use {sorted(_RESERVED)}: {dict(provenance)}")
    return dict(provenance)


def _pattern(name: str) -> str:
    # PEFT reads the keys as regular expressions that may match the end of a name: this one matches the whole name only.
    return "^" + name.replace(".", r"\.")


def _most_common(values: Any) -> Any:
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _tidy(alpha: float) -> int | float:
    """Undo the rounding of scale × rank, so that alpha 16 is written as 16."""
    nearest = round(alpha)
    return nearest if math.isclose(alpha, nearest, rel_tol=1e-12) else alpha

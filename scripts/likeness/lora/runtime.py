"""LoRAs on a loaded transformer: put on through diffusers and PEFT, checked, weighted block by block, taken off again.

Weights are set module by module through PEFT's own `set_scale`: the dictionaries that diffusers takes are matched as
substrings of module names, where `transformer_blocks.0.` also hits `single_transformer_blocks.0.`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from likeness.errors import UserError
from likeness.lora.adapter import Lora
from likeness.lora.blocks import block_of
from likeness.lora.dora import MAGNITUDE, Dora

WeightOf = Callable[[str], float]
"""From a module's name to the weight at which its adapter counts; 1 is the LoRA as it is, 0 the bare model."""


@contextmanager
def adapters_on(transformer: Any, loras: Mapping[str, Lora | Dora], where: str) -> Iterator[None]:
    """Put LoRAs and DoRAs on a transformer by adapter name, all active at weight 1, and take them off at the end.

    `where` names the files in errors. Raises UserError where not every module arrives.
    """
    put_on: list[str] = []
    try:
        for name, lora in loras.items():
            put_on.append(name)
            _load(transformer, name, lora, where)
        for _, layer in adapter_layers(transformer):
            layer.set_adapter(list(loras))
        yield
    finally:
        present = [name for name in put_on if name in getattr(transformer, "peft_config", {})]
        if present:
            transformer.delete_adapters(present)


def set_weights(transformer: Any, adapter: str, weight_of: WeightOf) -> None:
    """Set the weight of one adapter in every module that has it."""
    for name, layer in adapter_layers(transformer):
        if adapter in layer.scaling:
            layer.set_scale(adapter, weight_of(name))


def block_weights(weights: Mapping[str, float], scale: float = 1.0) -> WeightOf:
    """Weights by block (1 where none is given), all times `scale`."""
    return lambda name: scale * weights.get(block_of(name), 1.0)


def adapter_layers(module: Any) -> Sequence[tuple[str, Any]]:
    """The wrapped layers of a model or of a part of it, with their names."""
    from likeness.klein.libraries import BaseTunerLayer

    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, BaseTunerLayer)]


def _load(transformer: Any, adapter: str, found: Lora | Dora, where: str) -> None:
    lora = found.lora if isinstance(found, Dora) else found
    folded = lora.folded()
    state_dict = {f"{name}.lora_A.weight": module.A_RI for name, module in folded.modules.items()}
    state_dict |= {f"{name}.lora_B.weight": module.B_OR for name, module in folded.modules.items()}
    if isinstance(found, Dora):
        state_dict |= {f"{name}.{MAGNITUDE}": length_O for name, length_O in found.magnitudes.items()}
    transformer.load_lora_adapter(state_dict, prefix=None, adapter_name=adapter)
    arrived = {name for name, layer in adapter_layers(transformer) if adapter in layer.scaling}
    if arrived != set(lora.modules):
        raise UserError(f"{where}: {len(arrived)} of {len(lora.modules)} modules arrive in the transformer.")

"""The prompt-swap probe: another prompt's text only inside chosen blocks, to see what those blocks take from the prompt.

Text and image run through the blocks together, so a prompt is more than its embedding: every block sees the text as the
blocks before have changed it. So the model runs with each prompt once, and the text that enters every block is written
down; then it runs again, and every block gets the text that it would see with its own prompt (after arXiv 2511.15258,
training-free). Swapping all blocks is the other prompt, swapping none the first one, bit for bit.

Axes: B samples, T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch


@contextmanager
def text_swapped(
    transformer: Any, own_BTD: torch.Tensor, other_BTD: torch.Tensor, blocks: Collection[str]
) -> Iterator[None]:
    """Let blocks (`double.0`, `single.7`) see another prompt's text while this is open.

    Calls with other embeddings than `own_BTD`, such as those of guidance, are left alone. Each call costs three.
    """
    forward = transformer.forward
    transformer.forward = partial(_swapped_forward, transformer, forward, own_BTD, other_BTD, frozenset(blocks))
    try:
        yield
    finally:
        del transformer.forward


def _swapped_forward(
    transformer: Any,
    forward: Callable[..., Any],
    own_BTD: torch.Tensor,
    other_BTD: torch.Tensor,
    blocks: Collection[str],
    **inputs: Any,
) -> Any:
    given_BTD = inputs["encoder_hidden_states"]
    if given_BTD.shape != own_BTD.shape or not torch.equal(given_BTD, own_BTD.to(given_BTD)):
        return forward(**inputs)
    own = _recorded(transformer, forward, inputs)
    other = _recorded(transformer, forward, inputs | {"encoder_hidden_states": other_BTD.to(given_BTD)})
    texts = {name: other[name] if name in blocks else own[name] for name in own}
    with ExitStack() as stack:
        for name, block in named_blocks(transformer):
            hook = block.register_forward_pre_hook(partial(_replace, texts[name]), with_kwargs=True)
            stack.callback(hook.remove)
        return forward(**inputs)


def named_blocks(transformer: Any) -> Iterator[tuple[str, Any]]:
    """Blocks by name in the order in which they run."""
    for kind, blocks in (("double", transformer.transformer_blocks), ("single", transformer.single_transformer_blocks)):
        yield from ((f"{kind}.{index}", block) for index, block in enumerate(blocks))


def _recorded(transformer: Any, forward: Callable[..., Any], inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The text that enters every block."""
    texts: dict[str, torch.Tensor] = {}
    count = inputs["encoder_hidden_states"].shape[1]

    def record(name: str, module: Any, args: Any, given: dict[str, Any]) -> None:
        text = given.get("encoder_hidden_states")
        texts[name] = given["hidden_states"][:, :count].clone() if text is None else text.clone()

    with ExitStack() as stack:
        for name, block in named_blocks(transformer):
            hook = block.register_forward_pre_hook(partial(record, name), with_kwargs=True)
            stack.callback(hook.remove)
        forward(**inputs)
    return texts


def _replace(text_BTD: torch.Tensor, module: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    if given.get("encoder_hidden_states") is not None:
        return args, given | {"encoder_hidden_states": text_BTD}
    joint = torch.cat([text_BTD, given["hidden_states"][:, text_BTD.shape[1] :]], dim=1)
    return args, given | {"hidden_states": joint}

"""Masked residual blending (LoRAShop, arXiv 2505.23758, written from its formulas): each LoRA only where its subject is.

First the bare base draws the picture, and the attention of image tokens to the tokens of each subject's word, in the
last double block, says where each subject will be. Then every block runs bare and once with each LoRA, and the LoRAs'
residuals are added token by token: output = bare + Σ_c α_c · (output_c - bare), α_c(p) = M_c(p) / (Σ_u M_u(p) + ε).
Text tokens and reference tokens belong to no place; there LoRAs that have a place share equally, which is our choice.

Axes: B samples, C LoRAs, L target tokens, S tokens of a stream (target and references, in single blocks after the
text), T text tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from likeness.errors import UserError
from likeness.lora.blocks import OTHER, block_of
from likeness.lora.runtime import adapter_layers

EPSILON = 1e-6


@contextmanager
def blended(transformer: Any, masks_BCL: torch.Tensor, scales: Mapping[str, float], text_tokens: int) -> Iterator[None]:
    """Blend the adapters of `scales` (name → strength, in the order of C) within their masks while this is open.

    Masks are 0 to 1 over target tokens; `text_tokens` come first in the joint sequence of single blocks. Raises
    UserError for LoRAs with modules outside of the blocks: those belong to no token alone.
    """
    outside = sorted(name for name, _ in adapter_layers(transformer) if block_of(name) == OTHER)
    if outside:
        raise UserError(
            f"masked blending works block by block, but a LoRA also adapts {outside[0]!r}. "
            "Take that module out first (weigh-blocks with `other: 0`)."
        )
    weights = _Weights(masks_BCL, text_tokens)
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    for block in blocks:
        block.forward = partial(_blended_forward, block, block.forward, weights, dict(scales))
    try:
        yield
    finally:
        for block in blocks:
            del block.forward
        _activate(transformer, scales, tuple(scales))


class _Weights:
    """α_c for every token of a block's streams."""

    def __init__(self, masks_BCL: torch.Tensor, text_tokens: int) -> None:
        self.text_tokens = text_tokens
        self.target_BCL = masks_BCL / (masks_BCL.sum(1, keepdim=True) + EPSILON)
        has_place_BC = masks_BCL.any(-1).to(masks_BCL)
        self.elsewhere_BC = has_place_BC / (has_place_BC.sum(1, keepdim=True) + EPSILON)

    def text(self, place: int) -> torch.Tensor:
        """Weights (B, 1) of a stream of text tokens."""
        return self.elsewhere_BC[:, place, None]

    def image(self, place: int, length: int, before: int = 0) -> torch.Tensor:
        """Weights_BS of a stream: `before` text tokens, then the target's, then those of references."""
        own_BL = self.target_BCL[:, place]
        filled_BS = self.elsewhere_BC[:, place, None].expand(-1, length).clone()
        filled_BS[:, before : before + own_BL.shape[1]] = own_BL
        return filled_BS


def _blended_forward(
    block: Any, forward: Callable[..., Any], weights: _Weights, scales: Mapping[str, float], *args: Any, **inputs: Any
) -> Any:
    """One block, bare and with each LoRA; double blocks return (text, image), single ones the joint sequence."""
    _activate(block, scales, ())
    bare = forward(*args, **inputs)
    is_double = isinstance(bare, tuple)
    bare_parts = bare if is_double else (bare,)
    total = [part.clone() for part in bare_parts]
    for place, name in enumerate(scales):
        _activate(block, scales, (name,))
        own = forward(*args, **inputs)
        if is_double:
            of_parts = [weights.text(place), weights.image(place, bare[1].shape[1])]
        else:
            of_parts = [weights.image(place, bare.shape[1], weights.text_tokens)]
        for part, before, after, of_part in zip(total, bare_parts, own if is_double else (own,), of_parts, strict=True):
            part += of_part[..., None].to(part) * (after - before)
    return tuple(total) if is_double else total[0]


def _activate(module: Any, scales: Mapping[str, float], active: Sequence[str]) -> None:
    for _, layer in adapter_layers(module):
        for name, scale in scales.items():
            if name in layer.scaling:
                layer.set_scale(name, scale if name in active else 0.0)


class AttentionPrior:
    """Mean attention of image tokens to chosen text tokens in the last double block, over every call while it is open.

    `words_BCT` marks, for each sample and LoRA, the text tokens of its word. `prior_BCL` is over the first
    `target_tokens` image tokens.
    """

    def __init__(self, transformer: Any, words_BCT: torch.Tensor, target_tokens: int) -> None:
        self._attention = transformer.transformer_blocks[-1].attn
        self._words_BCT, self._target_tokens = words_BCT, target_tokens
        self._total_BCL: torch.Tensor | None = None
        self._calls = 0

    def __enter__(self) -> AttentionPrior:
        self._hook = self._attention.register_forward_pre_hook(self._record, with_kwargs=True)
        return self

    def __exit__(self, *error: Any) -> None:
        self._hook.remove()

    @property
    def prior_BCL(self) -> torch.Tensor:
        """The mean so far, in float32."""
        assert self._total_BCL is not None, "the model was not called while its attention was recorded"
        return self._total_BCL / self._calls

    def _record(self, module: Any, args: Any, inputs: Mapping[str, Any]) -> None:
        found_BCL = attention_to_words(
            module,
            inputs["hidden_states"],
            inputs["encoder_hidden_states"],
            inputs["image_rotary_emb"],
            self._words_BCT,
        )[..., : self._target_tokens]
        self._total_BCL = found_BCL if self._total_BCL is None else self._total_BCL + found_BCL
        self._calls += 1


@torch.no_grad()
def attention_to_words(
    attention: Any, image_BSD: torch.Tensor, text_BTD: torch.Tensor, rotary: Any, words_BCT: torch.Tensor
) -> torch.Tensor:
    """Softmax attention of every image token to each LoRA's word, averaged over heads and the word's tokens (B, C, S).

    Must agree with diffusers Flux2AttnProcessor: keys are text then image, normalised, rotated.
    """
    from diffusers.models.embeddings import apply_rotary_emb

    def heads(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (-1, attention.head_dim))

    text_tokens = text_BTD.shape[1]
    text_query, text_key = attention.add_q_proj(text_BTD), attention.add_k_proj(text_BTD)
    query = torch.cat(
        [attention.norm_added_q(heads(text_query)), attention.norm_q(heads(attention.to_q(image_BSD)))], dim=1
    )
    key = torch.cat(
        [attention.norm_added_k(heads(text_key)), attention.norm_k(heads(attention.to_k(image_BSD)))], dim=1
    )
    rotated: list[Any] = [
        one if rotary is None else apply_rotary_emb(one, rotary, sequence_dim=1) for one in (query, key)
    ]
    query, key = rotated[0][:, text_tokens:].float(), rotated[1].float()
    words_BCT = words_BCT.to(query)
    share_BCT = words_BCT / words_BCT.sum(-1, keepdim=True).clamp_min(1)
    total_BCS = torch.zeros(image_BSD.shape[0], words_BCT.shape[1], image_BSD.shape[1], device=query.device)
    for head in range(query.shape[2]):
        scores = torch.einsum("bse,bte->bst", query[:, :, head], key[:, :, head]) / attention.head_dim**0.5
        total_BCS += torch.einsum("bct,bst->bcs", share_BCT, scores.softmax(-1)[..., :text_tokens])
    return total_BCS / query.shape[2]


def masks_of(prior_BCL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Smoothed, binary masks that do not overlap: a token goes to the LoRA that it attends to most above its own mean.

    Smoothing is a 3 × 3 mean on the grid (rows, columns in tokens); attention is first divided by each LoRA's mean, so
    that a word of few tokens does not lose to one of many.
    """
    batch, count, _ = prior_BCL.shape
    maps = prior_BCL.reshape(batch * count, 1, *grid)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 1), mode="replicate")
    smooth_BCL = torch.nn.functional.avg_pool2d(padded, 3, stride=1).reshape(batch, count, -1)
    relative_BCL = smooth_BCL / smooth_BCL.mean(-1, keepdim=True).clamp_min(EPSILON)
    is_most_BCL = torch.nn.functional.one_hot(relative_BCL.argmax(1), count).permute(0, 2, 1).bool()
    return (is_most_BCL & (relative_BCL > 1)).to(prior_BCL)

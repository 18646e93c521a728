"""Prompts to embeddings: chat template, three hidden states of the text encoder side by side, padded, without a mask.

Must agree with diffusers pipeline_flux2_klein.py (`_get_qwen3_prompt_embeds`). Every prompt is encoded by itself, so
that its embedding depends on the prompt and not on its batch.

Axes: B prompts, T tokens (always `max_text_tokens`, padding included), D = 3 × the text encoder's width.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from likeness.klein.family import TEXT_LAYERS

if TYPE_CHECKING:
    from likeness.klein.load import BaseModel

logger = logging.getLogger(__name__)


def chat_text(base: BaseModel, prompt: str) -> str:
    """Wrap a prompt as the text encoder expects it: one user turn, no system prompt, no thinking."""
    text = base.tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert isinstance(text, str)
    return text


def count_tokens(base: BaseModel, prompt: str) -> int:
    """Count a prompt's tokens with the template around it; those beyond `base.max_text_tokens` would be cut off."""
    return len(base.tokenizer(chat_text(base, prompt))["input_ids"])


@torch.no_grad()
def encode_prompts(base: BaseModel, prompts: Sequence[str]) -> torch.Tensor:
    """Encode prompts to embeddings_BTD in the model's type and on its device; "" gives the unconditional embedding.

    A prompt longer than `base.max_text_tokens` is cut as the pipeline cuts it, with a warning in the log.
    """
    return torch.cat([_encode_prompt(base, prompt) for prompt in prompts])


def _encode_prompt(base: BaseModel, prompt: str) -> torch.Tensor:
    length = base.max_text_tokens
    excess = count_tokens(base, prompt) - length
    if excess > 0:
        logger.warning("prompt is cut by %d of its tokens, %d are read: %.80s", excess, length, prompt)
    inputs = base.tokenizer(
        chat_text(base, prompt), return_tensors="pt", padding="max_length", truncation=True, max_length=length
    )
    encoder = base.text_encoder
    output = encoder(
        input_ids=inputs["input_ids"].to(encoder.device),
        attention_mask=inputs["attention_mask"].to(encoder.device),
        output_hidden_states=True,
        use_cache=False,
    )
    return torch.cat([output.hidden_states[layer] for layer in TEXT_LAYERS], dim=-1)


def word_tokens(base: BaseModel, prompt: str, word: str) -> torch.Tensor:
    """Mark the tokens of an embedding that belong to a word of its prompt: booleans_T, over every place where it stands.

    A word that the prompt lacks marks nothing.
    """
    text = chat_text(base, prompt)
    inputs = base.tokenizer(
        text,
        return_offsets_mapping=True,
        padding="max_length",
        truncation=True,
        max_length=base.max_text_tokens,
    )
    spans = [found.span() for found in re.finditer(rf"(?<!\w){re.escape(word)}(?!\w)", text)]
    offsets = inputs["offset_mapping"]
    return torch.tensor([any(start < last and first < end for first, last in spans) for start, end in offsets])

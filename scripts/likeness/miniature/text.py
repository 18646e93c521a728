"""The miniature's tokenizer and text encoder: Qwen2's and Qwen3's real classes, small enough to read a caption in a millisecond.

The tokenizer is learned from the caption grammar, so that each of its words is one token, and falls back to bytes for
everything else, so that no prompt is unreadable. The text encoder is random, never trained: it only has to tell
captions apart, which unit-variance token embeddings give and the usual small initial ones do not.
"""

from __future__ import annotations

from itertools import product

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from likeness.captions.facts import (
    BACKGROUND_COLOURS,
    FRAMING_WORDS,
    LIGHT_WORDS,
    POSE_WORDS,
    Facts,
    compose_caption,
)

TEXT_TOKENS = 48
VOCABULARY_SIZE = 448
HIDDEN_SIZE = 32
LAYERS = 28
"""As many as FLUX.2 [klein] needs for its default layers 9, 18 and 27 to exist."""

EDIT_INSTRUCTION = "make the person smile in front of a white background"
_PAD, _TURN_START, _TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


def all_captions(subject: str) -> list[str]:
    """List every caption that the grammar can write of a subject, absent clauses included, in a fixed order."""
    choices = [(None, *words) for words in (FRAMING_WORDS, POSE_WORDS, LIGHT_WORDS, BACKGROUND_COLOURS)]
    return [compose_caption(subject, Facts(*combination)) for combination in product(*choices)]


def build_tokenizer() -> Qwen2Tokenizer:
    """Learn the byte-level BPE of the caption grammar; `model_max_length` is TEXT_TOKENS. The same at every call."""
    corpus = all_captions("a person") + [f"user\n{EDIT_INSTRUCTION}\n assistant\n a photo of a person smiling"] * 20
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[_PAD, _TURN_START, _TURN_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    wrapped = Qwen2Tokenizer(
        tokenizer_object=tokenizer,
        unk_token=_PAD,
        eos_token=_TURN_END,
        pad_token=_PAD,
        model_max_length=TEXT_TOKENS,
    )
    wrapped.chat_template = _CHAT_TEMPLATE
    return wrapped


def build_text_encoder(seed: int) -> Qwen3ForCausalLM:
    """Make a random Qwen3 of 28 layers and about 0.3 million parameters; the caller's random state is left alone."""
    config = Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=2 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=HIDDEN_SIZE // 2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Qwen3ForCausalLM(config).eval().requires_grad_(False)
        encoder.model.embed_tokens.weight.normal_(0.0, 1.0)
    return encoder

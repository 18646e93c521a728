"""A tiny random Qwen3-VL with its real processor: the caption protocol without a download.

The tokenizer is byte-level (256 bytes and the special tokens of the family), so every text survives a round trip; the
chat template is the smallest one that the OpenAI-compatible server of transformers accepts for pictures. Random weights
say nothing sensible: this model proves that requests, pictures and answers pass, while caption content is tested
against a server with canned answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
PATCH_PX = 16
MERGE = 2

CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message.role }}
{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content -%}
{%- if part.type in ('image', 'image_url') -%}<|vision_start|><|image_pad|><|vision_end|>
{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor %}{% endif %}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}
"""


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={byte: index for index, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
    )


def _config(token_ids: dict[str, int], vocabulary: int) -> Any:
    from transformers import Qwen3VLConfig

    # One eighth of the head width for height and width each, a quarter for time: the split of the family, scaled down.
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 10000.0}
    text = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "rope_parameters": rope,
        "eos_token_id": token_ids["<|im_end|>"],
        "bos_token_id": token_ids["<|im_start|>"],
        "pad_token_id": token_ids["<|endoftext|>"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 4,
        "out_hidden_size": 32,
        "patch_size": PATCH_PX,
        "spatial_merge_size": MERGE,
        "temporal_patch_size": 2,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    return Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
    )


def _processor(tokenizer: Any) -> Any:
    from transformers import Qwen3VLProcessor
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    cell_px = PATCH_PX * MERGE
    image_processor = Qwen2VLImageProcessor(
        patch_size=PATCH_PX,
        merge_size=MERGE,
        temporal_patch_size=2,
        # Fewest and most pixels of a picture: 4 to 64 vision tokens.
        size={"shortest_edge": 4 * cell_px**2, "longest_edge": 64 * cell_px**2},
    )
    return Qwen3VLProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(patch_size=PATCH_PX),
        chat_template=CHAT_TEMPLATE,
    )


def build_vlm(folder: Path, seed: int = 0) -> Path:
    """Write a random tiny Qwen3-VL with processor and chat template; `from_pretrained` and `transformers serve` load it.

    Returns the folder. About 0.15 million parameters and 0.6 MB; the same seed gives the same bytes.
    """
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    token_ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL_TOKENS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(_config(token_ids, len(tokenizer)))
    generation = model.generation_config
    generation.eos_token_id = token_ids["<|im_end|>"]
    generation.pad_token_id = token_ids["<|endoftext|>"]
    generation.max_new_tokens = 16
    model.save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)
    return folder

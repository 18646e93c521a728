"""A tiny FLUX.2 [klein] pipeline of random weights, made of the real classes; nothing is learned or downloaded.

2 double and 3 single blocks of width 64, a Qwen3 text encoder of 28 layers and hidden size 32, a two-level VAE
(4 px a token, 16 latent channels), and a byte-level tokenizer of 64 tokens a prompt.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MAX_TEXT_TOKENS = 64


def tiny_transformer(seed: int = 0, num_double: int = 2, num_single: int = 3) -> Flux2Transformer2DModel:
    """Random transformer of width 64 for embeddings of 96 values and latents of 16 channels."""
    torch.manual_seed(seed)
    return Flux2Transformer2DModel(
        in_channels=16,
        num_layers=num_double,
        num_single_layers=num_single,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=96,
        timestep_guidance_channels=32,
        axes_dims_rope=(8, 8, 8, 8),
        guidance_embeds=False,
    ).eval()


def tiny_vae(seed: int = 0) -> AutoencoderKLFlux2:
    """Random two-level VAE with batch-norm statistics that are not the identity."""
    torch.manual_seed(seed + 1)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    return vae.eval()


def tiny_tokenizer() -> Qwen2TokenizerFast:
    """Byte-level tokenizer with a chat template; prompts are padded to 64 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["a photo of a person, smiling", "user assistant"], trainer)
    fast = Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_TEXT_TOKENS,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_text_encoder(vocabulary: int, seed: int = 0, layers: int = 30) -> Qwen3ForCausalLM:
    """Random Qwen3 with hidden size 32 and more layers than are read."""
    torch.manual_seed(seed + 2)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    encoder = Qwen3ForCausalLM(config).eval()
    torch.nn.init.normal_(encoder.model.embed_tokens.weight)
    return encoder


def tiny_pipeline(seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    """The whole pipeline with the published scheduler's settings; small references are let through."""
    tokenizer = tiny_tokenizer()
    pipeline = Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(
            use_dynamic_shifting=True,
            shift=3.0,
            base_shift=0.5,
            max_shift=1.15,
            base_image_seq_len=256,
            max_image_seq_len=4096,
        ),
        vae=tiny_vae(seed),
        text_encoder=tiny_text_encoder(len(tokenizer) + 8, seed),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed),
        is_distilled=is_distilled,
    )
    pipeline.set_progress_bar_config(disable=True)
    # The pipeline refuses references below 64 px, which is a rule about quality and not about numerics.
    pipeline.image_processor.check_image_input = lambda image: image
    return pipeline


def save_tiny(folder: Path, seed: int = 0, is_distilled: bool = False) -> Flux2KleinPipeline:
    """Write the pipeline in diffusers layout and return it."""
    pipeline = tiny_pipeline(seed, is_distilled)
    pipeline.save_pretrained(folder)
    return pipeline

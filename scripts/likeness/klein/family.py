"""The layouts of the model family: how many blocks of which width, and the name and shape of every linear module.

Names and shapes follow from a few numbers of the transformer's config, so that counts, file sizes and mistakes in block
indices are known before any weight is loaded; this module imports nothing heavy. Single blocks hold one fused
projection (query, key, value and the gated MLP's input), double blocks hold separate ones for image and text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from likeness.errors import UserError

TEXT_LAYERS = (9, 18, 27)
"""Hidden states of the text encoder that are joined into the prompt embedding."""

MAX_TEXT_TOKENS = 512
"""Prompt tokens, padding included; padded tokens attend like any other."""

HEAD_CHANNELS = 128

DOUBLE_IMAGE_ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
DOUBLE_TEXT_ATTENTION = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")
DOUBLE_IMAGE_MLP = ("ff.linear_in", "ff.linear_out")
DOUBLE_TEXT_MLP = ("ff_context.linear_in", "ff_context.linear_out")
SINGLE_IN = ("attn.to_qkv_mlp_proj",)
SINGLE_OUT = ("attn.to_out",)
DOUBLE_MODULES = DOUBLE_IMAGE_ATTENTION + DOUBLE_TEXT_ATTENTION + DOUBLE_IMAGE_MLP + DOUBLE_TEXT_MLP
SINGLE_MODULES = SINGLE_IN + SINGLE_OUT


@dataclass(frozen=True)
class Layout:
    """The numbers of a transformer's config from which every linear module's name and shape follow."""

    name: str
    num_double: int
    num_single: int
    width: int
    joint_attention_dim: int
    text_layers: tuple[int, int, int] = TEXT_LAYERS
    latent_channels: int = 128
    mlp_ratio: float = 3.0
    timestep_channels: int = 256

    @property
    def mlp_width(self) -> int:
        """Hidden width of the gated MLPs."""
        return int(self.width * self.mlp_ratio)


KLEIN_4B = Layout("klein-4b", num_double=5, num_single=20, width=3072, joint_attention_dim=7680)
KLEIN_9B = Layout("klein-9b", num_double=8, num_single=24, width=4096, joint_attention_dim=12288)
KNOWN_LAYOUTS = {layout.name: layout for layout in (KLEIN_4B, KLEIN_9B)}


def layout_of(transformer_config: Mapping[str, Any]) -> Layout:
    """Read the layout from a transformer's config (the dict of `transformer/config.json` or `transformer.config`).

    A config that equals a known layout carries its name, any other is called 'custom'. Raises UserError where a key
    is missing, or where the config is not a FLUX.2 transformer's.
    """
    try:
        found = Layout(
            "custom",
            num_double=int(transformer_config["num_layers"]),
            num_single=int(transformer_config["num_single_layers"]),
            width=int(transformer_config["num_attention_heads"]) * int(transformer_config["attention_head_dim"]),
            joint_attention_dim=int(transformer_config["joint_attention_dim"]),
            latent_channels=int(transformer_config.get("in_channels", 128)),
            mlp_ratio=float(transformer_config.get("mlp_ratio", 3.0)),
            timestep_channels=int(transformer_config["timestep_guidance_channels"]),
        )
    except KeyError as error:
        raise UserError(
            f"transformer/config.json has no key {error.args[0]!r}: this is not a FLUX.2 [klein] transformer. "
            "Point base_model to a FLUX.2 [klein] checkpoint in diffusers layout."
        ) from None
    if transformer_config.get("guidance_embeds"):
        raise UserError(
            "transformer/config.json has guidance_embeds: true, as FLUX.2 [dev] has; "
            "only FLUX.2 [klein] checkpoints (guidance_embeds: false) can be used."
        )
    for known in KNOWN_LAYOUTS.values():
        if _numbers(known) == _numbers(found):
            return known
    return found


def transformer_config(layout: Layout) -> dict[str, Any]:
    """The transformer's config of a known layout, as `layout_of` reads it; heads have 128 channels in all of them."""
    return {
        "num_layers": layout.num_double,
        "num_single_layers": layout.num_single,
        "num_attention_heads": layout.width // HEAD_CHANNELS,
        "attention_head_dim": HEAD_CHANNELS,
        "joint_attention_dim": layout.joint_attention_dim,
        "in_channels": layout.latent_channels,
        "mlp_ratio": layout.mlp_ratio,
        "timestep_guidance_channels": layout.timestep_channels,
        "guidance_embeds": False,
    }


def known_layout(source: str) -> Layout | None:
    """Guess the layout from a hub id or folder name such as 'someone/FLUX.2-klein-base-9B', without opening a file."""
    lowered = source.lower()
    if "klein" not in lowered:
        return None
    return next((layout for layout in KNOWN_LAYOUTS.values() if layout.name.removeprefix("klein-") in lowered), None)


def token_px(vae_config: Mapping[str, Any]) -> int:
    """Pixels along one side of a token: the VAE's downscaling times the patch of 2; 16 for klein."""
    return 2 * 2 ** (len(vae_config["block_out_channels"]) - 1)


def linear_shapes(layout: Layout) -> dict[str, tuple[int, int]]:
    """Map every linear module's diffusers name to its weight's shape (outputs, inputs), in the model's own order."""
    width, mlp = layout.width, layout.mlp_width
    shapes: dict[str, tuple[int, int]] = {
        "time_guidance_embed.timestep_embedder.linear_1": (width, layout.timestep_channels),
        "time_guidance_embed.timestep_embedder.linear_2": (width, width),
        "double_stream_modulation_img.linear": (6 * width, width),
        "double_stream_modulation_txt.linear": (6 * width, width),
        "single_stream_modulation.linear": (3 * width, width),
        "x_embedder": (width, layout.latent_channels),
        "context_embedder": (width, layout.joint_attention_dim),
        "norm_out.linear": (2 * width, width),
        "proj_out": (layout.latent_channels, width),
    }
    of_double = dict.fromkeys(DOUBLE_IMAGE_ATTENTION + DOUBLE_TEXT_ATTENTION, (width, width))
    of_double |= {"ff.linear_in": (2 * mlp, width), "ff.linear_out": (width, mlp)}
    of_double |= {"ff_context.linear_in": (2 * mlp, width), "ff_context.linear_out": (width, mlp)}
    of_single = {"attn.to_qkv_mlp_proj": (3 * width + 2 * mlp, width), "attn.to_out": (width, width + mlp)}
    for index in range(layout.num_double):
        shapes |= {f"transformer_blocks.{index}.{name}": shape for name, shape in of_double.items()}
    for index in range(layout.num_single):
        shapes |= {f"single_transformer_blocks.{index}.{name}": shape for name, shape in of_single.items()}
    return shapes


def _numbers(layout: Layout) -> tuple[object, ...]:
    return tuple(value for key, value in vars(layout).items() if key != "name")

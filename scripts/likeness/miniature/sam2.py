"""Tiny SAM 2 models with the real classes: random weights, true shapes, so that every mask backend can be driven.

Two forms, because two libraries read SAM 2: a transformers folder (`Sam2Model` and `Sam2Processor`, loaded by
`from_pretrained`), and a Hydra config with a checkpoint for the PyPI package `sam2`. Both see 128 px pictures, where a
forward pass takes hundredths of a second on one CPU thread. Random weights make arbitrary masks: they prove the
plumbing (prompts in, a mask of the photo's size out), never the quality of a mask.

Masks come as batch x object x mask x height x width.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

IMAGE_SIZE_PX = 128
MASK_SIZE_PX = IMAGE_SIZE_PX // 4
PROMPT_WIDTH = 32

CHECKPOINT_NAME = "sam2_miniature.pt"
CONFIG_NAME = "sam2_miniature.yaml"


def _sam2_config() -> Any:
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    backbone = Sam2HieraDetConfig(
        hidden_size=12,
        num_attention_heads=1,
        image_size=[IMAGE_SIZE_PX, IMAGE_SIZE_PX],
        patch_kernel_size=[7, 7],
        patch_stride=[4, 4],
        patch_padding=[3, 3],
        num_query_pool_stages=3,
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[12, 24, 48, 96],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[8, 4, 8, 4],
        # The first block of a pooled stage may not attend globally: its window size of 0 would divide the pooling.
        global_attention_blocks=[3],
        window_positional_embedding_background_size=[7, 7],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=[96, 48, 24, 12],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=PROMPT_WIDTH,
    )
    prompt = Sam2PromptEncoderConfig(hidden_size=PROMPT_WIDTH, image_size=IMAGE_SIZE_PX, patch_size=16)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=PROMPT_WIDTH, mlp_dim=64, num_hidden_layers=2, num_attention_heads=4, iou_head_hidden_dim=32
    )
    return Sam2Config(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def build_sam2(folder: Path, seed: int = 0) -> Path:
    """Write a random tiny `Sam2Model` with its `Sam2Processor`, ready for `from_pretrained`.

    Returns the folder. About 0.2 million parameters and 0.9 MB; the same seed gives the same bytes.
    """
    import torch
    from transformers import Sam2ImageProcessor, Sam2Model, Sam2Processor

    folder.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Sam2Model(_sam2_config()).eval()
    image_processor = Sam2ImageProcessor(
        size={"height": IMAGE_SIZE_PX, "width": IMAGE_SIZE_PX},
        mask_size={"height": MASK_SIZE_PX, "width": MASK_SIZE_PX},
    )
    model.save_pretrained(folder)
    Sam2Processor(image_processor=image_processor, target_size=IMAGE_SIZE_PX).save_pretrained(folder)
    return folder


def _micro_config_text() -> str:
    """The smallest published config of the `sam2` package, cut down; its other keys keep the package's own values."""
    import yaml

    config = yaml.safe_load((files("sam2") / "configs" / "sam2.1" / "sam2.1_hiera_t.yaml").read_text())
    model = config["model"]
    model["image_size"] = IMAGE_SIZE_PX
    model["image_encoder"]["trunk"] |= {"embed_dim": 16, "stages": [1, 1, 2, 1], "global_att_blocks": [3]}
    model["image_encoder"]["neck"]["backbone_channel_list"] = [128, 64, 32, 16]
    model["memory_attention"]["num_layers"] = 1
    return "# @package _global_\n" + yaml.safe_dump(config, sort_keys=False)


def hydra_config_name(config_file: Path) -> str:
    """The name under which the `sam2` package finds a config outside of itself: an absolute path behind a second slash."""
    return "/" + str(config_file.resolve())


def build_sam2_checkpoint(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write a config and a random checkpoint that the PyPI package `sam2` builds; returns (config, checkpoint).

    Call `sam2.build_sam.build_sam2(hydra_config_name(config), str(checkpoint), device="cpu")`. Its image predictor
    assumes 1024 px features: set `predictor._bb_feat_sizes = feature_sizes_px()` after making it.

    Raises
    ------
    ModuleNotFoundError
        Without the optional package `sam2`.
    """
    import torch
    from sam2.build_sam import build_sam2 as build_from_config

    folder.mkdir(parents=True, exist_ok=True)
    config, checkpoint = folder / CONFIG_NAME, folder / CHECKPOINT_NAME
    config.write_text(_micro_config_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_from_config(hydra_config_name(config), None, device="cpu")
    torch.save({"model": model.state_dict()}, checkpoint)
    return config, checkpoint


def feature_sizes_px() -> list[tuple[int, int]]:
    """Sides of the three feature maps of the checkpoint's image encoder, finest first."""
    return [(IMAGE_SIZE_PX // stride, IMAGE_SIZE_PX // stride) for stride in (4, 8, 16)]

"""A tiny ViTPose of random weights, made of the real classes; nothing is learned or downloaded."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import VitPoseBackboneConfig, VitPoseConfig, VitPoseForPoseEstimation, VitPoseImageProcessor


def tiny_body(folder: Path, keypoints: int = 17, experts: int = 1) -> Path:
    """Write a model that sees 64 x 48 px, with its processor, and return its folder."""
    backbone = VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_experts=experts,
        part_features=8 if experts > 1 else 0,
        out_indices=[2],
    )
    torch.manual_seed(2)
    config = VitPoseConfig(backbone_config=backbone, num_labels=keypoints, use_simple_decoder=True, scale_factor=4)
    VitPoseForPoseEstimation(config).save_pretrained(folder)
    VitPoseImageProcessor(size={"height": 64, "width": 48}).save_pretrained(folder)
    return folder

"""The tiny SAM 2 models load in both libraries and answer prompts in the photo's own size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from likeness.miniature import sam2
from likeness.miniature.pack import manifest_of

BOX = [40.0, 30.0, 120.0, 140.0]


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (180, 240, 3), dtype=np.uint8)


def test_transformers_folder_answers_a_box(tmp_path: Path) -> None:
    from transformers import Sam2Model, Sam2Processor

    folder = sam2.build_sam2(tmp_path / "a", seed=1)
    processor, model = Sam2Processor.from_pretrained(folder), Sam2Model.from_pretrained(folder).eval()
    inputs = processor(images=photo(), input_boxes=[[BOX]], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs, multimask_output=True)
    masks = processor.post_process_masks(outputs.pred_masks, inputs["original_sizes"])[0]
    assert masks.shape == (1, 3, 180, 240)
    assert masks.dtype == torch.bool
    assert torch.isfinite(outputs.iou_scores).all()


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    folders = [sam2.build_sam2(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, second, other = (manifest_of(folder) for folder in folders)
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


def test_building_leaves_the_callers_random_numbers_alone(tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    sam2.build_sam2(tmp_path / "a")
    assert torch.equal(torch.rand(3), expected)


def test_package_checkpoint_answers_a_box(tmp_path: Path) -> None:
    pytest.importorskip("sam2", reason="optional extra sam2")
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    config, checkpoint = sam2.build_sam2_checkpoint(tmp_path / "package")
    predictor = SAM2ImagePredictor(build_sam2(sam2.hydra_config_name(config), str(checkpoint), device="cpu"))
    predictor._bb_feat_sizes = sam2.feature_sizes_px()
    predictor.set_image(photo())
    masks, scores, _ = predictor.predict(box=np.array(BOX), multimask_output=False)
    assert masks.shape == (1, 180, 240)
    assert set(np.unique(masks)) <= {0.0, 1.0}
    assert np.isfinite(scores).all()

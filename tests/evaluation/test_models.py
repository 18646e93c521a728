"""Learned metrics with random weights. Oracles: torchmetrics' LPIPS, and the CLIP classes of transformers used by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tiny_body import tiny_body

from likeness.config.base import ModelSource
from likeness.config.evaluation import EvaluationSettings
from likeness.errors import UserError
from likeness.evaluation.models import Models
from likeness.evaluation.pictures import Pictures
from likeness.store import Store

GENERATOR = np.random.default_rng(0)
PAIR = [GENERATOR.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(2)]


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory):
    """A file as torchvision ships it, with random weights."""
    from torchvision.models import alexnet

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("alex") / "alexnet.pth"
    torch.save(alexnet(weights=None).state_dict(), path)
    return path


def models_of(tmp_path, **sources):
    settings = EvaluationSettings.model_validate({key: {"source": str(path)} for key, path in sources.items()})
    return Models(settings, Store(tmp_path / "store"), offline=True)


def test_lpips_agrees_with_torchmetrics(alexnet, tmp_path):
    from torchmetrics.functional.image.lpips import _LPIPS

    oracle = _LPIPS(pretrained=True, net="alex", pnet_rand=True).eval()
    trunk = torch.nn.Sequential(*(layer for part in range(1, 6) for layer in getattr(oracle.net, f"slice{part}")))
    state = torch.load(alexnet, weights_only=True)
    trunk.load_state_dict({k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")})
    tensors = [torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1 for image in PAIR]
    models = models_of(tmp_path, lpips=alexnet)
    assert models.loaded == 0
    with torch.no_grad():
        assert models.lpips.distance(*PAIR) == pytest.approx(float(oracle(*tensors)), abs=1e-6)
    assert models.lpips.distance(PAIR[0], PAIR[0]) == 0
    assert models.lpips.distance(*PAIR) > 0.01 and models.loaded == 1


def test_lpips_file_that_is_missing_or_another_model_is_named(tmp_path):
    with pytest.raises(UserError, match=r"evaluation\.lpips.*alex\.pth.*folder"):
        models_of(tmp_path, lpips=tmp_path / "alex.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="0 of the 10 convolution tensors of alex"):
        models_of(tmp_path, lpips=tmp_path / "other.pth").lpips.distance(*PAIR)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny random CLIP with its processors."""
    from tests.tiny import tiny_tokenizer
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTextConfig, CLIPVisionConfig

    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    tokenizer = tiny_tokenizer()
    text = CLIPTextConfig(
        vocab_size=len(tokenizer) + 8,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=24,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=24,
    )
    torch.manual_seed(1)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_clip_embeddings_are_those_of_the_library(clip_folder, tmp_path):
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

    clip = models_of(tmp_path, clip=clip_folder).clip
    model = CLIPModel.from_pretrained(clip_folder).eval()
    pixels = CLIPImageProcessor.from_pretrained(clip_folder)(images=Image.fromarray(PAIR[0]), return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(clip_folder)(["a person"], return_tensors="pt")
    with torch.no_grad():
        output = model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], pixel_values=pixels["pixel_values"]
        )
    assert clip.image_embedding("one", lambda: PAIR[0]) == pytest.approx(output.image_embeds[0].numpy(), abs=1e-5)
    assert clip.text_embedding("a person") == pytest.approx(output.text_embeds[0].numpy(), abs=1e-5)
    assert np.linalg.norm(clip.text_embedding("word " * 60)) == pytest.approx(1)


def test_clip_image_embedding_is_stored(clip_folder, tmp_path):
    first = models_of(tmp_path, clip=clip_folder)
    embedding = first.clip.image_embedding("one", lambda: PAIR[0])
    second = models_of(tmp_path, clip=clip_folder)
    assert np.array_equal(second.clip.image_embedding("one", lambda: pytest.fail("drawn again")), embedding)
    assert (first.loaded, second.loaded) == (1, 0)


def test_clip_folder_that_lacks_files_is_named(tmp_path):
    (tmp_path / "clip").mkdir()
    with pytest.raises(UserError, match=r"evaluation\.clip.*clip lacks config\.json"):
        models_of(tmp_path, clip=tmp_path / "clip")


@pytest.fixture(scope="module")
def pose_folder(tmp_path_factory):
    """A tiny random ViTPose."""
    return tiny_body(tmp_path_factory.mktemp("pose") / "tiny-pose")


def test_shoulder_width_is_the_distance_of_two_keypoints_or_none(pose_folder, tmp_path, monkeypatch):
    body = models_of(tmp_path, body_pose=pose_folder).body
    found = body._find(PAIR[0], (4.0, 4.0, 60.0, 60.0))
    assert np.shape(found["points"]) == (2, 2) and len(found["scores"]) == 2
    for score, expected in ((0.9, 5.0), (0.1, None)):
        record = {"points": [[1.0, 1.0], [4.0, 5.0]], "scores": [0.9, score]}
        monkeypatch.setattr(body, "_find", lambda image_HWC, box, record=record: record)
        assert body.shoulder_width(f"score {score}", lambda: PAIR[0], (0.0, 0.0, 64.0, 64.0)) == expected


def test_body_folder_that_lacks_files_is_named_before_anything_is_scored(tmp_path):
    (tmp_path / "pose").mkdir()
    with pytest.raises(UserError, match=r"evaluation\.body_pose.*pose lacks config\.json, model\.safetensors"):
        models_of(tmp_path, body_pose=tmp_path / "pose")


def test_nothing_configured_means_no_model():
    models = Models(EvaluationSettings(), Store(None), offline=True)
    assert (models.lpips, models.clip, models.body, models.loaded) == (None, None, None, 0)
    assert ModelSource(source="x").sha256 is None


def test_a_picture_that_is_enlarged_has_a_name_of_its_own(tmp_path):
    plain, enlarged = (Pictures(Store(tmp_path), {}, side_px) for side_px in (None, 512))
    assert plain.name_of("abc") == "abc" != enlarged.name_of("abc")
    assert enlarged.name_of("abc") != Pictures(Store(tmp_path), {}, 256).name_of("abc")

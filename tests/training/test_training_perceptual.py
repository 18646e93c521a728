"""LPIPS against the lpips package with the same random trunk; the contrastive loss against a cross entropy and by hand."""

from __future__ import annotations

from dataclasses import replace

import lpips
import pytest
import torch
from tests.tiny import tiny_vae
from tests.training.test_training_loop import made_data, made_sample, made_training, run_steps
from tests.training.test_training_preservation import seen_of
from torch.nn.functional import cosine_similarity, cross_entropy
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from likeness.config.losses import ContrastiveSettings, LpipsSettings
from likeness.errors import UserError
from likeness.klein.latents import decode_latents, unpack
from likeness.training.losses.perceptual import make_contrastive_loss, make_lpips_loss, nce, partners_of, read_lpips

GRID = (8, 8)


def samples(count: int = 2):
    return [made_sample(index, grid=GRID) for index in range(count)]


@pytest.fixture(scope="module")
def trunks(tmp_path_factory):
    """Random trunks in torchvision's names, and the lpips models that hold them."""
    torch.manual_seed(0)
    folder, models = tmp_path_factory.mktemp("trunks"), {}
    for net in ("alex", "vgg"):
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
        layers = [layer for part in range(1, 6) for layer in getattr(model.net, f"slice{part}")]
        state = torch.nn.Sequential(*layers).state_dict()
        torch.save({f"features.{name}": value for name, value in state.items()}, folder / f"{net}.pth")
        models[net] = model
    return folder, models


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    torch.manual_seed(1)
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_is_the_packages(trunks, net):
    folder, models = trunks
    training, vae = made_training(made_data(samples()), batch_size=2), tiny_vae()
    settings = LpipsSettings.model_validate({"net": net, "model": str(folder / f"{net}.pth")})
    loss, seen = make_lpips_loss(settings, training.data, vae), seen_of(training)
    found = loss(seen)
    decoded = [
        decode_latents(vae, unpack(one, *GRID)).clamp(-1, 1)
        for one in (seen.clean_BLC.detach(), seen.batch.latents_BLC)
    ]
    assert torch.allclose(found, models[net](*decoded).flatten(), rtol=1e-4) and found.min() > 0
    found.sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in training.weights.values())


def test_lpips_of_the_true_velocity_is_nothing(trunks):
    folder, _ = trunks
    training = made_training(made_data(samples()))
    settings = LpipsSettings.model_validate({"net": "alex", "model": str(folder / "alex.pth")})
    seen = seen_of(training)
    loss = make_lpips_loss(settings, training.data, tiny_vae())
    assert loss(replace(seen, predicted_BLC=seen.target_BLC)).abs().max() < 1e-6


def test_weights_of_another_trunk_are_refused(trunks, tmp_path):
    folder, _ = trunks
    with pytest.raises(UserError, match="10 of the 26 convolution tensors of vgg"):
        read_lpips("vgg", folder / "alex.pth", "training.losses.lpips.model")
    with pytest.raises(UserError, match="is no file"):
        read_lpips("vgg", tmp_path / "none.pth", "training.losses.lpips.model")


def test_nce_is_the_cross_entropy_of_two_cosines():
    own, other = torch.randn(5, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 5)
    logits = torch.stack([own, other], dim=1) / 0.07
    expected = cross_entropy(logits, torch.zeros(5, dtype=torch.long), reduction="none")
    assert torch.allclose(nce(own, other, 0.07), expected, atol=1e-5)


def test_the_contrastive_loss_is_symmetric_and_by_hand(clip):
    """The partner is seen with the sample's noise: the value written out with plain decodings and two cross entropies."""
    training, vae = run_steps(made_training(made_data(samples())), 2), tiny_vae()
    loss = make_contrastive_loss(ContrastiveSettings.model_validate({"model": str(clip)}), training.data, vae)
    seen = seen_of(training).subset([0])
    (own,) = seen.batch.sample_ids
    other = loss.partners[own]
    sigma, data = seen.sigmas[0], training.data

    def embedded(latents_BLC):
        return loss.encoder.embed(decode_latents(vae, unpack(latents_BLC, *GRID)).clamp(-1, 1))

    batch = data.batch([other], [False])
    noisy = (1 - sigma) * batch.latents_BLC + sigma * seen.noise_BLC
    with torch.no_grad():
        changes = {"latents_BLC": batch.latents_BLC, "embeddings_BTD": batch.embeddings_BTD}
        partner = replace(seen, batch=replace(seen.batch, **changes))
        implied = [embedded(seen.clean_BLC), embedded(noisy - sigma * partner.predict())]
        true = [embedded(data.samples[name].latents_LC[None]) for name in (own, other)]
        expected = 0.0
        for place in (0, 1):
            cosines = [cosine_similarity(implied[place], true[one]) for one in (place, 1 - place)]
            expected += cross_entropy(torch.stack(cosines, dim=1) / 0.07, torch.zeros(1, dtype=torch.long)) / 2
    found = loss(seen)
    assert found[0].item() == pytest.approx(float(expected), rel=1e-3)
    found.sum().backward()
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in training.weights.values())


def test_partners_share_a_size_and_if_possible_the_source():
    one, two, three = (made_sample(index, references=1) for index in range(3))
    three = replace(three, references_RC=one.references_RC)
    alone = made_sample(9, grid=(2, 4))
    found = partners_of({item.sample_id: item for item in (one, two, three, alone)})
    assert found[one.sample_id] == three.sample_id and found[three.sample_id] == one.sample_id
    assert found[two.sample_id] in {one.sample_id, three.sample_id} and alone.sample_id not in found


def test_samples_of_different_sizes_have_nothing_to_contrast(clip):
    data = made_data([made_sample(0), made_sample(1, grid=(2, 4))])
    with pytest.raises(UserError, match="no two samples have one size"):
        make_contrastive_loss(ContrastiveSettings.model_validate({"model": str(clip)}), data, tiny_vae())

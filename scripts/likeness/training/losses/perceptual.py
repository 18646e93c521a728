"""Losses that look at the implied picture with a frozen network: LPIPS, and the symmetric contrastive loss.

The implied clean latents x̂0 are decoded whole, and compared with the sample's own latents decoded alike, so that what the
VAE loses is no error. Above a noise level the implied picture is a blur: both losses have a window that ends below it.

Axes: B samples, L tokens, C channels, H and W of pixels or tokens, D embedding width.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import interpolate, normalize, softplus
from torch.utils.checkpoint import checkpoint

from likeness.config.losses import ContrastiveSettings, LpipsSettings
from likeness.errors import UserError
from likeness.klein.latents import unpack
from likeness.training.data import Sample, TrainingData
from likeness.training.losses.identity import decode, grid_of
from likeness.training.losses.objective import Seen, predict

CONVOLUTIONS = {"alex": 5, "vgg": 13}
"""Convolutions of each trunk, each with weight and bias."""
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Where the model's own preprocessor_config.json names none."""


def pictures(vae: Any, latents_BLC: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Decode packed latents to pictures_BCHW of −1..1 with gradient, one at a time; computed again in the backward pass."""
    decoded = [checkpoint(decode, vae, one_CHW, use_reentrant=False) for one_CHW in unpack(latents_BLC, *grid)]
    return torch.stack(decoded)  # pyright: ignore[reportCallIssue, reportArgumentType]


# ---- LPIPS -------------------------------------------------------------------------------------------------------------


def read_lpips(net: str, path: Path, key: str) -> torch.nn.Module:
    """LPIPS 0.1 with a trunk (`alex` or `vgg`) from torchvision's state dict and the linear layers of the lpips package.

    `key` names the setting in errors. UserError where the file is absent or lacks convolutions.
    """
    import lpips

    with contextlib.redirect_stdout(io.StringIO()):
        model = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    trunk = torch.nn.Sequential(*(layer for part in range(1, 6) for layer in getattr(model.net, f"slice{part}")))
    trunk.load_state_dict(trunk_weights(net, path, key))
    return model.eval().requires_grad_(False)


def trunk_weights(net: str, path: Path, key: str) -> dict[str, torch.Tensor]:
    """A trunk's convolutions by their place among its layers."""
    if not path.is_file():
        raise UserError(f"{key}: {path} is no file. Give torchvision's weights of {net}, a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    found = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    wanted = 2 * CONVOLUTIONS[net]
    if len(found) != wanted:
        raise UserError(
            f"{key}: {path} holds {len(found)} of the {wanted} convolution tensors of {net} (features.0.weight …). Give "
            f"torchvision's file of {net}: {'alexnet-owt-7be5be79.pth' if net == 'alex' else 'vgg16-397923af.pth'}."
        )
    return found


@dataclass
class LpipsLoss:
    """LPIPS distance (arXiv:1801.03924) of the implied picture to the sample's own, as the VAE shows both."""

    vae: Any
    model: torch.nn.Module

    def __call__(self, seen: Seen) -> torch.Tensor:
        grid = grid_of(seen)
        with torch.no_grad():
            own_BCHW = pictures(self.vae, seen.batch.latents_BLC, grid)
        return self.model(pictures(self.vae, seen.clean_BLC, grid), own_BCHW).flatten()


def make_lpips_loss(settings: LpipsSettings, data: TrainingData, vae: Any) -> LpipsLoss:
    path = Path(settings.model.source).expanduser()
    return LpipsLoss(vae, read_lpips(settings.net, path, "training.losses.lpips.model").to(data.device))


# ---- symmetric contrastive ---------------------------------------------------------------------------------------------


def nce(to_own_B: torch.Tensor, to_other_B: torch.Tensor, temperature: float) -> torch.Tensor:
    """InfoNCE with one negative: −log of the softmax share of the own picture, from two cosines."""
    return softplus((to_other_B - to_own_B) / temperature)


@dataclass
class ImageEncoder:
    """A frozen CLIP image encoder in torch, with the picture's way into it as a differentiable step."""

    network: Any
    side_px: int
    mean_C11: torch.Tensor
    deviation_C11: torch.Tensor

    def embed(self, pictures_BCHW: torch.Tensor) -> torch.Tensor:
        """Unit embeddings_BD of pictures of −1..1: shorter side to `side_px`, centre, normalised."""
        height, width = pictures_BCHW.shape[-2:]
        scale = self.side_px / min(height, width)
        size = (max(self.side_px, round(height * scale)), max(self.side_px, round(width * scale)))
        resized_BCHW = interpolate(pictures_BCHW.float(), size, mode="bicubic", antialias=True)
        top, left = (size[0] - self.side_px) // 2, (size[1] - self.side_px) // 2
        centre_BCHW = resized_BCHW[..., top : top + self.side_px, left : left + self.side_px]
        pixels_BCHW = ((centre_BCHW + 1.0) / 2.0 - self.mean_C11) / self.deviation_C11
        return normalize(self.network(pixel_values=pixels_BCHW).image_embeds, dim=1)


def read_image_encoder(folder: Path, device: torch.device) -> ImageEncoder:
    """Read a CLIP model's image side from a folder in transformers layout; UserError where there is none."""
    from transformers import CLIPVisionModelWithProjection

    if not (folder / "config.json").is_file():
        raise UserError(
            f"training.losses.contrastive.model: {folder} is no folder of a CLIP model. Put one in transformers layout there, "
            "such as clip-vit-large-patch14."
        )
    network: Any = CLIPVisionModelWithProjection.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    network = network.eval().requires_grad_(False).float().to(device)
    described = folder / "preprocessor_config.json"
    values = json.loads(described.read_text("utf-8")) if described.is_file() else {}
    mean, deviation = values.get("image_mean", CLIP_MEAN), values.get("image_std", CLIP_DEVIATION)
    as_C11 = (torch.tensor(one, device=device)[:, None, None] for one in (mean, deviation))
    return ImageEncoder(network, int(network.config.image_size), *as_C11)


@dataclass
class ContrastiveLoss:
    """Draws a sample's implied picture to its own and away from its partner's, and the partner's likewise.

    Both are seen with the same noise at the same level (PixelSmile's symmetric form); `own` holds each sample's embedding
    as the VAE shows it. Samples without a partner count 0.
    """

    settings: ContrastiveSettings
    data: TrainingData
    vae: Any
    encoder: ImageEncoder
    own: Mapping[str, torch.Tensor]
    partners: Mapping[str, str]

    def __call__(self, seen: Seen) -> torch.Tensor:
        places = [place for place, name in enumerate(seen.batch.sample_ids) if name in self.partners]
        values_B = torch.zeros(len(seen.sigmas), device=seen.noise_BLC.device)
        if not places:
            return values_B
        paired = seen.subset(places)
        names = paired.batch.sample_ids
        others = [self.partners[name] for name in names]
        implied_BD = self._embed(paired.clean_BLC, seen)
        other_BD = self._embed(self._clean_of_partners(paired, others), seen)
        own_BD, away_BD = (torch.stack([self.own[name] for name in group]) for group in (names, others))
        first_B = nce((implied_BD * own_BD).sum(1), (implied_BD * away_BD).sum(1), self.settings.temperature)
        second_B = nce((other_BD * away_BD).sum(1), (other_BD * own_BD).sum(1), self.settings.temperature)
        return values_B.index_put((torch.tensor(places, device=values_B.device),), (first_B + second_B) / 2.0)

    def _clean_of_partners(self, paired: Seen, others: list[str]) -> torch.Tensor:
        batch = self.data.batch(others, [False] * len(others))
        sigma_B11 = paired.sigma_B[:, None, None]
        noisy_BLC = torch.lerp(batch.latents_BLC, paired.noise_BLC, sigma_B11)
        predicted_BLC = predict(paired.transformer, batch, noisy_BLC, paired.sigma_B)
        return noisy_BLC.float() - sigma_B11 * predicted_BLC.float()

    def _embed(self, latents_BLC: torch.Tensor, seen: Seen) -> torch.Tensor:
        return self.encoder.embed(pictures(self.vae, latents_BLC, grid_of(seen)))


def partners_of(samples: Mapping[str, Sample]) -> dict[str, str]:
    """Each sample's partner: the next one of its size, of the same references where there is one; none for a single one."""
    found: dict[str, str] = {}
    for alike in (_with_references, _of_one_size):
        groups: dict[Any, list[str]] = {}
        for name, sample in sorted(samples.items()):
            if not sample.of_class:
                groups.setdefault(alike(sample), []).append(name)
        for names in groups.values():
            for place, name in enumerate(names):
                if len(names) > 1:
                    found.setdefault(name, names[(place + 1) % len(names)])
    return found


def _with_references(sample: Sample) -> Any:
    references = sample.references_RC
    return (sample.group, references.numpy().tobytes()) if len(references) else (sample.group, sample.sample_id)


def _of_one_size(sample: Sample) -> Any:
    return sample.group


def make_contrastive_loss(settings: ContrastiveSettings, data: TrainingData, vae: Any) -> ContrastiveLoss:
    """Pair the samples and embed each; UserError where no two have one size."""
    partners = partners_of(data.samples)
    if not partners:
        raise UserError(
            "training.losses.contrastive: no two samples have one size, so there is nothing to contrast. Use fewer buckets "
            "(a larger buckets.bucket_step_px, or max_aspect: 1), or switch the loss off."
        )
    encoder = read_image_encoder(Path(settings.model.source).expanduser(), data.device)
    own = {}
    with torch.no_grad():
        for name in partners:
            sample = data.samples[name]
            latents_BLC = sample.latents_LC[None].to(data.device)
            own[name] = encoder.embed(pictures(vae, latents_BLC, sample.group[0]))[0]
    return ContrastiveLoss(settings, data, vae, encoder, own, partners)

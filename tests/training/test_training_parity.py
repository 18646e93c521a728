"""A whole training against the step of diffusers' own example script, on identical batches: losses and weights.

The oracle below is the step of examples/dreambooth/train_dreambooth_lora_flux2_klein.py (and of its _img2img sibling for
one reference), written anew from what it does: raw latents are patchified and normalised by the pipeline's helpers, the
noise level is an entry of the scheduler's own table, density and weighting come from diffusers.training_utils, the
adapter from peft, clipping and AdamW from torch. What chance decides (noise, noise level) is drawn by the oracle and
handed to the trainer, whose own draws are tested elsewhere.

Axes: B samples, C latent channels, H and W of the token grid, L tokens.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from peft import LoraConfig
from PIL import Image
from tests.training.conftest import World, smooth_picture

from likeness.klein.family import TEXT_LAYERS
from likeness.klein.targets import target_regex
from likeness.store import sha256_of_file
from likeness.tables import MANIFEST, PAIRS, PHOTOS, read_rows, write_table
from likeness.training import loop
from likeness.training.base import open_base
from likeness.training.data import load_samples
from likeness.training.loop import Draw, Training, train
from likeness.training.run import prepare

SIDE_PX, STEPS, BATCH, ACCUMULATION = 32, 12, 2, 2
SETTINGS = {
    "rank": 4,
    "alpha": 8,
    "init": "gaussian",
    "learning_rate": 1e-3,
    "batch_size": BATCH,
    "gradient_accumulation": ACCUMULATION,
    "caption_dropout": 0.0,
    "masked_loss": {"kind": None},
    "optimizer": {"weight_decay": 1e-4},
}


class Example:
    """The example script's step on its own copy of the model, in the arithmetic that it documents."""

    def __init__(self, base: Path, training: Training, weighting: str) -> None:
        self.pipeline = Flux2KleinPipeline.from_pretrained(base)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
        self.weighting, self.training = weighting, training
        self.encoded: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        settings, transformer = training.settings, self.pipeline.transformer
        transformer.requires_grad_(False)
        regex = target_regex(settings.targets, training.layout)
        transformer.add_adapter(LoraConfig(r=settings.rank, lora_alpha=int(settings.alpha or 0), target_modules=regex))
        self.parameters = {
            name.replace(".default.weight", ".weight"): value
            for name, value in transformer.named_parameters()
            if value.requires_grad
        }
        with torch.no_grad():
            for name, weight in training.weights.items():
                self.parameters[name].copy_(weight)
        transformer.train()
        values, adam = list(self.parameters.values()), settings.optimizer
        self.optimizer = torch.optim.AdamW(
            values,
            lr=settings.learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
        )

    def latents(self, images: list[Image.Image]) -> torch.Tensor:
        """Normalised latents_BCHW of pictures, as the script makes them from pixels."""
        vae = self.pipeline.vae
        pixels = torch.stack([torch.from_numpy(np.asarray(one).copy()).permute(2, 0, 1) for one in images])
        with torch.no_grad():
            raw = vae.encode(pixels.float() / 127.5 - 1.0).latent_dist.mode()
        mean = vae.bn.running_mean.view(1, -1, 1, 1)
        deviation = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
        return (Flux2KleinPipeline._patchify_latents(raw) - mean) / deviation

    def text(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings and ids of captions; each is encoded once, as the script does."""
        for caption in set(captions) - set(self.encoded):
            with torch.no_grad():
                self.encoded[caption] = self.pipeline.encode_prompt(
                    caption, max_sequence_length=64, text_encoder_out_layers=TEXT_LAYERS
                )
        found = [self.encoded[one] for one in captions]
        return torch.cat([one[0] for one in found]), torch.cat([one[1] for one in found])

    def draw(self, like_BCHW: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Noise_BCHW and timesteps_B of one micro-batch."""
        noise_BCHW = torch.randn(like_BCHW.shape, generator=generator)
        share_B = compute_density_for_timestep_sampling(
            weighting_scheme=self.weighting, batch_size=like_BCHW.shape[0], logit_mean=0.0, logit_std=1.0,
            mode_scale=1.29, generator=generator,
        )  # fmt: skip
        return noise_BCHW, self.scheduler.timesteps[(share_B * self.scheduler.config.num_train_timesteps).long()]

    def sigmas(self, timesteps_B: torch.Tensor) -> torch.Tensor:
        places = [(self.scheduler.timesteps == one).nonzero().item() for one in timesteps_B]
        return self.scheduler.sigmas[places].view(-1, 1, 1, 1)

    def backward(
        self,
        clean_BCHW: torch.Tensor,
        reference_BCHW: torch.Tensor | None,
        captions: list[str],
        noise_BCHW: torch.Tensor,
        timesteps_B: torch.Tensor,
    ) -> torch.Tensor:
        """Loss of one micro-batch; its gradient is divided by the accumulation, as accelerate does."""
        embeddings, text_ids = self.text(captions)
        ids = Flux2KleinPipeline._prepare_latent_ids(clean_BCHW)
        sigmas = self.sigmas(timesteps_B)
        packed = Flux2KleinPipeline._pack_latents((1.0 - sigmas) * clean_BCHW + sigmas * noise_BCHW)
        tokens, all_ids = packed, ids
        if reference_BCHW is not None:
            of_reference = Flux2KleinPipeline._prepare_image_ids([reference_BCHW[0:1]])
            all_ids = torch.cat([ids, of_reference.expand(len(ids), -1, -1)], dim=1)
            tokens = torch.cat([packed, Flux2KleinPipeline._pack_latents(reference_BCHW)], dim=1)
        predicted = self.pipeline.transformer(
            hidden_states=tokens,
            timestep=timesteps_B / 1000,
            guidance=None,
            encoder_hidden_states=embeddings,
            txt_ids=text_ids,
            img_ids=all_ids,
            return_dict=False,
        )[0][:, : packed.shape[1]]
        predicted = Flux2KleinPipeline._unpack_latents_with_ids(predicted, ids)
        if isinstance(predicted, list):
            predicted = torch.cat(predicted)
        weighting = compute_loss_weighting_for_sd3(weighting_scheme=self.weighting, sigmas=sigmas)
        error = weighting.float() * (predicted.float() - (noise_BCHW - clean_BCHW).float()) ** 2
        loss = error.reshape(len(error), -1).mean(dim=1).mean()
        (loss / ACCUMULATION).backward()
        return loss.detach()

    def update(self, max_grad_norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def squares(world: World, with_reference: bool) -> tuple[World, dict[str, tuple[list[Path], str]]]:
    """Four square samples that need neither crop nor resize; pictures (target first) and caption by sample id."""
    rows, samples, found = [], [], {}
    for index in range(4):
        paths = [world.root / f"square-{index}-{place}.png" for place in range(1 + with_reference)]
        for place, path in enumerate(paths):
            Image.fromarray(smooth_picture(40 + 10 * index + place, SIDE_PX, SIDE_PX)).save(path)
        digests = [sha256_of_file(path) for path in paths]
        common = {"id": f"s{index}", "repeats": 1, "sha256": digests[0], "status": "ok", "reason": ""}
        size = {"width_px": SIDE_PX, "height_px": SIDE_PX}
        if with_reference:
            of_source = {"source_width_px": SIDE_PX, "source_height_px": SIDE_PX, "source_sha256": digests[1]}
            places = {"source_path": str(paths[1]), "target_path": str(paths[0])}
            rows.append(common | size | of_source | places | {"reference_paths": [], "reference_sha256s": []})
        else:
            rows.append(common | size | {"path": str(paths[0])})
        sample_id, caption = f"{index:064x}", f"somebody number {index}"
        found[sample_id] = (paths, caption)
        samples.append(
            {"sample_id": sample_id, "image_sha256": digests[0], "mask_sha256": None, "caption": caption, "repeats": 1,
             "reference_sha256s": digests[1:]}
        )  # fmt: skip
    write_table(world.images, PAIRS if with_reference else PHOTOS, rows)
    write_table(world.manifest, MANIFEST, samples)
    world.encode()
    return world, found


@pytest.mark.parametrize("weighting", ["none", "logit_normal"])
@pytest.mark.parametrize("with_reference", [False, True])
def test_a_training_is_the_examples(photo_world, pair_world, monkeypatch, with_reference, weighting):
    world, pictures = squares(pair_world if with_reference else photo_world, with_reference)
    stage = world.train_stage(**SETTINGS, steps=STEPS)
    base = open_base(stage.base_model, offline=True, dtype="float32")
    data = load_samples(read_rows(world.encoded), stage.training, world.store, base.device)
    training = prepare(base, stage.training, data, None)
    example = Example(world.base, training, weighting)
    generator = torch.Generator().manual_seed(5)
    handed: dict[tuple[int, str], Draw] = {}
    losses = []
    for step in range(STEPS):
        of_step = []
        for ids in training.plan.step_batches(step, ACCUMULATION):
            assert len(ids) == BATCH
            images = [[Image.open(path) for path in pictures[one][0]] for one in ids]
            clean_BCHW = example.latents([one[0] for one in images])
            reference_BCHW = example.latents([one[1] for one in images]) if with_reference else None
            noise_BCHW, timesteps_B = example.draw(clean_BCHW, generator)
            of_step.append(
                example.backward(clean_BCHW, reference_BCHW, [pictures[one][1] for one in ids], noise_BCHW, timesteps_B)
            )
            sigmas = example.sigmas(timesteps_B).flatten().tolist()
            for place, one in enumerate(ids):
                noise_LC = Flux2KleinPipeline._pack_latents(noise_BCHW[place : place + 1])[0]
                handed[step, one] = Draw(noise_LC, sigmas[place], without_caption=False)
        example.update(training.settings.max_grad_norm)
        losses.append(torch.stack(of_step).mean().item())
    monkeypatch.setattr(loop, "draw_sample", lambda now, sample_id, occurrence: handed[now.step, sample_id])
    train(training, STEPS, lambda _: None)
    assert [row.loss for row in training.log] == pytest.approx(losses, abs=1e-5)
    moved = 0.0
    for name, weight in training.weights.items():
        assert (weight - example.parameters[name]).abs().max() < 1e-5, name
        moved = max(moved, weight.abs().max().item()) if "lora_B" in name else moved
    assert moved > 5e-3, "weights must have moved far more than the tolerance"

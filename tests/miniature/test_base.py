"""The miniature's base: real classes, a copying VAE, a tokenizer that reloads, and the same bytes for the same seed."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from transformers import Qwen2Tokenizer

from likeness.miniature.base import NATIVE_PX, BaseSettings, as_tensor, build_base, draw_batch, rate_factor
from likeness.miniature.text import EDIT_INSTRUCTION, TEXT_TOKENS, all_captions, build_tokenizer
from likeness.miniature.vae import build_vae
from likeness.miniature.world import render, sample_identities, sample_scenes

ROOT = Path(__file__).parents[2]
SHORT = BaseSettings(steps=2, batch_size=4, warmup_steps=1)


def wrapped(tokenizer, text: str) -> list[int]:
    message = [{"role": "user", "content": text}]
    return tokenizer(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))["input_ids"]


def test_the_vae_copies_pixels_better_than_70_db():
    rng = np.random.default_rng(0)
    images_BCHW = as_tensor(render(sample_identities(4, rng), sample_scenes(4, rng), 32, 32).images_NHWC)
    vae = build_vae()
    with torch.no_grad():
        copies_BCHW = vae.decode(vae.encode(images_BCHW).latent_dist.mode()).sample
    psnr_db = -10 * torch.log10(((copies_BCHW - images_BCHW) / 2).square().mean())
    assert psnr_db > 70


def test_the_tokenizer_reloads_and_holds_every_caption(tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    again = Qwen2Tokenizer.from_pretrained(tmp_path)
    captions = [*all_captions("r0bin person"), EDIT_INSTRUCTION, "höher 笑 unknown words"]
    assert again.model_max_length == TEXT_TOKENS
    assert all(wrapped(tokenizer, text) == wrapped(again, text) for text in captions[::40])
    assert max(len(wrapped(tokenizer, text)) for text in captions[:-1]) <= TEXT_TOKENS
    assert len({tuple(wrapped(tokenizer, text)) for text in captions}) == len(captions)


def test_two_builds_with_one_seed_are_the_same_bytes_and_another_seed_differs(tmp_path):
    random_state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        summary = build_base(tmp_path / name, seed, SHORT)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert summary["steps"] == 2 and 350_000 <= summary["parameters"] <= 1_000_000

    def digests(name: str) -> dict[str, str]:
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(p.relative_to(tmp_path / name)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}

    assert digests("a") == digests("b")
    assert digests("a").keys() == digests("c").keys() and digests("a") != digests("c")
    assert not any(str(tmp_path).encode() in path.read_bytes() for path in (tmp_path / "a").rglob("*.json"))
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "a")
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline(
        prompt=all_captions("a person")[0],
        height=NATIVE_PX,
        width=NATIVE_PX,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=TEXT_TOKENS,
        output_type="np",
    ).images[0]
    assert image.shape == (NATIVE_PX, NATIVE_PX, 3) and np.isfinite(image).all()


def test_references_come_in_their_share_of_the_batches():
    rng = np.random.default_rng(0)
    settings = BaseSettings(batch_size=2)
    batches = [draw_batch(rng, settings) for _ in range(200)]
    with_references = [batch for batch in batches if batch.references_BCHW is not None]
    assert abs(len(with_references) / 200 - settings.reference_share) < 0.12
    allowed = {"", *all_captions("a person")}
    assert all(caption in allowed for batch in batches for caption in batch.captions)
    assert all(not torch.equal(batch.images_BCHW, batch.references_BCHW) for batch in with_references)


def test_the_rate_warms_up_and_falls():
    settings = BaseSettings(steps=100, warmup_steps=10)
    rates = [rate_factor(step, settings) for step in range(100)]
    assert rates[0] < 0.11 and max(rates) == rates[9] and 0 < rates[-1] < 0.02


@pytest.mark.slow
def test_training_learns():
    """A short training lowers the loss by half."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        summary = build_base(Path(folder), 0, BaseSettings(steps=60))
    assert summary["last_loss"] < 0.5 * summary["first_loss"]


def test_the_program_writes_the_folder_whole_with_its_manifest(tmp_path):
    program = [sys.executable, str(ROOT / "scripts/build_miniature_base.py"), "--folder", str(tmp_path / "base")]
    done = subprocess.run([*program, "--steps", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "base/manifest.json").read_text())
    files = {p.relative_to(tmp_path / "base").as_posix() for p in (tmp_path / "base").rglob("*") if p.is_file()}
    assert set(manifest["files"]) == files - {"manifest.json"} and "transformer/config.json" in files
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    refused = subprocess.run(program, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and "exists already" in refused.stderr

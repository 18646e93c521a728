"""Every key that an export writes is one that its trainer reads.

shapes/ holds one small config a trainer whose keys all occur in that trainer's own reader; keys that the exports need
beyond those are listed here; not every one of them was looked up in the reader itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.exports.project import MASKED, Project, config_of, keys_of

from likeness.exports.export import EXPORTERS

SHAPES = Path(__file__).parent / "shapes"
MORE = {
    "simpletuner": "optimizer_beta1 optimizer_beta2 optimizer_config grad_clip_method lora_init_type masked_loss_probability "
    "flow_use_uniform_schedule flow_schedule_auto_shift user_prompt_library validation_using_datasets lr_end lr_power revision "
    "pretrained_model_name_or_path",
    "ai-toolkit": "betas eps bucket_tolerance disable_sampling ctrl_img_3 ctrl_img_4",
    "diffusion-pipe": "eps",
    "musubi-tuner": "image_jsonl_file control_path_0 control_path_1 control_path_2 control_path_3 image_path caption "
    "discrete_flow_shift",
    "diffsynth-studio": "",
    "onetrainer": "gradient_checkpointing eps name path enabled include_subdirectories image_variations text_variations balancing "
    "balancing_strategy loss_weight image text enable_crop_jitter enable_random_flip prompt_source prompt negative_prompt "
    "width height seed",
}


@pytest.mark.parametrize("trainer", sorted(MORE))
def test_only_keys_that_the_trainer_reads(tmp_path: Path, trainer: str) -> None:
    known = set(MORE[trainer].split())
    for path in SHAPES.glob(f"{trainer}-*"):
        flags = path.suffix == ".txt"
        known |= set(path.read_text().replace("--", "").split()) if flags else keys_of(config_of(path))
    written: set[str] = set()
    for project in (Project(tmp_path / "a").write_photos(), Project(tmp_path / "b").write_pairs(4, masked=True)):
        for training in ({}, MASKED, {"sigma": {"distribution": "shifted", "shift": 2.0}, "targets": "single_in"}):
            folder, _ = project.export(trainer=trainer, training=training)
            for path in (folder / "config").iterdir():
                if path.name != "prompts.json" and not (path.suffix == ".sh" and trainer == "musubi-tuner"):
                    written |= keys_of(config_of(path))
    assert written - known == set()
    assert len(written) > 10


def test_every_trainer_is_looked_at() -> None:
    """fal takes a request of four keys, and the flags of the diffusers examples stand in their own test."""
    assert set(MORE) | {"fal", "diffusers"} == set(EXPORTERS)


FLAGS = """pretrained_model_name_or_path revision dataset_name image_column caption_column instance_prompt output_dir rank
lora_alpha lora_layers aspect_ratio_buckets train_batch_size gradient_accumulation_steps gradient_checkpointing max_train_steps
checkpointing_steps checkpoints_total_limit resume_from_checkpoint learning_rate lr_scheduler lr_warmup_steps weighting_scheme
logit_mean logit_std optimizer use_8bit_adam adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm seed
mixed_precision cache_latents skip_final_inference report_to"""


def test_flags_of_the_diffusers_examples(tmp_path: Path) -> None:
    """The script for photos needs the text encoder's layers, since its default is another model's; that for pairs has none."""
    photos, pairs = Project(tmp_path / "a").write_photos(), Project(tmp_path / "b").write_pairs()
    flags = config_of(photos.export(trainer="diffusers", training=MASKED)[0] / "config/train.sh")
    own = {"caption_dropout", "text_encoder_out_layers", "use_aspect_ratio_buckets"}
    assert set(flags) - set(FLAGS.split()) == own
    assert flags["text_encoder_out_layers"] == ["9", "18", "27"]
    flags = config_of(pairs.export(trainer="diffusers")[0] / "config/train.sh")
    assert set(flags) - set(FLAGS.split()) == {"cond_image_column"}


def test_metadata_has_the_shape_that_diffsynth_reads(tmp_path: Path) -> None:
    folder, _ = Project(tmp_path).write_pairs(2).export(trainer="diffsynth-studio")
    rows = json.loads((folder / "data/metadata.json").read_text())
    assert rows[0] == {
        "image": "target/01.png",
        "prompt": "make it 01",
        "edit_image": ["source/01.png", "reference/01.png"],
    }
    shape = json.loads((SHAPES / "diffsynth-studio-metadata.json").read_text())
    assert {key: type(value) for key, value in rows[0].items()} == {key: type(value) for key, value in shape[0].items()}

"""One to four references, and masks, as each trainer takes them; what it cannot take is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.exports.project import MASK, Project, config_of

from likeness.exports.export import EXPORTERS, exporter_of

ROLES = ["source", "reference", "reference2", "reference3"]


def simpletuner(folder: Path) -> list[str]:
    return config_of(folder / "config/multidatabackend.json")[0]["conditioning_data"]


def ai_toolkit(folder: Path) -> list[str]:
    dataset = config_of(folder / "config/ai-toolkit.yaml")["config"]["process"][0]["datasets"][0]
    return [path.rpartition("/")[2] for path in dataset["control_path"]]


def diffusion_pipe(folder: Path) -> list[str]:
    return [config_of(folder / "config/dataset.toml")["directory"][0]["control_path"].rpartition("/")[2]]


def musubi_tuner(folder: Path) -> list[str]:
    row = config_of(folder / "config/pairs.jsonl")[0]
    return [row[key].split("/")[1] for key in sorted(row) if key.startswith("control_path_")]


def diffsynth_studio(folder: Path) -> list[str]:
    return [path.split("/")[0] for path in config_of(folder / "data/metadata.json")[0]["edit_image"]]


def diffusers(folder: Path) -> list[str]:
    return [config_of(folder / "data/train/metadata.jsonl")[0]["cond_image_file_name"].split("/")[0]]


def none(folder: Path) -> list[str]:
    return []


def fal(folder: Path) -> list[str]:
    places = {"01_start": "source", "01_start2": "reference", "01_start3": "reference2", "01_start4": "reference3"}
    return [places[path.stem] for path in sorted((folder / "data").glob("01_start*"))]


READ: dict[str, Callable[[Path], list[str]]] = {
    "simpletuner": simpletuner,
    "ai-toolkit": ai_toolkit,
    "diffusion-pipe": diffusion_pipe,
    "musubi-tuner": musubi_tuner,
    "diffsynth-studio": diffsynth_studio,
    "diffusers": diffusers,
    "onetrainer": none,
    "fal": fal,
}


def test_every_trainer_is_read() -> None:
    assert set(READ) == set(EXPORTERS)


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
@pytest.mark.parametrize("num_references", [1, 2, 3, 4])
def test_references_keep_their_order_and_those_that_are_left_out_are_named(
    tmp_path: Path, trainer: str, num_references: int
) -> None:
    folder, warnings = Project(tmp_path).write_pairs(num_references).export(trainer=trainer)
    taken = exporter_of(trainer).TRAINER.max_references
    assert READ[trainer](folder) == ROLES[: min(taken, num_references)]
    too_many = any(line.startswith("references:") and " takes " in line for line in warnings)
    assert too_many == (num_references > taken)
    exported = {path.parent.name for path in (folder / "data").rglob("*.*") if path.parent.name in ROLES}
    assert exported <= set(ROLES[:taken])


def test_musubi_lists_pairs_by_path(tmp_path: Path) -> None:
    folder, _ = Project(tmp_path).write_pairs(4).export(trainer="musubi-tuner")
    for row in config_of(folder / "config/pairs.jsonl"):
        assert (folder / row["image_path"]).is_file()
        assert all((folder / row[f"control_path_{number}"]).is_file() for number in range(4))
    dataset = config_of(folder / "config/dataset.toml")["datasets"][0]
    assert dataset["no_resize_control"] is True
    assert dataset["control_resolution"] == [1024, 1024]


def test_metadata_of_the_diffusers_example_names_files(tmp_path: Path) -> None:
    folder, _ = Project(tmp_path).write_pairs(1).export(trainer="diffusers")
    root = folder / "data/train"
    for row in config_of(root / "metadata.jsonl"):
        assert set(row) == {"image_file_name", "cond_image_file_name", "caption"}
        assert (root / row["image_file_name"]).is_file()
        assert (root / row["cond_image_file_name"]).is_file()


MASKED = {"masked_loss": {"kind": "head", "unmasked_weight": 0.2}}
MASKS = {
    "simpletuner": ("data/mask-head/{}.png", 51),
    "ai-toolkit": ("data/mask-head/{}.png", 0),
    "diffusion-pipe": ("data/mask-head/{}.png", 51),
    "onetrainer": ("data/{learned}/{}-masklabel.png", 0),
}
"""Where a mask lies, and its level outside: 0 where the trainer has a key for the weight."""


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
@pytest.mark.parametrize("kind", ["photo", "target"])
def test_masks_lie_where_the_trainer_looks_or_are_named(tmp_path: Path, trainer: str, kind: str) -> None:
    project = Project(tmp_path)
    project = project.write_photos() if kind == "photo" else project.write_pairs(2, masked=True)
    folder, warnings = project.export(trainer=trainer, training=MASKED)
    name = "ann-1" if kind == "photo" else "01"
    lines = [line for line in warnings if line.startswith("training.masked_loss.kind = head")]
    if trainer in MASKS:
        place, outside = MASKS[trainer]
        mask = np.array(Image.open(folder / place.format(name, learned=kind)))
        np.testing.assert_array_equal(mask, np.where(MASK == 255, 255, outside))
    else:
        assert any("takes no masks" in line for line in lines)
        assert not list(folder.rglob("*mask*"))


def masked_config(tmp_path: Path, trainer: str, name: str) -> Any:
    folder, _ = Project(tmp_path).write_photos().export(trainer=trainer, training=MASKED)
    return config_of(folder / "config" / name)


def test_the_weight_outside_the_mask_goes_to_the_trainers_key(tmp_path: Path) -> None:
    process = masked_config(tmp_path / "a", "ai-toolkit", "ai-toolkit.yaml")["config"]["process"][0]
    assert {dataset["mask_min_value"] for dataset in process["datasets"]} == {0.2}
    config = masked_config(tmp_path / "b", "onetrainer", "onetrainer.json")
    assert (config["masked_training"], config["unmasked_weight"]) == (True, 0.2)


def test_repeats_reach_every_trainer(tmp_path: Path) -> None:
    """One photo of four counts three times."""
    project = Project(tmp_path).write_photos()
    process = config_of(project.export(trainer="ai-toolkit")[0] / "config/ai-toolkit.yaml")["config"]["process"][0]
    assert [dataset["num_repeats"] for dataset in process["datasets"]] == [1, 3]
    for trainer, key in (("diffusion-pipe", "directory"), ("musubi-tuner", "datasets")):
        config = config_of(project.export(trainer=trainer)[0] / "config/dataset.toml")
        assert [entry["num_repeats"] for entry in config[key]] == [1, 3]
    concepts = config_of(project.export(trainer="onetrainer")[0] / "config/concepts.json")
    assert [concept["balancing"] for concept in concepts] == [1.0, 3.0]
    rows = config_of(project.export(trainer="diffsynth-studio")[0] / "data/metadata.json")
    assert [row["image"] for row in rows].count("photo-x3/thrice.webp") == 3
    rows = config_of(project.export(trainer="diffusers")[0] / "data/train/metadata.jsonl")
    assert sorted(row["file_name"] for row in rows if "thrice" in row["file_name"]) == [
        "photo/thrice--copy2.webp",
        "photo/thrice--copy3.webp",
        "photo/thrice.webp",
    ]


def test_steps_that_only_whole_passes_can_make_are_named(tmp_path: Path) -> None:
    project = Project(tmp_path).write_photos()
    for trainer in ("diffsynth-studio", "onetrainer"):
        _, warnings = project.export(trainer=trainer, training={"steps": 100})
        assert any(line.startswith("training.steps = 100:") and "102 steps" in line for line in warnings)
        _, quiet = project.export(trainer=trainer, training={"steps": 60, "save_every": 30})
        assert not any(line.startswith("training.steps") for line in quiet)


def test_no_prompts_no_sample_images(tmp_path: Path) -> None:
    project = Project(tmp_path).write_photos()
    process = config_of(project.export(trainer="ai-toolkit", prompts=[])[0] / "config/ai-toolkit.yaml")
    assert process["config"]["process"][0]["train"]["disable_sampling"] is True
    assert config_of(project.export(trainer="onetrainer", prompts=[])[0] / "config/onetrainer.json")[
        "sample_after_unit"
    ] == ("NEVER")
    config = config_of(project.export(trainer="simpletuner", prompts=[])[0] / "config/config.json")
    assert config["validation_step_interval"] > config["max_train_steps"]


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    project = Project(tmp_path).write_photos()
    folder, _ = project.export(trainer="ai-toolkit", overrides={"train.lr": 3e-4, "model.quantize": True})
    process = config_of(folder / "config/ai-toolkit.yaml")["config"]["process"][0]
    assert (process["train"]["lr"], process["model"]["quantize"]) == (3e-4, True)
    overrides = {"model.diffusion_model": "/m/a.safetensors", "model.vae": "/m/v.safetensors", "text_encoder": "/m/t"}
    folder, warnings = project.export(trainer="diffusion-pipe", overrides=overrides)
    model = config_of(folder / "config/diffusion-pipe.toml")["model"]
    assert (model["diffusion_model"], model["text_encoders"][0]["path"]) == ("/m/a.safetensors", "/m/t")
    assert not any(line.startswith("model files") for line in warnings)
    folder, _ = project.export(trainer="diffusers", overrides={"do_fp8_training": True, "rank": 3})
    flags = config_of(folder / "config/train.sh")
    assert (flags["do_fp8_training"], flags["rank"]) == ([], ["3"])

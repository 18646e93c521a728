"""SimpleTuner's folders, data backends and masks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from tests.exports.project import MASK, SMALL, Project
from tests.photos.pictures import drawn, nothing_known

from likeness.config.photos import PairFolder
from likeness.errors import UserError
from likeness.photos.index import index_pair
from likeness.photos.pairs import list_pairs
from likeness.tables import PAIRS, write_table


def test_simpletuner_pairs_have_one_folder_a_role_with_the_same_names(pairs: Project) -> None:
    folder, _ = pairs.export()
    backends = {entry["id"]: entry for entry in json.loads((folder / "config/multidatabackend.json").read_text())}
    target = backends["target"]
    assert target["conditioning_data"] == ["source", "reference", "reference2"]
    expected = {"01.png", "02.png"}
    for name in ("target", *target["conditioning_data"]):
        images = {
            path.name for path in (folder / backends[name]["instance_data_dir"]).iterdir() if path.suffix != ".txt"
        }
        assert images == expected, name
    assert backends["source"]["conditioning_type"] == "reference_strict"
    assert backends["source"]["source_dataset_id"] == "target"
    assert backends["reference"]["conditioning_type"] == "reference_loose"
    config = json.loads((folder / "config/config.json").read_text())
    assert config["conditioning_multidataset_sampling"] == "combined"
    assert (folder / "data/target/01.txt").read_text() == "make it 01"
    with Image.open(folder / "data/reference/02.png") as image:
        assert image.format == "PNG"


def test_repeats_become_datasets(photos: Project) -> None:
    folder, _ = photos.export()
    backends = {entry["id"]: entry for entry in json.loads((folder / "config/multidatabackend.json").read_text())}
    assert {name: entry.get("repeats") for name, entry in backends.items()} == {
        "photo": 0,
        "photo-x3": 2,
        "text-embeds": None,
    }


def test_masks_have_the_names_of_their_images_and_carry_the_weight_outside(photos: Project) -> None:
    folder, _ = photos.export(training={"masked_loss": {"kind": "head", "unmasked_weight": 0.2}})
    images = {path.name for path in (folder / "data/photo").iterdir() if path.suffix == ".png"}
    assert (
        images == {path.name for path in (folder / "data/mask-head").iterdir()} == {"ann-1.png", "b.png", "turned.png"}
    )
    mask = np.array(Image.open(folder / "data/mask-head/ann-1.png"))
    np.testing.assert_array_equal(mask, np.where(MASK == 255, 255, 51))
    none = np.array(Image.open(folder / "data/mask-head/turned.png"))
    assert none.shape == (96, 64)
    assert (none == 255).all()


def test_pairs_with_other_roles_are_named(pairs: Project) -> None:
    short = pairs.root / "short"
    short.mkdir()
    for role, seed in (("start", 1), ("end", 2)):
        Image.fromarray(drawn(seed)).save(short / f"x_{role}.png")
    folders = [PairFolder(path=str(pairs.root / "pairs")), PairFolder(path=str(short))]
    rows = [index_pair(pair, SMALL, nothing_known()) for pair in list_pairs(folders)]
    write_table(pairs.images, PAIRS, rows)
    row = next(row for row in rows if row["id"] == "x")
    pairs.add(row["sha256"], [row["source_sha256"]], "change x", 1, None)
    with pytest.raises(UserError, match="x: has the roles source, target, but 01 has"):
        pairs.export()


def test_overrides_are_laid_over_the_config(photos: Project) -> None:
    folder, _ = photos.export(overrides={"base_model_precision": "int8-quanto", "lora_rank": 3})
    config = json.loads((folder / "config/config.json").read_text())
    assert (config["base_model_precision"], config["lora_rank"]) == ("int8-quanto", 3)

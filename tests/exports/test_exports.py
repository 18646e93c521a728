"""Exports: golden files, completeness, hard links, and that no setting is lost in silence."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft.tuners.tuners_utils import check_target_module_exists
from PIL import Image
from tests.photos.pictures import drawn

from likeness.config.exports import ExportStage
from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings
from likeness.config.subject import TRAINERS
from likeness.config.training import TrainingSettings
from likeness.errors import UserError
from likeness.exports.export import EXPORTERS, export_dataset
from likeness.exports.fal import Fal
from likeness.exports.files import WARNINGS_NAME
from likeness.exports.settings import Setting, in_files, leaves
from likeness.exports.simpletuner import SimpleTuner, module_endings
from likeness.klein.family import KLEIN_4B, KLEIN_9B, linear_shapes
from likeness.klein.targets import PRESETS, matched_names, target_regex
from likeness.photos.index import index_pair, index_photo
from likeness.photos.names import list_photos
from likeness.photos.pairs import list_pairs
from likeness.store import Store, sha256_of_file
from likeness.tables import MANIFEST, PAIRS, PHOTOS, write_table

GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SMALL = PhotoSettings(min_side_px=16)
MASK = np.zeros((64, 96), np.uint8)
MASK[16:48, 24:72] = 255


class Project:
    """A folder with an index, a store and a manifest, and a way to export them."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root / "store")
        self.rows: list[dict[str, Any]] = []
        self.kind = "photos"

    def write_photos(self) -> Project:
        """Four photos: JPEG, PNG, a rotated JPEG, one seen three times."""
        folder = self.root / "photos"
        folder.mkdir()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(drawn(1)).save(folder / "Ann 1.jpg")
        Image.fromarray(drawn(2)).save(folder / "b.png")
        Image.fromarray(drawn(3)).save(folder / "turned.jpg", exif=exif)
        Image.fromarray(drawn(4)).save(folder / "thrice.webp", lossless=True)
        rows = [index_photo(photo, SMALL) for photo in list_photos([PhotoFolder(path=str(folder))])]
        write_table(self.images, PHOTOS, rows)
        buffer = io.BytesIO()
        Image.fromarray(MASK).save(buffer, format="PNG")
        mask = self.store.save_blob(buffer.getvalue())
        for row in rows:
            repeats = 3 if row["id"] == "thrice" else 1
            own_mask = None if row["id"] in ("b", "turned") else mask
            self.add(row["sha256"], [], f"j4ne, {row['id']}\nsecond line", repeats, own_mask)
        return self

    def write_pairs(self) -> Project:
        """Two pairs with two references of other sizes and endings."""
        folder, self.kind = self.root / "pairs", "pairs"
        folder.mkdir()
        for number in (1, 2):
            for role, seed in (("start", 10), ("end", 20)):
                Image.fromarray(drawn(seed + number)).save(folder / f"0{number}_{role}.png")
            Image.fromarray(drawn(30 + number, 40, 40)).save(
                folder / f"0{number}_start2.{'png' if number == 1 else 'jpg'}"
            )
            Image.fromarray(drawn(40 + number, 50, 30)).save(folder / f"0{number}_start3.png")
        rows = [index_pair(pair, SMALL) for pair in list_pairs([PairFolder(path=str(folder))])]
        write_table(self.images, PAIRS, rows)
        for row in rows:
            self.add(row["sha256"], [row["source_sha256"], *row["reference_sha256s"]], f"make it {row['id']}", 1, None)
        return self

    @property
    def images(self) -> Path:
        return self.root / "images.parquet"

    def add(self, image: str, references: list[str], caption: str, repeats: int, mask: str | None) -> None:
        self.rows.append(
            {
                "sample_id": hashlib.sha256(f"{image}{caption}".encode()).hexdigest(),
                "image_sha256": image,
                "mask_sha256": mask,
                "reference_sha256s": references,
                "caption": caption,
                "repeats": repeats,
            }
        )
        write_table(self.root / "manifest.parquet", MANIFEST, self.rows)

    def stage(self, trainer: str = "simpletuner", training: dict[str, Any] | None = None, **more: Any) -> ExportStage:
        values = {
            "trainer": trainer,
            "training": training or {},
            "kind": self.kind,
            "recipe": "edit" if self.kind == "pairs" else "character",
            "trigger": "j4ne",
            "base_model": {"source": "black-forest-labs/FLUX.2-klein-base-4B"},
            "prompts": ["{trigger} in a garden", "a {class} on a beach"],
        }
        return ExportStage.model_validate(values | more)

    def export(self, name: str = "out", **stage: Any) -> tuple[Path, list[str]]:
        folder = self.root / name
        chosen = self.stage(**stage)
        warnings = export_dataset(chosen, self.root / "manifest.parquet", self.images, self.store, folder)
        return folder, warnings


@pytest.fixture
def photos(tmp_path: Path) -> Project:
    return Project(tmp_path).write_photos()


@pytest.fixture
def pairs(tmp_path: Path) -> Project:
    return Project(tmp_path).write_pairs()


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


MASKED = {"masked_loss": {"kind": "head"}, "rank": 16, "alpha": 8, "schedule": {"name": "cosine", "warmup_steps": 20}}


@pytest.mark.parametrize(
    ("name", "kind", "stage"),
    [
        ("simpletuner-photos", "photos", {"training": MASKED}),
        ("simpletuner-pairs", "pairs", {"base_model": {"source": "black-forest-labs/FLUX.2-klein-base-9B"}}),
        ("fal-photos", "photos", {"trainer": "fal", "training": {"steps": 500}}),
        ("fal-pairs", "pairs", {"trainer": "fal", "training": {"learning_rate": 5e-5}}),
    ],
)
def test_configs_lists_and_warnings_equal_the_golden_files(
    tmp_path: Path, name: str, kind: str, stage: dict[str, Any], update_golden: bool
) -> None:
    """Keys were checked by hand against the trainers' own readers; the data files are listed by name."""
    project = Project(tmp_path)
    project = project.write_photos() if kind == "photos" else project.write_pairs()
    folder, _ = project.export(**stage)
    found = {f"config/{path.name}": path.read_text(encoding="utf-8") for path in (folder / "config").iterdir()}
    found[WARNINGS_NAME] = (folder / WARNINGS_NAME).read_text(encoding="utf-8")
    found["files.txt"] = "".join(f"{entry['path']}\n" for entry in json.loads((folder / "files.json").read_text()))
    for file, text in found.items():
        golden = GOLDEN / name / file
        if update_golden:
            golden.parent.mkdir(parents=True, exist_ok=True)
            golden.write_text(text, encoding="utf-8")
        assert golden.read_text(encoding="utf-8") == text, file
    assert {
        path.relative_to(GOLDEN / name).as_posix() for path in (GOLDEN / name).rglob("*.*") if path.is_file()
    } == set(found)


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


def test_originals_are_linked_and_others_become_upright_png(photos: Project) -> None:
    folder, _ = photos.export()
    source = photos.root / "photos"
    assert (folder / "data/photo/ann-1.jpg").samefile(source / "Ann 1.jpg")
    assert (folder / "data/photo/b.png").samefile(source / "b.png")
    assert (folder / "data/photo-x3/thrice.webp").samefile(source / "thrice.webp")
    with Image.open(folder / "data/photo/turned.png") as image:
        assert image.size == (64, 96)
    assert (folder / "data/photo/ann-1.txt").read_text() == "j4ne, ann-1 second line"


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


def test_fal_names_roles_and_repeats(photos: Project, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, _ = photos.export(trainer="fal")
    assert {path.name for path in (folder / "data").iterdir()} == {
        *("ann-1.jpg", "ann-1.txt", "b.png", "b.txt", "turned.png", "turned.txt", "thrice.webp", "thrice.txt"),
        *("thrice--copy2.webp", "thrice--copy2.txt", "thrice--copy3.webp", "thrice--copy3.txt"),
    }
    pairs = Project(tmp_path_factory.mktemp("pairs")).write_pairs()
    folder, _ = pairs.export(trainer="fal")
    assert {path.name for path in (folder / "data").iterdir() if path.name.startswith("02")} == {
        *("02_start.png", "02_start2.jpg", "02_start3.png", "02_end.png", "02.txt"),
    }


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
def test_the_list_holds_every_file_with_its_hash_and_stale_files_go(photos: Project, trainer: str) -> None:
    folder, _ = photos.export(trainer=trainer)
    before = files_below(folder)
    stale, own = folder / "data/old/left.png", folder / "output/checkpoint.bin"
    for path in (stale, own):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
    photos.export(trainer=trainer)
    after = files_below(folder)
    assert not stale.parent.exists()
    assert after.pop("output/checkpoint.bin") == b"x"  # what a trainer wrote is not ours
    assert after == before
    listed = {entry["path"]: entry["sha256"] for entry in json.loads(after["files.json"])}
    assert set(listed) == set(after) - {"files.json"}
    assert all(sha256_of_file(folder / path) == sha256 for path, sha256 in listed.items())
    assert not any(path.startswith("/") or ".." in path for path in listed)
    assert str(photos.root) not in "".join(text.decode() for name, text in after.items() if name.endswith("json"))


def test_a_file_without_hard_links_is_copied(photos: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("likeness.exports.files.os.link", refuse)
    folder, _ = photos.export()
    copy, original = folder / "data/photo/b.png", photos.root / "photos/b.png"
    assert not copy.samefile(original)
    assert copy.read_bytes() == original.read_bytes()


def test_a_second_export_computes_nothing(photos: Project) -> None:
    photos.export(training=MASKED)
    computed = dict(photos.store.computed)
    assert computed == {"export_png": 3, "export_mask": 3}
    photos.export(name="again", training=MASKED)
    assert dict(photos.store.computed) == computed


def test_a_photo_that_changed_is_named(photos: Project) -> None:
    Image.fromarray(drawn(99)).save(photos.root / "photos/b.png")
    with pytest.raises(UserError, match=r"b\.png: changed since it was indexed"):
        photos.export()


def test_samples_that_are_not_in_the_table_are_an_error(photos: Project) -> None:
    photos.add("0" * 64, [], "who", 1, None)
    with pytest.raises(UserError, match="no row has the images"):
        photos.export()


def test_an_empty_phase_and_an_unknown_trainer(photos: Project) -> None:
    with pytest.raises(UserError, match="did you mean 'simpletuner'"):
        photos.export(trainer="simpeltuner")
    write_table(photos.root / "manifest.parquet", MANIFEST, [])
    with pytest.raises(UserError, match="the phase is empty"):
        photos.export()


def test_pairs_with_other_roles_are_named(pairs: Project) -> None:
    short = pairs.root / "short"
    short.mkdir()
    for role, seed in (("start", 1), ("end", 2)):
        Image.fromarray(drawn(seed)).save(short / f"x_{role}.png")
    folders = [PairFolder(path=str(pairs.root / "pairs")), PairFolder(path=str(short))]
    rows = [index_pair(pair, SMALL) for pair in list_pairs(folders)]
    write_table(pairs.images, PAIRS, rows)
    row = next(row for row in rows if row["id"] == "x")
    pairs.add(row["sha256"], [row["source_sha256"]], "change x", 1, None)
    with pytest.raises(UserError, match="x: has the roles source, target, but 01 has"):
        pairs.export()


def test_overrides_are_laid_over_the_config(photos: Project) -> None:
    folder, _ = photos.export(overrides={"base_model_precision": "int8-quanto", "lora_rank": 3})
    config = json.loads((folder / "config/config.json").read_text())
    assert (config["base_model_precision"], config["lora_rank"]) == ("int8-quanto", 3)


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
def test_a_base_that_the_trainer_does_not_know_is_warned_of(photos: Project, trainer: str) -> None:
    _, warnings = photos.export(trainer=trainer, base_model={"source": "miniature"})
    assert any(line.startswith("base_model miniature:") for line in warnings)
    _, quiet = photos.export(trainer=trainer)
    assert not any(line.startswith("base_model") for line in quiet)


@pytest.mark.parametrize("layout", [KLEIN_4B, KLEIN_9B])
@pytest.mark.parametrize("targets", [*PRESETS, "all_blocks@double=0,3;single=7", r"single_transformer_blocks\.3\..*"])
def test_module_endings_mean_exactly_the_chosen_modules(layout: Any, targets: str) -> None:
    """Oracle: PEFT's own matching of a list of names."""
    from peft import LoraConfig

    if targets.startswith("single_") and not targets.startswith("single_t"):
        assert targets in PRESETS
    endings = module_endings(targets, layout)
    config = LoraConfig(target_modules=endings)
    lists = [f"transformer_blocks.{index}.attn.to_out" for index in range(layout.num_double)]
    hit = [name for name in [*linear_shapes(layout), *lists] if check_target_module_exists(config, name)]
    assert hit == matched_names(target_regex(targets, layout), layout)
    assert "attn.to_out" not in endings


def test_all_trainers_of_the_config_have_an_exporter() -> None:
    assert set(TRAINERS) == set(EXPORTERS)


@pytest.mark.parametrize("exporter", [SimpleTuner, Fal])
def test_every_setting_has_a_declared_place(exporter: type[SimpleTuner] | type[Fal]) -> None:
    names = {name for name, _ in leaves(TrainingSettings.model_validate({}))}
    assert set(exporter.SETTINGS) == names
    for name, setting in exporter.SETTINGS.items():
        places = [bool(setting.keys), bool(setting.files), bool(setting.missing)]
        assert sum(places) == 1, name
        assert isinstance(setting, Setting)


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
def test_every_declared_key_is_written(photos: Project, trainer: str) -> None:
    folder, _ = photos.export(trainer=trainer)
    written = {key for path in (folder / "config").glob("*.json") for key in keys_of(json.loads(path.read_text()))}
    exporter = {"simpletuner": SimpleTuner, "fal": Fal}[trainer]
    assert {key for setting in exporter.SETTINGS.values() for key in setting.keys} <= written


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys_of(inner)}
    return {key for inner in value for key in keys_of(inner)} if isinstance(value, list) else set()


SETTINGS_TO_CHANGE: dict[str, st.SearchStrategy[Any]] = {
    "rank": st.integers(1, 256),
    "alpha": st.floats(0.5, 300).filter(lambda value: value != 32),
    "targets": st.sampled_from([name for name in PRESETS if name != "all_blocks"]),
    "init": st.just("gaussian"),
    "steps": st.integers(60, 5000),
    "batch_size": st.integers(1, 64),
    "gradient_accumulation": st.integers(1, 64),
    "learning_rate": st.floats(1e-6, 1e-2),
    "optimizer.name": st.just("adamw8bit"),
    "optimizer.weight_decay": st.floats(0, 1),
    "optimizer.beta1": st.floats(0, 0.99),
    "optimizer.beta2": st.floats(0, 0.9999),
    "optimizer.eps": st.floats(1e-12, 1e-3),
    "schedule.name": st.just("cosine"),
    "schedule.warmup_steps": st.integers(0, 50),
    "sigma.distribution": st.sampled_from(["uniform", "shifted"]),
    "sigma.scale": st.floats(0.1, 5),
    "sigma.bias": st.floats(-5, 5),
    "sigma.shift": st.floats(0.5, 9),
    "masked_loss.kind": st.sampled_from(["face", "head", "person"]),
    "masked_loss.unmasked_weight": st.floats(0, 1),
    "caption_dropout": st.floats(0, 0.99),
    "max_grad_norm": st.floats(0.01, 10),
    "buckets.resolution_px": st.integers(64, 2048),
    "buckets.bucket_step_px": st.integers(1, 256),
    "buckets.max_aspect": st.floats(1, 8),
    "buckets.reference_resolution_px": st.integers(16, 2048).filter(lambda value: value != 1024),
    "save_every": st.integers(1, 1000),
    "seed": st.integers(0, 10**6),
    "precision": st.just("float32"),
    "gradient_checkpointing": st.just(True),
    "allow_distilled": st.just(True),
    "cpu_threads": st.integers(1, 64),
}
BASES: tuple[dict[str, Any], ...] = (
    {},
    {"masked_loss": {"kind": "head", "unmasked_weight": 0.5}, "sigma": {"distribution": "shifted", "shift": 2.0}},
    {"sigma": {"distribution": "uniform"}, "schedule": {"name": "cosine", "warmup_steps": 10}},
)


def changed(base: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    section, _, inner = name.rpartition(".")
    return base | ({section: base.get(section, {}) | {inner: value}} if section else {name: value})


def test_the_property_test_covers_every_setting() -> None:
    assert set(SETTINGS_TO_CHANGE) == {name for name, _ in leaves(TrainingSettings.model_validate({}))}


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_changing_any_one_setting_changes_the_export_or_is_warned_of(
    photos: Project, trainer: str, choice: st.DataObject
) -> None:
    base = choice.draw(st.sampled_from(BASES))
    name = choice.draw(st.sampled_from(sorted(SETTINGS_TO_CHANGE)))
    value = choice.draw(SETTINGS_TO_CHANGE[name])
    check_change(photos, trainer, base, name, value)


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
@pytest.mark.parametrize("name", sorted(SETTINGS_TO_CHANGE))
def test_each_setting_by_itself(photos: Project, trainer: str, name: str) -> None:
    """One plain change of each setting, so that none is missed by chance."""
    plain = {
        "rank": 8,
        "alpha": 5.0,
        "targets": "attention",
        "steps": 77,
        "batch_size": 3,
        "gradient_accumulation": 3,
        "learning_rate": 3e-4,
        "optimizer.weight_decay": 0.2,
        "optimizer.beta1": 0.8,
        "optimizer.beta2": 0.95,
        "optimizer.eps": 1e-6,
        "schedule.warmup_steps": 9,
        "sigma.distribution": "shifted",
        "sigma.scale": 2.0,
        "sigma.bias": 0.5,
        "sigma.shift": 4.0,
        "masked_loss.kind": "face",
        "masked_loss.unmasked_weight": 0.7,
        "caption_dropout": 0.3,
        "max_grad_norm": 2.0,
        "buckets.resolution_px": 512,
        "buckets.bucket_step_px": 32,
        "buckets.max_aspect": 3.0,
        "buckets.reference_resolution_px": 512,
        "save_every": 99,
        "seed": 7,
        "cpu_threads": 4,
        "init": "gaussian",
        "optimizer.name": "adamw8bit",
        "schedule.name": "cosine",
        "precision": "float32",
        "gradient_checkpointing": True,
        "allow_distilled": True,
    }
    check_change(photos, trainer, {}, name, plain[name])


def check_change(photos: Project, trainer: str, base: dict[str, Any], name: str, value: Any) -> None:
    before_settings = TrainingSettings.model_validate(base)
    after_settings = TrainingSettings.model_validate(changed(base, name, value))
    if before_settings == after_settings:
        return
    before, _ = photos.export(trainer=trainer, training=base)
    files = {key: data for key, data in files_below(before).items() if key not in (WARNINGS_NAME, "files.json")}
    after, warnings = photos.export(trainer=trainer, training=changed(base, name, value))
    again = {key: data for key, data in files_below(after).items() if key not in (WARNINGS_NAME, "files.json")}
    warned = any(line.startswith(f"training.{name}") for line in warnings)
    back_to_what_it_does = {"buckets.bucket_step_px": 16, "sigma.bias": 0.0}.get(name, object()) == value
    assert files != again or warned or back_to_what_it_does, (name, value, warnings)
    assert (after / WARNINGS_NAME).read_text(encoding="utf-8").splitlines() == warnings


def test_a_setting_that_is_lost_in_silence_is_noticed(photos: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimpleTuner, "SETTINGS", {**SimpleTuner.SETTINGS, "sigma.bias": in_files("nowhere")})
    with pytest.raises(AssertionError, match=r"sigma\.bias"):
        check_change(photos, "simpletuner", {}, "sigma.bias", 0.5)


def test_the_program_prints_its_warnings(photos: Project) -> None:
    stage = photos.stage(training={"sigma": {"bias": 1.0}}).model_dump(mode="json")
    command = [sys.executable, str(SCRIPTS / "export_dataset.py"), "--trainer", "simpletuner"]
    command += ["--settings", json.dumps({"settings": stage, "code": "x"}), "--manifest", "manifest.parquet"]
    command += ["--images", "images.parquet", "--store", "store", "--output-folder", "out"]
    done = subprocess.run(command, cwd=photos.root, capture_output=True, text=True, check=True)
    assert "warning: training.sigma.bias = 1.0:" in done.stdout
    assert "export_png: 1 computed" in done.stdout
    assert (photos.root / "out/files.json").exists()


def test_two_exports_are_byte_identical(pairs: Project) -> None:
    first, _ = pairs.export(name="one")
    second, _ = pairs.export(name="two")
    assert files_below(first) == files_below(second)

"""Every export: golden files, completeness, hard links, and who may ask for what."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.exports.project import MASKED, Project, files_below
from tests.photos.pictures import drawn

from likeness.config.subject import TRAINERS
from likeness.errors import UserError
from likeness.exports.export import EXPORTERS
from likeness.exports.files import WARNINGS_NAME
from likeness.store import sha256_of_file
from likeness.tables import MANIFEST, write_table

GOLDEN = Path(__file__).parent / "golden"
OTHERS = [name for name in EXPORTERS if name not in ("simpletuner", "fal")]
NINE = {"source": "black-forest-labs/FLUX.2-klein-base-9B"}
CHOSEN = {
    "targets": "double_all@double=0,3+x_embedder",
    "sigma": {"distribution": "shifted"},
    "gradient_accumulation": 2,
}
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.mark.parametrize(
    ("name", "kind", "stage"),
    [
        ("simpletuner-photos", "photos", {"training": MASKED}),
        ("simpletuner-pairs", "pairs", {"base_model": {"source": "black-forest-labs/FLUX.2-klein-base-9B"}}),
        ("fal-photos", "photos", {"trainer": "fal", "training": {"steps": 500}}),
        ("fal-pairs", "pairs", {"trainer": "fal", "training": {"learning_rate": 5e-5}}),
        *((f"{name}-photos", "photos", {"trainer": name, "training": MASKED}) for name in OTHERS),
        *((f"{name}-pairs", "pairs", {"trainer": name, "training": CHOSEN, "base_model": NINE}) for name in OTHERS),
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


def test_originals_are_linked_and_others_become_upright_png(photos: Project) -> None:
    folder, _ = photos.export()
    source = photos.root / "photos"
    assert (folder / "data/photo/ann-1.jpg").samefile(source / "Ann 1.jpg")
    assert (folder / "data/photo/b.png").samefile(source / "b.png")
    assert (folder / "data/photo-x3/thrice.webp").samefile(source / "thrice.webp")
    with Image.open(folder / "data/photo/turned.png") as image:
        assert image.size == (64, 96)
    assert (folder / "data/photo/ann-1.txt").read_text() == "j4ne, ann-1 second line"


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


@pytest.mark.parametrize("trainer", sorted(EXPORTERS))
def test_a_base_that_the_trainer_does_not_know_is_warned_of(photos: Project, trainer: str) -> None:
    _, warnings = photos.export(trainer=trainer, base_model={"source": "miniature"})
    assert any(line.startswith("base_model miniature:") for line in warnings)
    _, quiet = photos.export(trainer=trainer)
    assert not any(line.startswith("base_model") for line in quiet)


NAMES_THE_MODEL = {
    "simpletuner": r'"pretrained_model_name_or_path": "([^"]+)"',
    "ai-toolkit": r"name_or_path: (\S+)",
    "onetrainer": r'"base_model_name": "([^"]+)"',
    "diffusers": r"--pretrained_model_name_or_path (\S+)",
    "diffsynth-studio": r'--model_paths \'\[\["([^"]+)/transformer/a\.safetensors", "[^"]+/b\.safetensors"\]\]',
}
"""Where each trainer's files name the base model."""
LOCAL = "models/FLUX.2-klein-base-4B"


@pytest.mark.parametrize("trainer", NAMES_THE_MODEL)
def test_a_local_base_model_is_found_from_the_exports_folder_and_alike_on_every_machine(
    tmp_path: Path, trainer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for name in ("one", "far/two"):
        root = tmp_path / name
        (root / LOCAL / "transformer").mkdir(parents=True)
        for file in ("transformer/b.safetensors", "transformer/a.safetensors", "flux-2-klein-base-4b.safetensors"):
            (root / LOCAL / file).touch()
        monkeypatch.chdir(root)
        folder, warnings = (
            Project(root).write_photos().export("results/jane/out", trainer=trainer, base_model={"source": LOCAL})
        )
        assert not any(line.startswith("base_model") for line in warnings)
        configs = {file: text for file, text in files_below(folder).items() if file.startswith("config/")}
        (place,) = set(re.findall(NAMES_THE_MODEL[trainer], "\n".join(text.decode() for text in configs.values())))
        assert place.startswith("..") and (folder / place).resolve() == (root / LOCAL).resolve()
        written.append(configs)
    assert written[0] == written[1]


def test_a_local_base_model_is_found_from_a_results_folder_that_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "disk/deep/er").mkdir(parents=True)
    (tmp_path / "project" / LOCAL).mkdir(parents=True)
    (tmp_path / "project/results").symlink_to(tmp_path / "disk/deep/er")
    monkeypatch.chdir(tmp_path / "project")
    folder, _ = Project(tmp_path / "project").write_photos().export("results/out", base_model={"source": LOCAL})
    place = json.loads((folder / "config/config.json").read_text())["pretrained_model_name_or_path"]
    assert (folder.resolve() / place).resolve() == (tmp_path / "project" / LOCAL).resolve()


@pytest.mark.parametrize(
    ("trainer", "absent"),
    [("ai-toolkit", "flux-2-klein-base-4b.safetensors"), ("diffsynth-studio", "transformer/*.safetensors")],
)
def test_what_a_trainer_lacks_in_a_local_base_model_is_warned_of(
    photos: Project, trainer: str, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.root)
    (photos.root / LOCAL).mkdir(parents=True)
    _, warnings = photos.export(trainer=trainer, base_model={"source": LOCAL})
    assert any(line.startswith(f"base_model {LOCAL}:") and absent in line for line in warnings)


def test_a_base_model_that_is_neither_here_nor_on_the_hub_is_warned_of(photos: Project) -> None:
    source = "./models/klein/FLUX.2-klein-base-4B"
    folder, warnings = photos.export(base_model={"source": source})
    place = json.loads((folder / "config/config.json").read_text())["pretrained_model_name_or_path"]
    assert (folder.resolve() / place).resolve() == Path(source).resolve()
    assert f"base_model {source}: there is no such folder here; it must lie there before the training" in warnings


def test_all_trainers_of_the_config_have_an_exporter() -> None:
    assert set(TRAINERS) == set(EXPORTERS)


def test_the_program_prints_its_warnings(photos: Project) -> None:
    stage = photos.stage(training={"sigma": {"bias": 1.0}}).model_dump(mode="json")
    command = [sys.executable, str(SCRIPTS / "export_dataset.py"), "--trainer", "simpletuner"]
    command += ["--settings", json.dumps({"settings": stage, "code": "x"}), "--manifest", "manifest.parquet"]
    command += ["--images", "images.parquet", "--store", "store", "--output-folder", "out"]
    done = subprocess.run(command, cwd=photos.root, capture_output=True, text=True, check=True)
    assert "warning: training.sigma.bias = 1.0:" in done.stdout
    assert "export_png 1 computed" in done.stdout
    assert (photos.root / "out/files.json").exists()


def test_two_exports_are_byte_identical(pairs: Project) -> None:
    first, _ = pairs.export(name="one")
    second, _ = pairs.export(name="two")
    assert files_below(first) == files_below(second)

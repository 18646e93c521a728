"""Models are named by the backends that load them, found where they lie, fetched as one, and their bytes are checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.tiny import save_tiny
from tests.workflow.project import HOUSE, Project

from likeness.config.base import ModelSource
from likeness.config.load import load_project
from likeness.errors import UserError
from likeness.models import WantedModel, fetch_model, fetch_models, found_at, how_to_get, is_hub_id, wanted_models
from likeness.quality.body import BodyModel
from likeness.store import sha256_of_file
from likeness.workflow import Plan

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SUBJECT = """\
recipe: character
trigger: j4ne
photos: data/jane
base_model: {base}
faces: {{backend: {faces}, model: pack}}
masks: {{backend: grabcut}}
captions: {{backend: facts}}
evaluation: {{recogniser_backend: opencv, clip: {clip}}}
"""


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "base"
    save_tiny(folder, seed=3)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache of this machine, and a home folder without packs."""
    from huggingface_hub import constants, file_download

    folder = tmp_path / "hub"
    folder.mkdir()
    for module in (constants, file_download):
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(folder), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return folder


def cache_model(hub: Path, name: str, source: Path | None = None) -> Path:
    """Put a model into the hub cache as a download would."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    if source is not None:
        shutil.copytree(source, snapshot)
    else:
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return snapshot


def wanted_of(folder: Path, **values: str) -> dict[str, ModelSource]:
    project = Project(folder)
    project.configure(SUBJECT.format(**{"base": "miniature", "faces": "opencv", "clip": "null"} | values), "jane")
    subject = load_project(folder).project.subjects["jane"]
    return {one.key: one.model for one in wanted_models("jane", subject)}


def test_models_of_losses_are_wanted_of_every_training_and_are_paths(tmp_path: Path, hub: Path) -> None:
    project = Project(tmp_path)
    losses = """\
training: {losses: {identity: {model: miniature}, lpips: {model: weights/vgg.pth, weight: 0}}}
phases:
  one: {}
  two: {training: {losses: {contrastive: {model: clip}, identity: {model: ~/face.onnx}}}}
variants:
  main: {}
  other: {training: {losses: {lpips: {model: weights/other.pth}}}, phases: [one]}
"""
    text = SUBJECT.format(base="miniature", faces="opencv", clip="null") + losses
    project.configure(text.replace("clip: null", "lpips: weights/alex.pth"), "jane")
    wanted = list(wanted_models("jane", load_project(tmp_path).project.subjects["jane"]))
    assert [(one.key, one.model.source) for one in wanted] == [
        ("evaluation.lpips", "./weights/alex.pth"),
        ("training.losses.lpips.model", "./weights/vgg.pth"),
        ("training.losses.identity.model", "~/face.onnx"),
        ("training.losses.contrastive.model", "./clip"),
        ("training.losses.lpips.model", "./weights/other.pth"),
    ]
    cache_model(hub, "weights/vgg.pth")
    (tmp_path / "home" / ".insightface" / "models" / "clip").mkdir(parents=True)
    with pytest.raises(UserError, match="5 models could not be had") as caught:
        fetch_models(wanted)
    for one in wanted:
        assert found_at(one.model) is None
        assert f"{one.label}: there is no file or folder {one.model.source}; put the weights there" in str(caught.value)
    (tmp_path / "home" / "face.onnx").write_bytes(b"weights")
    assert found_at(wanted[2].model) == tmp_path / "home" / "face.onnx"


def test_only_what_a_configured_backend_loads_is_wanted(tmp_path: Path) -> None:
    assert wanted_of(tmp_path / "a") == {}
    found = wanted_of(tmp_path / "b", base="owner/klein-base-4B", faces="insightface", clip="owner/clip")
    assert {key: model.source for key, model in found.items()} == {
        "base_model": "owner/klein-base-4B",
        "faces.model": "pack",
        "evaluation.clip": "owner/clip",
    }


def test_with_the_embedded_preset_no_photo_waits_for_a_download(tmp_path: Path) -> None:
    project = Project(tmp_path)
    for recipe, data in (("character", "photos"), ("style", "photos"), ("edit", "pairs")):
        project.configure(f"recipe: {recipe}\ntrigger: j4ne\n{data}: data\npreset: embedded\n", recipe)
    for name, subject in load_project(tmp_path).project.subjects.items():
        of_style = ["evaluation.clip"] if name == "style" else []
        assert [one.key for one in wanted_models(name, subject)] == ["base_model", *of_style]


def test_where_nobody_looks_for_faces_their_weights_are_not_wanted(tmp_path: Path) -> None:
    text = (HOUSE / "config" / "examples" / "style.yaml").read_text("utf-8")
    switched_on = text.replace("# faces: {backend: none}", "faces: {backend: none}")
    assert switched_on != text
    project = Project(tmp_path)
    project.configure(switched_on, "inkwash")
    project.configure(text, "people")
    plan = Plan(load_project(tmp_path))
    keys = {name: {one.key for one in wanted_models(name, subject)} for name, subject in plan.subjects.items()}
    assert keys["people"] - keys["inkwash"] == {"faces.model", "masks.model", "evaluation.recogniser"}
    assert keys["inkwash"] == {"base_model", "captions.model", "evaluation.clip"}
    assert [plan.gpus_of_masks(SimpleNamespace(subject=name)) for name in ("people", "inkwash")] == [1, 0]


def test_names_of_the_hub_are_told_from_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here" / "model").mkdir(parents=True)
    assert is_hub_id("owner/name")
    assert not any(map(is_hub_id, ("here/model", "./owner/name", "~/name", "buffalo_l", "/a/b", "a/b/c")))


def test_models_are_found_in_a_folder_a_pack_and_the_hubs_cache(hub: Path, tmp_path: Path) -> None:
    pack = tmp_path / "home" / ".insightface" / "models" / "buffalo_l"
    pack.mkdir(parents=True)
    snapshot = cache_model(hub, "owner/mask")
    assert found_at(ModelSource(source=str(tmp_path))) == tmp_path
    assert found_at(ModelSource(source="buffalo_l")) == pack
    assert found_at(ModelSource(source="owner/mask")) == snapshot
    assert found_at(ModelSource(source="owner/other")) is None
    assert "make models" in how_to_get(ModelSource(source="owner/other"))
    assert "non-commercial" in how_to_get(ModelSource(source="antelopev2"))
    assert "no file or folder" in how_to_get(ModelSource(source="weights/a/lpips.pth"))


def test_a_fetched_base_model_must_fit_together_and_tells_its_commit(hub: Path, tiny_folder: Path) -> None:
    cache_model(hub, "owner/klein", tiny_folder)
    records = fetch_models([WantedModel(subject="jane", key="base_model", model=ModelSource(source="owner/klein"))])
    assert [(record["key"], record["commit"]) for record in records] == [("jane: base_model", COMMIT)]
    wrong = ModelSource(source="owner/klein", sha256="0" * 64)
    with pytest.raises(UserError, match="is expected"):
        fetch_model(WantedModel(subject="jane", key="base_model", model=wrong))


def test_the_bytes_of_a_file_are_held_against_its_sha256(tmp_path: Path) -> None:
    path = tmp_path / "alex.pth"
    path.write_bytes(b"weights")
    right = ModelSource(source=str(path), sha256=sha256_of_file(path))
    assert fetch_model(WantedModel(subject="jane", key="evaluation.lpips", model=right)) == path
    wrong = right.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(UserError, match=r"evaluation\.lpips.* have sha256"):
        fetch_model(WantedModel(subject="jane", key="evaluation.lpips", model=wrong))


def test_make_models_and_the_stage_ask_for_the_same_sha256_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "vitpose"
    folder.mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    right = ModelSource(source=str(folder), sha256=sha256_of_file(folder / "model.safetensors"))
    assert fetch_model(WantedModel(subject="jane", key="quality.body_pose", model=right)) == folder
    with pytest.raises(UserError, match="not a ViTPose model"):  # past the comparison: these bytes are no network
        _ = BodyModel("quality.body_pose", right, tmp_path / "store", offline=True).model


def test_all_that_is_missing_is_named_at_once(hub: Path) -> None:
    keys = {"base_model": "owner/absent", "faces.model": "buffalo_l", "evaluation.clip": "owner/clip"}
    wanted = [WantedModel(subject="jane", key=key, model=ModelSource(source=name)) for key, name in keys.items()]
    with pytest.raises(UserError) as caught:
        fetch_models(wanted)
    text = str(caught.value)
    assert text.startswith("3 models could not be had") and all(name in text for name in keys.values())


def test_the_rule_writes_what_it_found(hub: Path, tmp_path: Path, tiny_folder: Path) -> None:
    project = Project(tmp_path / "project")
    project.configure(SUBJECT.format(base=tiny_folder, faces="opencv", clip="null"), "jane")
    run = project.succeed("--", "models")
    assert run.jobs == {"fetch_models"}
    assert "jane: base_model" in (project.folder / "models" / "fetched.json").read_text()
    assert project.succeed("--", "models").jobs == set()

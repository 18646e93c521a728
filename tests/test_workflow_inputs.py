"""A user's files become inputs where Snakemake can resolve them, and are told by their state elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.workflow.project import Project

from likeness.workflow import Plan
from likeness.workflow_inputs import MISSING, Folders


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "below").mkdir(parents=True)
    for name in ("plain.png", "a{b}.png", "a{b.png", "a}b.png", "below/deep.png"):
        (tmp_path / "data" / name).write_bytes(b"photo")
    (tmp_path / "data" / "link.png").symlink_to("plain.png")
    (tmp_path / "data" / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "top.png").touch()
    return tmp_path


def test_what_snakemake_cannot_resolve_is_no_input(folder: Path) -> None:
    names = ["plain.png", "a{b}.png", "a{b.png", "a}b.png", "below/deep.png", "link.png", "dangling.png", "absent.png"]
    found = Folders().sorted_out([*(f"data/{name}" for name in names), "data/below", "top.png", "no/folder.png"])
    readable = ["a{b.png", "a}b.png", "below/deep.png", "link.png", "plain.png"]
    assert found.inputs == [*(f"data/{name}" for name in readable), "top.png"]
    missing = {path for path, state in found.others.items() if state == MISSING}
    assert missing == {"data/dangling.png", "data/absent.png", "data/below", "no/folder.png"}
    assert found.there == {*found.inputs, "data/a{b}.png"}


def test_absolute_paths_and_repeated_ones_are_told_alike(folder: Path) -> None:
    path = str(folder / "data" / "plain.png")
    assert Folders().sorted_out([path, path]).inputs == [path]
    assert Folders().has(path) and not Folders().has(f"{path}.txt")


def test_other_bytes_in_a_file_with_braces_are_another_state(folder: Path) -> None:
    path = folder / "data" / "a{b}.png"

    def state() -> str:
        return Folders().sorted_out(["data/a{b}.png"]).others["data/a{b}.png"]

    before, when_ns = state(), path.stat().st_mtime_ns
    path.write_bytes(b"other")
    os.utime(path, ns=(when_ns, when_ns + 1))
    assert state() not in (before, MISSING)
    path.write_bytes(b"photo")
    os.utime(path, ns=(when_ns, when_ns))
    assert state() == before


def test_a_disk_that_does_not_tell_small_letters_from_capitals_is_asked(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: is_file(Path(str(path).lower())))
    found = Folders().sorted_out(["data/Plain.PNG", "data/None.PNG"])
    assert found.inputs == ["data/Plain.PNG"] and found.others == {"data/None.PNG": MISSING}


def test_paths_that_no_disk_can_hold_are_missing(folder: Path) -> None:
    assert Folders().sorted_out(["a\0b/c.png", "data/\0.png"]).inputs == []


def test_each_folder_is_listed_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    folders = Folders()
    assert folders.has("data/plain.png") and not folders.has("data/none.png") and folders.has("top.png")
    assert listed == ["data", "."]


def test_a_folder_that_cannot_be_listed_is_asked_for_each_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert Folders().sorted_out(["data/plain.png", "data/none.png"]).inputs == ["data/plain.png"]


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_a_mask_that_no_photo_takes_is_told(folder: Path, kind: str) -> None:
    """Photos that are masked are named as their masks; a pair's mask bears the pair's name."""
    names = {"photos": ["one.jpg", "sub/two.png"], "pairs": ["one_start.png", "one_end.png"]}[kind]
    taken = {"photos": ["one.png", "sub/two.png"], "pairs": ["one.png"]}[kind]
    for name in (*names, *(f"masks/{mask}" for mask in taken)):
        (folder / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "set" / name).touch()
    recipe = "edit" if kind == "pairs" else "character"
    project = Project(folder)
    project.configure(f"recipe: {recipe}\ntrigger: j4ne\n{kind}: [{{path: set, masks: set/masks}}]\n", "jane")
    about_masks = [warning for warning in Plan.load([], {}).warnings if "mask" in str(warning)]
    assert about_masks == []
    for stray in ("robin-77.png", "sub.jpg"):
        (folder / "set" / "masks" / stray).touch()
    (warning,) = [str(warning) for warning in Plan.load([], {}).warnings if "mask" in str(warning)]
    assert warning.startswith("jane: set/masks/robin-77.png and 1 more: nobody's mask.")

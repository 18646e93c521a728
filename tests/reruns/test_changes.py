"""Every kind of file that a user edits, adds, renames or removes is named as what it is."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from likeness.reruns.changes import Changes
from likeness.reruns.dry_run import PlannedJob
from likeness.reruns.records import Record
from likeness.store import sha256_of_file
from likeness.workflow import Plan

CONFIG = """\
shards: 1
subjects:
  jane:
    recipe: character
    trigger: j4ne
    photos: [{path: data/jane, masks: data/masks}]
    reference: [data/who.png]
    captions: {backend: facts}
    regularisation: {photos: [data/others]}
    training: {losses: {prior_preservation: {ratio: 0.5}}}
    variants: {main: {}, old: {lora: "drawer/*.safetensors"}}
  pip:
    recipe: edit
    trigger: p1p
    pairs: {path: data/pip, table: pairs.csv}
    captions: {backend: facts}
"""
FILES = {
    "index_photos/jane/0": ["data/jane/IMG 1, copy.png", "data/jane/one.png", "data/masks/one.png"],
    "index_pairs/pip/0": ["data/pip/a.png", "data/pip/b.png", "data/pip/pairs.csv"],
    "write_captions/jane/0": ["data/jane/one.txt"],
    "merge_faces/jane": ["data/who.png"],
    "index_regularisation/jane": ["data/others/x.png"],
    "score_files/jane/old": ["drawer/first.safetensors"],
}
Told = Callable[..., list[str]]


def record(name: str, inputs: list[str], **settings: Any) -> Record:
    checksums = {path: f"sha256:{sha256_of_file(Path(path))}" for path in inputs}
    made = f"results/{name}.parquet"
    noted = {"settings": {}, "code": "", **settings}
    return Record(f"{made}.done", name, (made, *inputs), checksums, noted, ended_s=0)


def job(name: str, *edited: str, **settings: Any) -> PlannedJob:
    reason = (
        f"Updated input files: {', '.join(edited)}" if edited else "Set of input files has changed since last execution"
    )
    words = shlex.join(["--settings", json.dumps({"settings": {}, "code": "", **settings})])
    return PlannedJob(name, reason, f"python x {words} > results/.logs/{name}.log 2>&1")


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Told:
    """A project that ran once; the function tells what changed since then for some planned jobs."""
    monkeypatch.chdir(tmp_path)
    for path in (Path(name) for names in FILES.values() for name in names):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"bytes of {path}")
    Path("data/pip/pairs.csv").write_text("source,target\na.png,b.png\n")
    Path("config").mkdir()
    Path("config/config.yaml").write_text(CONFIG)
    records = [record(name, inputs) for name, inputs in FILES.items()]

    def lines(*jobs: PlannedJob, before: list[Record] | None = None) -> list[str]:
        return Changes(Plan.load([], {}), jobs, before or records).lines()

    return lines


def test_nothing_edited_gives_no_line(told: Told) -> None:
    assert told() == []


@pytest.mark.parametrize(
    ("name", "path", "kind"),
    [
        ("index_photos/jane/0", "data/jane/one.png", "photo"),
        ("index_photos/jane/0", "data/jane/IMG 1, copy.png", "photo"),
        ("index_photos/jane/0", "data/masks/one.png", "mask"),
        ("index_pairs/pip/0", "data/pip/a.png", "photo"),
        ("index_pairs/pip/0", "data/pip/pairs.csv", "pair table"),
        ("write_captions/jane/0", "data/jane/one.txt", "caption text"),
        ("merge_faces/jane", "data/who.png", "reference photo"),
        ("index_regularisation/jane", "data/others/x.png", "picture of the class"),
        ("score_files/jane/old", "drawer/first.safetensors", "LoRA file"),
    ],
)
def test_an_edited_file_is_named_as_what_it_is(told: Told, name: str, path: str, kind: str) -> None:
    subject = name.split("/")[1]
    assert told(job(name, f"results/{name}.parquet", path))[-1] == f"{subject}: {kind} {path} was edited"


def test_two_edited_photos_stay_apart(told: Told) -> None:
    edited = ["data/jane/IMG 1, copy.png", "data/jane/one.png"]
    assert told(job("index_photos/jane/0", *edited)) == [f"jane: photo {path} was edited" for path in edited]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("data/jane/new.png", "jane: photo data/jane/new.png was added"),
        ("data/masks/IMG 1, copy.png", "jane: mask data/masks/IMG 1, copy.png was added"),
        ("data/jane/sea{side}.png", "jane: photo data/jane/sea{side}.png was added"),
        ("data/others/extra.png", "jane: picture of the class data/others/extra.png was added"),
        ("drawer/second.safetensors", "jane: LoRA file drawer/second.safetensors was added"),
        ("data/jane/IMG 1, copy.txt", "jane: caption text data/jane/IMG 1, copy.txt was added"),
    ],
)
def test_an_added_file_is_named(told: Told, path: str, line: str) -> None:
    Path(path).write_text("new")
    assert told() == [line]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("data/jane/IMG 1, copy.png", "photo"),
        ("data/others/x.png", "picture of the class"),
        ("drawer/first.safetensors", "LoRA file"),
        ("data/jane/one.txt", "caption text"),
        ("data/who.png", "reference photo"),
        ("data/pip/a.png", "photo"),
        ("data/pip/pairs.csv", "pair table"),
    ],
)
def test_a_removed_file_is_named(told: Told, path: str, kind: str) -> None:
    Path(path).unlink()
    assert f"{'pip' if 'pip' in path else 'jane'}: {kind} {path} was removed" in told()


def test_a_link_to_nothing_is_a_file_that_was_removed(told: Told) -> None:
    Path("data/jane/one.png").unlink()
    Path("data/jane/one.png").symlink_to("nowhere.png")
    assert told() == ["jane: photo data/jane/one.png was removed"]


@pytest.mark.parametrize("new", ["data/jane/two.png", "data/jane/t{w}o.png"])
def test_equal_bytes_under_another_name_are_a_renaming(told: Told, new: str) -> None:
    Path("data/jane/IMG 1, copy.png").rename(new)
    assert told() == [f"jane: photo data/jane/IMG 1, copy.png was renamed to {new}"]


def test_a_file_with_braces_is_compared_by_its_noted_state(told: Told) -> None:
    path, name = "data/jane/sea{side}.png", "index_photos/jane/0"
    Path(path).write_text("photo")
    before = [record(name, FILES[name], files={path: "5 bytes, changed 1"})]
    same, other = job(name, files={path: "5 bytes, changed 1"}), job(name, files={path: "6 bytes, changed 2"})
    assert told(same, before=before) == []
    assert told(other, before=before) == [f"jane: photo {path} was edited"]
    Path(path).unlink()
    assert told(job(name), before=before) == [f"jane: photo {path} was removed"]
    missing = [record(name, FILES[name], files={path: "missing"})]
    assert told(job(name), before=missing) == []
    Path(path).write_text("photo")
    assert told(other, before=missing) == [f"jane: photo {path} was added"]


def test_what_is_wrong_with_captions_csv_is_said(told: Told) -> None:
    complaint = "results/jane/captions.csv, line 2: not UTF-8 text."
    assert told(job("write_captions/jane/0", unread_edits=complaint)) == [f"jane: {complaint}"]

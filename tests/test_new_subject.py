"""`make new`: what was given is what the configuration then reads, and nothing is written outside of it."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from likeness.config.load import load_project
from likeness.config.source import read_source

SCRIPTS = Path(__file__).parents[1] / "scripts"
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


def new(
    folder: Path, name: str, photos: str = "data", trigger: str = "j4ne", preset: str = ""
) -> subprocess.CompletedProcess[str]:
    flags = ["--name", name, "--photos", photos, "--trigger", trigger, "--folder", str(folder), "--preset", preset]
    return subprocess.run(
        [sys.executable, str(SCRIPTS / "new_subject.py"), *flags], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def as_yaml(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from new_subject import as_yaml

    return as_yaml


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS, TEXTS)
@example("0", "\x85")
@example("it's \u2028", "a\u2029b: #")
def test_every_text_is_read_back_as_it_was_given(tmp_path: Path, as_yaml, trigger: str, photos: str) -> None:
    path = tmp_path / "one.yaml"
    path.write_text(as_yaml("character", trigger, photos), encoding="utf-8")
    source, errors = read_source(path, path.name)
    assert errors == []
    assert (source.values["trigger"], source.values["photos"]) == (trigger, photos)


@pytest.mark.parametrize("trigger", ["1234", "off", "ohwx: man", "2024-13-45", "!env X", "jane # not a comment"])
def test_words_that_yaml_reads_otherwise_can_be_triggers(tmp_path: Path, trigger: str) -> None:
    done = new(tmp_path, "jane", "My Photos #1", trigger)
    assert done.returncode == 0, done.stderr
    subject = load_project(tmp_path).project.subjects["jane"]
    assert (subject.trigger, subject.photos[0].path) == (trigger, "My Photos #1")


@pytest.mark.parametrize("recipe", ["character", "edit"])
def test_the_file_leads_an_editor_to_the_schema_which_accepts_it(tmp_path: Path, as_yaml, recipe: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    done = new(tmp_path / "link", "jane")
    assert done.returncode == 0, done.stderr
    path = tmp_path / "config" / "subjects" / "jane.yaml"
    head = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    assert not Path(head).is_absolute()
    schema = json.loads((path.parent / head).read_text(encoding="utf-8"))
    path.write_text(as_yaml(recipe, "j4ne", "data"), encoding="utf-8")
    Draft202012Validator(schema).validate(read_source(path, path.name)[0].values)


@pytest.mark.parametrize("name", ["Jane", "my_cat", "report", "models", "all", "../x", "a/b"])
def test_a_name_that_no_subject_can_have_writes_nothing(tmp_path: Path, name: str) -> None:
    done = new(tmp_path / "project", name)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert repr(name) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_next_commands_are_for_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    done = new(folder, "jane", preset="embedded")
    assert done.returncode == 0, done.stderr
    assert load_project(folder).project.subjects["jane"].faces.backend == "opencv"
    (_, word) = shlex.split(next(line for line in done.stdout.splitlines() if "make curate" in line).partition("(")[0])[
        1:
    ]
    assert word == f"FOLDER={folder}"
    last = done.stdout.splitlines()[-1].removeprefix("then:")
    assert shlex.split(last) == [".venv/bin/python", "-m", "snakemake", "--directory", str(folder), "--cores", "all"]


def test_a_preset_that_is_not_there_writes_nothing(tmp_path: Path) -> None:
    done = new(tmp_path / "project", "jane", preset="embeded")
    assert done.returncode == 2 and "no preset 'embeded'; did you mean 'embedded'?" in done.stderr
    assert list(tmp_path.iterdir()) == []

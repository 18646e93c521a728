"""The Makefile in a project whose path holds a space: each target starts the project's own Python with whole arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
MAKEFILE = HOUSE / "Makefile"
PYTHON = """\
#!/usr/bin/env python3
import json, os, sys
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy whose Python writes down what it is asked for."""
    place = tmp_path / "my first project"
    for name in ("envs/lock.txt", "envs/uv.txt", "demo/config.yaml", ".venv/.installed", ".venv/bin/python"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(PYTHON)
    (place / ".venv" / "bin" / "python").chmod(0o755)
    (place / "Makefile").write_bytes(MAKEFILE.read_bytes())
    return place


def made(folder: Path, target: str, **variables: str) -> list[list[str]]:
    """The arguments of every call of Python that a target makes."""
    calls = folder / "calls"
    command = ["make", "--no-print-directory", target, *(f"{name}={value}" for name, value in variables.items())]
    done = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "CALLS": str(calls)},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in calls.read_text("utf-8").splitlines()]


@pytest.mark.parametrize("target", ["demo", "curate", "models", "doctor", "unlock", "why", "prune", "generate", "test"])
def test_a_path_with_a_space_is_one_word(folder: Path, target: str) -> None:
    assert all(call[0].endswith(".py") or call[0] == "-m" for call in made(folder, target))


@pytest.mark.parametrize("text", ["My Photos #1", "it's", 'say "cheese"', "a, b; `c` \\ d"])
def test_values_arrive_whole(folder: Path, text: str) -> None:
    (call,) = made(folder, "new", NAME="jane", PHOTOS=text, TRIGGER=text)
    assert call[3:] == ["--name", "jane", "--recipe", "character", "--photos", text, "--trigger", text]
    (*_, call) = made(folder, "new", NAME="jane", PHOTOS=text, TRIGGER=text, PRESET=text)
    assert call[-4:] == ["--trigger", text, "--preset", text]
    (*_, call) = made(folder, "try", NAME="jane", PROMPT=text, BESIDE="a b.safetensors", WORD=text)
    given = dict(zip(call[1::2], call[2::2], strict=True))
    assert (given["--prompt"], given["--beside"], given["--word"]) == (text, "a b.safetensors", text)
    (*_, call) = made(folder, "inspect", FILE=text)
    assert call[1:] == [text]


def test_another_project_is_named_by_its_folder(folder: Path) -> None:
    """After a killed demo, `make unlock` alone would unlock the wrong project and say so."""
    (folder / "it's mine").mkdir()
    for target in ("curate", "models", "unlock"):
        (*_, call) = made(folder, target, FOLDER="it's mine")
        assert call[:4] == ["-m", "snakemake", "--directory", "it's mine"], target
    calls = made(folder, "unlock", FOLDER="it's mine") + made(folder, "doctor", FOLDER="it's mine")
    programs = [call for call in calls if call[0].endswith(".py")]
    assert programs and all(call[1:3] == ["--folder", "it's mine"] for call in programs)
    for target, program in (("why", "explain_run.py"), ("prune", "prune_store.py")):
        (*_, call) = made(folder, target, FOLDER="it's mine")
        assert call == [str(folder / "scripts" / program)]


def test_unlocking_waits_for_no_valid_configuration(folder: Path, tmp_path: Path) -> None:
    """A crash, then a half-made edit: the real Snakemake takes the locks away although the project cannot be read."""
    project = tmp_path / "project"
    (project / "config").mkdir(parents=True)
    (project / "config" / "config.yaml").write_text("shards: [", "utf-8")
    locks = project / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.input.lock").write_text("data/robin/photo.png\n")
    (*_, call) = made(folder, "unlock", FOLDER=str(project))
    done = subprocess.run([sys.executable, *call], cwd=HOUSE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not locks.exists()


def test_curating_ends_with_where_the_page_lies(folder: Path) -> None:
    made(folder, "curate", FOLDER="it's mine")
    command = ["make", "--no-print-directory", "-s", "curate", "FOLDER=it's mine"]
    environment = {"PATH": "/usr/bin:/bin", "CALLS": str(folder / "calls")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.splitlines()[-1].endswith("  it's mine/results/report/curate.html")

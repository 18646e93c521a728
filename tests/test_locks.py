"""A folder of results has one writer; a second is told who the first is, and a dead one holds nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from likeness.errors import UserError
from likeness.locks import lock_of, writing

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from likeness.locks import writing
with writing(Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(60)
"""
SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")


@pytest.fixture
def holder(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, SCRIPTS, str(tmp_path / "train")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(UserError, match=rf"being written by process {holder.pid} on .*another run"),
        writing(tmp_path / "train"),
    ):
        pytest.fail("two writers in one folder")
    with writing(tmp_path / "other"):
        pass


def test_the_lock_holds_by_another_path_too(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "train")
    with pytest.raises(UserError, match="being written"), writing(tmp_path / "link"):
        pytest.fail("two writers in one folder")


def test_a_killed_writer_holds_nothing_and_leaves_the_same_bytes(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    with writing(tmp_path / "train"):
        assert str(os.getpid()) in lock_of(tmp_path / "train").read_text()
    assert lock_of(tmp_path / "train").read_bytes() == b""


def test_an_error_inside_frees_the_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), writing(tmp_path / "other"):
        raise RuntimeError("inside")
    with writing(tmp_path / "other"):
        assert lock_of(tmp_path / "other").exists()

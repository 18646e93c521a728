"""What all tests share: the drawn world's models, built once for each version of their code."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import settings

from likeness.code import code_digest

HOUSE = Path(__file__).resolve().parents[1]
CACHE = HOUSE / ".cache" / "miniature"

# A run finds what the same commit's last run found; `make test-random` looks for what no run has tried.
settings.register_profile("repeated", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("repeated")


def build(folder: Path, script: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start one of the programs that build a part of the miniature."""
    return subprocess.Popen([sys.executable, str(HOUSE / "scripts" / script), "--folder", str(folder), *arguments])


@pytest.fixture(scope="session")
def miniature() -> Path:
    """A folder like models/miniature: base/ and pack/ with their manifests beside them.

    Built for some two minutes the first time, then kept under .cache/ until the code that builds it changes.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / f"{code_digest('build_miniature_base')}-{code_digest('build_miniature_pack')}"
    with FileLock(CACHE / "build.lock"):
        if not (folder / "pack.json").exists():
            shutil.rmtree(folder, ignore_errors=True)
            # A folder of its own, since the programs that a killed run started may go on for a while.
            unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=CACHE))
            building = [
                build(unfinished / "base", "build_miniature_base.py"),
                build(unfinished / "pack", "build_miniature_pack.py", "--parts", "pack"),
            ]
            codes = [process.wait() for process in building]
            assert codes == [0, 0], "the miniature could not be built; its error is above"
            for part in ("base", "pack"):
                shutil.copyfile(unfinished / part / "manifest.json", unfinished / f"{part}.json")
            unfinished.rename(folder)
    return folder

"""What every command-line program under scripts/ shares: flags, thread counts, and errors without tracebacks."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from likeness.errors import DISK_ERRORS, DamagedFileError, TransientError, UserError, disk_error
from likeness.store import Work, sha256_of_bytes, write_atomically

SettingsType = TypeVar("SettingsType", bound=BaseModel)
LONG_SETTINGS = Path("results/.settings")
LONGEST_ARGUMENT = 32_000
"""Bytes of settings in a command; Linux starts none that is longer than 131,072 bytes, quoted and with all its flags."""
PACKAGES = (
    "numpy",
    "pillow",
    "opencv-python-headless",
    "onnxruntime",
    "insightface",
    "scikit-image",
    "scipy",
    "pyarrow",
    "torch",
    "torchvision",
    "diffusers",
    "peft",
    "transformers",
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def finite(text: str) -> float:
    """A number given to a flag; ValueError for what is none, NaN and infinity among it."""
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(text)
    return found


def parser_for(description: str | None) -> argparse.ArgumentParser:
    """A parser whose help is the program's docstring, with the flags that all stages take."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--settings", required=True, help='JSON {"settings": the stage\'s slice, "code": digest}, or @FILE'
    )
    return parser


def as_argument(settings: str) -> str:
    """Settings as a command can carry them: the JSON itself, or where it is long `@` and a file named by its hash."""
    data = settings.encode()
    if len(data) <= LONGEST_ARGUMENT:
        return settings
    path = LONG_SETTINGS / f"{sha256_of_bytes(data)}.json"
    if not path.exists():
        write_atomically(path, data)
    return f"@{path}"


def argument_text(argument: str) -> str:
    """The JSON behind what `as_argument` gave."""
    return Path(argument[1:]).read_text(encoding="utf-8") if argument.startswith("@") else argument


def read_settings(text: str, model: type[SettingsType]) -> SettingsType:
    """Read the `--settings` flag, or the file that it names after an `@`, into the stage's slice."""
    return model.model_validate(json.loads(argument_text(text))["settings"])


def as_about(stage: str, version: int, settings: BaseModel | dict[str, Any], **more: Any) -> dict[str, Any]:
    """What a table's metadata says of how it was made: settings that were given, not those that the program never reads."""
    slice_ = settings.model_dump(mode="json", exclude_unset=True) if isinstance(settings, BaseModel) else settings
    return {"stage": stage, "version": version, "settings": slice_, "packages": package_versions(), **more}


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages of this environment that results depend on, whether this program loads them or not.

    What was loaded would depend on what the store held already, and equal content must give equal bytes.
    """
    found = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def set_threads(count: int) -> None:
    """Fix the number of numeric threads before numeric libraries load; results must not depend on the machine's cores."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(count)
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(count)


def run(main: Callable[[], Work | None]) -> None:
    """Run a program's main: the user's mistakes become one line and exit code 2, failures of the moment exit code 75.

    A stage's main returns its work, which becomes the last line of its log; other programs return nothing.
    """
    # It warns at import of a CPU kernel that it cannot download, which nothing here uses.
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    try:
        work = main()
        if work is not None:
            print(work, flush=True)
    except DamagedFileError as error:
        complain(f"error: {error}{what_was_forgotten(error.sha256)}")
        sys.exit(75)
    except UserError as error:
        complain(f"error: {error}")
        sys.exit(2)
    except TransientError as error:
        complain(f"failed for now: {error}")
        sys.exit(75)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        complain(f"error: {disk_error(error, error.filename or 'a file')}")
        sys.exit(2)


def complain(text: str) -> None:
    """Print to the standard error; a log on a full disk takes no more, and the exit code says the rest."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def what_was_forgotten(sha256: str) -> str:
    """Remove the tables that name a lost file, and say so."""
    from likeness.healing import forget

    tables = ", ".join(map(str, forget(sha256, sys.argv)))
    return f" Removed with it, since they said that it was there: {tables}." if tables else ""

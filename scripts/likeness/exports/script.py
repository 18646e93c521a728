"""config/train.sh: the commands of trainers that take flags, with the trainer's place in an environment variable."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from likeness.exports.files import ExportFolder

PATH = "config/train.sh"


def write_script(folder: ExportFolder, variable: str, title: str, commands: Sequence[Sequence[str]]) -> None:
    """Write the script; words that begin with the variable are expanded, everything else is quoted."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Run in the folder of this export, in the environment of {title}, with {variable} set to its folder.",
        "set -euo pipefail",
        f': "${{{variable}:?set it to the folder of {title}}}"',
    ]
    for command in commands:
        words = [f'"{word}"' if word.startswith(f"${variable}") else shlex.quote(word) for word in command]
        lines.append(" \\\n  ".join(joined(words)))
    folder.write_text(PATH, "\n".join(lines) + "\n")


def joined(words: Sequence[str]) -> list[str]:
    """Words by line: the program with its script, then each flag with its values."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(word)
    return [" ".join(line) for line in lines]


def flags(values: Mapping[str, Any]) -> list[str]:
    """Flags of a mapping: true is a bare flag, false and null are left out, lists have several values."""
    found = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        found.append(f"--{name}")
        if value is not True:
            found += [str(one) for one in (value if isinstance(value, list) else [value])]
    return found

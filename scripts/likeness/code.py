"""Which code a stage's program runs, as one digest: it decides whether a job starts, never whether items are recomputed."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[1]
IMPORTS = re.compile(
    r"^[ \t]*(?:from[ \t]+(likeness[\w.]*)[ \t]+import[ \t]+(\([^)]*\)|.*)|import[ \t]+(likeness[\w.]*))", re.MULTILINE
)
"""Imports of the library, in one statement each; a syntax tree would tell the same at ten times the cost."""
CODE = frozenset({".py", ".j2", ".css", ".yaml", ".json"})


@cache
def modules_of(source: Path) -> frozenset[Path]:
    """The likeness modules that one file imports, wherever in the file."""
    if not source.exists():
        return frozenset()
    if source.suffix != ".py":
        return frozenset()
    names: set[str] = set()
    for package, listed, module in IMPORTS.findall(source.read_text(encoding="utf-8")):
        names |= {package or module, *(f"{package}.{name}" for name in re.findall(r"\w+", listed))}
    places = (SCRIPTS / name.replace(".", "/") for name in names)
    files = (file for place in places for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"))
    return frozenset(file for file in files if file.exists())


@cache
def code_digest(script: str, *packages: str) -> str:
    """Hash of a program, of the packages behind its backends, and of every likeness module that they import.

    It only decides whether a job starts; items are recomputed by their stage's version.
    """
    digest = hashlib.sha256()
    for file in files_of_program(script, *packages):
        digest.update(file.relative_to(SCRIPTS).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def files_of_program(script: str, *packages: str) -> list[Path]:
    """A program under scripts/, the files of these packages, and every likeness module that they import, sorted."""
    folders = [SCRIPTS / "likeness" / package for package in packages]
    waiting = [
        SCRIPTS / f"{script}.py",
        *(file for folder in folders for file in folder.rglob("*") if file.suffix in CODE),
    ]
    seen: set[Path] = set()
    while waiting:
        file = waiting.pop()
        if file not in seen:
            seen.add(file)
            waiting.extend(modules_of(file))
    return sorted(seen)

"""What a program imports is found without running it. Oracle: the syntax tree of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from likeness.code import SCRIPTS, files_of_program, modules_of

SOURCES = sorted(SCRIPTS.rglob("*.py"))


def modules_of_tree(source: Path) -> set[Path]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "likeness":
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.split(".")[0] == "likeness"}
    files = {SCRIPTS / f"{name.replace('.', '/')}{end}" for name in names for end in (".py", "/__init__.py")}
    return {file for file in files if file.exists()}


def test_imports_are_those_of_the_syntax_tree() -> None:
    assert len(SOURCES) > 100
    assert {path.name: modules_of(path) for path in SOURCES} == {path.name: modules_of_tree(path) for path in SOURCES}


@pytest.mark.parametrize(
    "text",
    [
        "import likeness.store",
        "def f():\n    import likeness.store as s",
        "from likeness import store",
        "from likeness import (\n    errors,  # a remark\n    store,\n)",
        "if x:\n\tfrom likeness.photos import index as i",
        "# from likeness.store import Store",
        "import json",
    ],
)
def test_every_form_of_import_is_found(text: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(text)
    assert modules_of(path) == modules_of_tree(path)


def test_a_programs_files_reach_through_its_modules() -> None:
    found = {path.relative_to(SCRIPTS).as_posix() for path in files_of_program("index_photos")}
    assert {"index_photos.py", "likeness/photos/index.py", "likeness/packs.py", "likeness/store.py"} <= found
    assert not any("training" in name for name in found)


def test_a_package_that_is_imported_by_its_name_is_code_as_well() -> None:
    assert SCRIPTS / "likeness/evaluation/metrics/__init__.py" in files_of_program("write_report")

"""Conda files are generated from the lock, and each rule's environment holds all that its program imports.

A stand-in for conda builds the environments with uv from the same pins, since channels are not reachable everywhere.
Which packages a program needs is read from its source and that of every likeness module behind it, lazy imports and
backends chosen by name included. For all environments their pins must hold the packages of those imports, as installed
packages name them; `curate` and `faces` are small, so they are truly built, and every module and package is imported in
them. Those with torch (5 GB each) are built in the same way by the slow test.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import defaultdict
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tests.workflow.project import Project

from generate_environments import PYTHON, STAGES, pins, render
from likeness.code import SCRIPTS, modules_of
from likeness.config.load import HOUSE

ENVS = HOUSE / "envs"
CONDA = Path(__file__).parent / "conda_stub" / "bin"
LOCK = (ENVS / "lock.txt").read_text(encoding="utf-8")
GUARD = re.compile(r" in sys\.modules$|^TYPE_CHECKING$")
NEEDS_PYTHON = pytest.mark.skipif(
    f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON,
    reason=f"the conda files are for Python {PYTHON}, and there is no other interpreter to build them on",
)
HANDED = {("likeness/klein/targets.py", "torch")}
"""A file and a package that it imports only in functions which are handed an object of it, so that who calls has it."""
SMALL, LARGE = ("curate", "faces"), ("masks", "captions", "train")


def programs_by_stage() -> dict[str, set[str]]:
    """The programs that run in each environment, from the rules."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in sorted((HOUSE / "rules").glob("*.smk")):
        for rule in re.split(r"^\s*(?:rule|checkpoint)\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            programs = re.findall(r"\$LIKENESS/(\w+)\.py", rule)
            stages = re.findall(r'"\.\./envs/(\w+)\.yaml"', rule)
            assert len(stages) == (1 if programs else 0), f"{path.name}: a rule without an environment, or with two"
            if programs:
                found[stages[0]] |= set(programs)
    return found


PROGRAMS = programs_by_stage()


@cache
def backends_named_in(source: Path) -> frozenset[Path]:
    """Modules that a file names as `likeness.module:Class`, to be imported when the configuration asks for them."""
    strings = (node.value for node in ast.walk(ast.parse(source.read_text("utf-8"))) if isinstance(node, ast.Constant))
    names = (re.fullmatch(r"(likeness[\w.]*):\w+", text) for text in strings if isinstance(text, str))
    return frozenset(SCRIPTS / f"{name[1].replace('.', '/')}.py" for name in names if name)


def sources_behind(program: str) -> set[Path]:
    """A program's own file and all of likeness whose functions it may call.

    What a package registers when it is imported by its name (metrics that a report lists) is not called by that: such
    modules import what is heavy inside their functions.
    """
    waiting, seen = [SCRIPTS / f"{program}.py"], set()
    while waiting:
        source = waiting.pop()
        if source not in seen:
            seen.add(source)
            called = {module for module in modules_of(source) if module.name != "__init__.py"}
            waiting += called | backends_named_in(source)
    return seen


@cache
def foreign_imports(source: Path) -> frozenset[str]:
    """Top-level names of the packages outside Python and likeness that a file imports, wherever in the file.

    What stands under `if "torch" in sys.modules` or `if TYPE_CHECKING` imports nothing that is not there already.
    """
    tree = ast.parse(source.read_text("utf-8"))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and GUARD.search(ast.unparse(node.test))]
    guarded = {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    tops = {name.split(".")[0] for name in names}
    return frozenset(tops - set(sys.stdlib_module_names) - {"likeness"})


@cache
def optional_packages() -> frozenset[str]:
    """Packages of pyproject's extras: whoever configures what needs them adds them to the environment."""
    extras = tomllib.loads((HOUSE / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    return frozenset(canonicalize_name(Requirement(text).name) for group in extras.values() for text in group)


@cache
def installed_packages() -> dict[str, list[str]]:
    """Installed packages by the importable names that they provide; reading this takes seconds."""
    return {name: [canonicalize_name(one) for one in found] for name, found in packages_distributions().items()}


def packages_of(name: str) -> set[str]:
    """The installed packages that provide an importable name."""
    return set(installed_packages().get(name, [name]))


def imports_of(stage: str) -> dict[str, str]:
    """Every foreign name that the stage's programs import and no extra provides, with one file that imports it."""
    found: dict[str, str] = {}
    for program in PROGRAMS[stage]:
        for source in sorted(sources_behind(program)):
            for name in foreign_imports(source):
                handed = (source.relative_to(SCRIPTS).as_posix(), name) in HANDED
                if not handed and not packages_of(name) & optional_packages():
                    found.setdefault(name, f"{source.relative_to(SCRIPTS)} (for {program}.py)")
    return found


def pinned(stage: str) -> set[str]:
    return set(re.findall(r"^ +- ([^=\s]+)==", (ENVS / f"{stage}.yaml").read_text("utf-8"), re.MULTILINE))


def conda_environment() -> dict[str, str]:
    """The environment with the stand-in as `conda`."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "PYTHONPATH")}
    path = os.pathsep.join([str(CONDA), kept["PATH"]])
    return kept | {"PATH": path, "UV": str(Path(sys.executable).with_name("uv")), "UV_PYTHON": sys.executable}


def build(stage: str, prefix: Path) -> Path:
    """Build an environment as Snakemake would have conda do it; returns its interpreter."""
    command = ["conda", "env", "create", "--quiet", "--file", str(ENVS / f"{stage}.yaml"), "--prefix", str(prefix)]
    done = subprocess.run(command, env=conda_environment(), capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return prefix / "bin" / "python"


def import_everything(stage: str, python: Path) -> None:
    """Import, in an environment, every module and package that the stage's programs may import."""
    ours = {
        ".".join(source.relative_to(SCRIPTS).with_suffix("").parts)
        for program in PROGRAMS[stage]
        for source in sources_behind(program)
        if all(packages_of(name).isdisjoint(optional_packages()) for name in foreign_imports(source))
    }
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)\nprint(len(sys.argv) - 1)"
    names = sorted(ours) + sorted(imports_of(stage))
    environment = conda_environment() | {"PYTHONPATH": str(SCRIPTS), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [str(python), "-c", code, *names], env=environment, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) == len(names) > 20


@pytest.mark.parametrize("stage", STAGES)
def test_conda_files_are_up_to_date(stage: str) -> None:
    assert (ENVS / f"{stage}.yaml").read_text(encoding="utf-8") == render(stage, pins(LOCK)), (
        "run scripts/generate_environments.py"
    )


def test_the_lock_names_no_host_and_hashes_everything() -> None:
    assert not re.search(r"https?://|file:", LOCK)
    packages = re.split(r"^(?=\S)", LOCK, flags=re.MULTILINE)[1:]
    assert len(packages) > 150
    assert all("--hash=sha256:" in package for package in packages)


def test_every_rule_with_a_program_has_one_of_the_environments() -> None:
    assert set(PROGRAMS) == set(STAGES) == {*SMALL, *LARGE}
    assert sum(len(programs) for programs in PROGRAMS.values()) >= 20


@pytest.mark.parametrize("stage", STAGES)
def test_pins_hold_what_the_programs_import(stage: str) -> None:
    missing = {name: where for name, where in imports_of(stage).items() if packages_of(name).isdisjoint(pinned(stage))}
    assert not missing, f"add them to STAGES[{stage!r}] in scripts/generate_environments.py"


@NEEDS_PYTHON
@pytest.mark.parametrize("stage", SMALL)
def test_small_environments_hold_what_the_programs_import(stage: str, tmp_path: Path) -> None:
    python = build(stage, tmp_path / stage)
    listed = subprocess.run(
        [os.environ.get("UV", str(Path(sys.executable).with_name("uv"))), "pip", "freeze", "--python", str(python)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    installed = {canonicalize_name(line.split("==")[0]) for line in listed.splitlines()}
    assert installed == pinned(stage), "the pins are the whole environment: nothing is left to the resolver"
    import_everything(stage, python)


@NEEDS_PYTHON
@pytest.mark.long
@pytest.mark.parametrize("stage", LARGE)
def test_large_environments_hold_what_the_programs_import(stage: str, tmp_path: Path) -> None:
    import_everything(stage, build(stage, tmp_path / stage))


@NEEDS_PYTHON
def test_snakemake_runs_jobs_in_the_environment_of_their_rule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in conda_environment().items():
        monkeypatch.setenv(key, value)
    project = Project(tmp_path / "project")
    run = project.succeed(
        "--sdm", "conda", "--conda-prefix", str(tmp_path / "conda"), "--", "results/report/curate.html"
    )
    assert run.jobs == {"write_curation"}
    (built,) = (tmp_path / "conda").glob("*/bin/python")
    assert subprocess.run([built, "-c", "import torch"], capture_output=True, check=False).returncode != 0

"""The line of work in a log: every stage's program writes it, and what it says can be read back."""

from __future__ import annotations

import ast
import re

import pytest
from tests.workflow.project import HOUSE, read_work

from likeness.store import Work

RULES = "".join(path.read_text() for path in (HOUSE / "rules").glob("*.smk"))
PROGRAMS = sorted(set(re.findall(r'LIKENESS/(\w+)\.py" \'\s*"--settings', RULES)))


def test_all_programs_of_the_rules_are_stages_but_those_that_draw_the_miniature() -> None:
    called = set(re.findall(r"LIKENESS/(\w+)\.py", RULES))
    assert called - set(PROGRAMS) == {"build_miniature_base", "build_miniature_pack"}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_stage_ends_by_saying_its_work(program: str) -> None:
    tree = ast.parse((HOUSE / "scripts" / f"{program}.py").read_text(encoding="utf-8"))
    main = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    assert isinstance(main.returns, ast.Name) and main.returns.id == "Work"
    assert isinstance(main.body[-1], ast.Return)


@pytest.mark.parametrize(
    "work", [Work(), Work({"faces": 3}, {"faces": 17, "crops": 2}, 1), Work({"training-steps": 0}, {}, 2)]
)
def test_a_line_is_read_back(work: Work) -> None:
    log = f"WARNING: something\r50%|##|\rdone\n{work}\n"
    found = read_work(log)
    assert found is not None and found.models_loaded == work.models_loaded
    stages = {*work.computed, *work.reused}
    assert found.computed == {stage: work.computed.get(stage, 0) for stage in stages}
    assert found.reused == {stage: work.reused.get(stage, 0) for stage in stages}


def test_a_job_that_was_cut_short_has_no_line() -> None:
    assert read_work("photos: 3 of 3 usable\n") is None

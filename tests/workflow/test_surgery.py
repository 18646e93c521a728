"""Surgery and ablation in the workflow: exactly their jobs start, a second run starts none, and the report shows them."""

from __future__ import annotations

import json

import pytest
from tests.report.reading import Page
from tests.workflow.conftest import ONE_PHASE
from tests.workflow.project import Project

from likeness.store import sha256_of_file
from likeness.tables import SCORES, read_rows
from likeness.tables_surgery import ABLATION, CROSSTALK, OVERLAPS, PROBE

pytestmark = pytest.mark.slow

SURGERY = """\
surgery:
  small: {{method: resize, of: best, rank: {rank}}}
  clean: {{method: subtract, of: main, background: {{variant: main, step: 2}}, alpha: 0.5}}
  tiny: {{method: weigh-blocks, of: small, blocks: {{double: 0}}}}
ablation:
  blocks: {{of: best, weights: [0], modes: [knock-out]}}
crosstalk:
  early: {{of: best, beside: {{variant: main, step: 2}}, method: k-lora}}
probe:
  roles: {{prompt: a person, content: a red wall, style: a blue person, seeds: [1]}}
"""
MADE = {"small", "clean", "tiny"}
MEASURED = {"ablate_lora/robin/blocks", "measure_crosstalk/robin/early", "probe_blocks/robin/roles"}
CHOSEN = {"score_finalists/robin", "choose_checkpoint/robin", "publish_lora/robin", "write_report"}
PAGES = {"write_config/robin", "write_curation"}


def configured(project: Project, rank: int, more: str = "") -> None:
    project.configure(ONE_PHASE + SURGERY.format(rank=rank) + more, "robin")


@pytest.mark.timeout(1800)
def test_candidates_are_made_scored_chosen_from_and_reported(project: Project) -> None:
    configured(project, 2)
    run = project.succeed()
    made = {f"make_surgery/robin/{name}" for name in MADE}
    scored = {f"score_checkpoints/robin/{name}/surgery" for name in MADE}
    assert run.jobs == made | scored | MEASURED | CHOSEN | PAGES
    assert run.computed["surgery"] == len(MADE)
    assert project.succeed().jobs == set()
    results = project.folder / "results"
    check_record(results)
    check_page(results)
    change_one_rank(project)
    pick_a_candidate(project)


def check_record(results) -> None:
    """Every candidate has its file, its parents and its rows."""
    rows = read_rows(results / "scores.parquet", SCORES)
    for name in MADE:
        (entry,) = json.loads((results / f"robin/surgery/{name}.json").read_text())
        file = results / f"robin/surgery/{name}.safetensors"
        assert sha256_of_file(file) == entry["sha256"]
        own = [row for row in rows if row["variant"] == name]
        assert own and {(row["phase"], row["step"], row["lora_sha256"]) for row in own} == {
            ("surgery", 0, entry["sha256"])
        }
    (tiny,) = json.loads((results / "robin/surgery/tiny.json").read_text())
    assert [(one["variant"], one["phase"], one["step"]) for one in tiny["parents"]] == [("small", "surgery", 0)]
    listed = read_rows(results / "robin/ablation/blocks.parquet", ABLATION)
    assert {row["mode"] for row in listed} == {"knock-out"} and {row["metric"] for row in listed} >= {"image_change"}
    losses = read_rows(results / "robin/crosstalk/early/losses.parquet", CROSSTALK)
    assert {row["method"] for row in losses} == {"k-lora"} and "csim" in {row["metric"] for row in losses}
    assert (results / "robin/crosstalk/early/sheet.jpg").is_file()
    shared = read_rows(results / "robin/crosstalk/early/overlaps.parquet", OVERLAPS)
    assert len(shared) == 18 and all(0 <= row["inputs"] <= 1 for row in shared)
    probed = read_rows(results / "robin/probe/roles.parquet", PROBE)
    assert {row["swap"] for row in probed} == {"content", "style"} and max(row["change"] for row in probed) > 0.1


def check_page(results) -> None:
    page = Page((results / "report/index.html").read_text("utf-8"))
    headings = {one.text.strip() for one in page.elements if one.tag == "th"}
    assert {text.removesuffix("chosen").strip() for text in headings} >= MADE
    cells = [one for one in page.having("data-source") if one.attributes["data-source"] == "ablation"]
    listed = read_rows(results / "robin/ablation/blocks.parquet", ABLATION)
    by_place = {(row["metric"], row["block"], f"{row['weight']:g}"): row["difference"] for row in listed}
    for cell in cells:
        about = cell.attributes
        difference = by_place[about["data-metric"], about["data-block"], about["data-weight"]]
        assert float(cell.text.rpartition(": ")[2]) == pytest.approx(difference, abs=0.006)
    assert len(cells) >= len({row["block"] for row in listed})
    sources = {one.attributes["data-source"] for one in page.having("data-source")}
    assert sources >= {"crosstalk", "overlaps", "probe"}


def change_one_rank(project: Project) -> None:
    """Another rank of `small` makes it and what is made of it anew, and nothing else."""
    configured(project, 3)
    run = project.succeed()
    touched = {f"make_surgery/robin/{name}" for name in ("small", "tiny")}
    touched |= {f"score_checkpoints/robin/{name}/surgery" for name in ("small", "tiny")}
    assert run.jobs == touched | CHOSEN | PAGES
    assert run.computed["surgery"] == 2 and "training-steps" not in run.computed


def pick_a_candidate(project: Project) -> None:
    """A candidate can be published by hand; nothing is drawn for it."""
    configured(project, 3, "pick: {variant: clean, phase: surgery, step: 0}\n")
    run = project.succeed()
    assert run.jobs == CHOSEN - {"score_finalists/robin"} | PAGES
    assert run.computed == {}
    (entry,) = json.loads((project.folder / "results/robin/surgery/clean.json").read_text())
    assert sha256_of_file(project.folder / "results/robin/lora/robin.safetensors") == entry["sha256"]

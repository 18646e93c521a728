"""Surgery and ablation on the page: parents are named, and every number is found again in its table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.report.fabricate import Run, character_settings, curate_character, evaluate_character
from tests.report.reading import Page, text_without

from likeness.evaluation.blocks import effect_of
from likeness.evaluation.statistics import paired_difference
from likeness.report.gather import Subject, gather_subject
from likeness.report.heatmap import draw_heat_map, heat_map
from likeness.report.page import render_report
from likeness.report.pictures import Pictures
from likeness.tables import SCORES, read_rows, write_table
from likeness.tables_surgery import ABLATION

NAME = "robin"
SURGERY = {"small": {"method": "resize", "of": {"variant": "main", "step": 200}, "rank": 8}}
BLOCKS = {"double.0": -0.01, "single.2": -0.4, "single.10": 0.05}


def ablation_rows() -> list[dict]:
    rows = []
    for mode in ("knock-out", "knock-in"):
        for metric in ("likeness", "image_change"):
            sign = 1 if mode == "knock-out" and metric == "likeness" else -1
            for place, (block, difference) in enumerate(sorted(BLOCKS.items(), key=lambda one: one[1]), 1):
                value = sign * difference
                rows.append(
                    {
                        "subject": NAME,
                        "ablation": "blocks",
                        "parent": "main/main/200",
                        "lora_sha256": "a" * 64,
                        "base_model": "base",
                        "mode": mode,
                        "block": block,
                        "weight": 0.0 if mode == "knock-out" else 1.0,
                        "metric": metric,
                        "modules": 2,
                        "norm_share": 0.3,
                        "value": value,
                        "reference": 0.0,
                        "difference": value,
                        "low": value - 0.1,
                        "high": value + 0.1,
                        "n": 5,
                        "p": 0.001 if block == "single.2" else 0.5,
                        "p_holm": 0.003 if block == "single.2" else 1.0,
                        "effect": effect_of(metric, mode, value, 0.0),
                        "rank": place,
                    }
                )
    return rows


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A character whose last checkpoint was resized and taken apart."""
    folder: Path = tmp_path_factory.mktemp("report")
    settings = character_settings(folder, surgery=SURGERY, ablation={"blocks": {"of": "best"}})
    run = Run(folder, {NAME: settings})
    curate_character(run, NAME)
    evaluate_character(run, NAME)
    evaluation = run.results / NAME / "evaluation"
    parents = [row for row in read_rows(evaluation / "main/main/scores.parquet", SCORES) if row["step"] == 200]
    made = {"variant": "small", "phase": "surgery", "step": 0, "lora_sha256": "b" * 64}
    rows = [row | made | {"value": None if row["value"] is None else row["value"] - 0.03} for row in parents]
    write_table(evaluation / "small/surgery/scores.parquet", SCORES, rows)
    parent = {"name": "main/main/200", "variant": "main", "phase": "main", "step": 200, "sha256": "a" * 64}
    record = {"step": 0, "file": "small.safetensors", "sha256": "b" * 64, "method": "resize", "parents": [parent]}
    record |= {"about": {"operation": "resize", "rank": "8"}, "modules": 100, "ranks": {"4": 20, "8": 80}}
    (run.results / NAME / "surgery").mkdir()
    (run.results / NAME / "surgery/small.json").write_text(json.dumps([record]))
    write_table(run.results / NAME / "ablation/blocks.parquet", ABLATION, ablation_rows())
    return gather_subject(run.results, NAME, settings)


@pytest.fixture(scope="module")
def page(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> str:
    from likeness.store import Store

    return render_report([subject], Pictures(Store(tmp_path_factory.mktemp("store"))))


def test_candidates_are_listed_with_their_parents_and_difference(subject: Subject, page: str) -> None:
    words = text_without(page)
    assert "main · main · step 200" in words and "resize, rank 8" in words and "4 to 8" in words
    (number,) = [
        one
        for one in Page(page).having("data-source", "data-part")
        if one.attributes["data-source"] == "pairs" and one.attributes["data-part"] == "value"
    ]
    of = {variant: [row for row in subject.rows if row["variant"] == variant] for variant in ("small", "main")}
    means: dict[str, dict[str, float]] = {}
    for variant, rows in of.items():
        step = 200 if variant == "main" else 0
        chosen = [row for row in rows if (row["metric"], row["split"], row["step"]) == ("likeness", "select", step)]
        chosen = [row for row in chosen if row["value"] is not None and row["lora_scale"] == 1]
        prompts = {row["prompt_id"] for row in chosen}
        means[variant] = {
            prompt: sum(values) / len(values)
            for prompt in prompts
            for values in [[row["value"] for row in chosen if row["prompt_id"] == prompt]]
        }
    found = paired_difference(means["small"], means["main"])
    assert found is not None and found.value == pytest.approx(-0.03)
    assert float(number.attributes["value"]) == pytest.approx(found.value)


def test_heat_map_cells_are_found_again_in_the_table(page: str) -> None:
    cells = [one for one in Page(page).having("data-source") if one.attributes["data-source"] == "ablation"]
    assert len(cells) == 4 * len(BLOCKS)
    by_place = {(row["mode"], row["metric"], row["block"]): row for row in ablation_rows()}
    for cell in cells:
        row = by_place[tuple(cell.attributes[f"data-{key}"] for key in ("mode", "metric", "block"))]
        assert float(cell.text.rpartition(": ")[2]) == pytest.approx(row["difference"], abs=0.0051)
        assert ("clear" in cell.attributes["class"]) == (row["block"] == "single.2")


def test_blocks_that_stand_out_become_targets(page: str) -> None:
    assert "all_blocks@single=2" in text_without(page)


def test_blocks_lie_in_the_order_of_the_model_and_the_strongest_is_the_most_coloured() -> None:
    found = heat_map(NAME, "blocks", ablation_rows(), "knock-out", "likeness")
    assert found is not None and found.blocks == ["double.0", "single.2", "single.10"]
    heats = [one for one in Page(draw_heat_map(found)).elements if one.tag == "rect"]
    shares = {one.attributes["data-block"]: one.attributes["style"] for one in heats}
    assert shares == {"double.0": "--heat:2%", "single.2": "--heat:100%", "single.10": "--heat:12%"}
    assert {one.attributes["data-block"] for one in heats if "worse" in one.attributes["class"]} == {"single.10"}
    assert heat_map(NAME, "blocks", [], "knock-out", "likeness") is None

"""Pairs of LoRAs and probes on the page: every number is found again in its table."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.report.fabricate import Run, character_settings, curate_character, evaluate_character
from tests.report.reading import Page, text_without

from likeness.report.gather import gather_subject
from likeness.report.page import render_report
from likeness.report.pictures import Pictures
from likeness.store import Store
from likeness.tables import read_rows, write_table
from likeness.tables_surgery import CROSSTALK, OVERLAPS, PROBE

NAME = "robin"
CROSSTALK_ENTRY = {"with-sam": {"of": "best", "beside": {"subject": "sam"}}}
PROBE_ENTRY = {"roles": {"prompt": "a dog", "content": "a ship", "style": "an etching of a dog"}}
LOSSES = {("robin", "likeness"): (0.9, 0.7, -0.25, -0.15), ("sam", "likeness"): (0.8, 0.79, -0.1, 0.08)}
MODULES = {"transformer_blocks.0.attn.to_q": (0.4, 0.1, 0.03, -0.5, 9.0), "proj_out": (0.02, 0.03, 0.03, 0.01, 1.0)}
SHIFTS = {"content": {"double.0": 0.5, "single.0": 0.1}, "style": {"double.0": 0.1, "single.0": 0.2}}


def losses() -> list[dict]:
    shared = {"crosstalk": "with-sam", "base_model": "base", "method": "sum", "n": 5}
    rows = []
    for (subject, metric), (alone, together, low, high) in LOSSES.items():
        own, other = ("main/main/200", "published by sam") if subject == NAME else ("published by sam", "main/main/200")
        names = {"own": own, "own_sha256": "a" * 64, "other": other, "other_sha256": "b" * 64}
        numbers = {"alone": alone, "together": together, "difference": together - alone, "low": low, "high": high}
        rows.append(shared | names | numbers | {"subject": subject, "metric": metric})
    return rows


def overlaps() -> list[dict]:
    columns = ("inputs", "outputs", "inputs_by_chance", "cosine", "energy")
    return [
        {"module": module, **dict(zip(columns, values, strict=True)), "outputs_by_chance": values[2]}
        for module, values in MODULES.items()
    ]


def swaps() -> list[dict]:
    roles = {"double.0": "content", "single.0": "style"}
    return [
        {"subject": NAME, "probe": "roles", "base_model": "base", "swap": swap, "place": place, "block": block,
         "change": change, "clip": None, "role": roles[block]}
        for swap, shifts in SHIFTS.items()
        for place, (block, change) in enumerate(shifts.items())
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    settings = character_settings(folder, crosstalk=CROSSTALK_ENTRY, probe=PROBE_ENTRY)
    run = Run(folder, {NAME: settings})
    curate_character(run, NAME)
    evaluate_character(run, NAME)
    own = run.results / NAME
    write_table(own / "crosstalk/with-sam/losses.parquet", CROSSTALK, losses())
    write_table(own / "crosstalk/with-sam/overlaps.parquet", OVERLAPS, overlaps())
    write_table(own / "probe/roles.parquet", PROBE, swaps())
    subject = gather_subject(run.results, NAME, settings)
    return render_report([subject], Pictures(Store(tmp_path_factory.mktemp("store"))))


def numbers(page: str, source: str) -> list[dict[str, str]]:
    found = [one for one in Page(page).having("data-source") if one.attributes["data-source"] == source]
    return [one.attributes | {"text": one.text.rpartition(": ")[2]} for one in found]


def test_losses_of_both_subjects_stand_on_the_page(folder: Path, page: str) -> None:
    table = read_rows(folder / "results" / NAME / "crosstalk/with-sam/losses.parquet", CROSSTALK)
    columns = {"value": "difference"}
    found = numbers(page, "crosstalk")
    for one in found:
        (row,) = [row for row in table if (row["subject"], row["metric"]) == (one["data-of"], one["data-metric"])]
        part = one["data-part"]
        assert float(one["value"]) == pytest.approx(row[columns.get(part, part)])
    assert len(found) == 5 * len(LOSSES)
    words = text_without(page)
    assert "main/main/200 beside published by sam" in words and "of sam" in words
    bold = [one.text for one in Page(page).elements if one.tag == "b" and "-0.2" in one.text and "td" in one.ancestors]
    assert len(bold) == 1, "only the difference whose interval leaves 0 out stands out"


def test_overlaps_are_weighted_by_energy_and_the_strongest_module_comes_first(page: str) -> None:
    found = {(one.get("data-module", ""), one["data-key"]): float(one["value"]) for one in numbers(page, "overlaps")}
    assert found["", "modules"] == 2 and found["", "inputs"] == pytest.approx((0.4 * 9 + 0.02) / 10)
    assert found["", "outputs"] == pytest.approx((0.1 * 9 + 0.03) / 10)
    for module, (inputs, outputs, chance, cosine, _) in MODULES.items():
        keys = ("inputs", "outputs", "inputs_by_chance", "cosine")
        assert [found[module, key] for key in keys] == [inputs, outputs, chance, cosine]
    listed = [one["data-module"] for one in numbers(page, "overlaps") if "data-module" in one]
    assert listed[0] == "transformer_blocks.0.attn.to_q"


def test_swaps_are_cells_whose_ring_is_the_blocks_role(page: str) -> None:
    cells = numbers(page, "probe")
    assert {(one["data-swap"], one["data-block"]) for one in cells} == {
        (swap, block) for swap, shifts in SHIFTS.items() for block in shifts
    }
    for one in cells:
        assert float(one["text"]) == pytest.approx(SHIFTS[one["data-swap"]][one["data-block"]])
    ringed = {(one["data-swap"], one["data-block"]) for one in cells if "clear" in one["class"]}
    assert ringed == {("content", "double.0"), ("style", "single.0")}
    heats = {(one["data-swap"], one["data-block"]): one["style"] for one in cells}
    assert heats["content", "single.0"] == "--heat:20%" and heats["style", "single.0"] == "--heat:100%"
    words = text_without(page)
    assert "content_blocks: [double.0]" in words and "style_blocks: [single.0]" in words

"""Every number of the report is found again in results/scores.parquet, best.json, the card or the tables of curation.

The oracle reads the Parquet files with pandas and computes means and Student's t intervals with scipy, on its own.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from scipy import stats
from tests.report.fabricate import PREVIOUS, Run
from tests.report.reading import Element, Page, text_without

SCRIPTS = Path(__file__).parents[2] / "scripts"


def written(run: Run, folder: Path) -> tuple[str, pd.DataFrame]:
    """The page and the table of all scores, by the real program."""
    command = [sys.executable, str(SCRIPTS / "write_report.py"), *run.arguments()]
    outputs = ["--scores", str(folder / "scores.parquet"), "--output", str(folder / "index.html")]
    subprocess.run([*command, *outputs], check=True, env={"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"})
    return (folder / "index.html").read_text("utf-8"), pd.read_parquet(folder / "scores.parquet")


@pytest.fixture(scope="module")
def report(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pd.DataFrame]:
    return written(run, tmp_path_factory.mktemp("written"))


def cluster_means(scores: pd.DataFrame, about: dict[str, str]) -> pd.Series:
    variant, phase, step = about["data-checkpoint"].split("/")
    rows = scores[
        (scores["subject"] == about["data-subject"])
        & (scores["variant"] == variant)
        & (scores["phase"] == phase)
        & (scores["step"] == int(step))
        & (scores["metric"] == about["data-metric"])
        & (scores["split"] == about["data-split"])
        & (scores["lora_scale"] == float(about["data-scale"]))
        & (scores["base_model"] == about["data-base-model"])
    ].dropna(subset="value")
    assert len(rows), f"no score row for {about}"
    cluster = rows["source_id"].where(rows["source_id"] != "", rows["prompt_id"])
    by_prompt = rows["value"].groupby([cluster, rows["prompt_id"]]).mean()
    return by_prompt.groupby(level=0).mean()


def part_of(means: pd.Series, part: str) -> float:
    if part == "value":
        return means.mean()
    low, high = (
        stats.t.interval(0.95, len(means) - 1, means.mean(), stats.sem(means)) if means.std() else (means.mean(),) * 2
    )
    return low if part == "low" else high


def numbers(page: str, source: str) -> list[Element]:
    return [one for one in Page(page).having("data-source") if one.attributes["data-source"] == source]


def shown(element: Element) -> str:
    """The number as people see it: the text, or what stands after the colon of a chart's title."""
    return element.text.rpartition(": ")[2]


def agrees(text: str, value: float) -> bool:
    """Whether a printed number is a value, rounded to the digits that are printed."""
    digits = len(text.partition(".")[2])
    tolerance = 0.5 * 10.0**-digits + 1e-9
    return abs(float(text) - value) <= tolerance


def test_numbers_from_scores_are_found_again(report: tuple[str, pd.DataFrame]) -> None:
    page, scores = report
    found = numbers(page, "scores")
    for element in found:
        value = part_of(cluster_means(scores, element.attributes), element.attributes["data-part"])
        assert agrees(shown(element), value), (element.attributes, shown(element), value)
        if "value" in element.attributes:
            assert float(element.attributes["value"]) == pytest.approx(value, abs=1e-9)
    kinds = {(one.tag, one.attributes["data-split"]) for one in found}
    assert kinds == {("data", "report"), ("data", "select"), ("circle", "select"), ("line", "select")}
    assert len(found) > 300


def test_all_checkpoints_are_points_of_the_ranking_metric(report: tuple[str, pd.DataFrame]) -> None:
    page, scores = report
    wanted = scores[
        (scores["metric"] == "likeness")
        & (scores["split"] == "select")
        & (scores["lora_scale"] == 1)
        & (scores["subject"] == "robin")
        & (scores["variant"] != "base")
    ]
    drawn = {
        one.attributes["data-checkpoint"]
        for one in numbers(page, "scores")
        if one.tag == "circle"
        and one.attributes["data-metric"] == "likeness"
        and one.attributes["data-subject"] == "robin"
    }
    assert drawn == {f"{row.variant}/{row.phase}/{row.step}" for row in wanted.itertuples()}
    assert len(drawn) == 10


def test_numbers_from_best_are_found_again(run: Run, report: tuple[str, pd.DataFrame]) -> None:
    found = numbers(report[0], "best")
    for element in found:
        best = json.loads((run.results / element.attributes["data-subject"] / "best.json").read_text("utf-8"))
        metric, part = element.attributes["data-metric"], element.attributes.get("data-part")
        if part:
            value = best["metrics"][metric][part]
        else:
            group, _, key = metric.rpartition(".")
            value = (best[group] if group else best)[key]
        assert agrees(shown(element), value), element.attributes
    metrics = {one.attributes["data-metric"] for one in found}
    assert {"step", "lora_scale", "likeness_over_base", "target_error_over_base", "calibration.genuine"} <= metrics


def test_paired_differences_are_found_again_in_the_scores(run: Run, report: tuple[str, pd.DataFrame]) -> None:
    page, scores = report
    for subject, metric in (("robin", "likeness"), ("robin-smiles", "target_error")):
        card = next(
            one
            for one in numbers(page, "best")
            if one.attributes["data-metric"] == f"{metric}_over_base" and one.attributes["data-subject"] == subject
        )
        best = json.loads((run.results / subject / "best.json").read_text("utf-8"))
        about = {
            "data-subject": subject,
            "data-metric": metric,
            "data-split": "report",
            "data-base-model": "miniature-0123456789abcdef",
        }
        ours = cluster_means(
            scores,
            about
            | {
                "data-checkpoint": f"{best['variant']}/{best['phase']}/{best['step']}",
                "data-scale": str(best["lora_scale"]),
            },
        )
        base = cluster_means(scores, about | {"data-checkpoint": "base//0", "data-scale": "1"})
        assert agrees(shown(card), (ours - base).mean())


def test_numbers_of_the_lora_before_stand_in_its_card(run: Run, report: tuple[str, pd.DataFrame]) -> None:
    card = (run.results / "robin" / "lora" / "archive" / PREVIOUS / "README.md").read_text("utf-8")
    found = numbers(report[0], "card")
    for element in found:
        row = next(line for line in card.splitlines() if line.startswith(f"| {element.attributes['data-metric']} |"))
        assert element.attributes["data-archive"] == PREVIOUS
        assert f"{float(element.attributes['value']):.3f}" in row
    assert {one.attributes["data-metric"] for one in found} > {"likeness", "csim", "likeness_over_base"}


def test_counts_and_facts_are_found_again(run: Run, report: tuple[str, pd.DataFrame]) -> None:
    seen = set()
    for element in numbers(report[0], "decisions"):
        subject, key = element.attributes["data-subject"], element.attributes["data-key"]
        decisions = pd.read_parquet(run.results / subject / "phases" / "decisions.parquet")
        first = decisions[decisions["phase"] == next(iter(run.settings[subject]["phases"]))]
        kind, _, name = key.partition(":")
        dropped = first[~first["kept"]]
        value = {
            "found": lambda first=first: len(first),
            "phase": lambda name=name, decisions=decisions: int(decisions[decisions["phase"] == name]["kept"].sum()),
            "rule": lambda name=name, dropped=dropped: int((dropped["rule"] == name).sum()),
            "held_out": lambda dropped=dropped: int((dropped["rule"] == "held_out").sum()),
        }[kind]()
        assert shown(element) == str(value), key
        seen.add(kind)
    assert seen == {"found", "phase", "rule", "held_out"}
    facts = [one for one in numbers(report[0], "quality") if "data-id" in one.attributes]
    for element in facts:
        quality = pd.read_parquet(run.results / element.attributes["data-subject"] / "quality.parquet").set_index("id")
        assert agrees(shown(element), quality.loc[element.attributes["data-id"], element.attributes["data-key"]])
    assert len(facts) > 50


def test_no_decimal_number_stands_without_its_source(report: tuple[str, pd.DataFrame]) -> None:
    """Outside of numbers, charts, settings and timings, decimals may only stand in reasons that tables hold word for word."""
    words = text_without(report[0], "data", "svg", "pre", "td", "code")
    known = (
        "the face is blurred: 11.4 is below 60",
        "cosine 0.185 to the subject is below 0.5",
        "shift_px < 1 is not met: 1.2",
        "2104.08718",
        "where the loss counts 0.1 times",
    )
    for sentence in known:
        words = words.replace(sentence, "")
    assert re.findall(r"\d+\.\d+", words) == []


def test_table_cells_hold_nothing_but_numbers_with_a_source(report: tuple[str, pd.DataFrame]) -> None:
    cells = [one for one in Page(report[0]).elements if one.tag == "td" and "details" not in one.ancestors]
    bare = [one.text.strip() for one in cells if one.text.strip() != "–"]
    assert len(bare) > 50
    inside = [one for one in Page(report[0]).elements if one.tag == "data" and "td" in one.ancestors]
    words = re.sub(
        r"\s+",
        " ",
        text_without(
            report[0],
            "data",
            "svg",
            "pre",
            "th",
            "p",
            "li",
            "h2",
            "h3",
            "h4",
            "h5",
            "b",
            "span",
            "summary",
            "figcaption",
            "code",
            "details",
            "title",
        ),
    )
    assert len(inside) >= len(bare)
    assert not re.search(r"\d", words), words


def test_poisoned_scores_change_the_page(run: Run, report: tuple[str, pd.DataFrame], tmp_path: Path) -> None:
    copy = Run(run.folder, run.settings)
    path = run.results / "robin" / "evaluation" / "report-half" / "scores.parquet"
    before = path.read_bytes()
    table = pd.read_parquet(io.BytesIO(before))
    assert len(table)
    shutil.copy(path, tmp_path / "kept.parquet")
    try:
        from likeness.tables import SCORES, read_rows, write_table

        rows = read_rows(path, SCORES)
        for row in rows:
            if row["split"] == "report" and row["metric"] == "csim" and row["value"] is not None:
                row["value"] += 0.25
        write_table(path, SCORES, rows)
        page, scores = written(copy, tmp_path)
    finally:
        path.write_bytes(before)
    assert page != report[0]
    mine = [
        one
        for one in numbers(page, "scores")
        if one.attributes["data-metric"] == "csim" and one.attributes["data-split"] == "report"
    ]
    for element in mine:
        assert agrees(
            shown(element), part_of(cluster_means(scores, element.attributes), element.attributes["data-part"])
        )
    old = {
        (json.dumps(one.attributes | {"value": ""}, sort_keys=True)): float(one.attributes["value"])
        for one in numbers(report[0], "scores")
        if one.tag == "data"
    }
    moved = [
        float(one.attributes["value"]) - old[json.dumps(one.attributes | {"value": ""}, sort_keys=True)]
        for one in mine
        if not one.attributes["data-checkpoint"].startswith("base")
        and one.attributes["data-part"] == "value"
        and one.attributes["data-subject"] == "robin"
    ]
    assert moved and moved == pytest.approx([0.25] * len(moved))

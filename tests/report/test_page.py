"""The pages as documents: self-contained, well-formed, deterministic, with every part and every empty state."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.report.conftest import curation_of, report_of
from tests.report.fabricate import (
    LONG_NAME,
    Run,
    character_settings,
    curate_character,
    evaluate_character,
    fabricate,
    read_best,
    write_best,
)
from tests.report.reading import Page

from likeness.report.gather import gather_subject, score_tables
from likeness.report.page import unmeasured

SCRIPTS = Path(__file__).parents[2] / "scripts"
ADDRESSES = ("src", "href", "srcset", "action", "data", "poster", "xlink:href", "formaction")


def program(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("made", [report_of, curation_of])
def test_nothing_is_fetched_from_outside_and_no_script_runs(run: Run, made) -> None:
    html = made(run)
    page = Page(html)
    for element in page.elements:
        for name in ADDRESSES:
            address = element.attributes.get(name, "data:")
            assert address.startswith(("data:", "#")), (element.tag, name, address[:60])
    style = "".join(one.text for one in page.elements if one.tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    assert not {one.tag for one in page.elements} & {"script", "iframe", "object", "embed", "base"}
    assert not [one for one in page.elements for name in one.attributes if name.startswith("on")]


def test_anchors_lead_somewhere_and_ids_are_unique(page: str) -> None:
    parsed = Page(page)
    ids = [one.attributes["id"] for one in parsed.having("id")]
    anchors = [one.attributes["href"][1:] for one in parsed.having("href") if one.attributes["href"].startswith("#")]
    assert len(ids) == len(set(ids))
    assert anchors == ["robin", "robin-smiles"]
    assert set(anchors) <= set(ids)


def test_every_picture_says_what_it_shows(page: str) -> None:
    images = [one for one in Page(page).elements if one.tag == "img"]
    assert len(images) > 60
    assert all(one.attributes["alt"] for one in images)


def test_no_absolute_path_and_no_leftover_of_python_is_printed(run: Run, page: str) -> None:
    outside = re.sub(r"<pre.*?</pre>|<style>.*?</style>|src=\"[^\"]*\"", "", page, flags=re.DOTALL)
    assert len(outside) < len(page)
    for leftover in (str(run.folder), "None", "nan<", '"nan"', "Number(", "Measured(", "Undefined"):
        assert leftover not in outside, leftover


def test_equal_inputs_give_equal_bytes(tmp_path: Path, run: Run) -> None:
    pages = []
    for name in ("one", "two"):
        outputs = ["--scores", str(tmp_path / f"{name}.parquet"), "--output", str(tmp_path / f"{name}.html")]
        done = program("write_report.py", *run.arguments(), *outputs)
        assert done.returncode == 0, done.stderr
        pages.append((tmp_path / f"{name}.html").read_bytes() + (tmp_path / f"{name}.parquet").read_bytes())
    assert pages[0] == pages[1]
    assert "2 subjects" in done.stdout


def test_headings_of_all_parts(page: str) -> None:
    headings = [one.text for one in Page(page).elements if one.tag == "h3"]
    wanted = [
        "Chosen beside the base and the runners-up",
        "Scores over training",
        "Finalists on the report half",
        "Finalists on the distilled model",
        "This LoRA against the one before",
        "From photos to phases",
        "Every photo and its fate",
        "How it was made",
    ]
    assert headings[: len(wanted)] == wanted


def test_strengths_stand_in_true_units(page: str) -> None:
    chart = page[page.index("over strength") :].partition("</svg>")[0]
    texts = [one.text for one in Page(chart[chart.index("<svg") :] + "</svg>").elements if one.tag == "text"]
    assert {"0.6", "0.8", "1", "1.2", "1.5"} <= set(texts)
    assert "LoRA strength" in texts
    titles = [one.text for one in Page(chart[chart.index("<svg") :] + "</svg>").elements if one.tag == "title"]
    assert sum(title.startswith("strength ") for title in titles) == 5


def test_phases_of_the_edit_are_marked(page: str) -> None:
    marks = [one.text for one in Page(page).elements if one.tag == "text" and one.attributes.get("class") == "mark"]
    assert {"broad", "clean", "best"} <= set(marks)


def test_metrics_without_a_number_are_listed_with_their_reason(run: Run, page: str) -> None:
    found = dict(unmeasured(gather_subject(run.results, "robin", run.settings["robin"])))
    assert found["lpips"] == "no_weights: evaluation.lpips names no file"
    assert found["style_similarity"] == "not_applicable: for a style only"
    assert "csim" not in found
    listed = {one.text for one in Page(page).elements if one.tag == "li" and "details" in one.ancestors}
    assert "lpips no_weights: evaluation.lpips names no file" in listed


def test_timings_come_from_benchmark_files(page: str) -> None:
    timings = page[page.index('class="timings"') :]
    assert "train_lora" in timings
    assert ">66.2<" in timings or ">66.3<" in timings


def test_settings_are_shown_in_full(run: Run, page: str) -> None:
    import yaml

    shown = [one.text for one in Page(page).elements if one.tag == "pre"]
    assert [yaml.safe_load(text) for text in shown] == list(run.settings.values())


def test_scores_of_a_variant_that_is_gone_stay_out(run: Run) -> None:
    settings = json.loads(json.dumps(run.settings["robin"]))
    del settings["variants"]["long"]
    tables = score_tables(Path("robin"), settings)
    assert [str(path) for path in tables] == [
        f"robin/evaluation/{name}/scores.parquet" for name in ("base", "main/main", "report-half")
    ]


def test_tables_of_finished_files_are_read(run: Run) -> None:
    settings = character_settings(run.folder, variants={"old": {"lora": "old/*.safetensors"}, "main": {}})
    names = [path.parent.relative_to("robin/evaluation").as_posix() for path in score_tables(Path("robin"), settings)]
    assert names == ["base", "old/files", "main/main", "report-half"]


def test_distilled_scores_do_not_move_the_others(tmp_path: Path) -> None:
    """Rows of the distilled model share checkpoint, prompt and seed with the others, and differ by their base model only."""
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin")
    from likeness.tables import SCORES, read_rows, write_table

    before = report_of(run)
    path = run.results / "robin" / "evaluation" / "report-half" / "scores.parquet"
    rows = read_rows(path, SCORES)
    for row in rows:
        if row["base_model"].startswith("distilled") and row["value"] is not None:
            row["value"] = 9.0
    write_table(path, SCORES, rows)
    after = report_of(run)
    heading, next_heading = "Finalists on the distilled model", "From photos to phases"
    assert after != before
    for cut in (lambda page: page.partition(heading)[0], lambda page: page.partition(next_heading)[2]):
        assert cut(before) == cut(after)


def test_a_subject_without_a_choice_says_why(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin", lambda *_: {"csim": "no_face", "likeness": "no_face", "detected": 0.0})
    assert read_best(run, "robin")["variant"] is None
    page = report_of(run)
    Page(page)
    assert "Nothing was chosen: no choice:" in page
    assert "Finalists on the report half" not in page
    assert "Every photo and its fate" in page


def test_a_choice_without_the_report_half_shows_its_curves(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    evaluate_character(run, "robin")
    from likeness.tables import SCORES, read_rows

    for name in ("base", "report-half"):
        rows = read_rows(run.results / "robin" / "evaluation" / name / "scores.parquet", SCORES)
        run.write("robin", SCORES, [row for row in rows if row["split"] == "select"], f"evaluation/{name}/scores")
    write_best(run, "robin", read_best(run, "robin") | {"metrics": {}})
    page = report_of(run)
    assert "Finalists on the report half" not in page
    assert "Chosen beside the base" not in page
    assert 'class="chosen"' in page


def test_a_hand_picked_checkpoint_is_named_as_such(run: Run, tmp_path: Path) -> None:
    copy = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(copy, "robin", side_px=32)
    evaluate_character(copy, "robin")
    assert "chosen by hand" not in report_of(copy)
    write_best(copy, "robin", read_best(copy, "robin") | {"picked_by_hand": True})
    assert "chosen by hand" in report_of(copy)


@pytest.mark.parametrize("name", ["write_report.py", "write_curation.py"])
def test_no_subject_at_all_is_a_page_that_says_what_to_do(tmp_path: Path, name: str) -> None:
    empty = Run(tmp_path, {})
    extra = ["--scores", str(tmp_path / "scores.parquet")] if name == "write_report.py" else []
    done = program(name, *empty.arguments(), *extra, "--output", str(tmp_path / "page.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.html").read_text("utf-8")
    Page(page)
    assert "No subject is configured yet" in page
    assert "make new" in page


def test_the_curation_page_stands_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=48)
    done = program("write_curation.py", *run.arguments(), "--output", str(tmp_path / "curate.html"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "curate.html").read_text("utf-8")
    for words in (
        "the face is blurred: 11.4 is below 60",
        "no face was found",
        "held out to measure against",
        "r0bin person, half body",
        LONG_NAME,
    ):
        assert words in page
    assert len([one for one in Page(page).elements if one.tag == "article"]) == 17


def test_names_and_captions_are_escaped(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path, trigger="<b>&\"'")})
    curate_character(run, "robin", side_px=32)
    page = curation_of(run)
    Page(page)
    assert '<b>&"' not in page
    assert "&lt;b&gt;&amp;" in page


def test_timings_of_a_subject_do_not_hold_those_of_a_namesake_variant(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    path = run.results / ".benchmarks" / "train_lora" / "other" / "robin" / "main.tsv"
    path.parent.mkdir(parents=True)
    path.write_text("s\th:m:s\n5000\t1:00:00\n")
    subject = gather_subject(run.results, "robin", run.settings["robin"])
    timings = {rule: seconds for rule, _, seconds in subject.timings}
    assert timings["train_lora"] == 66.25


def test_the_page_says_what_the_mask_means(tmp_path: Path) -> None:
    for kind, words in (
        ("head", "outside the head mask, where the loss counts 0.1 times"),
        (None, "training learns the whole picture"),
    ):
        folder = tmp_path / str(kind)
        run = Run(folder, {"robin": character_settings(folder, training={"masked_loss": {"kind": kind}})})
        curate_character(run, "robin", side_px=32)
        assert words in curation_of(run)

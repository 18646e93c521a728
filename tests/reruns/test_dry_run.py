"""Snakemake's dry run is read as it is printed: several reasons at once, settings with any text, jobs without a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.workflow.project import Project

from likeness.errors import UserError
from likeness.program import as_argument
from likeness.reruns.dry_run import complaint, dry_run, job_of_output, parse_jobs, split_names

SETTINGS = {"code": "abc", "settings": {"text": "it's; Code has changed since last execution", "rank": 8}}
QUOTED = json.dumps(SETTINGS).replace("'", "'\"'\"'")
TEXT = f"""\
[Thu Jan  1 00:00:00 2026]
Job 7: Index photos of jane, shard 3
Reason: Missing output files: results/jane/a.parquet, results/jane/b.parquet; Updated input files: data/x 1.jpg; \
Set of input files has changed since last execution; Params have changed since last execution: before: '; Updated input \
files: none' now: 'x'
Shell command: python "$LIKENESS/index_photos.py" --settings '{QUOTED}' --shard 3 > results/.logs/index_photos/jane/3.log 2>&1

[Thu Jan  1 00:00:00 2026]
Job 2: Write the page of every photo and its fate
Reason: Input files updated by another job: results/jane/a.parquet
Shell command: python "$LIKENESS/write_curation.py" --settings '{{"code":"d","settings":{{}}}}' > results/.logs/write_curation.log 2>&1
[Thu Jan  1 00:00:00 2026]
rule all:
    input: results/report/index.html
    reason: Input files updated by another job: results/report/index.html
"""


def test_jobs_reasons_and_settings_are_read() -> None:
    index, page = parse_jobs(TEXT)
    assert (index.name, index.rule, index.subject) == ("index_photos/jane/3", "index_photos", "jane")
    assert index.files("missing") == ["results/jane/a.parquet", "results/jane/b.parquet"]
    assert index.files("edited") == ["data/x 1.jpg"] and index.files("renewed") == []
    assert index.has("listing") and index.has("settings") and not index.has("command")
    assert index.settings == SETTINGS and index.starts_by_itself
    assert (page.name, page.subject) == ("write_curation", "") and not page.starts_by_itself
    assert page.files("renewed") == ["results/jane/a.parquet"]


def test_makers_are_known_from_records_and_from_what_is_missing() -> None:
    index, page = parse_jobs(TEXT)
    makers = job_of_output([index, page], {"results/curate.html": "write_curation", "gone": "no_job"})
    assert makers == {
        "results/curate.html": page,
        "results/jane/a.parquet": index,
        "results/jane/b.parquet": index,
    }


def test_long_settings_are_read_from_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = {"code": "abc", "settings": {"texts": ["x" * 100] * 500}}
    argument = as_argument(json.dumps(long))
    assert argument.startswith("@results/.settings/") and len(argument) < 200
    job = parse_jobs(TEXT.replace(f"'{QUOTED}'", argument))[0]
    assert job.settings == long
    assert as_argument('{"code":"abc"}') == '{"code":"abc"}'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b", ["a", "b"]),
        ("x 1, copy.jpg", ["x 1, copy.jpg"]),
        ("a, x 1, copy.jpg, b, x 1", ["a", "x 1, copy.jpg", "b", "x 1"]),
        ("x 1, y", ["x 1", "y"]),
        ("p, q, r, p, q, s", ["p, q, r", "p, q", "s"]),
        ("", []),
    ],
)
def test_names_with_commas_stay_whole_where_they_are_known(text: str, names: list[str]) -> None:
    assert split_names(text, {"x 1", "x 1, copy.jpg", "p, q", "p, q, r"}) == names
    assert split_names(text) == [name for name in text.split(", ") if name]


def test_why_there_is_no_plan_is_said_by_the_real_snakemake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = Project(tmp_path)
    project.configure("recipe: style\ntrigger: inkw4sh\nphotos: data/ink\nbase_model: miniature\n", "ink")
    monkeypatch.chdir(tmp_path)
    assert "index_photos" in {job.rule for job in dry_run(["curate"], ["ink"])}
    with pytest.raises(
        UserError, match=r"^nothing makes 'inc'; did you mean 'ink'\? Allowed: all, curate, ink, report, or a file$"
    ):
        dry_run(["inc"], ["ink"])


def test_what_is_nobodys_known_mistake_is_repeated_without_the_banner() -> None:
    banner = "SNAKEMAKE\n=========\n  Host: vm\n\nBuilding DAG of jobs...\n"
    notice = "Using workflow specific profile profiles/default for setting default command line arguments.\n"
    text = complaint(banner + "MissingInputException in rule x:\nMissing input files\n", notice + "warning: a\n")
    assert text == "Snakemake cannot plan the run:\nMissingInputException in rule x:\nMissing input files\nwarning: a"
    text = complaint(f"{banner}Error:\n  UserError: two\n  lines\nWildcards:\n  shard=0\nTraceback:\n  File x", notice)
    assert text == "two\nlines"

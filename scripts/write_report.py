"""Write results/scores.parquet, every metric of every image of every subject, and the report: one self-contained page."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from likeness.config.report import PageStage
from likeness.program import parser_for, read_settings, run
from likeness.report.gather import gather_subject
from likeness.report.page import render, report_part
from likeness.report.pictures import Pictures
from likeness.store import Store, write_atomically
from likeness.tables import SCORES, table_of, write_table


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results folder")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--scores", required=True, type=Path, help="table of all scores to write")
    parser.add_argument("--output", required=True, type=Path, help="HTML page to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PageStage)
    subjects = [
        gather_subject(args.results, name, settings, with_scores=True) for name, settings in stage.subjects.items()
    ]
    write_table(
        args.scores,
        SCORES,
        pa.concat_tables([table_of(SCORES, subject.scores) for subject in subjects] or [table_of(SCORES, [])]),
    )
    pictures = Pictures(Store(args.store))
    page = render("report.html.j2", [report_part(subject, pictures) for subject in subjects], pictures)
    write_atomically(args.output, page.encode())
    print(
        f"{args.output}: {len(subjects)} subjects, {len(page) / 1e6:.1f} MB, {sum(len(subject.scores) for subject in subjects)} score rows"
    )


if __name__ == "__main__":
    run(main)

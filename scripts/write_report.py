"""Write results/scores.parquet, every metric of every image of every subject, and the report: one self-contained page."""

from __future__ import annotations

from pathlib import Path

from likeness.config.report import PageStage
from likeness.program import as_about, parser_for, read_settings, run
from likeness.report.gather import gather_subject
from likeness.report.page import render_report
from likeness.report.pictures import Pictures
from likeness.store import Store, Work, write_atomically
from likeness.tables import SCORES, write_table

VERSION = 1


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results folder")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--scores", required=True, type=Path, help="table of all scores to write")
    parser.add_argument("--output", required=True, type=Path, help="HTML page to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PageStage)
    subjects = [gather_subject(args.results, name, settings) for name, settings in stage.subjects.items()]
    rows = [row for subject in subjects for row in subject.rows]
    write_table(args.scores, SCORES, rows, as_about("all_scores", VERSION, {"subjects": list(stage.subjects)}))
    pictures = Pictures(Store(args.store))
    page = render_report(subjects, pictures).encode()
    write_atomically(args.output, page)
    print(
        f"{args.output}: {len(subjects)} subjects, {len(page) / 1e6:.1f} MB, {len(rows)} score rows, "
        f"{pictures.left_out.total()} pictures left out"
    )
    return Work()


if __name__ == "__main__":
    run(main)

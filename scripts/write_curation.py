"""Write the page of every photo, its fate and reason, mask and caption: before anything that needs a GPU."""

from __future__ import annotations

from pathlib import Path

from likeness.config.report import PageStage
from likeness.program import parser_for, read_settings, run
from likeness.report.gather import gather_subject
from likeness.report.page import curation_part, render
from likeness.report.pictures import Pictures
from likeness.store import Store, write_atomically


def main() -> None:
    parser = parser_for(__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results folder")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--output", required=True, type=Path, help="HTML page to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PageStage)
    pictures = Pictures(Store(args.store))
    subjects = [
        gather_subject(args.results, name, settings, with_scores=False) for name, settings in stage.subjects.items()
    ]
    page = render("curation.html.j2", [curation_part(subject, pictures) for subject in subjects], pictures)
    write_atomically(args.output, page.encode())
    print(f"{args.output}: {len(subjects)} subjects, {len(page) / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)

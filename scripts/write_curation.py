"""Write the page of every photo, its fate and reason, mask and caption: before anything that needs a GPU."""

from __future__ import annotations

from pathlib import Path

from likeness.config.report import PageStage
from likeness.program import parser_for, read_settings, run
from likeness.report.gather import gather_curation
from likeness.report.page import render_curation
from likeness.report.pictures import Pictures
from likeness.store import Store, Work, write_atomically


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results folder")
    parser.add_argument("--store", required=True, type=Path, help="folder of the store")
    parser.add_argument("--output", required=True, type=Path, help="HTML page to write")
    args = parser.parse_args()
    stage = read_settings(args.settings, PageStage)
    subjects = [gather_curation(args.results, name, settings) for name, settings in stage.subjects.items()]
    pictures = Pictures(Store(args.store))
    page = render_curation(subjects, pictures).encode()
    write_atomically(args.output, page)
    print(
        f"{args.output}: {len(subjects)} subjects, {len(page) / 1e6:.1f} MB, {pictures.left_out.total()} pictures left out"
    )
    return Work()


if __name__ == "__main__":
    run(main)

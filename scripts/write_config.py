"""Write the resolved settings of one subject as YAML, for people; no rule reads them."""

from __future__ import annotations

from pathlib import Path

from likeness.config.report import PageStage
from likeness.program import parser_for, read_settings, run
from likeness.store import Work, write_atomically
from likeness.yaml_text import yaml_text


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--output", required=True, type=Path, help="YAML file to write")
    args = parser.parse_args()
    (settings,) = read_settings(args.settings, PageStage).subjects.values()
    text = yaml_text(settings, width=120)
    write_atomically(args.output, f"# All settings of this subject after every layer was merged.\n{text}".encode())
    return Work()


if __name__ == "__main__":
    run(main)

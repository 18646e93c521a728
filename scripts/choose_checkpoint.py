"""Choose the best checkpoint from the select half's scores and write best.json with the report half's numbers."""

from __future__ import annotations

import json
from pathlib import Path

from likeness.config.evaluation import ChoiceStage
from likeness.evaluation.choice import best_record
from likeness.evaluation.scores import read_scores
from likeness.program import parser_for, read_settings, run
from likeness.store import Work, write_atomically


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--scores", type=Path, nargs="+", required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, ChoiceStage)
    record = best_record(read_scores(args.scores), stage, json.loads(args.calibration.read_text("utf-8")))
    write_atomically(args.output, (json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
    print(record["rule"])
    return Work()


if __name__ == "__main__":
    run(main)

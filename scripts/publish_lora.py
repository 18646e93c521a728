"""Publish the chosen checkpoint in both file formats with its model card; the previous LoRA goes to the archive."""

from __future__ import annotations

from pathlib import Path

from likeness.config.evaluation import PublishStage
from likeness.program import parser_for, read_settings, run
from likeness.store import Store, Work


def main() -> Work:
    parser = parser_for(__doc__)
    parser.add_argument("--subject", required=True)
    parser.add_argument("--best", type=Path, required=True)
    parser.add_argument("--scores", type=Path, nargs="+", required=True)
    parser.add_argument("--checkpoints", type=Path, nargs="*", default=[], help="steps.json files of all trainings")
    parser.add_argument("--loras", type=Path, nargs="*", default=[], help="finished LoRA files of external variants")
    parser.add_argument("--decisions", type=Path, required=True)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output-folder", type=Path, required=True)
    args = parser.parse_args()
    stage = read_settings(args.settings, PublishStage)

    from likeness.evaluation.publish import publish_lora
    from likeness.evaluation.score import loras_by_hash

    store = Store(args.store)
    loras = loras_by_hash(args.checkpoints, args.loras, store)
    record = publish_lora(stage, args.subject, args.best, args.scores, loras, args.decisions, store, args.output_folder)
    if "reason" in record:
        print(f"nothing published: {record['reason']}")
    else:
        print(
            f"published {record['variant']}, step {record['step']}: {record['modules']} of {record['modules']} modules load"
        )
    return store.work()


if __name__ == "__main__":
    run(main)

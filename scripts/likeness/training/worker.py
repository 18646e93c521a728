"""One process of a training that runs in several; started by `launch.py`, not by people."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

from likeness.errors import TransientError, UserError
from likeness.training.job import TrainingJob
from likeness.training.launch import end_with_job
from likeness.training.run import run_training
from likeness.training.team import Team


def main(job: TrainingJob) -> None:
    """Join the others and train; what the user did wrong is left in a file for the process that started us."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    team = Team(state.process_index, state.num_processes)
    try:
        run_training(job, job.open_base(str(state.device)), team)
    except (UserError, TransientError) as error:
        (job.folder.folder / f".workers-error-{team.rank}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    state.destroy_process_group()


if __name__ == "__main__":
    end_with_job()
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    main(TrainingJob.from_record(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))

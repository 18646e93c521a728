"""One process of a training that runs in several; started by `launch.py`, not by people."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from likeness.config.training import TrainingSettings, TrainStage
from likeness.errors import TransientError, UserError
from likeness.store import Store
from likeness.training.base import open_base
from likeness.training.launch import end_with_parent
from likeness.training.records import TrainingFolder
from likeness.training.run import run_training
from likeness.training.team import Team
from likeness.training.train import Start


def main(job: dict[str, Any]) -> None:
    """Join the others and train; what the user did wrong is left in a file for the process that started us."""
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    team = Team(state.process_index, state.num_processes)
    stage, settings = TrainStage.model_validate(job["stage"]), TrainingSettings.model_validate(job["settings"])
    folder = TrainingFolder(Path(job["folder"]), Store(Path(job["store"])))
    base = open_base(stage.base_model, offline=stage.offline, dtype=settings.precision, device=str(state.device))
    start = Start(Path(job["start"][0]), *job["start"][1:]) if job["start"] else None
    try:
        run_training(folder, base, settings, job["rows"], start, job["missing"], job["key"], Path(job["watched"]), team)
    except (UserError, TransientError) as error:
        (folder.folder / f".workers-error-{team.rank}").write_text(str(error), encoding="utf-8")
        sys.exit(2)
    state.destroy_process_group()


if __name__ == "__main__":
    end_with_parent()
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

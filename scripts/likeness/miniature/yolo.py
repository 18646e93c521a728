"""A tiny random ultralytics pose model with one class and five face landmarks, made in a process of its own.

ultralytics is AGPL, sends statistics, installs packages and sets thread counts when it is imported: it is never
imported here. A child process with all of that switched off builds the model from the package's own v8 pose layout,
narrowed to a sixteenth. Random weights make arbitrary boxes: the file proves loading and the shape of results.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from likeness.errors import UserError

MODEL_NAME = "yolo_face_miniature.pt"
BUILD_LIMIT_S = 300

_BUILD_PROGRAM = """
import sys
from pathlib import Path

import torch
import ultralytics
import yaml
from ultralytics import YOLO

layout_name, model_file, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
published = Path(ultralytics.__file__).parent / "cfg" / "models" / "v8" / "yolov8-pose.yaml"
layout = yaml.safe_load(published.read_text())
layout.update(nc=1, kpt_shape=[5, 3], scales={"n": [0.33, 0.0625, 1024]}, scale="n")
Path(layout_name).write_text(yaml.safe_dump(layout))
torch.manual_seed(seed)
model = YOLO(layout_name, task="pose", verbose=False).model
model.names = {0: "face"}
# The package's own save() adds the time, which would make every file differ.
torch.save({"model": model.half(), "train_args": {"task": "pose"}, "version": ultralytics.__version__}, model_file)
"""


def quiet_environment(config_folder: Path) -> dict[str, str]:
    """Environment of a process that may import ultralytics: no statistics, no look-ups, no installs, no pickled code."""
    return os.environ | {
        "YOLO_OFFLINE": "1",
        "YOLO_AUTOINSTALL": "0",
        "YOLO_CONFIG_DIR": str(config_folder),
        "YOLO_VERBOSE": "0",
        "ULTRALYTICS_SKIP_REQUIREMENTS_CHECKS": "1",
        "ULTRALYTICS_SAFE_LOAD": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
    }


def build_yolo(folder: Path, seed: int = 0) -> Path:
    """Write a random tiny pose model (class `face`, landmarks 5 x (x, y, visibility)); returns the `.pt` file.

    Raises
    ------
    UserError
        When the child process fails, with the last lines of what it said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model_file = folder / MODEL_NAME
    with tempfile.TemporaryDirectory() as scratch:
        # The model remembers the name of its layout: a bare name in the scratch folder, never an absolute path.
        command = [sys.executable, "-c", _BUILD_PROGRAM, "yolov8n-face-pose.yaml", str(model_file.resolve()), str(seed)]
        done = subprocess.run(
            command,
            cwd=scratch,
            env=quiet_environment(Path(scratch)),
            capture_output=True,
            text=True,
            timeout=BUILD_LIMIT_S,
        )
    if done.returncode != 0:
        reason = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise UserError(
            f"The miniature YOLO face model could not be built in {folder}: {reason}\n"
            "It needs the optional extra `yolo` (ultralytics); leave the part out if you do not use that backend."
        )
    return model_file

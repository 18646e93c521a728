"""Runs stage programs as forked children that may kill themselves: started by tests, not imported.

The heavy libraries are imported once; a child then does all that `python scripts/<name>.py …` does. Between two changes
of the disk a SIGKILL leaves the same disk behind, so the moments at which a child can die are its changes of the disk:
the `kill_at`-th is not made any more. One JSON request a line comes in, one JSON answer a line goes out.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


def changes_disk(event: str, arguments: tuple[Any, ...], folder: str) -> bool:
    """Whether an audit event is about to change something in the project's folder."""
    if event == "open":
        name, _, flags = arguments
        if not isinstance(name, str | bytes | os.PathLike) or not (isinstance(flags, int) and flags & WRITING):
            return False
    elif event not in CHANGES:
        return False
    path = os.path.abspath(os.fsdecode(arguments[0])) if not isinstance(arguments[0], int) else folder  # noqa: PTH100
    return path.startswith(folder)


def child(request: dict[str, Any], answers: int) -> None:
    """Be the stage program until its end or its death; never returns."""
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(request["cwd"])
    sys.argv = [request["script"], *request["arguments"]]
    sys.path.insert(0, str(Path(request["script"]).parent))
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if changes_disk(event, arguments, request["cwd"]):
            count += 1
            if count == request["kill_at"]:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    code = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os.write(answers, str(count).encode())
    os._exit(code)


def import_heavy() -> None:
    """What stage programs import from outside, so that children find it loaded."""
    import cv2  # noqa: F401
    import duckdb  # noqa: F401
    import insightface.app  # noqa: F401
    import onnxruntime  # noqa: F401
    import pandas  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import skimage.metrics  # noqa: F401
    import tensorboard.compat  # noqa: F401
    import torch  # noqa: F401
    import transformers.models.qwen3  # noqa: F401


def main() -> None:
    import_heavy()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        count_from, count_to = os.pipe()
        process = os.fork()
        if process == 0:
            child(request, count_to)
        os.close(count_to)
        _, status = os.waitpid(process, 0)
        changes = int(os.read(count_from, 20) or 0)
        os.close(count_from)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "changes": changes}), flush=True)


if __name__ == "__main__":
    main()

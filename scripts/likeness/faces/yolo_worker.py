"""The only program that imports ultralytics: YOLO face weights in, boxes and landmarks out, in a process of its own.

Reads lines of JSON from stdin, {"image": path of a .npy with BGR uint8 (H, W, 3)}, and answers each with one line,
{"boxes": [[x0, y0, x1, y1, score], …], "landmarks": [[[x, y], …5], …] or null}. The first line that it writes says
{"ready": true} or {"error": "…"}. Started as `python yolo_worker.py WEIGHTS SIZE_PX MIN_SCORE MOST THREADS`.
"""

from __future__ import annotations

import json
import sys
from typing import Any

LANDMARKS = 5


def _answer(result: Any) -> dict[str, Any]:
    boxes = result.boxes
    rows = [
        [*map(float, box), float(score)] for box, score in zip(boxes.xyxy.tolist(), boxes.conf.tolist(), strict=True)
    ]
    points = None
    if result.keypoints is not None and result.keypoints.xy.shape[1:] == (LANDMARKS, 2):
        points = result.keypoints.xy.tolist()
    return {"boxes": rows, "landmarks": points}


def main() -> None:
    weights, size_px, min_score, most, threads = sys.argv[1:]
    # Answers go to the real stdout; whatever the package prints must not get between them.
    answers, sys.stdout = sys.stdout, sys.stderr

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        import cv2
        import numpy as np
        import torch
        from ultralytics import YOLO, settings

        settings.update(sync=False)
        torch.set_num_threads(int(threads))
        cv2.setNumThreads(int(threads))
        model = YOLO(weights)
        options = {
            "imgsz": int(size_px),
            "conf": float(min_score),
            "max_det": int(most),
            "verbose": False,
            "save": False,
        }
        options["device"] = 0 if torch.cuda.is_available() else "cpu"
        # Some formats are only opened by the first prediction: a torn file must be found out now.
        model.predict(np.zeros((64, 64, 3), np.uint8), **options)
    except Exception as error:  # whatever it is, the parent says it to the user
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({"ready": True})
    for line in sys.stdin:
        image_HWC = np.load(json.loads(line)["image"])
        say(_answer(next(iter(model.predict(image_HWC, **options)))))


if __name__ == "__main__":
    main()

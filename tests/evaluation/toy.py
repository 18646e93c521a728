"""A face detector that sees a face in the middle of every picture that is not dark, and embeds its colours."""

from __future__ import annotations

import cv2
import numpy as np

from likeness.faces.detector import Face, unit_length

KIND = "arcface-toy-1"


class ToyDetector:
    def __init__(self, settings, store_root, offline, threads):
        pass

    @classmethod
    def fingerprint(cls, settings, store_root):
        return "toy"

    def detect(self, image_HWC):
        if image_HWC.mean() < 20:
            return []
        height, width = image_HWC.shape[:2]
        box = (width * 0.3, height * 0.25, width * 0.7, height * 0.65)
        colours = cv2.resize(image_HWC, (4, 4), interpolation=cv2.INTER_AREA).astype(np.float64).ravel()
        return [Face(box, None, 0.9, None, unit_length(colours - colours.mean()), KIND)]

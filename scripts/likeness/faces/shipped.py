"""Names of the face detectors that are shipped; apart from those of other doors, since a program's code is what it names."""

FACES = {
    "insightface": "likeness.faces.insightface_pack:InsightfaceDetector",
    "opencv": "likeness.faces.haar:HaarDetector",
    "yolo": "likeness.faces.yolo:YoloDetector",
}
"""Name → `module:Class`."""

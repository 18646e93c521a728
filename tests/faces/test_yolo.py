"""A real tiny ultralytics model in a process of its own that can open no socket."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from tests.faces.toy_pack import toy_photo

from likeness.config.faces import FaceSettings
from likeness.errors import UserError
from likeness.faces import yolo
from likeness.faces.yolo import YoloDetector, quiet_environment

pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")
with_package = pytest.mark.skipif(find_spec("ultralytics") is None, reason="the optional extra yolo is not installed")

# Loaded by the child's interpreter at its start: every socket except local pipes ends the process.
WALL = """
import os, socket, sys

class NoSocket(socket.socket):
    def __init__(self, *arguments, **keywords):
        sys.stderr.write("a socket was opened\\n")
        os._exit(97)

def refuse(*arguments, **keywords):
    sys.stderr.write("a name was looked up\\n")
    os._exit(98)

socket.socket, socket.getaddrinfo, socket.gethostbyname, socket.create_connection = NoSocket, refuse, refuse, refuse
"""


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    from likeness.miniature.yolo import build_yolo

    return build_yolo(tmp_path_factory.mktemp("yolo"))


def settings_for(weights: Path, **more) -> FaceSettings:
    return FaceSettings.model_validate(
        {"backend": "yolo", "model": str(weights), "detection_size_px": 320, "min_score": 0.0, "max_faces": 3, **more}
    )


@with_package
def test_boxes_landmarks_and_embeddings_without_any_socket(weights, toy_pack, tmp_path, monkeypatch):
    wall = tmp_path / "wall"
    wall.mkdir()
    (wall / "sitecustomize.py").write_text(WALL)
    plain = quiet_environment
    monkeypatch.setattr(yolo, "quiet_environment", lambda *a: {**plain(*a), "PYTHONPATH": str(wall)})
    detector = YoloDetector(settings_for(weights, recogniser=str(toy_pack / "recogniser.onnx")), tmp_path, True, 1)
    faces = detector.detect(toy_photo((128, 128, 1)))
    again = detector.detect(toy_photo((128, 128, 1)))
    detector.close()
    assert 1 <= len(faces) <= 3
    assert "ultralytics" not in sys.modules
    assert [face.box for face in faces] == [face.box for face in again]
    for face in faces:
        assert 0 <= face.score <= 1 and face.landmarks_52 is not None and face.landmarks_52.shape == (5, 2)
    # Random weights put landmarks anywhere; an embedding is made of them wherever alignment is possible.
    assert {face.embedding_kind is None for face in faces} == {face.embedding_D is None for face in faces}


def test_wall_would_stop_a_socket(tmp_path):
    """The wall of the test above does end a process that opens a socket."""
    import subprocess

    (tmp_path / "sitecustomize.py").write_text(WALL)
    program = "import socket; socket.socket().connect(('192.0.2.1', 80))"
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": str(tmp_path)}, capture_output=True)
    assert done.returncode == 97


def test_the_child_has_its_own_folder_and_no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("ULTRALYTICS_API_KEY", "secret")
    environment = quiet_environment(tmp_path, 1)
    assert environment["YOLO_CONFIG_DIR"] == str(tmp_path) and environment["YOLO_OFFLINE"] == "1"
    assert "secret" not in environment.values()


def test_absent_weights_name_file_and_folder(tmp_path, no_network):
    with pytest.raises(UserError, match=r"yolov11n-face\.pt") as caught:
        YoloDetector.fingerprint(settings_for(tmp_path / "yolov11n-face.pt"), tmp_path)
    assert str(tmp_path) in str(caught.value) and no_network == []


def test_absent_recogniser_is_named(tmp_path):
    weights = tmp_path / "face.pt"
    weights.write_bytes(b"x")
    with pytest.raises(UserError, match=r"faces\.recogniser.*arc\.onnx"):
        YoloDetector.fingerprint(settings_for(weights, recogniser=str(tmp_path / "arc.onnx")), tmp_path)


def test_absent_package_names_the_extra(tmp_path, monkeypatch):
    weights = tmp_path / "face.pt"
    weights.write_bytes(b"x")
    monkeypatch.setattr(yolo, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="extra `yolo`"):
        YoloDetector(settings_for(weights), tmp_path, True, 1)


@with_package
def test_torn_weights_are_said(tmp_path):
    weights = tmp_path / "face.pt"
    weights.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"face\.pt in the folder"):
        YoloDetector(settings_for(weights), tmp_path, True, 1)


def test_fingerprint_counts_both_files(tmp_path, toy_pack):
    weights = tmp_path / "face.pt"
    weights.write_bytes(b"x")
    alone = YoloDetector.fingerprint(settings_for(weights), tmp_path)
    both = YoloDetector.fingerprint(settings_for(weights, recogniser=str(toy_pack / "recogniser.onnx")), tmp_path)
    assert both.startswith(alone + "+") and np.char.isalnum(alone)

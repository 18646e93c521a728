"""The tiny Qwen3-VL: loads, answers pictures, is served over the OpenAI-compatible protocol; the tiny YOLO beside it."""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from likeness.miniature import vlm, yolo
from likeness.miniature.pack import manifest_of

START_LIMIT_S = 120


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8))


def test_answers_a_picture_and_repeats_itself(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = vlm.build_vlm(tmp_path / "vlm")
    processor, model = AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()
    message = {"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "Say é."}]}
    inputs = processor.apply_chat_template(
        [message], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    answers = [model.generate(**inputs, max_new_tokens=6, do_sample=False) for _ in range(2)]
    assert answers[0].shape[1] > inputs["input_ids"].shape[1]
    assert answers[0].tolist() == answers[1].tolist()
    prompt = processor.tokenizer.decode(inputs["input_ids"][0])
    assert prompt.startswith("<|im_start|>user\n<|vision_start|>")
    assert prompt.endswith("Say é.<|im_end|>\n<|im_start|>assistant\n")


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    folders = [vlm.build_vlm(tmp_path / name, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2))]
    first, second, other = (manifest_of(folder) for folder in folders)
    assert first == second
    assert first["model.safetensors"] != other["model.safetensors"]


@pytest.mark.slow
def test_is_served_on_loopback(tmp_path: Path) -> None:
    pytest.importorskip("fastapi", reason="optional extra serve")
    folder = vlm.build_vlm(tmp_path / "vlm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "home" / "hub").mkdir(parents=True)
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            reply = _ask(f"http://127.0.0.1:{port}", str(folder), server)
        finally:
            server.terminate()
    assert reply.status_code == 200, (tmp_path / "log").read_text()
    choice = reply.json()["choices"][0]
    assert choice["finish_reason"] in {"stop", "length"}
    assert isinstance(choice["message"]["content"], str)


def _ask(base: str, model: str, server: subprocess.Popen[bytes]) -> httpx.Response:
    """Wait for the server, then send one picture with a question."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{base}/health", timeout=2).status_code == 200:
                break
        except httpx.HTTPError:
            time.sleep(0.5)
    file = io.BytesIO()
    picture().save(file, "PNG")
    address = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": address}}, {"type": "text", "text": "Describe."}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 6, "temperature": 0}
    return httpx.post(f"{base}/v1/chat/completions", json=body, timeout=60)


@pytest.mark.slow
def test_yolo_face_model_loads_in_its_own_process(tmp_path: Path) -> None:
    if not any(Path(entry, "ultralytics").is_dir() for entry in sys.path):
        pytest.skip("optional extra yolo")
    first, second = (yolo.build_yolo(tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert str(tmp_path).encode() not in first.read_bytes()
    program = (
        "import sys, numpy; from ultralytics import YOLO; model = YOLO(sys.argv[1]);"
        "found = model.predict(numpy.zeros((64, 64, 3), 'uint8'), imgsz=64, conf=1e-5, max_det=3, verbose=False)[0];"
        "print(model.task, model.names, tuple(found.keypoints.data.shape[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(first)],
        env=yolo.quiet_environment(tmp_path / "settings"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().endswith("pose {0: 'face'} (5, 3)")
    assert "ultralytics" not in sys.modules

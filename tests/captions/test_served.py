"""The endpoint backend against the real `transformers serve` on loopback, with the tiny random Qwen3-VL."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.captions.conftest import measured, stage_of

from likeness.captions.write import CaptionWriter
from likeness.miniature.vlm import build_vlm
from likeness.store import Store

START_LIMIT_S = 240


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """Address and model name of a running server."""
    pytest.importorskip("fastapi", reason="optional extra serve")
    folder = build_vlm(tmp_path / "vlm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    home = tmp_path / "home"
    (home / "hub").mkdir(parents=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    program = str(Path(sys.executable).with_name("transformers"))
    command = [
        program,
        "serve",
        str(folder),
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        url.rpartition(":")[2],
    ]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server,
    ):
        try:
            wait_for(url, server, tmp_path / "log")
            yield url, str(folder)
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-2000:]}")


@pytest.mark.slow
def test_a_real_server_answers_and_is_asked_once(
    served: tuple[str, str], store: Store, photos: Callable[[int], list[dict[str, Any]]], only_loopback: list[object]
) -> None:
    url, model = served
    rows = photos(3)
    quality = [measured(row["id"]) for row in rows]
    stage = stage_of(backend="endpoint", url=url, model=model, max_new_tokens=16, max_side_px=64, asks=1, concurrency=2)
    writer = CaptionWriter(stage, store)
    written = writer.rows(rows, quality)
    assert writer.asked >= 3
    for row in written:
        assert row["tokens_in"] > 0
        assert 0 < row["tokens_out"] <= 32
        # Random weights say nothing sensible, and nothing of it may pass.
        assert (row["status"], row["caption"], row["asked"]) == ("needs_review", "", 2)
    again = CaptionWriter(stage, store)
    assert again.rows(rows, quality) == written
    assert again.asked == 0
    assert only_loopback == []

"""What several caption tests share: photos, settings, a stub server, and a wall against all but loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.captions.stub import StubServer

from likeness.captions import endpoint
from likeness.config.captions import CaptionSettings, CaptionStage
from likeness.store import Store, sha256_of_file

TRIGGER = "j4ne"


def stage_of(recipe: str = "character", backend: str = "facts", **more: Any) -> CaptionStage:
    """A slice; keys of CaptionStage go there, all others into its captions settings."""
    own = {key: more.pop(key) for key in ("sidecars", "edits", "trigger", "class_word") if key in more}
    names = {"trigger": TRIGGER, "class_word": "person"} | own
    return CaptionStage(captions=CaptionSettings(backend=backend, **more), recipe=recipe, **names)


def write_photo(path: Path, number: int, size: tuple[int, int] = (48, 32)) -> dict[str, Any]:
    """Write a plain PNG of its own colour; returns its row of the PHOTOS table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (number * 37 % 256, number * 91 % 256, number * 13 % 256)).save(path)
    return {
        "id": path.stem,
        "path": str(path),
        "repeats": 1,
        "mask_path": None,
        "sha256": sha256_of_file(path),
        "size_bytes": path.stat().st_size,
        "width_px": size[0],
        "height_px": size[1],
        "status": "ok",
        "reason": "",
    }


def measured(name: str, framing: str | None = "half", **facts: Any) -> dict[str, Any]:
    """A row of the QUALITY table, as far as captions read it."""
    face = None if framing is None else 0
    return {"id": name, "face": face, "framing": framing, "pose": None, "light": None, "background": None} | facts


@pytest.fixture(autouse=True)
def only_loopback(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Connections and look-ups beyond loopback fail and are listed."""
    refused: list[object] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(self: socket.socket, address: Any) -> Any:
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1"):
            refused.append(address)
            raise OSError("the test allows loopback only")
        return connect(self, address)

    def looked_up(host: Any, *arguments: Any, **named: Any) -> Any:
        if host not in ("127.0.0.1", "::1", "localhost", None):
            refused.append(host)
            raise OSError("the test allows loopback only")
        return look_up(host, *arguments, **named)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    return refused


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def photos(tmp_path: Path) -> Callable[[int], list[dict[str, Any]]]:
    return lambda count: [write_photo(tmp_path / "photos" / f"p{number:02d}.png", number) for number in range(count)]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """A stub server; the client's first backoff is short."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    stub = StubServer()
    yield stub
    stub.close()

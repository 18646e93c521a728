"""What several face tests share: the toy pack, settings and a wall against the network."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from tests.faces.toy_pack import build_toy_pack

from likeness.config.faces import FaceSettings


@pytest.fixture(scope="session")
def toy_pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_toy_pack(tmp_path_factory.mktemp("toy") / "pack")


@pytest.fixture
def toy_settings(toy_pack: Path) -> FaceSettings:
    return FaceSettings.model_validate(
        {"model": str(toy_pack), "detection_size_px": 256, "crop": {"min_pixels": 32}, "min_identity": 0.6}
    )


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every connection and look-up of this process fails and is listed."""
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        asked.append(arguments)
        raise OSError("the test allows no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return asked

"""Captions cost money: a job killed at random moments asks for no stored answer again and ends with the same bytes."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.captions.conftest import measured, stage_of, write_photo
from tests.captions.stub import Reply, StubServer, good
from tests.captions.test_programs import SCRIPTS

from likeness.store import canonical_json
from likeness.tables import PHOTOS, QUALITY, write_table

PHOTOS_COUNT, CONCURRENCY = 12, 2
SEED = os.environ.get("LIKENESS_TEST_SEED", "1")


def start(folder: Path, settings: str) -> subprocess.Popen[bytes]:
    flags = [
        "--images",
        "photos.parquet",
        "--quality",
        "quality.parquet",
        "--store",
        "store",
        "--output",
        "captions.parquet",
    ]
    command = [sys.executable, str(SCRIPTS / "write_captions.py"), "--settings", settings, *flags]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def stored(folder: Path) -> int:
    return sum(not path.name.startswith(".") for path in (folder / "store/items").rglob("*.json"))


def test_three_kills_lose_no_more_answers_than_were_under_way(tmp_path: Path, server: StubServer) -> None:
    slow = Reply(good().says, delay_s=0.15)
    server.otherwise = slow
    rows = [write_photo(tmp_path / "photos" / f"p{number:02d}.png", number) for number in range(PHOTOS_COUNT)]
    stage = stage_of(backend="endpoint", url=server.url, model="toy", concurrency=CONCURRENCY)
    settings = canonical_json({"settings": stage.model_dump(mode="json"), "code": ""})
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    for folder in folders:
        write_table(folder / "photos.parquet", PHOTOS, rows)
        quality = [measured(row["id"], pose="front") | {"status": "ok", "reason": ""} for row in rows]
        write_table(folder / "quality.parquet", QUALITY, quality)
    undisturbed, folder = folders
    assert start(undisturbed, settings).wait() == 0
    assert len(server.seen) == stored(undisturbed) == PHOTOS_COUNT

    draw = random.Random(SEED)
    for _ in range(3):
        asked_before, stored_before = len(server.seen), stored(folder)
        left = PHOTOS_COUNT - stored_before
        job, moment = start(folder, settings), draw.randint(1, max(1, left // 2))
        while len(server.seen) < asked_before + moment:
            assert job.poll() is None
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        job.kill()
        assert job.wait() == -9
        asked, kept = len(server.seen) - asked_before, stored(folder) - stored_before
        print(f"killed after {asked} of {left} questions, {kept} answers stored")
        assert asked - kept <= 2 * CONCURRENCY
        assert not (folder / "captions.parquet").exists()
    asked_before, stored_before = len(server.seen), stored(folder)
    assert start(folder, settings).wait() == 0
    assert len(server.seen) - asked_before == PHOTOS_COUNT - stored_before
    assert (folder / "captions.parquet").read_bytes() == (undisturbed / "captions.parquet").read_bytes()

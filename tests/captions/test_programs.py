"""The two programs as the rules call them: tables, captions.csv, exit codes, and what is printed."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.captions.conftest import measured, stage_of, write_photo
from tests.captions.stub import Reply, StubServer, good

from likeness.captions.contents import edits_of
from likeness.config.captions import CaptionStage
from likeness.config.photos import PhotoFolder
from likeness.photos.names import list_photos
from likeness.store import canonical_json, sha256_of_file
from likeness.tables import CAPTIONS, PHOTOS, QUALITY, read_rows, read_table, write_table

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


class Project:
    """A folder with two shards of photos, in which the programs run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for shard in range(2):
            rows = [write_photo(folder / "photos" / f"p{shard}{n}.png", shard * 3 + n) for n in range(3)]
            for row in rows:
                row["path"] = str(Path(row["path"]).relative_to(folder))
            quality = [measured(row["id"], pose="front") | {"status": "ok", "reason": ""} for row in rows]
            write_table(folder / f"photos/{shard}.parquet", PHOTOS, rows)
            write_table(folder / f"quality/{shard}.parquet", QUALITY, quality)

    def call(self, script: str, stage: CaptionStage, *flags: str, **more: str) -> subprocess.CompletedProcess[str]:
        settings = canonical_json({"settings": stage.model_dump(mode="json"), "code": ""})
        command = [sys.executable, str(SCRIPTS / script), "--settings", settings, *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | more
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)

    def write(self, stage: CaptionStage, shard: int, **more: str) -> subprocess.CompletedProcess[str]:
        flags = f"--images photos/{shard}.parquet --quality quality/{shard}.parquet --store store --output captions/{shard}.parquet"
        return self.call("write_captions.py", stage, *flags.split(), **more)

    def merge(self, stage: CaptionStage) -> subprocess.CompletedProcess[str]:
        flags = "--tables captions/0.parquet captions/1.parquet --images photos/0.parquet photos/1.parquet"
        flags += " --csv captions.csv --output captions.parquet"
        return self.call("merge_captions.py", stage, *flags.split())

    def run(self, **settings: Any) -> list[str]:
        """Both shards and the merge with the edits that captions.csv holds; returns what was printed."""
        found = list_photos([PhotoFolder(path=str(self.folder / "photos"))])
        stage = stage_of(edits=edits_of(self.folder / "captions.csv", found), **settings)
        done = [self.write(stage, 0), self.write(stage, 1), self.merge(stage)]
        assert [one.returncode for one in done] == [0, 0, 0], [one.stderr for one in done]
        return [one.stdout.strip() for one in done]

    def captions(self) -> dict[str, dict[str, Any]]:
        return {row["id"]: row for row in read_rows(self.folder / "captions.parquet", CAPTIONS)}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def test_facts_to_table_and_csv(project: Project) -> None:
    said = project.run()
    assert said == [
        "captions: 3 rows, 0 to review\nwork: no items; models loaded 0",
        "captions: 3 rows, 0 to review\nwork: no items; models loaded 0",
        "captions: 6 rows, 0 edited by hand, 0 to review\nwork: no items; models loaded 0",
    ]
    assert {row["caption"] for row in project.captions().values()} == {"j4ne person, half body, facing the camera"}
    digest = sha256_of_file(project.folder / "captions.parquet")
    project.run()
    assert sha256_of_file(project.folder / "captions.parquet") == digest
    metadata = read_table(project.folder / "captions.parquet").schema.metadata[b"likeness"]
    assert str(project.folder).encode() not in metadata


def test_an_edit_and_its_undoing_ask_no_model(project: Project, server: StubServer) -> None:
    settings = {"backend": "endpoint", "url": server.url, "model": "toy"}
    assert project.run(**settings)[0].endswith("work: captions 3 computed, 0 reused; models loaded 1")
    first, asked = project.captions(), len(server.seen)
    path = project.folder / "captions.csv"
    rows = list(csv.DictReader(path.open(encoding="utf-8-sig", newline="")))
    assert [row["caption"] for row in rows] == [row["written"] for row in rows]

    def save(caption: str) -> None:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows([rows[0] | {"caption": caption}, *rows[1:]])

    save("at the sea, with a blue hat")
    said = project.run(**settings)
    assert said[2] == "captions: 6 rows, 1 edited by hand, 0 to review\nwork: no items; models loaded 0"
    edited = project.captions()
    assert (edited["p00"]["caption"], edited["p00"]["caption_by"]) == (
        "j4ne, at the sea, with a blue hat",
        "captions.csv",
    )
    assert {name: row for name, row in edited.items() if name != "p00"} == {
        n: r for n, r in first.items() if n != "p00"
    }
    before = path.read_bytes()
    project.run(**settings)
    assert path.read_bytes() == before

    save(first["p00"]["caption"])
    project.run(**settings)
    assert project.captions() == first
    assert len(server.seen) == asked


def test_a_failing_endpoint_ends_with_75_and_heals(project: Project, server: StubServer) -> None:
    secret = "sk-very-secret-1234"
    stage = stage_of(
        backend="endpoint", url=server.url, model="toy", attempts=1, concurrency=1, api_key_env="LIKENESS_TEST_KEY"
    )
    real, seen = server.reply_to, []

    def third_fails(path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        seen.append(body)
        reply = real(path, body, headers)
        return Reply(status=503, body=f"busy, {secret}") if len(seen) == 3 else reply

    server.reply_to = third_fails  # type: ignore[method-assign]
    done = project.write(stage, 0, LIKENESS_TEST_KEY=secret)
    assert done.returncode == 75
    assert "failed for now" in done.stderr
    assert "only the missing ones are asked" in done.stderr
    assert not (project.folder / "captions/0.parquet").exists()
    done = project.write(stage, 0, LIKENESS_TEST_KEY=secret)
    assert done.stdout.endswith("captions: 3 rows, 0 to review\nwork: captions 1 computed, 2 reused; models loaded 1\n")
    assert len(seen) == 4
    files = [path for path in project.folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert secret not in done.stdout + done.stderr
    missing = project.write(stage.model_copy(update={"trigger": "new"}), 1, LIKENESS_TEST_KEY="")
    assert missing.returncode == 2
    assert "LIKENESS_TEST_KEY is empty or not set" in missing.stderr


def test_a_killed_job_has_kept_what_was_answered(project: Project, server: StubServer) -> None:
    stage = stage_of(backend="endpoint", url=server.url, model="toy", concurrency=1, timeout_s=60.0)
    real = server.reply_to

    def third_hangs(path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        reply = real(path, body, headers)
        return Reply(good().says, delay_s=5.0) if len(server.seen) == 3 else reply

    server.reply_to = third_hangs  # type: ignore[method-assign]
    settings = canonical_json({"settings": stage.model_dump(mode="json"), "code": ""})
    flags = [
        "--images",
        "photos/0.parquet",
        "--quality",
        "quality/0.parquet",
        "--store",
        "store",
        "--output",
        "captions/0.parquet",
    ]
    command = [sys.executable, str(SCRIPTS / "write_captions.py"), "--settings", settings, *flags]
    with subprocess.Popen(command, cwd=project.folder, stdout=subprocess.DEVNULL) as job:
        deadline = time.monotonic() + 60
        while len(server.seen) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1.0)  # the second answer is kept while the third is waited for
        job.kill()
    assert len(server.seen) == 3
    done = project.write(stage, 0)
    assert "work: captions 1 computed, 2 reused" in done.stdout
    assert sorted(server.count.values()) == [1, 1, 2]

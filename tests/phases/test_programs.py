"""The three programs as the rules call them: measure, merge, decide, twice, with the same bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.phases.fabricate import row_of
from tests.quality.test_measure import Folder, one_photo

from likeness.tables import (
    CAPTIONS,
    DECISIONS,
    FACES,
    HOLDOUT,
    MANIFEST,
    MASKS,
    PHOTOS,
    SAMPLE_FACES,
    read_rows,
    read_table,
    write_table,
)

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def run(program: str, settings: dict[str, Any], *flags: Any) -> subprocess.CompletedProcess[str]:
    text = json.dumps({"settings": settings, "code": ""})
    command = [sys.executable, str(SCRIPTS / program), "--settings", text, *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Merged tables of four drawn photos in a folder, as the stages before write them."""
    root = tmp_path_factory.mktemp("jane")
    folder = Folder(root)
    for index in range(4):
        folder.add(f"p{index}", "photo", one_photo(index))
    for row in folder.faces:
        row |= {"is_subject": True, "subject_cosine": 0.9}
    facts = [(image.id, image.path, image.sha256) for image in folder.images]
    size = {"width_px": 96, "height_px": 96, "repeats": 1, "status": "ok", "reason": ""}
    write_table(root / "photos.parquet", PHOTOS, [row_of(PHOTOS, id=i, path=p, sha256=s, **size) for i, p, s in facts])
    write_table(root / "faces.parquet", FACES, folder.faces)
    write_table(root / "masks.parquet", MASKS, folder.masks)
    lines = [row_of(CAPTIONS, id=i, caption=f"j4ne person, {i}", status="ok", reason="") for i, _, _ in facts]
    write_table(root / "captions.parquet", CAPTIONS, lines)
    return root


@pytest.fixture(scope="module")
def measured(tables: Path) -> Path:
    """The same with the quality table."""
    measure_and_merge(tables)
    return tables


def measure_and_merge(root: Path) -> list[str]:
    stage = {"quality": {}, "kind": "photos"}
    inputs = [flag for name in ("faces", "masks") for flag in (f"--{name}", root / f"{name}.parquet")]
    images = ("--images", root / "photos.parquet")
    shard = root / "shards" / "0.parquet"
    measured = run("measure_quality.py", stage, *images, *inputs, "--store", root / "store", "--output", shard)
    assert measured.returncode == 0, measured.stderr
    flags = ("--tables", shard, *images, "--faces", root / "faces.parquet", "--output", root / "quality.parquet")
    merged = run("merge_quality.py", stage, *flags)
    assert merged.returncode == 0, merged.stderr
    return [measured.stdout.strip(), merged.stdout.strip()]


def decide(root: Path, output: Path, **stage: Any) -> subprocess.CompletedProcess[str]:
    settings = {"kind": "photos", "phases": {"main": {}}, "limits": {"min_face_px": 10}, "min_identity": 0.3}
    settings |= {"held_out": 1, "mask_kind": "person"} | stage
    inputs = [f for n in ("faces", "masks", "quality", "captions") for f in (f"--{n}", root / f"{n}.parquet")]
    return run("decide_phases.py", settings, "--images", root / "photos.parquet", *inputs, "--output-folder", output)


def test_measured_merged_and_decided_twice_to_the_same_bytes(tables: Path, tmp_path: Path) -> None:
    counted = measure_and_merge(tables)
    assert counted[0] == "work: quality 4 computed, 0 reused; models loaded 0"
    assert counted[1].startswith("quality: 4 samples under ")
    first = (tables / "quality.parquet").read_bytes()
    assert measure_and_merge(tables)[0] == "work: quality 0 computed, 4 reused; models loaded 0"
    assert (tables / "quality.parquet").read_bytes() == first
    for name in ("one", "two"):
        done = decide(tables, tmp_path / name)
        assert done.returncode == 0 and done.stdout.startswith("phase main: 3 of 4 kept\n"), done.stderr
    files = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    written = sorted(path.relative_to(tmp_path / "one").as_posix() for path in files)
    faces = ["faces/holdout.parquet", "faces/main.parquet"]
    assert written == ["decisions.parquet", *faces, "held-out.json", "holdout.parquet", "main.parquet"]
    for name in written:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len(read_rows(tmp_path / "one" / "main.parquet", MANIFEST)) == 3
    assert len(read_rows(tmp_path / "one" / "holdout.parquet", HOLDOUT)) == 1
    assert len(read_rows(tmp_path / "one" / "decisions.parquet", DECISIONS)) == 4
    for name, count in (("main", 3), ("holdout", 1)):
        samples = {row["image_sha256"] for row in read_rows(tmp_path / "one" / f"{name}.parquet")}
        shown = read_rows(tmp_path / "one" / "faces" / f"{name}.parquet", SAMPLE_FACES)
        assert {row["image_sha256"] for row in shown} == samples and len(shown) == count


def test_a_manifest_holds_rows_only(measured: Path, tmp_path: Path) -> None:
    assert decide(measured, tmp_path).returncode == 0
    manifest = read_table(tmp_path / "main.parquet")
    assert not (manifest.schema.metadata or {})
    assert b"p1.png" not in (tmp_path / "main.parquet").read_bytes()
    assert b"likeness" in (read_table(tmp_path / "decisions.parquet").schema.metadata or {})


def test_bad_sql_is_one_line_for_people(measured: Path, tmp_path: Path) -> None:
    done = decide(measured, tmp_path, phases={"main": {"where": "sharpnes > 3"}})
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr.startswith("error: phases.main.where: there is no column 'sharpnes'; did you mean 'sharpness'")


def test_an_empty_phase_is_written_with_a_warning(measured: Path, tmp_path: Path) -> None:
    done = decide(measured, tmp_path, phases={"main": {"where": "false"}})
    assert done.returncode == 0 and "warning: phase main keeps no sample" in done.stderr
    assert read_rows(tmp_path / "main.parquet", MANIFEST) == []

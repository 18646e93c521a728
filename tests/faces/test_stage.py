"""The faces stage and its two programs, with the real insightface on the toy pack."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.faces.toy_pack import toy_photo

from likeness.config.faces import FaceMerge, FaceSettings
from likeness.errors import UserError
from likeness.faces.merge import crop_files, merge_faces
from likeness.faces.stage import FaceStageRunner
from likeness.photos.images import ImageRef
from likeness.store import Store
from likeness.tables import FACES, PAIRS, PHOTOS, read_rows, write_table

pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")
SCRIPTS = Path(__file__).parents[2] / "scripts"


def save(path: Path, *faces: tuple[int, int, int], noise: int = 0, side_px: int = 256) -> ImageRef:
    Image.fromarray(toy_photo(*faces, noise=noise, side_px=side_px)).save(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageRef(path.stem, "photo", str(path), digest, side_px, side_px, 1)


@pytest.fixture
def photos(tmp_path) -> list[ImageRef]:
    folder = tmp_path / "photos"
    folder.mkdir()
    alone = [save(folder / f"alone-{k}.png", (112 + 8 * k, 120, 1), noise=k + 1) for k in range(3)]
    both = save(folder / "both.png", (128, 128, 2), (48, 56, 1))
    return [*alone, both, save(folder / "nobody.png"), save(folder / "stranger.png", (128, 128, 3))]


def photos_table(path: Path, photos: list[ImageRef]) -> Path:
    rows = [
        {"id": p.id, "path": p.path, "sha256": p.sha256, "repeats": 1, "width_px": p.width_px, "height_px": p.height_px}
        for p in photos
    ]
    write_table(path, PHOTOS, [{**row, "status": "ok", "reason": ""} for row in rows])
    return path


def rows_of(photos: list[ImageRef], settings: FaceSettings, store: Store) -> tuple[list[dict], FaceStageRunner]:
    runner = FaceStageRunner(settings, store, True, 1)
    return [row for photo in photos for row in runner.rows(photo)], runner


def test_every_candidate_is_a_row_and_nobody_is_one_too(photos, toy_settings, tmp_path):
    rows, _ = rows_of(photos, toy_settings, Store(tmp_path / "store"))
    assert [(r["id"], r.get("face")) for r in rows if r["id"] in ("both", "nobody")] == [
        ("both", 0),
        ("both", 1),
        ("nobody", None),
    ]
    nobody = next(r for r in rows if r["id"] == "nobody")
    assert nobody["status"] == "no_face" and "nobody.png" in nobody["reason"]


def test_full_store_loads_no_model(photos, toy_settings, tmp_path):
    first, runner = rows_of(photos, toy_settings, Store(tmp_path / "store"))
    again, second = rows_of(photos, toy_settings, Store(tmp_path / "store"))
    assert runner.models_loaded == 1 and second.models_loaded == 0
    assert again == first
    assert second.store.computed.total() == 0 and second.store.reused["faces"] == len(photos)


def test_renamed_photo_and_another_crop_detect_nothing_again(photos, toy_settings, tmp_path):
    rows_of(photos, toy_settings, Store(tmp_path / "store"))
    renamed = Path(photos[0].path).rename(tmp_path / "new name.png")
    moved = ImageRef("new-name", "photo", str(renamed), photos[0].sha256, 256, 256, 1)
    crop = toy_settings.crop.model_copy(update={"padding": 0.9})
    changed = toy_settings.model_copy(update={"crop": crop, "min_identity": 0.1})
    rows, runner = rows_of([moved], changed, Store(tmp_path / "store"))
    assert runner.models_loaded == 0 and runner.store.computed == {"crops": 1}
    assert rows[0]["crop_side_px"] == pytest.approx(64 * 2.8, abs=1)


def test_other_detection_settings_detect_again(photos, toy_settings, tmp_path):
    rows_of(photos[:1], toy_settings, Store(tmp_path / "store"))
    for change in ({"min_score": 0.6}, {"max_faces": 2}, {"detection_size_px": 320}):
        _, runner = rows_of(photos[:1], toy_settings.model_copy(update=change), Store(tmp_path / "store"))
        assert runner.store.computed["faces"] == 1


def test_small_face_is_kept_with_its_reason(photos, toy_settings, tmp_path):
    side = 122  # 64 px box with a padding of 0.45 on each side
    for least, status in ((side, "ok"), (side + 1, "small_face")):
        crop = toy_settings.crop.model_copy(update={"min_pixels": least})
        rows, _ = rows_of(photos[:1], toy_settings.model_copy(update={"crop": crop}), Store(tmp_path / "store"))
        assert rows[0]["status"] == status and rows[0]["crop_side_px"] == side
        assert (str(least) in rows[0]["reason"]) == (status != "ok")


def test_photo_that_changed_after_indexing_is_refused(photos, toy_settings, tmp_path):
    Path(photos[0].path).write_bytes(Path(photos[3].path).read_bytes())
    with pytest.raises(UserError, match=r"alone-0\.png.*changed"):
        rows_of(photos[:1], toy_settings, Store(tmp_path / "store"))


def test_photo_that_cannot_be_decoded_is_a_row(toy_settings, tmp_path):
    path = tmp_path / "torn.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n torn")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rows, _ = rows_of([ImageRef("torn", "reference", str(path), digest, None, None, 1)], toy_settings, Store(tmp_path))
    assert rows[0]["status"] not in ("ok", "no_face") and "torn.png" in rows[0]["reason"]


def full(rows: list[dict]) -> list[dict]:
    return [{name: row.get(name) for name in FACES.schema.names} for row in rows]


def test_merge_chooses_the_subject_by_medoid_and_by_reference(photos, toy_settings, tmp_path):
    store = Store(tmp_path / "store")
    rows, _ = rows_of(photos, toy_settings, store)
    merged, loaded = merge_faces(full(rows), FaceMerge(faces=toy_settings, kind="photos"), store)
    subject = {r["id"]: r for r in merged if r["is_subject"]}
    assert loaded == 0 and subject["both"]["face"] == 1
    assert subject["stranger"]["status"] == "other_person" and subject["alone-1"]["status"] == "ok"
    by_stranger = FaceMerge(faces=toy_settings, kind="photos", references=(photos[5].path,))
    turned, loaded = merge_faces(full(rows), by_stranger, store)
    subject = {r["id"]: r for r in turned if r["is_subject"]}
    assert loaded == 0  # the reference is one of the photos: its faces are in the store
    assert subject["stranger"]["status"] == "ok" and subject["alone-1"]["status"] == "other_person"


def test_reference_without_a_face_is_an_error(photos, toy_settings, tmp_path):
    settings = FaceMerge(faces=toy_settings, kind="photos", references=(photos[4].path,))
    with pytest.raises(UserError, match=r"nobody\.png shows no face"):
        merge_faces([], settings, Store(tmp_path / "store"))


def test_all_absent_references_are_named_at_once(photos, toy_settings, tmp_path):
    settings = FaceMerge(faces=toy_settings, kind="photos", references=("no/a.png", photos[0].path, "no/b.png"))
    with pytest.raises(UserError, match=r"^reference: there is no no/a\.png, no no/b\.png\. "):
        merge_faces([], settings, Store(tmp_path / "store"))


def test_crop_names():
    rows = [
        {"id": "a", "role": "photo", "face": 0, "crop_sha256": "x"},
        {"id": "a", "role": "photo", "face": 1, "crop_sha256": "y"},
        {"id": "p", "role": "target", "face": 0, "crop_sha256": "z"},
        {"id": "p", "role": "target", "face": 2, "crop_sha256": "w"},
        {"id": "n", "role": "photo", "face": None, "crop_sha256": None},
    ]
    assert crop_files(rows) == {"a.png": "x", "a.1.png": "y", "p.target.png": "z", "p.target.2.png": "w"}


def program(name: str, cwd: Path, settings: dict, *flags: str) -> subprocess.CompletedProcess[str]:
    text = json.dumps({"settings": settings, "code": "x"})
    command = [sys.executable, str(SCRIPTS / f"{name}.py"), "--settings", text, *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def test_programs_write_equal_tables_and_restore_crops(photos, toy_settings, tmp_path):
    photos_table(tmp_path / "photos.parquet", photos)
    faces = toy_settings.model_dump(mode="json")
    detect = ["--images", "photos.parquet", "--store", "store", "--output", "shard.parquet"]
    merge = ["--tables", "shard.parquet", "--store", "store", "--crops", "crops", "--output", "faces.parquet"]
    outputs = []
    for _ in range(2):
        done = program("detect_faces", tmp_path, {"faces": faces}, *detect)
        assert done.returncode == 0, done.stderr
        outputs.append((tmp_path / "shard.parquet").read_bytes())
        (tmp_path / "crops").mkdir(exist_ok=True)
        (tmp_path / "crops" / "gone.png").write_bytes(b"left by a photo that is no more")
        merged = program("merge_faces", tmp_path, {"faces": faces, "kind": "photos"}, *merge)
        assert merged.returncode == 0, merged.stderr
        (tmp_path / "crops" / "both.png").unlink()
    assert outputs[0] == outputs[1]
    assert "faces 0 computed, 6 reused; models loaded 0" in done.stdout
    names = {path.name for path in (tmp_path / "crops").iterdir()}
    assert names == {"alone-0.png", "alone-1.png", "alone-2.png", "both.1.png", "stranger.png"}
    rows = read_rows(tmp_path / "faces.parquet", FACES)
    assert len(rows) == 7 and all(row["is_subject"] is not None for row in rows if row["face"] is not None)


def test_pairs_program(photos, toy_settings, tmp_path):
    source, target, reference = photos[0], photos[1], photos[3]
    pair = {"id": "01", "source_path": source.path, "target_path": target.path, "reference_paths": [reference.path]}
    pair |= {"sha256": target.sha256, "source_sha256": source.sha256, "reference_sha256s": [reference.sha256]}
    write_table(tmp_path / "pairs.parquet", PAIRS, [{**pair, "repeats": 1, "status": "ok", "reason": ""}])
    settings = {"faces": toy_settings.model_dump(mode="json")}
    flags = ["--images", "pairs.parquet", "--store", "store", "--output", "shard.parquet"]
    assert program("detect_faces", tmp_path, settings, *flags).returncode == 0
    flags = ["--tables", "shard.parquet", "--store", "store", "--crops", "crops", "--output", "faces.parquet"]
    assert program("merge_faces", tmp_path, {**settings, "kind": "pairs"}, *flags).returncode == 0
    rows = read_rows(tmp_path / "faces.parquet", FACES)
    assert [(row["role"], row["face"], row["is_subject"]) for row in rows] == [
        ("reference", 0, True),
        ("reference", 1, False),
        ("source", 0, True),
        ("target", 0, True),
    ]
    assert (tmp_path / "crops" / "01.reference.1.png").is_file()


def test_program_without_weights_says_so_in_one_line(photos, tmp_path):
    photos_table(tmp_path / "photos.parquet", photos)
    faces = FaceSettings.model_validate({"model": "models/none"}).model_dump(mode="json")
    flags = ["--images", "photos.parquet", "--store", "store", "--output", "shard.parquet"]
    done = program("detect_faces", tmp_path, {"faces": faces}, *flags)
    assert done.returncode == 2 and "models/none" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "shard.parquet").exists()


def test_empty_shard_needs_no_weights(tmp_path):
    photos_table(tmp_path / "photos.parquet", [])
    faces = FaceSettings.model_validate({"model": "models/none"}).model_dump(mode="json")
    flags = ["--images", "photos.parquet", "--store", "store", "--output", "shard.parquet"]
    assert program("detect_faces", tmp_path, {"faces": faces}, *flags).returncode == 0
    assert read_rows(tmp_path / "shard.parquet", FACES) == []

"""The masks stage and its two programs, on toy faces with GrabCut and with masks by hand."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.faces.test_stage import full, program, save

from likeness.config.masks import MaskSettings
from likeness.errors import UserError
from likeness.faces.stage import FaceStageRunner
from likeness.masks.folder import read_mask
from likeness.masks.merge import mask_files
from likeness.masks.stage import MaskStageRunner
from likeness.photos.images import ImageRef
from likeness.store import Store
from likeness.tables import FACES, MASKS, PHOTOS, read_rows, write_table

pytestmark = pytest.mark.filterwarnings("ignore:`estimate` is deprecated:FutureWarning")
GRABCUT = MaskSettings.model_validate({"backend": "grabcut", "model": None})


@pytest.fixture
def photo(tmp_path) -> ImageRef:
    return save(tmp_path / "a.png", (128, 120, 1))


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


def faces_of(photo: ImageRef, settings, store: Store) -> list[dict]:
    return full(FaceStageRunner(settings, store, True, 1).rows(photo))


def picture(store: Store, sha256: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(store.read_blob(sha256))))


def test_masks_on_both_grids(photo, toy_settings, store):
    (face,) = faces_of(photo, toy_settings, store)
    runner = MaskStageRunner(GRABCUT, store, True, 1)
    rows = {row["kind"]: row for row in runner.rows(photo, face, None)}
    assert set(rows) == {"face", "head", "person"} and runner.models_loaded == 1
    whole, crop = picture(store, rows["face"]["mask_sha256"]), picture(store, rows["face"]["crop_mask_sha256"])
    assert whole.shape == (256, 256) and set(np.unique(whole)) == {0, 255}
    assert crop.shape == picture(store, face["crop_sha256"]).shape[:2]
    x, y, side = int(face["crop_x0"]), int(face["crop_y0"]), int(face["crop_side_px"])
    assert np.array_equal(crop, whole[y : y + side, x : x + side])
    assert rows["face"]["area_fraction"] == pytest.approx((whole > 0).mean())
    disc = np.hypot(*(np.mgrid[:256, :256] - np.array([120, 128])[:, None, None])) < 32
    assert ((whole > 0) & disc).sum() / ((whole > 0) | disc).sum() > 0.8


def test_full_store_loads_no_model(photo, toy_settings, store):
    (face,) = faces_of(photo, toy_settings, store)
    first = MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, None)
    runner = MaskStageRunner(GRABCUT, Store(store.root), True, 1)
    assert runner.rows(photo, face, None) == first
    assert runner.models_loaded == 0 and runner.store.computed.total() == 0


def test_each_setting_changes_the_masks(photo, toy_settings, store):
    (face,) = faces_of(photo, toy_settings, store)
    plain = {r["kind"]: r for r in MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, None)}
    grown = GRABCUT.model_copy(update={"grow_px": {"face": 5, "head": -3}})
    rows = {r["kind"]: r for r in MaskStageRunner(grown, store, True, 1).rows(photo, face, None)}
    assert rows["face"]["area_fraction"] > plain["face"]["area_fraction"]
    assert rows["head"]["area_fraction"] < plain["head"]["area_fraction"]
    assert rows["person"]["mask_sha256"] == plain["person"]["mask_sha256"]
    coarse = MaskStageRunner(GRABCUT.model_copy(update={"working_side_px": 100}), store, True, 1)
    assert coarse.rows(photo, face, None)[0]["mask_sha256"] != plain["face"]["mask_sha256"]
    assert picture(store, coarse.rows(photo, face, None)[0]["mask_sha256"]).shape == (256, 256)
    only = MaskStageRunner(GRABCUT.model_copy(update={"kinds": ("head",)}), store, True, 1)
    assert [row["kind"] for row in only.rows(photo, face, None)] == ["head"]


def test_photo_without_a_face_keeps_its_reason(toy_settings, store, tmp_path):
    nobody = save(tmp_path / "nobody.png")
    (face,) = faces_of(nobody, toy_settings, store)
    runner = MaskStageRunner(GRABCUT, store, True, 1)
    rows = runner.rows(nobody, face, None)
    assert [(row["status"], row.get("mask_sha256")) for row in rows] == [("no_face", None)] * 3
    assert all("nobody.png" in row["reason"] for row in rows) and runner.models_loaded == 0


def by_hand(path: Path, box: tuple[int, int, int, int] | None, size: tuple[int, int] = (256, 256)) -> str:
    grey = np.zeros(size, np.uint8)
    if box:
        grey[box[1] : box[3], box[0] : box[2]] = 255
    Image.fromarray(grey).save(path)
    return str(path)


def test_mask_by_hand_wins_and_is_every_kind(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    path = by_hand(tmp_path / "mask.png", (90, 80, 170, 160))
    runner = MaskStageRunner(GRABCUT, store, True, 1)
    rows = runner.rows(photo, face, path)
    assert {row["backend"] for row in rows} == {"folder"} and len({row["mask_sha256"] for row in rows}) == 1
    assert runner.models_loaded == 0
    assert rows[0]["area_fraction"] == pytest.approx(80 * 80 / 256**2) and rows[0]["status"] == "ok"
    by_hand(tmp_path / "mask.png", (100, 80, 170, 160))
    assert runner.rows(photo, face, path)[0]["mask_sha256"] != rows[0]["mask_sha256"]


def test_empty_and_absurd_masks_have_reasons(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    runner = MaskStageRunner(GRABCUT, store, True, 1)
    empty = runner.rows(photo, face, by_hand(tmp_path / "empty.png", None))[0]
    elsewhere = runner.rows(photo, face, by_hand(tmp_path / "elsewhere.png", (0, 0, 60, 60)))[0]
    assert (empty["status"], elsewhere["status"]) == ("empty_mask", "absurd_mask")
    assert all("a.png" in row["reason"] for row in (empty, elsewhere))


def test_mask_by_hand_of_another_shape_is_refused(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    path = by_hand(tmp_path / "wide.png", (10, 10, 50, 50), (128, 256))
    with pytest.raises(UserError, match="256x128"):
        MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, path)


def test_mask_by_hand_at_half_the_size_is_brought_to_the_photos(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    path = by_hand(tmp_path / "half.png", (45, 40, 85, 80), (128, 128))
    row = MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, path)[0]
    assert picture(store, row["mask_sha256"]).shape == (256, 256) and row["status"] == "ok"


@pytest.mark.parametrize("colour", [(255, 255, 255), (90, 60, 40), (0, 0, 0)])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_a_cut_out_is_the_mask_of_what_is_opaque_in_it(mode, colour, photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    pixels_HWC = np.zeros((256, 256, 4), np.uint8)
    pixels_HWC[..., :3] = 255
    pixels_HWC[80:160, 90:170] = (*colour, 255)
    picture_of_it = Image.fromarray(pixels_HWC)
    if mode == "P":
        indices_HW = (pixels_HWC[..., 3] > 0).astype(np.uint8)
        picture_of_it = Image.fromarray(indices_HW, "P")
        picture_of_it.putpalette([255, 255, 255, *colour])
        picture_of_it.info["transparency"] = 0
    elif mode == "LA":
        picture_of_it = picture_of_it.convert("LA")
    picture_of_it.save(tmp_path / "cut.png")
    row = MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, str(tmp_path / "cut.png"))[2]
    assert (row["kind"], row["status"]) == ("person", "ok")
    assert np.array_equal(picture(store, row["mask_sha256"]) > 0, pixels_HWC[..., 3] > 0)


def test_a_mask_whose_alpha_is_all_opaque_is_its_white(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    plain = MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, by_hand(tmp_path / "m.png", (90, 80, 170, 160)))
    Image.open(tmp_path / "m.png").convert("RGBA").save(tmp_path / "opaque.png")
    rows = MaskStageRunner(GRABCUT, store, True, 1).rows(photo, face, str(tmp_path / "opaque.png"))
    assert [row["mask_sha256"] for row in rows] == [row["mask_sha256"] for row in plain]


def test_an_exif_turn_turns_the_alpha_too(tmp_path):
    alpha_HW = np.zeros((40, 60), np.uint8)
    alpha_HW[:10, :20] = 255
    image = Image.fromarray(np.dstack([np.zeros((40, 60, 3), np.uint8), alpha_HW]))
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn clockwise brings it upright
    image.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_mask(str(tmp_path / "turned.png"), 60, 40), np.rot90(alpha_HW, -1) > 0)


def test_folder_backend_without_a_mask(photo, toy_settings, store, tmp_path):
    (face,) = faces_of(photo, toy_settings, store)
    settings = MaskSettings.model_validate({"backend": "folder", "model": None, "kinds": ["head"]})
    (row,) = MaskStageRunner(settings, store, True, 1).rows(photo, face, None)
    assert row["status"] == "no_mask" and "a.png" in row["reason"]
    (row,) = MaskStageRunner(settings, store, True, 1).rows(
        photo, face, by_hand(tmp_path / "m.png", (90, 80, 170, 160))
    )
    assert row["status"] == "ok"


def test_mask_by_hand_without_a_face(toy_settings, store, tmp_path):
    nobody = save(tmp_path / "nobody.png")
    (face,) = faces_of(nobody, toy_settings, store)
    rows = MaskStageRunner(GRABCUT, store, True, 1).rows(nobody, face, by_hand(tmp_path / "m.png", (9, 9, 90, 90)))
    assert {row["status"] for row in rows} == {"ok"} and {row["face"] for row in rows} == {None}
    assert all(row["mask_sha256"] and row["crop_mask_sha256"] is None for row in rows)


def test_files_for_people_are_the_subjects():
    faces = [
        {"id": "a", "role": "photo", "face": 0, "is_subject": False},
        {"id": "a", "role": "photo", "face": 1, "is_subject": True},
        {"id": "p", "role": "target", "face": 0, "is_subject": True},
        {"id": "n", "role": "photo", "face": None, "is_subject": None},
    ]
    masks = [
        {"id": i, "role": role, "face": face, "kind": kind, "mask_sha256": sha and f"{sha}-{kind}"}
        for i, role, face, sha in [
            ("a", "photo", 0, "x"),
            ("a", "photo", 1, "y"),
            ("p", "target", 0, "z"),
            ("n", "photo", None, None),
        ]
        for kind in ("face", "head", "person")
    ]
    assert mask_files(masks, faces) == {
        "a.face.png": "y-face",
        "a.head.png": "y-head",
        "a.person.png": "y-person",
        "a.png": "y-head",
        "p.target.face.png": "z-face",
        "p.target.head.png": "z-head",
        "p.target.person.png": "z-person",
        "p.target.png": "z-head",
    }
    without_head = [row for row in masks if row["kind"] != "head"]
    assert mask_files(without_head, faces)["a.png"] == "y-face"


def test_programs(photo, toy_settings, tmp_path):
    other = save(tmp_path / "b.png", (100, 120, 1))
    hand = by_hand(tmp_path / "hand.png", (60, 80, 140, 160))
    rows = [
        {
            "id": p.id,
            "path": p.path,
            "sha256": p.sha256,
            "repeats": 1,
            "width_px": 256,
            "height_px": 256,
            "mask_path": mask,
        }
        for p, mask in ((photo, None), (other, hand))
    ]
    write_table(tmp_path / "photos.parquet", PHOTOS, [{**row, "status": "ok", "reason": ""} for row in rows])
    faces = toy_settings.model_dump(mode="json")
    flags = ["--images", "photos.parquet", "--store", "store", "--output", "f0.parquet"]
    assert program("detect_faces", tmp_path, {"faces": faces}, *flags).returncode == 0
    flags = ["--tables", "f0.parquet", "--store", "store", "--crops", "crops", "--output", "faces.parquet"]
    assert program("merge_faces", tmp_path, {"faces": faces, "kind": "photos"}, *flags).returncode == 0
    settings = {"masks": GRABCUT.model_dump(mode="json")}
    make = ["--images", "photos.parquet", "--faces", "f0.parquet", "--store", "store", "--output", "m0.parquet"]
    merge = ["--tables", "m0.parquet", "--faces", "faces.parquet", "--store", "store", "--masks", "masks"]
    tables = []
    for _ in range(2):
        done = program("make_masks", tmp_path, settings, *make)
        assert done.returncode == 0, done.stderr
        tables.append((tmp_path / "m0.parquet").read_bytes())
        done_merge = program("merge_masks", tmp_path, settings, *merge, "--output", "masks.parquet")
        assert done_merge.returncode == 0, done_merge.stderr
    assert tables[0] == tables[1] and "models loaded 0" in done.stdout
    merged = read_rows(tmp_path / "masks.parquet", MASKS)
    assert [(row["id"], row["kind"], row["backend"]) for row in merged] == [
        (i, kind, backend) for i, backend in (("a", "grabcut"), ("b", "folder")) for kind in ("face", "head", "person")
    ]
    assert {path.name for path in (tmp_path / "masks").iterdir()} == {
        f"{i}{part}.png" for i in "ab" for part in ("", ".face", ".head", ".person")
    }
    assert len(read_rows(tmp_path / "faces.parquet", FACES)) == 2

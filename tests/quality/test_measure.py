"""The measuring of a shard: what is stored, what is measured anew, and what a photo that cannot be measured gets."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.phases.fabricate import row_of
from tests.quality.drawn import Drawn, draw, even_scene, good_pair, person, with_image

from likeness.config.quality import QualitySettings
from likeness.errors import UserError
from likeness.masks.folder import BY_HAND
from likeness.photos.images import ImageRef
from likeness.quality import measure
from likeness.quality.measure import matching_candidate, measure_shard, rounded
from likeness.quality.pairs import pixel_measures
from likeness.quality.regions import View
from likeness.store import Store, canonical_json, sha256_of_bytes
from likeness.tables import FACES, MASKS, QUALITY, table_of

SETTINGS = QualitySettings()


class Folder:
    """Drawn photos on disk, with the tables that the stages before would have written."""

    def __init__(self, root: Path) -> None:
        self.root, self.store = root, Store(root / "store")
        self.images: list[ImageRef] = []
        self.faces: list[dict[str, Any]] = []
        self.masks: list[dict[str, Any]] = []

    def add(self, name: str, role: str, drawn: Drawn, face: bool = True) -> None:
        path = self.root / f"{name}-{role}.png"
        Image.fromarray(drawn.view.image_HWC).save(path)
        height, width = drawn.view.size
        self.images.append(ImageRef(name, role, str(path), sha256_of_bytes(path.read_bytes()), width, height, 1))
        if not face:
            self.faces.append(row_of(FACES, id=name, role=role, status="no_face", reason="no face"))
            return
        assert drawn.view.box is not None and drawn.view.landmarks_52 is not None
        geometry = dict(zip(("x0", "y0", "x1", "y1"), drawn.view.box, strict=True))
        self.faces.append(
            row_of(
                FACES,
                id=name,
                role=role,
                face=0,
                **geometry,
                landmarks=drawn.view.landmarks_52.ravel().tolist(),
                yaw_deg=float(drawn.scene.yaw_deg[0]),
                roll_deg=float(drawn.scene.roll_deg[0]),
                embedding=drawn.embedding,
                embedding_kind="drawn",
                image_width_px=width,
                image_height_px=height,
                status="ok",
                reason="",
            )
        )
        for kind, mask in drawn.view.masks_HW.items():
            png = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * 255).save(png, "PNG")
            facts = {"mask_sha256": self.store.save_blob(png.getvalue()), "status": "ok", "reason": ""}
            self.masks.append(row_of(MASKS, id=name, role=role, face=0, kind=kind, **facts))

    def measure(self, settings: QualitySettings = SETTINGS) -> list[dict[str, Any]]:
        rows = measure_shard(self.images, self.faces, self.masks, settings, self.store)
        assert table_of(QUALITY, rows).num_rows == len(rows)
        return rows

    @property
    def counts(self) -> tuple[int, int]:
        counted = self.store.computed["quality"], self.store.reused["quality"]
        self.store.computed.clear()
        self.store.reused.clear()
        return counted


def one_photo(seed: int = 0) -> Drawn:
    rng = np.random.default_rng(seed)
    return draw(person(rng), even_scene(rng), size_px=96)


def test_measured_once_and_reused_under_another_name(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("a", "photo", one_photo())
    first = folder.measure()[0]
    assert folder.counts == (1, 0) and first["status"] == "ok" and first["framing"] == "close"
    folder.images = [ImageRef("b", "photo", *list(vars(image).values())[2:]) for image in folder.images]
    for row in (*folder.faces, *folder.masks):
        row["id"] = "b"
    assert folder.measure() == [first | {"id": "b"}]
    assert folder.counts == (0, 1)
    folder.measure(QualitySettings(light_distance=3.0, background_distance=1.0))
    assert folder.counts == (0, 1)
    folder.measure(QualitySettings(background_bins=5))
    assert folder.counts == (1, 0)


def test_another_mask_box_or_picture_is_measured_anew(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("a", "photo", one_photo())
    folder.measure()
    folder.faces[0]["x0"] -= 3
    folder.measure()
    folder.masks.pop()
    folder.measure()
    assert folder.counts == (3, 0)
    folder.faces[0]["embedding"] = [0.0, 1.0]
    assert folder.measure()[0]["embedding"] == [0.0, 1.0]
    assert folder.counts == (0, 1)


def drawn_by_hand(folder: Folder, name: str, role: str, mask_HW: np.ndarray) -> None:
    """Make a mask the one that its owner drew: every kind is then the same picture."""
    png = io.BytesIO()
    Image.fromarray(mask_HW.astype(np.uint8) * 255).save(png, "PNG")
    sha256 = folder.store.save_blob(png.getvalue())
    for row in folder.masks:
        if (row["id"], row["role"]) == (name, role):
            row |= {"mask_sha256": sha256, "backend": BY_HAND}


def test_a_mask_by_hand_of_a_black_suit_is_not_the_face(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    drawn = draw(person(rng), even_scene(rng, "half"), size_px=128)
    masks = drawn.view.masks_HW
    suit = masks["person"] & ~masks["head"]
    picture = drawn.view.image_HWC.copy()
    picture[suit] = 2
    folder = Folder(tmp_path)
    folder.add("a", "photo", with_image(drawn, picture))
    real = folder.measure()[0]
    drawn_by_hand(folder, "a", "photo", masks["person"])
    row = folder.measure()[0]
    assert real["clipped"] < 0.05 and row["clipped"] < 0.05
    assert row["brightness"] == pytest.approx(real["brightness"], abs=10)
    drawn_by_hand(folder, "a", "photo", masks["face"])
    assert folder.measure()[0] == row, "what the hand drew decides nothing"


@pytest.mark.parametrize("kind", ["face", "head", "person"])
def test_a_mask_by_hand_of_one_side_makes_no_hair_and_hides_no_background(kind: str, tmp_path: Path) -> None:
    source, target = good_pair(np.random.default_rng(6))
    clothes = target.view.masks_HW["person"] & ~target.view.masks_HW["head"]
    picture = target.view.image_HWC.copy()
    picture[clothes] = picture[clothes][:, ::-1] // 2
    folder = Folder(tmp_path)
    folder.add("pair", "source", source)
    folder.add("pair", "target", with_image(target, picture))
    real = folder.measure()[0]
    drawn_by_hand(folder, "pair", "target", target.view.masks_HW[kind])
    row = folder.measure()[0]
    assert (row["hair_delta_e"], row["hair_area_ratio"]) == (None, None)
    assert row["background_ssim"] == pytest.approx(real["background_ssim"], abs=0.03) and row["background_ssim"] < 0.99
    assert row["skin_delta_e"] == pytest.approx(real["skin_delta_e"], abs=1.0)


def test_a_photo_without_a_face_still_tells_of_its_background(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("a", "photo", one_photo(), face=False)
    row = folder.measure()[0]
    assert (row["face"], row["status"]) == (None, "no_face")
    assert row["sharpness"] is None and row["framing"] is None and row["light"] is None
    assert sum(row["background_histogram"]) == pytest.approx(1, abs=1e-4)


def test_a_photo_that_became_unreadable_is_a_row_and_loses_nothing_else(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("bad", "photo", one_photo(1))
    folder.add("good", "photo", one_photo(2))
    Path(folder.images[0].path).unlink()
    bad, good = folder.measure()
    assert (bad["status"], good["status"]) == ("missing", "ok") and "no such file" in bad["reason"]


def test_a_photo_that_changed_after_indexing_is_an_error(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.add("a", "photo", one_photo())
    Image.fromarray(one_photo(5).view.image_HWC).save(folder.images[0].path)
    with pytest.raises(UserError, match="changed after it was indexed"):
        folder.measure()


def test_pairs_are_compared_with_their_source(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    source, target = good_pair(np.random.default_rng(1))
    folder.add("pair", "source", source)
    folder.add("pair", "target", target)
    rows = folder.measure()
    direct = rounded(pixel_measures(source.view, target.view))
    assert len(rows) == 1 and folder.counts == (2, 0)
    assert {name: rows[0][name] for name in direct} == pytest.approx(direct, rel=1e-5)
    assert rows[0]["pair_identity"] == 1.0 and rows[0]["pose_delta_deg"] == pytest.approx(0, abs=1e-5)
    folder.measure()
    assert folder.counts == (0, 2)
    rows = folder.measure(QualitySettings(background_bins=5, sharpness_crop_px=64))
    assert folder.counts == (1, 1), "a pair has neither histogram nor sharpness of its own"
    assert {name: rows[0][name] for name in direct} == pytest.approx(direct, rel=1e-5)
    folder.measure(QualitySettings(working_side_px=64))
    assert folder.counts == (2, 0)


def test_identity_is_held_against_a_reference_that_shows_a_face(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    source, target = good_pair(rng)
    other = draw(person(rng), even_scene(rng), person=3, size_px=96)
    folder = Folder(tmp_path)
    folder.add("pair", "source", source)
    folder.add("pair", "reference", other)
    folder.add("pair", "target", target)
    assert folder.measure()[0]["pair_identity"] == 0.0
    folder.faces = [row for row in folder.faces if row["role"] != "reference"]
    assert folder.measure()[0]["pair_identity"] == 1.0


def test_the_first_reference_by_its_role_is_held_against(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    source, target = good_pair(rng)
    folder = Folder(tmp_path)
    for pair in ("other", "pair"):
        for number, who in (("2", 0), ("", 3)) if pair == "pair" else (("", 0),):
            folder.add(pair, f"reference{number}", draw(person(rng), even_scene(rng), person=who, size_px=96))
        folder.add(pair, "source", source)
        folder.add(pair, "target", target)
    assert [row["pair_identity"] for row in folder.measure()] == [1.0, 0.0]


def test_pairs_of_other_sizes_and_without_faces_are_compared_on_the_targets_grid(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    identity, scene = person(rng), even_scene(rng)
    folder = Folder(tmp_path)
    folder.add("pair", "source", draw(identity, scene, size_px=128), face=False)
    folder.add("pair", "target", draw(identity, scene, size_px=192), face=False)
    row = folder.measure()[0]
    assert row["status"] == "no_face" and row["background_ssim"] > 0.9 and row["skin_delta_e"] is None
    assert row["shift_px"] is None or row["shift_px"] < 0.6


def test_the_face_at_the_same_place_is_the_partner() -> None:
    size = {"image_width_px": 100, "image_height_px": 100}
    faces = [
        row_of(FACES, face=0, x0=0.0, y0=0.0, x1=40.0, y1=40.0, **size),
        row_of(FACES, face=1, x0=60.0, y0=50.0, x1=90.0, y1=90.0, **size),
    ]
    large = {"image_width_px": 200, "image_height_px": 200}
    target = row_of(FACES, face=0, x0=124.0, y0=96.0, x1=176.0, y1=178.0, **large)
    assert matching_candidate(target, faces) is faces[1]
    far = row_of(FACES, face=0, x0=2.0, y0=190.0, x1=9.0, y1=199.0, **large)
    assert matching_candidate(far, faces) is faces[0]
    assert matching_candidate(None, faces) is None and matching_candidate(target, []) is None


def test_rounding_keeps_six_digits_and_no_nan() -> None:
    found = rounded({"a": 123.4567891, "b": float("nan"), "c": [0.123456789, 1], "d": "close", "e": None})
    assert found == {"a": 123.457, "b": None, "c": [0.123457, 1], "d": "close", "e": None}


def test_results_change_only_with_the_version() -> None:
    """When this fails, raise VERSION in likeness/quality/measure.py and renew the digest."""
    photo = data.astronaut()
    view = View(photo, (172.0, 55.0, 278.0, 190.0))
    target = View(np.roll(photo[:, ::-1], 3, axis=1).copy(), (237.0, 55.0, 343.0, 190.0))
    found = {**measure.photo_measures(view, SETTINGS), **pixel_measures(view, target)}
    short = {name: f"{value:.3g}" if isinstance(value, float) else None for name, value in found.items()}
    digest = sha256_of_bytes(canonical_json(short | {"light": found["light"]}).encode())[:16]
    assert (measure.VERSION, digest) == (1, "1480746171275857"), short

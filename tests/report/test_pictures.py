"""The budget: fair between subjects, comparisons first, what is left out is counted."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image
from tests.report.conftest import curation_of, report_of
from tests.report.fabricate import (
    Run,
    character_settings,
    curate_character,
    draw_face,
    evaluate_character,
    fabricate,
    png,
)
from tests.report.reading import Page

from likeness.report.pictures import BUDGET_BYTES, Pictures, Wanted
from likeness.store import Store, write_atomically


def noisy_photos(folder: Path, count: int) -> list[Wanted]:
    """Photos that compress badly and all differ."""
    random = np.random.default_rng(0)
    found = []
    for place in range(count):
        path = folder / f"{place}.png"
        write_atomically(path, png(Image.fromarray(random.integers(0, 255, (150, 150, 3), np.uint8))))
        found.append(Wanted(150, str(path)))
    return found


def test_subjects_share_the_budget_fairly(tmp_path: Path) -> None:
    wanted = noisy_photos(tmp_path, 26)
    size = len(picture(Pictures(Store(tmp_path)), wanted[0]))
    pictures = Pictures(Store(tmp_path), 12 * size)
    pictures.share({"many": wanted[:20], "few": wanted[20:]})
    shown = {
        name: sum(pictures[one].data is not None for one in own)
        for name, own in (("many", wanted[:20]), ("few", wanted[20:]))
    }
    assert shown["few"] >= 5
    assert 5 <= shown["many"] <= 7
    assert pictures.left_out["many"] == 20 - shown["many"]
    assert pictures.left_out["few"] == 6 - shown["few"]


def picture(pictures: Pictures, wanted: Wanted) -> str:
    pictures.share({"one": [wanted]})
    data = pictures[wanted].data
    assert data is not None
    return data


def test_comparisons_come_before_contact_sheets(run: Run) -> None:
    full = Page(report_of(run))
    size = sum(len(one.attributes["src"]) for one in full.having("src") if "figure" in one.ancestors)
    page = Page(report_of(run, budget_bytes=size + 20_000))
    images = page.having("src")
    compared = [one for one in images if "figure" in one.ancestors]
    assert len(compared) == len([one for one in full.having("src") if "figure" in one.ancestors]) > 20
    assert 0 < len(images) - len(compared) < len(full.having("src")) - len(compared)


def test_left_out_pictures_are_counted_on_the_page(run: Run) -> None:
    full, small = Page(report_of(run)), Page(report_of(run, budget_bytes=30_000))
    counted = int(small.having("data-left-out")[0].attributes["data-left-out"])
    placeholders = [
        one for one in small.elements if one.attributes.get("class") == "nothing" and one.text == "left out"
    ]
    assert len(placeholders) == len(full.having("src")) - len(small.having("src")) > 0
    assert counted == len(placeholders)
    assert not full.having("data-left-out")


def test_a_page_of_many_photos_stays_below_15_mb(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", kept=300, side_px=32)
    random = np.random.default_rng(0)
    for path in sorted((tmp_path / "data" / "robin").iterdir()):
        write_atomically(path, png(Image.fromarray(random.integers(0, 255, (168, 168, 3), np.uint8))))
    evaluate_character(run, "robin")
    page = report_of(run, budget_bytes=BUDGET_BYTES // 4)
    assert len(page.encode()) < 15_000_000 // 4 + 1_000_000
    assert 'data-left-out="' in page
    assert BUDGET_BYTES < 12_000_000


def test_the_mask_dims_what_it_leaves_out(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = tmp_path / "grey.png"
    write_atomically(path, png(Image.new("RGB", (100, 100), (200, 200, 200))))
    mask = Image.new("L", (100, 100))
    mask.paste(255, (0, 0, 50, 100))
    wanted = Wanted(100, str(path), mask_sha256=store.save_blob(png(mask)))
    image = np.asarray(decoded(picture(Pictures(store), wanted)))
    assert abs(int(image[50, 10, 0]) - 200) <= 3
    assert abs(int(image[50, 90, 0]) - 60) <= 3


def decoded(address: str) -> Image.Image:
    kind, _, data = address.partition(";base64,")
    assert kind in ("data:image/jpeg", "data:image/png")
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def test_tiny_images_keep_every_pixel(tmp_path: Path) -> None:
    store, image = Store(tmp_path), draw_face("x", 16, 16)
    pictures = Pictures(store)
    wanted = Wanted(256, sha256=store.save_blob(png(image)))
    assert np.array_equal(np.asarray(decoded(picture(pictures, wanted))), np.asarray(image))
    assert pictures[wanted].tiny


def test_what_cannot_be_read_says_so_and_stops_nothing(tmp_path: Path) -> None:
    run = Run(tmp_path, {"robin": character_settings(tmp_path)})
    curate_character(run, "robin", side_px=32)
    (tmp_path / "data" / "robin" / "robin-03.png").unlink()
    (tmp_path / "data" / "robin" / "robin-04.png").write_bytes(b"no picture")
    page = curation_of(run)
    assert len(re.findall(r">unreadable<", page)) == 2
    assert "data-left-out" not in page


def test_a_missing_generated_image_leaves_a_gap(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    blobs = run.store.root / "blobs"
    for path in blobs.rglob("*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    page = report_of(run)
    assert ">unreadable<" in page
    assert "Finalists on the report half" in page

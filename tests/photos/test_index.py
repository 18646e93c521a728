"""Every file found is a row: usable with its facts, or with a status and a reason; nothing else is lost for it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.photos.pictures import drawn, nothing_known

from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings, PhotoStage
from likeness.errors import UserError
from likeness.photos.images import find_by_sha, read_images
from likeness.photos.index import VERSION, index_pair, index_pairs, index_photos, perceptual_hashes
from likeness.photos.load import decode_image
from likeness.photos.pairs import list_pairs
from likeness.program import as_about
from likeness.store import Store
from likeness.tables import PAIRS, PHOTOS, read_rows, write_table

Writer = Callable[..., Path]
SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SETTINGS = PhotoSettings(min_side_px=32, max_side_px=15000)


def stage_of(*folders: Path) -> PhotoStage:
    return PhotoStage(kind="photos", folders=[PhotoFolder(path=str(folder)) for folder in folders], photo=SETTINGS)


def bad_folder(root: Path, photo_at: Writer) -> Path:
    """A folder of everything that goes wrong, beside photos that are fine."""
    photo_at("p/good.png", seed=1)
    photo_at("p/größe 写真.jpg", seed=2)
    photo_at("p/iphone.heic", seed=3)
    photo_at("p/new.avif", seed=4)
    photo_at("p/tiny.png", seed=5, width_px=40, height_px=20)
    photo_at("p/half.png", seed=6)
    half = root / "p/half.png"
    half.write_bytes(half.read_bytes()[:2000])
    (root / "p/page.jpg").write_text("<html>not found</html>")
    (root / "p/empty.png").write_bytes(b"")
    Image.new("1", (20000, 100)).save(root / "p/long.png")
    Image.new("1", (14000, 14000)).save(root / "p/bomb.png")
    Image.fromarray(drawn(7)).convert("CMYK").save(root / "p/print.jpg")
    Image.fromarray(drawn(8)[..., 0].astype(np.uint16) * 256).save(root / "p/deep.png")
    Image.fromarray(drawn(9)).convert("RGBA").save(root / "p/alpha.png")
    frames = [Image.fromarray(drawn(seed)) for seed in (10, 11)]
    frames[0].save(root / "p/moving.webp", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(drawn(12)).save(root / "p/turned.jpg", exif=exif)
    return root / "p"


def test_every_bad_input_is_a_row_with_a_reason(tmp_path: Path, photo_at: Writer) -> None:
    folder = bad_folder(tmp_path, photo_at)
    rows = {Path(row["path"]).name: row for row in index_photos(stage_of(folder), 0, 1, Store(tmp_path / ".store"))}
    assert set(rows) == {path.name for path in folder.iterdir()}
    bad = {name: row["status"] for name, row in rows.items() if row["status"] != "ok"}
    assert bad == {
        "tiny.png": "too_small",
        "half.png": "truncated",
        "page.jpg": "not_an_image",
        "empty.png": "not_an_image",
        "long.png": "too_large",
        "bomb.png": "too_large",
    }
    for name in bad:
        assert name in rows[name]["reason"]
        assert rows[name]["sha256"] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert all(row["reason"] == "" and row["phash"] for row in rows.values() if row["status"] == "ok")
    assert (rows["turned.jpg"]["width_px"], rows["turned.jpg"]["height_px"]) == (64, 96)
    assert rows["long.png"]["width_px"] == 20000
    assert rows["iphone.heic"]["format"] == "heif"
    assert rows["größe 写真.jpg"]["id"] == "grosse-u5199-u771f"


def test_shards_hold_every_photo_once(tmp_path: Path, photo_at: Writer) -> None:
    folder = bad_folder(tmp_path, photo_at)
    whole = index_photos(stage_of(folder), 0, 1, Store(tmp_path / ".store"))
    shards = [index_photos(stage_of(folder), shard, 5, Store(tmp_path / ".store")) for shard in range(5)]
    assert sum(bool(shard) for shard in shards) > 1
    assert sorted((row for shard in shards for row in shard), key=lambda row: row["id"]) == whole


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_absent_and_empty_folders_are_one_clear_error(tmp_path: Path, kind: str) -> None:
    index = index_photos if kind == "photos" else index_pairs
    (tmp_path / "empty").mkdir()

    def stage(*names: str) -> PhotoStage:
        folders = [{"path": str(tmp_path / name)} for name in names]
        return PhotoStage.model_validate({"kind": kind, "folders": folders, "photo": {}})

    with pytest.raises(UserError, match=rf"{kind}\[0\]\.path: there is no .*one; {kind}\[1\]\.path: there is no .*two"):
        index(stage("one", "two"), 0, 1, Store(tmp_path / ".store"))
    with pytest.raises(UserError, match=rf"{kind}\[0\]\.path .*empty: no {kind} found"):
        index(stage("empty"), 0, 1, Store(tmp_path / ".store"))


def test_an_absent_role_table_or_mask_folder_is_named(tmp_path: Path) -> None:
    folders = [
        PairFolder(path=str(tmp_path), roles={"source": "a", "target": "b"}),
        PairFolder(path=str(tmp_path), table="t.csv", masks="nowhere"),
    ]
    with pytest.raises(UserError) as caught:
        index_pairs(PhotoStage(kind="pairs", folders=folders, photo=SETTINGS), 0, 1, Store(tmp_path / ".store"))
    for key in ("pairs[0].roles.source", "pairs[0].roles.target", "pairs[1].table", "pairs[1].masks"):
        assert key in str(caught.value)


@pytest.mark.parametrize("kind", ["photos", "pairs"])
def test_a_row_holds_the_hash_of_its_hand_mask(tmp_path: Path, photo_at: Writer, kind: str) -> None:
    for name in ("p/a_start.png", "p/a_end.png", "p/b_start.png", "p/b_end.png"):
        photo_at(name, seed=len(name))
    mask = photo_at(f"masks/{'a' if kind == 'pairs' else 'a_end'}.png", seed=9)
    folders = [{"path": str(tmp_path / "p"), "masks": str(tmp_path / "masks")}]
    stage = PhotoStage.model_validate({"kind": kind, "folders": folders, "photo": {"min_side_px": 32}})
    index = index_photos if kind == "photos" else index_pairs
    for _ in range(2):
        rows = {row["id"]: row for row in index(stage, 0, 1, Store(tmp_path / ".store"))}
        expected = hashlib.sha256(mask.read_bytes()).hexdigest()
        assert {row["mask_sha256"] for row in rows.values() if row["mask_path"]} == {expected}
        assert {row["mask_sha256"] for row in rows.values() if not row["mask_path"]} == {None}
        mask.write_bytes(mask.read_bytes() + b"edited")


def test_a_file_name_that_is_not_utf8_is_an_error_that_says_so(tmp_path: Path, photo_at: Writer) -> None:
    photo_at("a.png")
    with open(bytes(tmp_path) + b"/b\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    with pytest.raises(UserError, match="not UTF-8"):
        index_photos(stage_of(tmp_path), 0, 1, Store(tmp_path / ".store"))


@pytest.mark.parametrize("size", [(96, 64), (700, 512), (1500, 1024)])
def test_hashes_agree_with_imagehash_on_the_whole_picture(size: tuple[int, int]) -> None:
    """Oracle: imagehash on the unshrunk picture and on its mirror image, to two bits."""
    for seed in range(6):
        image = Image.fromarray(drawn(seed, *size))
        mirror = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for found, picture in zip(perceptual_hashes(image), (image, mirror), strict=True):
            assert imagehash.hex_to_hash(found) - imagehash.phash(picture) <= 2


def test_pairs_are_checked_for_size_and_for_each_role(tmp_path: Path, photo_at: Writer) -> None:
    for name, source, target in (
        ("same", (96, 64), (96, 64)),
        ("scaled", (96, 64), (192, 128)),
        ("rounded", (960, 640), (961, 640)),
        ("other", (96, 64), (96, 72)),
    ):
        photo_at(f"p/{name}_start.png", 1, *source)
        photo_at(f"p/{name}_end.png", 2, *target)
    photo_at("p/broken_start.png", 3)
    (tmp_path / "p/broken_end.png").write_bytes(b"no image")
    rows = {
        pair.id: index_pair(pair, SETTINGS, nothing_known())
        for pair in list_pairs([PairFolder(path=str(tmp_path / "p"))])
    }
    assert {name: row["status"] for name, row in rows.items()} == {
        "same": "ok",
        "scaled": "ok",
        "rounded": "ok",
        "other": "size_mismatch",
        "broken": "not_an_image",
    }
    assert rows["broken"]["reason"].startswith("target: ")
    assert "96 × 64" in rows["other"]["reason"]
    assert "96 × 72" in rows["other"]["reason"]


def test_images_of_both_tables(tmp_path: Path, photo_at: Writer) -> None:
    photo_at("p/a.png", 1)
    (tmp_path / "p/b.png").write_bytes(b"broken")
    write_table(
        tmp_path / "photos.parquet", PHOTOS, index_photos(stage_of(tmp_path / "p"), 0, 1, Store(tmp_path / ".store"))
    )
    (image,) = read_images(tmp_path / "photos.parquet")
    assert (image.id, image.role, image.path, image.width_px) == ("a", "photo", f"{tmp_path}/p/a.png", 96)
    assert find_by_sha(tmp_path / "photos.parquet") == {image.sha256: image.path}
    for role, seed in (("start", 1), ("start2", 2), ("start3", 3), ("end", 4)):
        photo_at(f"q/01_{role}.png", seed)
    rows = [index_pair(pair, SETTINGS, nothing_known()) for pair in list_pairs([PairFolder(path=str(tmp_path / "q"))])]
    write_table(tmp_path / "pairs.parquet", PAIRS, rows)
    images = read_images(tmp_path / "pairs.parquet")
    assert [image.role for image in images] == ["source", "reference", "reference2", "target"]
    for image in images:
        assert image.sha256 == hashlib.sha256(Path(image.path).read_bytes()).hexdigest()
    assert len(find_by_sha(tmp_path / "pairs.parquet")) == 4
    with pytest.raises(UserError, match="neither a photos nor a pairs table"):
        write_table(tmp_path / "other.parquet", PHOTOS, [])
        import pyarrow.parquet as pq

        pq.write_table(pq.read_table(tmp_path / "other.parquet").select(["id"]), tmp_path / "other.parquet")
        read_images(tmp_path / "other.parquet")


def test_the_programs_write_what_the_library_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way by command line, and again in this process: a real photo, its flip and its copy; equal bytes."""
    monkeypatch.chdir(tmp_path)
    Path("p").mkdir()
    portrait = Image.fromarray(data.astronaut())
    portrait.save("p/ä.jpg", quality=95)
    portrait.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save("p/b.png")
    Path("p/c.jpg").write_bytes(Path("p/ä.jpg").read_bytes())
    stage = PhotoStage.model_validate({"kind": "photos", "folders": [{"path": "p"}], "photo": {}})
    asked = stage.model_dump(mode="json")
    settings, stage = json.dumps({"settings": asked, "code": "x"}), PhotoStage.model_validate(asked)

    def run(name: str, *args: str) -> str:
        command = [sys.executable, str(SCRIPTS / name), "--settings", settings, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    for shard in range(2):
        run(
            "index_photos.py",
            "--shard",
            str(shard),
            "--shards",
            "2",
            "--store",
            "store",
            "--output",
            f"{shard}.parquet",
        )
        again = Path(f"again{shard}.parquet")
        write_table(
            again,
            PHOTOS,
            index_photos(stage, shard, 2, Store(tmp_path / ".store")),
            as_about("index_photos", VERSION, stage),
        )
        assert again.read_bytes() == Path(f"{shard}.parquet").read_bytes()
    out = run("merge_photos.py", "--tables", "1.parquet", "0.parquet", "--output", "photos.parquet")
    assert "3 found, 1 duplicates, 1 groups" in out
    rows = {row["id"]: row for row in read_rows(Path("photos.parquet"), PHOTOS)}
    assert rows["c"]["status"] == "duplicate"
    assert rows["c"]["reason"].startswith("the same file as a,")
    assert rows["a"]["near_duplicate_group"] == rows["b"]["near_duplicate_group"] == "a"
    assert rows["a"]["path"] == "p/ä.jpg"


def test_a_program_names_a_missing_folder_without_a_traceback(tmp_path: Path) -> None:
    settings = json.dumps({"settings": {"kind": "photos", "folders": [{"path": "gone"}], "photo": {}}, "code": "x"})
    command = [sys.executable, str(SCRIPTS / "index_photos.py"), "--settings", settings]
    command += ["--shard", "0", "--shards", "1", "--store", "store", "--output", "out.parquet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: photos[0].path: there is no gone")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.parquet").exists()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of photos that were decoded, in order."""
    paths: list[str] = []
    from likeness.photos import index

    decode = index.decode_small
    monkeypatch.setattr(index, "decode_small", lambda data, name, px: paths.append(name) or decode(data, name, px))
    return paths


def test_bytes_are_decoded_once_whatever_they_are_called(tmp_path: Path, photo_at: Writer, decoded: list[str]) -> None:
    """Edited, renamed, reverted, and other shards: only new bytes are decoded, and the rows are as if all were."""
    store = Store(tmp_path / ".store")
    photos = {name: photo_at(f"p/{name}", seed) for seed, name in enumerate(("a.jpg", "b.png", "c.png"))}
    (tmp_path / "p/half.png").write_bytes(photos["b.png"].read_bytes()[:2000])
    first = index_photos(stage_of(tmp_path / "p"), 0, 1, store)
    assert decoded == [row["path"] for row in first] and len(decoded) == 4
    decoded.clear()
    assert index_photos(stage_of(tmp_path / "p"), 0, 1, store) == first
    assert [index_photos(stage_of(tmp_path / "p"), shard, 3, store) for shard in range(3)] != []
    before = photos["a.jpg"].read_bytes()
    photos["c.png"].rename(tmp_path / "p/d.png")
    assert decoded == []
    photo_at("p/a.jpg", 9)
    index_photos(stage_of(tmp_path / "p"), 0, 1, store)
    assert decoded == [str(photos["a.jpg"])]
    photos["a.jpg"].write_bytes(before)
    again = index_photos(stage_of(tmp_path / "p"), 0, 1, store)
    assert len(decoded) == 1
    assert again == index_photos(stage_of(tmp_path / "p"), 0, 1, Store(tmp_path / ".other"))
    assert (store.computed["photos"], store.reused["photos"]) == (5, 15)


def test_a_reason_names_the_file_that_has_it_now(tmp_path: Path, photo_at: Writer, decoded: list[str]) -> None:
    store = Store(tmp_path / ".store")
    path = photo_at("p/half.png")
    path.write_bytes(path.read_bytes()[:2000])
    index_photos(stage_of(tmp_path / "p"), 0, 1, store)
    path.rename(tmp_path / "p/other.png")
    [row] = index_photos(stage_of(tmp_path / "p"), 0, 1, store)
    assert len(decoded) == 1
    assert row["status"] == "truncated"
    assert row["reason"].startswith(f"{tmp_path}/p/other.png: the file is damaged or truncated")


def test_other_limits_of_size_decode_nothing_anew(tmp_path: Path, photo_at: Writer, decoded: list[str]) -> None:
    store, folder = Store(tmp_path / ".store"), [PhotoFolder(path=str(tmp_path / "p"))]
    photo_at("p/a.png")
    for least, status in ((32, "ok"), (65, "too_small"), (64, "ok")):
        stage = PhotoStage(kind="photos", folders=folder, photo=PhotoSettings(min_side_px=least))
        [row] = index_photos(stage, 0, 1, store)
        assert row["status"] == status
    assert len(decoded) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_that_is_decoded_smaller_keeps_its_size_and_nearly_its_hash(tmp_path: Path, orientation: int) -> None:
    """Oracle: the whole photo decoded by `decode_image`; 1000 × 993 px has an eighth that is a square."""
    image = Image.fromarray(drawn(3, 1000, 993))
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "p").mkdir()
    image.save(tmp_path / "p/a.jpg", exif=exif)
    [row] = index_photos(stage_of(tmp_path / "p"), 0, 1, Store(tmp_path / ".store"))
    whole = decode_image((tmp_path / "p/a.jpg").read_bytes(), "a")
    assert (row["width_px"], row["height_px"]) == whole.size
    for found, expected in zip((row["phash"], row["phash_mirror"]), perceptual_hashes(whole), strict=True):
        assert imagehash.hex_to_hash(found) - imagehash.hex_to_hash(expected) <= 2


def test_hashes_stay_as_they_are() -> None:
    """When this fails, raise VERSION in likeness/photos/index.py and renew the hashes."""
    found = perceptual_hashes(Image.fromarray(data.astronaut()))
    assert (VERSION, *found) == (2, "c2924c5532bddfc8", "97c7190867e88a9f")


def test_zero_coefficients_decide_nothing() -> None:
    """A flat picture has one coefficient, and a symmetric one is its own mirror image."""
    assert perceptual_hashes(Image.new("RGB", (300, 200), (9, 99, 199))) == ("8000000000000000",) * 2
    half = drawn(1, 128, 256)
    assert len(set(perceptual_hashes(Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))))) == 1

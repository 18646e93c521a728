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
from tests.photos.pictures import drawn

from likeness.config.photos import PairFolder, PhotoFolder, PhotoSettings, PhotoStage
from likeness.errors import UserError
from likeness.photos.images import find_by_sha, read_images
from likeness.photos.index import VERSION, index_pair, index_pairs, index_photos, perceptual_hashes
from likeness.photos.pairs import list_pairs
from likeness.program import as_about
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
    rows = {Path(row["path"]).name: row for row in index_photos(stage_of(folder), 0, 1)}
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
    whole = index_photos(stage_of(folder), 0, 1)
    shards = [index_photos(stage_of(folder), shard, 5) for shard in range(5)]
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
        index(stage("one", "two"), 0, 1)
    with pytest.raises(UserError, match=rf"{kind}\[0\]\.path .*empty: no {kind} found"):
        index(stage("empty"), 0, 1)


def test_an_absent_role_table_or_mask_folder_is_named(tmp_path: Path) -> None:
    folders = [
        PairFolder(path=str(tmp_path), roles={"source": "a", "target": "b"}),
        PairFolder(path=str(tmp_path), table="t.csv", masks="nowhere"),
    ]
    with pytest.raises(UserError) as caught:
        index_pairs(PhotoStage(kind="pairs", folders=folders, photo=SETTINGS), 0, 1)
    for key in ("pairs[0].roles.source", "pairs[0].roles.target", "pairs[1].table", "pairs[1].masks"):
        assert key in str(caught.value)


def test_a_file_name_that_is_not_utf8_is_an_error_that_says_so(tmp_path: Path, photo_at: Writer) -> None:
    photo_at("a.png")
    with open(bytes(tmp_path) + b"/b\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    with pytest.raises(UserError, match="not UTF-8"):
        index_photos(stage_of(tmp_path), 0, 1)


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
    rows = {pair.id: index_pair(pair, SETTINGS) for pair in list_pairs([PairFolder(path=str(tmp_path / "p"))])}
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
    write_table(tmp_path / "photos.parquet", PHOTOS, index_photos(stage_of(tmp_path / "p"), 0, 1))
    (image,) = read_images(tmp_path / "photos.parquet")
    assert (image.id, image.role, image.path, image.width_px) == ("a", "photo", f"{tmp_path}/p/a.png", 96)
    assert find_by_sha(tmp_path / "photos.parquet") == {image.sha256: image.path}
    for role, seed in (("start", 1), ("start2", 2), ("start3", 3), ("end", 4)):
        photo_at(f"q/01_{role}.png", seed)
    rows = [index_pair(pair, SETTINGS) for pair in list_pairs([PairFolder(path=str(tmp_path / "q"))])]
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
        run("index_photos.py", "--shard", str(shard), "--shards", "2", "--output", f"{shard}.parquet")
        again = Path(f"again{shard}.parquet")
        write_table(again, PHOTOS, index_photos(stage, shard, 2), as_about("index_photos", VERSION, stage))
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
    command += ["--shard", "0", "--shards", "1", "--output", "out.parquet"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: photos[0].path: there is no gone")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.parquet").exists()


def test_a_photo_is_decoded_once(tmp_path: Path, photo_at: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    photo_at("p/a.jpg", 1)
    decoded: list[str] = []
    from likeness.photos import index

    decode = index.decode_image
    monkeypatch.setattr(index, "decode_image", lambda bytes_, name: decoded.append(name) or decode(bytes_, name))
    rows = index_photos(stage_of(tmp_path / "p"), 0, 1)
    assert decoded == [rows[0]["path"]]

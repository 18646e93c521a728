"""Names, shards and the walk: what is found, what it is called, and that the order of things changes nothing."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.config.base import NAME_PATTERN
from likeness.config.photos import PhotoFolder
from likeness.photos.names import (
    NOT_PHOTOS,
    is_photo,
    list_photos,
    names_of,
    shard_of,
    sidecar_of,
    slug,
    walk_files,
    with_ending,
    without_ending,
)

RELATIVE = st.text(
    st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1, max_size=30
).filter(lambda name: name not in (".", ".."))


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found(*folders: Path | PhotoFolder) -> dict[str, str]:
    listed = [folder if isinstance(folder, PhotoFolder) else PhotoFolder(path=str(folder)) for folder in folders]
    return {photo.id: photo.path for photo in list_photos(listed)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("beach/img 01", "beach-img-01"),
        ("Größe & Maß", "grosse-mass"),
        ("Éva_2", "eva-2"),
        ("写真 1", "u5199-u771f-1"),
        ("___", "photo"),
        ("ᴬ½", "a1-2"),
    ],
)
def test_slugs_of_known_names(text: str, expected: str) -> None:
    assert slug(text) == expected


@given(st.text(max_size=400))
def test_every_slug_is_a_name(text: str) -> None:
    name = slug(text)
    assert re.fullmatch(NAME_PATTERN, name)
    assert len(name) <= 120
    assert name == slug(unicodedata.normalize("NFC", text)) or len(slug(text)) > 100


@given(
    st.lists(RELATIVE, unique=True, max_size=12).flatmap(
        lambda files: st.tuples(st.just(files), st.permutations(files))
    )
)
def test_names_are_unique_and_do_not_depend_on_order(both: tuple[list[str], list[str]]) -> None:
    files, shuffled = both
    paths = [f"a/{name}" for name in files]
    names = dict(zip(paths, names_of(files, paths), strict=True))
    assert len(set(names.values())) == len(files)
    assert all(re.fullmatch(NAME_PATTERN, name) for name in names.values())
    again = dict(zip((f"a/{n}" for n in shuffled), names_of(shuffled, [f"a/{n}" for n in shuffled]), strict=True))
    assert names == again


@given(st.text(min_size=1), st.integers(1, 256))
def test_shards_are_in_range_and_spread(name: str, shards: int) -> None:
    assert 0 <= shard_of(name, shards) < shards
    assert len({shard_of(f"{name}{i}", 4) for i in range(100)}) == 4


def test_a_clash_gives_both_their_ending(tmp_path: Path) -> None:
    touch(tmp_path, "img-1.heic", "img 1.jpg", "beach/img 01.jpg")
    assert found(tmp_path) == {
        "beach-img-01": f"{tmp_path}/beach/img 01.jpg",
        "img-1-heic": f"{tmp_path}/img-1.heic",
        "img-1-jpg": f"{tmp_path}/img 1.jpg",
    }


def test_a_clash_across_folders_is_stable(tmp_path: Path) -> None:
    touch(tmp_path, "one/a.jpg", "two/a.jpg", "two/b.jpg")
    forward, backward = found(tmp_path / "one", tmp_path / "two"), found(tmp_path / "two", tmp_path / "one")
    assert forward == backward
    assert len(forward) == 3
    assert "b" in forward
    assert sorted(name[:5] for name in forward if name != "b") == ["a-jpg", "a-jpg"]


def test_sidecars_masks_and_repeats(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.jpg", "p/a.txt", "p/sub/b.png", "p/masks/a.png", "p/masks/sub/b.png", "p/c.jpg", "p/notes.csv")
    folder = PhotoFolder(path=f"{tmp_path}/p/", repeats=3, masks=f"{tmp_path}/p/masks")
    photos = {photo.id: photo for photo in list_photos([folder])}
    assert set(photos) == {"a", "sub-b", "c"}
    assert photos["a"].sidecar_path == f"{tmp_path}/p/a.txt" == sidecar_of(photos["a"].path)
    assert photos["a"].mask_path == f"{tmp_path}/p/masks/a.png"
    assert photos["sub-b"].mask_path == f"{tmp_path}/p/masks/sub/b.png"
    assert photos["c"].mask_path is None
    assert photos["c"].sidecar_path is None
    assert {photo.repeats for photo in photos.values()} == {3}


def test_hidden_files_and_thumbnails_are_skipped_and_everything_else_is_found(tmp_path: Path) -> None:
    touch(tmp_path, ".DS_Store", "._a.jpg", ".thumbs/a.jpg", "@eaDir/a.jpg", "Thumbs.db", "__MACOSX/a.jpg")
    touch(tmp_path, "movie.mp4", "raw.cr2", "no-ending", "a.JPG")
    assert set(found(tmp_path)) == {"movie", "raw", "no-ending", "a"}


def test_an_absent_folder_lists_nothing(tmp_path: Path) -> None:
    assert found(tmp_path / "nowhere") == {}


def test_a_folder_inside_another_wins(tmp_path: Path) -> None:
    touch(tmp_path, "all/best/a.jpg", "all/b.jpg")
    outer, inner = PhotoFolder(path=f"{tmp_path}/all"), PhotoFolder(path=f"{tmp_path}/all/best", repeats=5)
    for folders in ([outer, inner], [inner, outer], [outer, inner, inner]):
        photos = {photo.path: photo.repeats for photo in list_photos(folders)}
        assert photos == {f"{tmp_path}/all/best/a.jpg": 5, f"{tmp_path}/all/b.jpg": 1}


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    touch(tmp_path, "p/a.jpg", "elsewhere/b.jpg")
    (tmp_path / "p/circle").symlink_to(tmp_path / "p")
    (tmp_path / "p/more").symlink_to(tmp_path / "elsewhere")
    assert set(found(tmp_path / "p")) >= {"a", "more-b"}
    assert len(walk_files(str(tmp_path / "p"))) <= 3


def test_a_name_that_is_not_utf8_is_left_to_the_index(tmp_path: Path, photo_at: Callable[..., Path]) -> None:
    touch(tmp_path, "a.jpg")
    with open(os.fsencode(tmp_path) + b"/b\xff.jpg", "wb") as file:  # noqa: PTH123
        file.write(b"x")
    assert set(found(tmp_path)) == {"a"}


def test_listing_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.path.insert(0, 'scripts'); import likeness.photos.names, likeness.photos.pairs; "
        "print(sorted({'numpy', 'PIL', 'pyarrow', 'scipy', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_twenty_thousand_names_take_seconds(tmp_path: Path) -> None:
    files = [f"folder {i % 100}/photo {i:05d}.jpg" for i in range(20_000)]
    assert len(set(names_of(files, files))) == 20_000


@pytest.mark.parametrize(
    "path", ["a.jpg", "a", ".a", "a.", "a.b.JPG", "x.y/a", "x.y/.a", "x.y/a.b", "a..b", "01.", "ä.png"]
)
def test_endings_are_those_of_pathlib(path: str) -> None:
    assert without_ending(path) == str(PurePosixPath(path).with_suffix(""))
    assert with_ending(path, ".txt") == str(PurePosixPath(path).with_suffix(".txt"))
    assert is_photo(path) == (PurePosixPath(path).suffix.lower() not in NOT_PHOTOS)


def test_plain_names_are_slugged_as_all_others() -> None:
    """Oracle: the same text with an accent, which falls away after the long way through all letters."""
    letters = random.Random(0)
    for _ in range(500):
        text = "".join(letters.choices("aZ09 -_.()#", k=letters.choice((1, 5, 20, 200)))) + "x"
        assert slug(text)[:100] == slug(f"{text}\u0301")[:100]

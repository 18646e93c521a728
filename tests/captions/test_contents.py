"""An edited caption follows its photo's bytes: renamed, copied, shadowed by another file, moved over another photo."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from likeness.captions import contents
from likeness.captions.contents import content_of_row, edits_of, settled
from likeness.captions.edits import COLUMNS, next_lines, read_lines, write_lines
from likeness.config.photos import PairFolder, PhotoFolder
from likeness.photos.names import list_photos
from likeness.photos.pairs import list_pairs
from likeness.store import sha256_of_file

MINE = "my own words"


class Captions:
    """A folder of photos and its captions.csv; the machine's caption is what a file says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.csv = folder, folder / "captions.csv"

    def file(self, name: str) -> Path:
        return self.folder / "photos" / name

    def write(self, **texts: str) -> None:
        for name, text in texts.items():
            self.file(f"{name}.png").parent.mkdir(exist_ok=True)
            self.file(f"{name}.png").write_text(text)

    def edits(self) -> dict[str, str]:
        return edits_of(self.csv, list_photos([PhotoFolder(path=str(self.folder / "photos"))]))

    def run(self) -> dict[str, str]:
        """Write captions and the csv as a run does; returns the edits that counted, which are those of the next run."""
        used = self.edits()
        found = list_photos([PhotoFolder(path=str(self.folder / "photos"))])
        usable = [photo for photo in found if photo.path.endswith(".png")]
        rows = [self._row(photo.id, Path(photo.path), used) for photo in usable]
        index = {photo.id: content_of_row(index_row(Path(photo.path))) for photo in usable}
        lines, loans = settled(read_lines(self.csv, set(index)), {name: key for name, key in index.items() if key})
        write_lines(self.csv, next_lines(rows, lines, loans))
        assert self.edits() == used, "the next run would start anew"
        return used

    def _row(self, name: str, path: Path, used: dict[str, str]) -> dict[str, Any]:
        by = "captions.csv" if name in used else "facts"
        caption = used.get(name) or f"j4ne, {path.read_text()}"
        return {"id": name, "caption": caption, "caption_by": by, "status": "ok", "reason": ""}

    def lines(self) -> dict[str, dict[str, str]]:
        with self.csv.open(encoding="utf-8-sig", newline="") as file:
            return {one["id"]: one for one in csv.DictReader(file)}

    def edit(self, name: str, caption: str) -> None:
        lines = self.lines()
        lines[name]["caption"] = caption
        write_lines(self.csv, lines.values())

    def words(self) -> dict[str, tuple[str, str]]:
        return {name: (line["caption"], line["written"]) for name, line in self.lines().items()}


def index_row(path: Path) -> dict[str, Any]:
    return {"status": "ok", "sha256": sha256_of_file(path), "size_bytes": path.stat().st_size}


@pytest.fixture
def captions(tmp_path: Path) -> Captions:
    """Three photos, the caption of `b` edited, and a run with it."""
    captions = Captions(tmp_path)
    captions.write(a="one", b="two by two", c="three")
    assert captions.run() == {}
    captions.edit("b", MINE)
    assert captions.run() == {"b": MINE}
    return captions


def test_a_renamed_photo_takes_its_edit_along_and_back(captions: Captions) -> None:
    before = captions.csv.read_bytes()
    captions.file("b.png").rename(captions.file("beach.png"))
    assert captions.run() == {"beach": MINE}
    assert captions.words()["beach"] == (MINE, "j4ne, two by two")
    assert "b" not in captions.lines()
    captions.file("beach.png").rename(captions.file("b.png"))
    assert captions.run() == {"b": MINE}
    assert captions.csv.read_bytes() == before


def test_a_taken_back_edit_of_a_renamed_photo_stays_taken_back(captions: Captions) -> None:
    captions.file("b.png").rename(captions.file("beach.png"))
    captions.run()
    captions.edit("beach", captions.words()["beach"][1])
    assert captions.run() == {}
    captions.file("beach.png").rename(captions.file("b.png"))
    assert captions.run() == {}


def test_a_file_beside_a_photo_that_changes_its_name_takes_no_edit(captions: Captions) -> None:
    captions.file("b.MOV").write_text("a film")
    assert captions.run() == {"b-png": MINE}
    captions.file("b.MOV").unlink()
    assert captions.run() == {"b": MINE}


def test_a_copy_shares_the_edit_and_its_undoing(captions: Captions) -> None:
    captions.write(aaa="two by two")
    assert captions.run() == {"b": MINE, "aaa": MINE}
    assert captions.words()["aaa"] == ("j4ne, two by two", "j4ne, two by two")
    assert captions.lines()["aaa"]["reason"] == "the same file as b, whose edited caption counts here too"
    captions.edit("b", "j4ne, two by two")
    assert captions.run() == {}
    captions.edit("b", MINE)
    captions.edit("aaa", "its own words")
    assert captions.run() == {"b": MINE, "aaa": "its own words"}


def test_a_copy_keeps_the_edit_of_a_photo_that_goes_or_changes(captions: Captions) -> None:
    captions.write(aaa="two by two", zzz="two by two")
    captions.run()
    captions.write(b="now other")
    assert captions.run() == {"b": MINE, "aaa": MINE, "zzz": MINE}
    captions.file("b.png").unlink()
    assert captions.run() == {"aaa": MINE, "zzz": MINE}
    captions.file("aaa.png").unlink()
    assert captions.run() == {"zzz": MINE}
    assert captions.words()["zzz"] == (MINE, "j4ne, two by two")
    assert captions.lines()["b"]["status"] == "absent"


def test_a_renamed_photo_takes_its_edit_along_past_a_copy(captions: Captions) -> None:
    captions.write(aaa="two by two")
    captions.run()
    captions.file("b.png").rename(captions.file("beach.png"))
    assert captions.run() == {"aaa": MINE, "beach": MINE}
    assert captions.words()["beach"] == (MINE, "j4ne, two by two")
    assert captions.lines()["aaa"]["reason"].startswith("the same file as beach")


def test_an_edit_by_name_wins(captions: Captions) -> None:
    captions.edit("a", "words of a")
    captions.run()
    captions.file("b.png").rename(captions.file("a.png"))
    assert captions.run() == {"a": "words of a"}
    captions.file("a.png").rename(captions.file("d.png"))
    assert captions.run() == {"d": "words of a"}


def test_a_photo_moved_over_another_takes_its_edit_along(captions: Captions) -> None:
    captions.file("b.png").rename(captions.file("a.png"))
    assert captions.run() == {"a": MINE}
    assert captions.words()["a"] == (MINE, "j4ne, two by two")


def test_a_file_of_before_the_column_counts_by_name(captions: Captions) -> None:
    lines = captions.lines()
    with captions.csv.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, [name for name in COLUMNS if name != "content"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines.values())
    assert captions.run() == {"b": MINE}
    assert captions.lines() == lines


def test_only_files_of_an_edited_photos_size_are_hashed(captions: Captions, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(contents, "sha256_of_file", counted)
    assert captions.edits() == {"b": MINE}
    captions.write(d="another size", e="TWO BY TWO")
    assert captions.edits() == {"b": MINE}
    assert hashed == ["e.png"]
    captions.edit("b", "")
    assert captions.edits() == {} and hashed == ["e.png"]


def pairs_at(folder: Path, texts: dict[str, tuple[str, str]]) -> Callable[[], dict[str, str]]:
    """Write pairs; gives the edits that count for them."""
    folder.mkdir()
    for name, (start, end) in texts.items():
        (folder / f"{name}_start.png").write_text(start)
        (folder / f"{name}_end.png").write_text(end)
    return lambda: edits_of(folder.parent / "captions.csv", list_pairs([PairFolder(path=str(folder))]))


def pair_row(folder: Path, name: str) -> dict[str, Any]:
    source, target = (folder / f"{name}_{role}.png" for role in ("start", "end"))
    row = {"status": "ok", "source_path": str(source), "target_path": str(target), "reference_paths": []}
    return row | {
        "sha256": sha256_of_file(target),
        "source_sha256": sha256_of_file(source),
        "reference_sha256s": [],
    }


def test_a_pair_is_its_source_and_its_target(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    edits = pairs_at(folder, {"01": ("before", "after"), "02": ("BEFORE", "after")})
    content = content_of_row(pair_row(folder, "01"))
    assert content and content.endswith("-11")
    line = {"id": "01", "caption": MINE, "written": "j4ne", "content": content}
    write_lines(tmp_path / "captions.csv", [line])
    assert edits() == {"01": MINE}
    for role in ("start", "end"):
        (folder / f"01_{role}.png").rename(folder / f"09_{role}.png")
    assert edits() == {"09": MINE}
    assert content_of_row({"status": "not_an_image"}) is None
    (folder / "09_end.png").unlink()
    assert content_of_row(pair_row(folder, "02") | {"target_path": str(folder / "09_end.png")}) is None

"""captions.csv: what a hand changed is known, kept and can be taken back, also after a spreadsheet had the file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.captions.edits import Line, next_lines, read_edits, read_lines, write_lines
from likeness.errors import UserError


def row(name: str, caption: str, by: str = "endpoint", status: str = "ok") -> dict[str, Any]:
    return {"id": name, "caption": caption, "caption_by": by, "status": status, "reason": ""}


def turn(path: Path, rows: list[dict[str, Any]]) -> dict[str, Line]:
    write_lines(path, next_lines(rows, read_lines(path)))
    return read_lines(path)


def change(path: Path, name: str, caption: str) -> None:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [one | ({"caption": caption} if one["id"] == name else {}) for one in csv.DictReader(file)]
    write_lines(path, rows)


def test_an_edit_lives_and_can_be_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    assert read_edits(path) == {}
    turn(path, [row("a", "j4ne, a hat, a coat"), row("b", "j4ne, b")])
    assert read_edits(path) == {}
    change(path, "a", "my own words")
    assert read_edits(path) == {"a": "my own words"}
    # The next run writes the caption with its trigger, but the file keeps what was typed: the edit does not change.
    lines = turn(path, [row("a", "j4ne, my own words", "captions.csv"), row("b", "j4ne, b")])
    assert lines["a"] == Line("my own words", "j4ne, a hat, a coat")
    before = path.read_bytes()
    turn(path, [row("a", "j4ne, my own words", "captions.csv"), row("b", "j4ne, b")])
    assert path.read_bytes() == before
    change(path, "a", lines["a"].written)
    assert read_edits(path) == {}
    assert turn(path, [row("a", "j4ne, a hat, a coat"), row("b", "j4ne, b")])["a"].is_edit is False


def test_an_emptied_cell_asks_for_the_pipelines_words(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    turn(path, [row("a", "j4ne, a")])
    change(path, "a", " ")
    assert read_edits(path) == {}
    assert turn(path, [row("a", "j4ne, a")])["a"] == Line("j4ne, a", "j4ne, a")


def test_edits_made_during_a_run_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    turn(path, [row("a", "j4ne, a"), row("b", "j4ne, b")])
    change(path, "a", "typed while the job ran")
    assert turn(path, [row("a", "j4ne, a"), row("b", "j4ne, b")])["a"] == Line("typed while the job ran", "j4ne, a")
    # Taken back while a job that still knew the edit ran:
    change(path, "a", "j4ne, a")
    assert turn(path, [row("a", "j4ne, typed", "captions.csv"), row("b", "j4ne, b")])["a"].is_edit is False


def test_a_sidecar_over_an_edit_is_said(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    turn(path, [row("a", "j4ne, a")])
    change(path, "a", "edit")
    write_lines(path, next_lines([row("a", "j4ne, from the sidecar", "sidecar")], read_lines(path)))
    assert read_edits(path) == {"a": "edit"}
    assert "text file beside the image wins" in path.read_text()


def test_edits_of_absent_photos_are_kept_and_others_go(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    turn(path, [row("a", "j4ne, a"), row("b", "j4ne, b")])
    change(path, "a", "edit")
    lines = turn(path, [])
    assert lines == {"a": Line("edit", "j4ne, a")}
    assert "absent" in path.read_text()


@pytest.mark.parametrize(("delimiter", "mark"), [(",", ""), (",", "\ufeff"), (";", "\ufeff"), ("\t", "")])
def test_spreadsheets_may_rewrite_the_file(tmp_path: Path, delimiter: str, mark: str) -> None:
    path = tmp_path / "captions.csv"
    caption = 'j4ne, a "hat"; a coat, 1,000 words\té'
    turn(path, [row("a", " ".join(caption.split()), "endpoint"), row("b", "j4ne, b")])
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(mark)
        writer = csv.DictWriter(file, ["note", "written", "id", "caption"], delimiter=delimiter, lineterminator="\r\n")
        writer.writeheader()
        for one in rows:
            kept = {key: one[key] for key in ("id", "caption", "written")}
            writer.writerow(kept | {"note": "x"} | ({"caption": "two\nlines, edited"} if one["id"] == "b" else {}))
    assert read_edits(path) == {"b": "two lines, edited"}
    assert read_lines(path)["a"].caption == " ".join(caption.split())


@pytest.mark.parametrize("text", ["", "id,caption\na,b\n", "a b c"])
def test_missing_columns_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="written"):
        read_edits(path)


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes("id,caption,written\na,café,b\n".encode("cp1252"))
    with pytest.raises(UserError, match="CSV UTF-8"):
        read_edits(path)


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@given(st.dictionaries(st.from_regex(r"[a-z0-9-]{1,9}", fullmatch=True), CELLS, max_size=5))
def test_any_caption_survives(tmp_path_factory: pytest.TempPathFactory, captions: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "captions.csv"
    rows = [row(name, " ".join(caption.split())) for name, caption in captions.items()]
    lines = turn(path, rows)
    assert read_edits(path) == {}
    assert {name: line.caption for name, line in lines.items()} == {one["id"]: one["caption"] for one in rows}

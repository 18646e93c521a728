"""captions.csv: what a hand changed is known, kept and can be taken back, also after a spreadsheet had the file."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from likeness.captions.edits import Line, next_lines, read_lines, write_lines
from likeness.config.load import load_project
from likeness.errors import UserError
from likeness.workflow_files import ProjectFiles


def read_edits(path: Path, known: Collection[str] = ()) -> dict[str, str]:
    return {name: line.caption for name, line in read_lines(path, known).items() if line.is_edit}


def row(name: str, caption: str, by: str = "endpoint", status: str = "ok") -> dict[str, Any]:
    return {"id": name, "caption": caption, "caption_by": by, "status": status, "reason": ""}


def turn(path: Path, rows: list[dict[str, Any]]) -> dict[str, Line]:
    write_lines(path, next_lines(rows, read_lines(path), {}))
    return read_lines(path)


def change(path: Path, name: str, caption: str) -> None:
    with path.open(encoding="utf-8-sig", newline="") as file:
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
    write_lines(path, next_lines([row("a", "j4ne, from the sidecar", "sidecar")], read_lines(path), {}))
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
    with path.open(encoding="utf-8-sig", newline="") as file:
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
    with pytest.raises(UserError, match=r"captions\.csv, line 2: .*CSV UTF-8"):
        read_edits(path)


def test_the_file_says_that_it_is_utf8(tmp_path: Path) -> None:
    """Excel reads a file without a mark in the system's code page, and would write that back."""
    path = tmp_path / "captions.csv"
    turn(path, [row("a", "j4ne, at a café")])
    assert path.read_bytes().startswith(b"\xef\xbb\xbf" + b"id,caption,written,status,reason,key,content\n")
    assert read_lines(path)["a"].caption == "j4ne, at a café"


def spoil(path: Path, ids: dict[str, str], edits: dict[str, str], *, keys: bool) -> None:
    """Save the file as a spreadsheet does that takes names for numbers and dates; `keys`: whether the column is kept."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = ["id", "caption", "written", *(["key"] if keys else [])]
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for one in rows:
            name = one["id"]
            caption = edits.get(name, one["caption"])
            writer.writerow(one | {"id": ids.get(name, name), "caption": caption})


SPOILT = {"001": "1", "0012": "12", "1e5": "1.00E+05", "2024-01-02": "1/2/2024", "20240102123456789": "2.02401E+16"}


def test_names_that_a_spreadsheet_changed_are_known_by_their_key(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    names = [*SPOILT, "1", "plain"]
    edits = {name: f"edit of {name}" for name in (*SPOILT, "plain")}
    turn(path, [row(name, f"j4ne, {name}") for name in names])
    spoil(path, SPOILT, edits, keys=True)
    assert read_edits(path, names) == edits


def test_a_name_that_a_hand_put_into_a_line_counts_and_a_photo_that_is_gone_keeps_its_own(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    turn(path, [row(name, f"j4ne, {name}") for name in ("001", "1", "plain")])
    spoil(path, {"001": "1", "plain": "renamed"}, {"001": "of 001", "plain": "of plain"}, keys=True)
    assert read_edits(path, ["1", "renamed"]) == {"001": "of 001", "renamed": "of plain"}


def test_the_workflow_knows_the_photos_that_edits_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("data/robin/001.jpg", "data/robin/Two.jpg", "config/config.yaml", "results/robin/captions.csv"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    subject = "{recipe: character, trigger: r0bin, photos: [{path: data/robin}], captions: {backend: facts}}"
    (tmp_path / "config/config.yaml").write_text(f"subjects: {{robin: {subject}}}\n")
    (tmp_path / "results/robin/captions.csv").write_text("id,caption,written\n1,mine,r0bin\ntwo,r0bin,r0bin\n")
    monkeypatch.chdir(tmp_path)
    assert ProjectFiles(load_project(tmp_path).project).edits == {"robin": {"001": "mine"}}


def test_a_file_that_cannot_be_read_keeps_its_complaint_to_its_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("robin", "wren", "owl"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "001.jpg").touch()
        (tmp_path / "results" / name).mkdir(parents=True)
    subjects = ", ".join(
        f"{name}: {{recipe: character, trigger: r0bin, photos: data/{name}, captions: {{backend: facts}}}}"
        for name in ("robin", "wren", "owl")
    )
    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text(f"subjects: {{{subjects}}}\n")
    (tmp_path / "results/robin/captions.csv").write_text("id,caption,written\n001,mine,r0bin\n")
    (tmp_path / "results/wren/captions.csv").write_bytes(b"id,caption,written\n001,\xff\xfe,wr3n\n")
    (tmp_path / "results/owl/captions.csv").mkdir()
    monkeypatch.chdir(tmp_path)
    files = ProjectFiles(load_project(tmp_path).project)
    assert files.edits == {"robin": {"001": "mine"}, "wren": {}, "owl": {}}
    assert files.unread_edits["robin"] == ""
    assert files.unread_edits["wren"].startswith("results/wren/captions.csv, line 2: not UTF-8 text.")
    assert files.unread_edits["owl"].startswith("results/owl/captions.csv: cannot be read (Is a directory).")


def test_numbers_find_their_photo_without_a_key_and_the_merge_writes_the_names_again(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    rows = [row(name, f"j4ne, {name}") for name in ("001", "0012", "1e5", "plain")]
    turn(path, rows)
    edits = {"001": "one", "1e5": "many"}
    spoil(path, {"001": "1", "0012": "12", "1e5": "1,00E+05"}, edits, keys=False)
    known = [one["id"] for one in rows]
    assert read_edits(path, known) == edits
    by_hand = [one | {"caption_by": "captions.csv"} if one["id"] in edits else one for one in rows]
    write_lines(path, next_lines(by_hand, read_lines(path, known), {}))
    assert list(read_lines(path)) == sorted(known)
    assert read_edits(path) == edits


@pytest.mark.parametrize(
    ("known", "changed", "said"),
    [
        (["001", "0001"], "1", r"line 2: the id '1' may mean 0001 or 001"),
        (["001", "2024-01-02"], "1/2/2024", r"line 2: the id '1/2/2024' can be the name of no photo"),
    ],
)
def test_an_edit_whose_photo_nothing_tells_is_an_error(
    tmp_path: Path, known: list[str], changed: str, said: str
) -> None:
    path = tmp_path / "captions.csv"
    path.write_text(f"id,caption,written\n{changed},mine,j4ne\n")
    with pytest.raises(UserError, match=said):
        read_edits(path, known)
    path.write_text(f"id,caption,written\n{changed},j4ne,j4ne\n")
    assert read_edits(path, known) == {}


def test_two_edits_of_one_photo_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_text("id,caption,written\na,one,j4ne\na,j4ne,j4ne\n")
    assert read_edits(path, ["a"]) == {"a": "one"}
    path.write_text("id,caption,written\na,one,j4ne\na,two,j4ne\n")
    with pytest.raises(UserError, match=r"line 3: a second edited caption of 'a'"):
        read_edits(path, ["a"])


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=30)


@given(st.dictionaries(st.from_regex(r"[a-z0-9-]{1,9}", fullmatch=True), CELLS, max_size=5))
def test_any_caption_survives(tmp_path_factory: pytest.TempPathFactory, captions: dict[str, str]) -> None:
    path = tmp_path_factory.mktemp("csv") / "captions.csv"
    rows = [row(name, " ".join(caption.split())) for name, caption in captions.items()]
    lines = turn(path, rows)
    assert read_edits(path) == {}
    assert {name: line.caption for name, line in lines.items()} == {one["id"]: one["caption"] for one in rows}

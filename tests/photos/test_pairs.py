"""Pairs in their three layouts: each gives the same pairs, and what is missing is named."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.photos.pictures import nothing_known

from likeness.config.photos import PairFolder, PhotoSettings
from likeness.errors import UserError
from likeness.photos.index import index_pair
from likeness.photos.pairs import PairFiles, list_pairs

PAIRS = ("01", "02 x", "ü3")
SMALL = PhotoSettings(min_side_px=16)
Writer = Callable[..., Path]


def flat(root: Path, photo_at: Writer) -> PairFolder:
    for number, name in enumerate(PAIRS):
        for role, seed in (("start", 10), ("start2", 20), ("end", 30)):
            photo_at(f"flat/{name}_{role}.png", seed=seed + number)
        (root / f"flat/{name}.txt").write_text(f"make it {number}\n", encoding="utf-8")
    return PairFolder(path=str(root / "flat"), repeats=2)


def by_roles(root: Path, photo_at: Writer) -> PairFolder:
    roles = {"source": "before", "reference": "face", "target": "after"}
    for number, name in enumerate(PAIRS):
        for folder, seed in (("before", 10), ("face", 20), ("after", 30)):
            photo_at(f"roles/{folder}/{name}.png", seed=seed + number)
        (root / f"roles/after/{name}.txt").write_text(f"make it {number}\n", encoding="utf-8")
    return PairFolder(path=str(root / "roles"), roles=roles, repeats=2)


def table_rows(photo_at: Writer) -> list[dict[str, str]]:
    rows = []
    for number, name in enumerate(PAIRS):
        row = {"caption": f"make it {number}", "id": name, "group": "generated"}
        for role, seed in (("source", 10), ("reference", 20), ("target", 30)):
            row[role] = f"images/{seed}-{number}.png"
            photo_at(f"table/{row[role]}", seed=seed + number)
        rows.append(row)
    return rows


def by_table(root: Path, photo_at: Writer, ending: str) -> PairFolder:
    rows, path = table_rows(photo_at), root / f"table/pairs.{ending}"
    if ending in ("csv", "tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ending == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif ending == "jsonl":
        lists = [row | {"reference": [row["reference"]]} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in lists), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return PairFolder(path=str(root / "table"), table=path.name, repeats=2)


def facts(pair: PairFiles) -> dict[str, object]:
    """The index row without paths; the caption from wherever the layout keeps it."""
    row = index_pair(pair, SMALL, nothing_known())
    text = Path(pair.caption_path).read_text(encoding="utf-8").strip() if pair.caption_path else None
    return {name: value for name, value in row.items() if not name.endswith(("path", "paths", "caption"))} | {
        "caption": row["caption"] or text
    }


def test_every_layout_gives_the_same_rows(tmp_path: Path, photo_at: Writer) -> None:
    expected = [facts(pair) for pair in list_pairs([flat(tmp_path, photo_at)])]
    assert [row["id"] for row in expected] == ["01", "02-x", "u3"]
    assert {row["status"] for row in expected} == {"ok"}
    assert [row["caption"] for row in expected] == ["make it 0", "make it 1", "make it 2"]
    assert all(len(row["reference_sha256s"]) == 1 for row in expected)  # type: ignore[arg-type]
    assert [facts(pair) for pair in list_pairs([by_roles(tmp_path, photo_at)])] == expected
    for ending in ("csv", "tsv", "jsonl", "parquet"):
        assert [facts(pair) for pair in list_pairs([by_table(tmp_path, photo_at, ending)])] == expected, ending


def test_a_missing_role_is_named(tmp_path: Path, photo_at: Writer) -> None:
    folder = flat(tmp_path, photo_at)
    (tmp_path / "flat/01_end.png").unlink()
    (tmp_path / "flat/02 x_start2.png").unlink()
    rows = {pair.id: index_pair(pair, SMALL, nothing_known()) for pair in list_pairs([folder])}
    assert {name: row["status"] for name, row in rows.items()} == {
        "01": "missing_role",
        "02-x": "missing_role",
        "u3": "ok",
    }
    assert "missing: target;" in rows["01"]["reason"]
    assert "missing: reference;" in rows["02-x"]["reason"]


def test_a_configured_role_without_files_is_missing_everywhere(tmp_path: Path, photo_at: Writer) -> None:
    folder = by_roles(tmp_path, photo_at)
    wider = folder.model_copy(update={"roles": {**(folder.roles or {}), "reference2": "light"}})
    assert {pair.missing for pair in list_pairs([wider])} == {("reference2",)}


def test_strays_are_rows(tmp_path: Path, photo_at: Writer) -> None:
    folder = flat(tmp_path, photo_at)
    photo_at("flat/holiday.png")
    photo_at("flat/01_end.webp")
    photo_at("flat/01_start9.png")
    rows = [index_pair(pair, SMALL, nothing_known()) for pair in list_pairs([folder])]
    strays = sorted(row["reason"].split(":")[0].rsplit("/")[-1] for row in rows if row["status"] == "no_role")
    assert strays == ["01_end.webp", "01_start9.png", "holiday.png"]
    assert sum(row["status"] == "ok" for row in rows) == 3


def test_without_an_id_a_row_is_named_after_its_target(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("source,target\nb/7_start.png,b/7_end.png\n", encoding="utf-8")
    assert [pair.id for pair in list_pairs([PairFolder(path=str(tmp_path), table="t.csv")])] == ["b-7"]


def test_masks_lie_under_the_name_of_the_pair(tmp_path: Path, photo_at: Writer) -> None:
    photo_at("masks/01.png")
    folder = flat(tmp_path, photo_at).model_copy(update={"masks": str(tmp_path / "masks")})
    assert [pair.mask_path for pair in list_pairs([folder])] == [f"{tmp_path}/masks/01.png", None, None]


def test_two_folders_and_the_same_folder_twice(tmp_path: Path, photo_at: Writer) -> None:
    folder = flat(tmp_path, photo_at)
    other = by_roles(tmp_path, photo_at)
    for folders in ([folder, other], [folder, folder]):
        pairs = list_pairs(folders)
        assert len({pair.id for pair in pairs}) == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("before,after\na.png,b.png\n", "source and target are needed"),
        ("source,target,reference7\na.png,b.png,c.png\n", "unknown role 'reference7'"),
        ("source,target,repeats\na.png,b.png,many\n", "repeats is 'many'"),
        ("source,target,caption\na.png,b.png,red, not blue\n", "row 1: more cells"),
    ],
)
def test_a_wrong_table_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        list_pairs([PairFolder(path=str(tmp_path), table="t.csv")])


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_spreadsheets_ways_of_csv_are_read(tmp_path: Path, delimiter: str, encoding: str) -> None:
    lines = ["source target caption", "a.png b.png größer", "c.png d.png"]
    text = "".join(line.replace(" ", delimiter) + "\r\n" for line in lines)
    (tmp_path / "t.csv").write_text(text, encoding=encoding, newline="")
    pairs = list_pairs([PairFolder(path=str(tmp_path), table="t.csv")])
    assert [(Path(pair.paths["target"]).name, pair.caption) for pair in pairs] == [("b.png", "größer"), ("d.png", None)]


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl"])
def test_a_table_that_is_not_utf8_says_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes("source,target,caption\na.png,b.png,größer\n".encode("cp1252"))
    with pytest.raises(UserError, match=rf"{name}: not UTF-8 text .*CSV UTF-8"):
        list_pairs([PairFolder(path=str(tmp_path), table=name)])


def test_a_torn_parquet_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(UserError, match=r"t\.parquet: not a Parquet file"):
        list_pairs([PairFolder(path=str(tmp_path), table="t.parquet")])


def test_broken_json_names_its_line_and_an_unknown_kind_its_ending(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"source": "a", "target": "b"}\n{oops\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"t\.jsonl, line 2"):
        list_pairs([PairFolder(path=str(tmp_path), table="t.jsonl")])
    (tmp_path / "t.xlsx").write_text("x")
    with pytest.raises(UserError, match="unknown kind"):
        list_pairs([PairFolder(path=str(tmp_path), table="t.xlsx")])


def test_absent_things_list_nothing(tmp_path: Path) -> None:
    absent = str(tmp_path / "nowhere")
    folders = [PairFolder(path=absent), PairFolder(path=absent, table="t.csv")]
    assert list_pairs(folders) == []


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'source'"):
        list_pairs([PairFolder(path=str(tmp_path), roles={"sorce": "a", "target": "b"})])

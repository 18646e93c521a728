"""Inputs that are not there, or that Snakemake cannot take, stop nobody else and hide no edit, at first and later."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.workflow.conftest import draw_photos
from tests.workflow.project import Project

from likeness.photos.names import shard_of
from likeness.tables import PAIRS, PHOTOS, read_rows

pytestmark = pytest.mark.long

CONFIG = """\
shards: 2
defaults:
  base_model: miniature
  photo: {min_side_px: 96}
"""
OF_PAIRS = """\
recipe: edit
trigger: r0bin
pairs: {path: data/robin, table: pairs.csv}
phases: {main: {order_by: id}}
"""
OF_PHOTOS = """\
recipe: character
trigger: wr3n
photos: data/wren
phases: {main: {order_by: id}}
"""
TABLE = "id;source;target;caption\none;photo-00.png;photo-01.png;größer\ntwo;photo-02.png;photo-03.png;kleiner\n"
WREN, ROBIN = "results/wren/photos.parquet", "results/robin/pairs.parquet"


@pytest.fixture
def both(tmp_path: Path) -> Project:
    """A subject of photos and one of pairs, of which nothing is made yet."""
    project = Project(tmp_path)
    project.configure(CONFIG)
    project.configure(OF_PHOTOS, "wren")
    project.configure(OF_PAIRS, "robin")
    draw_photos(tmp_path / "data" / "wren", count=6, seed=5)
    draw_photos(tmp_path / "data" / "robin", count=4, seed=6)
    (tmp_path / "data" / "robin" / "pairs.csv").write_text(TABLE, encoding="utf-8")
    return project


def index(subject: str, kind: str, *names: str) -> set[str]:
    """The index jobs of some photos, and their merge."""
    shards = {shard_of(name, 2) for name in names}
    return {f"index_{kind}/{subject}/{shard}" for shard in shards} | {f"merge_photos/{subject}/{kind}"}


ALL_OF_WREN = {"index_photos/wren/0", "index_photos/wren/1", "merge_photos/wren/photos"}
ALL_OF_ROBIN = {"index_pairs/robin/0", "index_pairs/robin/1", "merge_photos/robin/pairs"}


def photos(project: Project) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in read_rows(project.folder / WREN, PHOTOS)}


def statuses(project: Project) -> dict[str, str]:
    return {row["id"]: row["status"] for row in read_rows(project.folder / ROBIN, PAIRS)}


def test_a_wrong_or_absent_table_fails_in_its_job_alone(both: Project) -> None:
    both.reconfigure("shards: 2", "shards: 1")
    table = both.folder / "data" / "robin" / "pairs.csv"
    table.write_bytes(TABLE.encode("cp1252"))
    run = both.run("--keep-going", ROBIN, WREN)
    assert run.code != 0 and run.jobs == {"index_pairs/robin/0", "index_photos/wren/0", "merge_photos/wren/photos"}
    assert "pairs.csv: not UTF-8 text" in both.log("index_pairs/robin/0") and "Traceback" not in run.text

    table.write_text(TABLE, encoding="utf-8")
    assert both.succeed(ROBIN, WREN).jobs == {"index_pairs/robin/0", "merge_photos/robin/pairs"}

    table.unlink()
    run = both.run("--keep-going", ROBIN, WREN)
    assert run.code != 0 and run.jobs == {"index_pairs/robin/0"}
    assert "pairs[0].table: there is no data/robin/pairs.csv" in both.log("index_pairs/robin/0")


def test_photos_with_braces_and_links_to_nothing_are_rows_of_a_fresh_project(both: Project) -> None:
    folder = both.folder / "data" / "wren"
    (folder / "photo-00.png").rename(folder / "me {summer}.png")
    (folder / "gone.png").symlink_to("nowhere.png")
    assert both.succeed(WREN).jobs == ALL_OF_WREN
    rows = photos(both)
    assert rows["me-summer"]["status"] == "ok" and rows["me-summer"]["path"] == "data/wren/me {summer}.png"
    assert rows["gone"]["status"] == "missing" and "gone.png: there is no such file" in str(rows["gone"]["reason"])
    assert both.run("-n", WREN).jobs == set()


def test_photos_with_braces_and_links_to_nothing_start_their_shards_later(both: Project) -> None:
    both.succeed(WREN)
    folder = both.folder / "data" / "wren"
    odd = folder / "sea{side}.png"
    odd.write_bytes((folder / "photo-01.png").read_bytes()[:2000])
    assert both.succeed(WREN).jobs == index("wren", "photos", "sea-side")
    assert photos(both)["sea-side"]["status"] == "truncated"

    draw_photos(both.folder / "others", count=6, seed=9)
    for path in sorted((both.folder / "others").iterdir()):
        path.replace(folder / path.name)
    assert both.succeed(WREN).jobs == ALL_OF_WREN

    before = photos(both)["photo-01"]["sha256"]
    (folder / "photo-01.png").replace(odd)
    assert both.succeed(WREN).jobs == index("wren", "photos", "sea-side", "photo-01")
    assert photos(both)["sea-side"]["sha256"] == before

    odd.unlink()
    (folder / "photo-02.png").unlink()
    (folder / "photo-02.png").symlink_to("nowhere.png")
    assert both.succeed(WREN).jobs == index("wren", "photos", "sea-side", "photo-02")
    found = {name: row["status"] for name, row in photos(both).items()}
    assert found == {"photo-02": "missing", **dict.fromkeys(["photo-00", "photo-03", "photo-04", "photo-05"], "ok")}
    assert both.succeed(WREN).jobs == set()


def test_a_pair_whose_file_is_absent_is_a_row_at_first_and_later(both: Project) -> None:
    photo = both.folder / "data" / "robin" / "photo-02.png"
    aside = photo.replace(both.folder / "aside.png")
    assert both.succeed(ROBIN, WREN).jobs == ALL_OF_ROBIN | ALL_OF_WREN
    assert statuses(both) == {"one": "ok", "two": "missing"}

    aside.replace(photo)
    assert both.succeed(ROBIN).jobs == index("robin", "pairs", "two")
    assert statuses(both) == {"one": "ok", "two": "ok"}
    assert both.succeed(ROBIN).jobs == set()

    photo.unlink()
    assert both.succeed(ROBIN).jobs == index("robin", "pairs", "two")
    assert statuses(both) == {"one": "ok", "two": "missing"}


def test_an_absent_reference_fails_in_the_merge_of_its_subject_alone(project: Project) -> None:
    faces = "results/robin/faces.parquet"
    reference = project.folder / "data" / "robin {ref}.png"
    reference.write_bytes((project.folder / "data" / "robin" / "photo-00.png").read_bytes())
    text = project.config_file("robin").read_text(encoding="utf-8")
    project.configure(text + 'reference: ["data/robin {ref}.png", data/other.png]\n', "robin")
    run = project.run(faces)
    assert run.code != 0 and run.jobs == {"merge_faces/robin"} and "Traceback" not in run.text
    assert "error: reference: there is no data/other.png. " in project.log("merge_faces/robin")

    project.configure(text + 'reference: ["data/robin {ref}.png"]\n', "robin")
    assert project.succeed(faces).jobs == {"merge_faces/robin"}
    assert project.succeed(faces).jobs == set()
    reference.write_bytes((project.folder / "data" / "robin" / "photo-01.png").read_bytes())
    assert project.succeed(faces).jobs == {"merge_faces/robin"}
    reference.unlink()
    run = project.run("--keep-going", faces)
    assert run.code != 0 and run.jobs == {"merge_faces/robin"}
    assert "there is no data/robin {ref}.png" in project.log("merge_faces/robin")


def test_an_unreadable_captions_csv_fails_in_its_subjects_jobs_alone(pair: Project) -> None:
    edited = pair.folder / "results" / "wren" / "captions.csv"
    before = edited.read_bytes()
    edited.write_bytes(b"id,caption,written\nphoto-01,\xff\xfe,x\n")
    assert pair.succeed("robin").jobs == set()
    run = pair.run("--keep-going", "--retries", "0")
    assert run.code != 0 and run.jobs == {"write_captions/wren/0", "write_captions/wren/1"}
    for shard in "01":
        log = pair.log(f"write_captions/wren/{shard}")
        assert "error: results/wren/captions.csv, line 2: not UTF-8 text." in log and "Traceback" not in log
    edited.write_bytes(before)
    healed = pair.succeed("wren")
    assert {"write_captions/wren/0", "write_captions/wren/1", "merge_captions/wren"} <= healed.jobs
    assert healed.computed == {} and "train_lora" not in {job.partition("/")[0] for job in healed.jobs}

"""What publishing leaves of earlier LoRAs: read from the card that the real writer made, or from an archived best.json."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.report.conftest import report_of
from tests.report.fabricate import PREVIOUS, Run, fabricate, read_best

from likeness.evaluation import publish
from likeness.report.archive import previous_loras
from likeness.store import write_atomically


def test_the_card_is_read_back(run: Run) -> None:
    best = read_best(run, "robin")
    found = list(previous_loras(run.results / "robin" / "lora", best["lora_sha256"]))
    assert [(one.sha12, one.source, one.checkpoint, one.lora_scale, one.recogniser) for one in found] == [
        (PREVIOUS, "card", "main/main/100", 1.0, "miniature-judge")
    ]
    for name, parts in best["metrics"].items():
        for part in ("value", "low", "high"):
            before = found[0].metrics[name][part]
            if parts[part] is None:
                assert before is None
            else:
                assert before is not None
                assert abs(before - (parts[part] - 0.1)) <= 0.0005 + 1e-9


def test_what_publishing_archives_is_found(tmp_path: Path) -> None:
    """The real archive function moves the published files; their card is what the report reads."""
    run = fabricate(tmp_path)
    folder = run.results / "robin" / "lora"
    card = folder / "archive" / PREVIOUS / "README.md"
    (folder / "robin.safetensors").write_bytes(b"weights of before")
    shutil.move(card, folder / "README.md")
    card.parent.rmdir()
    publish.archive(folder, "robin", keep_sha256="f" * 64)
    found = list(previous_loras(folder, read_best(run, "robin")["lora_sha256"]))
    assert len(found) == 1
    assert found[0].sha12 == publish.sha256_of_file(folder / "archive" / found[0].sha12 / "robin.safetensors")[:12]
    assert "likeness" in found[0].metrics


def test_an_archived_best_wins_over_the_card(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    folder = run.results / "robin" / "lora"
    best = read_best(run, "robin") | {"lora_sha256": PREVIOUS + "0" * 52}
    write_atomically(folder / "archive" / PREVIOUS / "best.json", json.dumps(best).encode())
    found = list(previous_loras(folder, "f" * 64))
    assert found[0].source == "best"
    assert found[0].metrics["likeness"]["value"] == best["metrics"]["likeness"]["value"]


def test_the_newest_comes_first_and_todays_lora_is_not_its_own_predecessor(tmp_path: Path) -> None:
    for age, name in enumerate(("cccccccccccc", "aaaaaaaaaaaa", "bbbbbbbbbbbb")):
        write_atomically(tmp_path / "archive" / name / "README.md", b"# a card without scores\n")
        os.utime(tmp_path / "archive" / name, ns=(0, 10**9 * (10 - age)))
    assert [one.sha12 for one in previous_loras(tmp_path, "a" * 64)] == ["cccccccccccc", "bbbbbbbbbbbb"]
    assert list(previous_loras(tmp_path / "nowhere", None)) == []


def test_a_card_without_scores_is_shown_as_such(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    write_atomically(run.results / "robin" / "lora" / "archive" / PREVIOUS / "README.md", b"# robin\n")
    assert "It left no numbers." in report_of(run)


def test_another_recogniser_is_pointed_out(tmp_path: Path) -> None:
    run = fabricate(tmp_path)
    path = run.results / "robin" / "lora" / "archive" / PREVIOUS / "README.md"
    assert "Measured with another recogniser" not in report_of(run)
    path.write_text(path.read_text("utf-8").replace("miniature-judge", "buffalo"))
    assert "Measured with another recogniser (buffalo)" in report_of(run)

"""Phases that read training losses: taken apart as DuckDB reads them, and every mistake named with its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest

from likeness.config.load import load_project
from likeness.config.phases import PhaseSettings
from likeness.config.train_losses import Parts, parts_of
from likeness.errors import UserError

HEAD = "recipe: character\ntrigger: j4ne\nphotos: data/jane\n"
TWO = "phases:\n  broad: {}\n  fine: {%s}\n"


@pytest.mark.parametrize(
    ("where", "order_by", "expected"),
    [
        ("sharpness > 3", "sharpness DESC", Parts("sharpness > 3", "sharpness DESC")),
        ("caption LIKE '%train_loss_percentile%'", "id", Parts("caption LIKE '%train_loss_percentile%'", "id")),
        ("train_loss_percentile < 90", "id", Parts("true", "id", "(train_loss_percentile < 90)")),
        (
            "sharpness > 3 AND Train_Loss_Percentile < 90 and framing = 'close' AND train_loss_percentile > 5",
            "sample_id",
            Parts(
                "(sharpness > 3) AND (framing = 'close')",
                "sample_id",
                "(Train_Loss_Percentile < 90) AND (train_loss_percentile > 5)",
            ),
        ),
        (
            "true",
            "train_loss_percentile desc nulls last, sharpness, id desc",
            Parts("true", "sharpness, id DESC", "true", "train_loss_percentile DESC NULLS LAST"),
        ),
        ("true", "train_loss_percentile", Parts("true", "sha256", "true", "train_loss_percentile")),
        (
            "(train_loss_percentile < 90 OR train_loss_percentile IS NULL) AND yaw_deg < 30",
            "id",
            Parts("(yaw_deg < 30)", "id", "((train_loss_percentile < 90) OR (train_loss_percentile IS NULL))"),
        ),
    ],
)
def test_sql_is_taken_apart(where: str, order_by: str, expected: Parts) -> None:
    assert parts_of(PhaseSettings(where=where, order_by=order_by), "phases.fine") == expected


def test_the_parts_together_select_what_the_whole_does() -> None:
    where = "sharpness > 20 AND (train_loss_percentile < 50 OR train_loss_percentile > 90) AND NOT blurred"
    parts = parts_of(PhaseSettings(where=where), "k")
    with duckdb.connect() as connection:
        connection.execute(
            "CREATE TABLE samples AS SELECT s.range AS sharpness, p.range AS train_loss_percentile, s.range % 2 = 0 AS blurred "
            "FROM range(0, 60, 7) s, range(0, 100, 9) p"
        )
        whole, both = (
            connection.execute(f"SELECT * FROM samples WHERE {one} ORDER BY ALL").fetchall()
            for one in (where, f"({parts.where}) AND ({parts.loss_where})")
        )
    assert whole == both and 0 < len(whole) < 100


@pytest.mark.parametrize(
    ("phase", "expected"),
    [
        (
            {"where": "train_loss_percentile < 90 OR sharpness > 3"},
            "k.where: `((train_loss_percentile < 90) OR (sharpness > 3))` reads train_loss_percentile together with sharpness.",
        ),
        ({"where": "train_loss_percentile < yaw_deg AND true"}, "together with yaw_deg"),
        ({"order_by": "sharpness - train_loss_percentile"}, "k.order_by: `(sharpness - train_loss_percentile)` reads"),
        ({"order_by": "sharpness, train_loss_percentile"}, "orders by train_loss_percentile after other columns"),
        ({"where": "train_loss_percentile <"}, "k.where: cannot read 'train_loss_percentile <' as SQL"),
    ],
)
def test_what_mixes_losses_with_other_columns_is_refused(phase: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        parts_of(PhaseSettings(**phase), "k")
    assert expected in str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config" / "subjects").mkdir(parents=True)
    return tmp_path


def load(folder: Path, text: str) -> Any:
    (folder / "config" / "subjects" / "jane.yaml").write_text(HEAD + text, encoding="utf-8")
    return load_project(folder).project.subjects["jane"]


READS = 'where: "train_loss_percentile < 90"'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TWO % READS, "jane.yaml:6: subject jane: phases.fine: it reads train_loss_percentile; name the variant"),
        (TWO % "losses_of: main", "jane.yaml:6: subject jane: phases.fine.losses_of: neither where nor order_by reads"),
        (
            f"phases:\n  broad: {{{READS}, losses_of: main}}\n",
            "phases.broad.losses_of: the first phase has no training before",
        ),
        (TWO % f"{READS}, losses_of: mian", "phases.fine.losses_of: no variant 'mian'; did you mean 'main'"),
        (
            TWO % f"{READS}, losses_of: old" + "variants: {main: {}, old: {lora: x.safetensors}}\n",
            "losses_of: variant 'old' is made of finished files",
        ),
        (
            TWO % f"{READS}, losses_of: st"
            + "variants: {main: {}, st: {trainer: simpletuner, phases: [broad]}}\ntrainers: {simpletuner: {command: train}}\n",
            "losses_of: variant 'st' is trained by simpletuner",
        ),
        (
            TWO % f"{READS}, losses_of: late" + "variants: {main: {}, late: {phases: [fine]}}\n",
            "losses_of: variant 'late' does not train 'broad', the phase before",
        ),
        (
            TWO % f"{READS}, losses_of: main, balance: {{close: 1}}",
            "phases.fine.balance: shares of framings cannot be kept where training losses decide",
        ),
        (
            TWO % f"{READS}, losses_of: main" + "  best: {balance: {close: 1}}\n",
            "phases.best.balance: shares of framings cannot be kept",
        ),
        (
            TWO % 'where: "train_loss_percentile < sharpness", losses_of: main',
            "jane.yaml:6: subject jane: phases.fine.where: `(train_loss_percentile < sharpness)` reads",
        ),
        (
            TWO % f"{READS}, losses_of: main"
            + "training: {targets_from: {ablation: blocks}}\nablation: {blocks: {of: {file: a.safetensors}}}\n",
            "losses_of: variant 'main' takes its targets from an ablation",
        ),
    ],
)
def test_every_mistake_is_an_error_with_its_key(folder: Path, text: str, expected: str) -> None:
    (folder / "a.safetensors").touch()
    with pytest.raises(UserError) as caught:
        load(folder, text)
    assert expected in str(caught.value)


def test_mistakes_about_losses_come_with_the_others(folder: Path) -> None:
    text = (
        TWO % 'where: "train_loss_percentile < sharpness", losses_of: mian'
        + "pick: {variant: x, phase: fine, step: 1}\n"
    )
    with pytest.raises(UserError) as caught:
        load(folder, text)
    for expected in (
        "3 mistakes",
        "phases.fine.where: ",
        "phases.fine.losses_of: no variant",
        "pick.variant: no variant",
    ):
        assert expected in str(caught.value)


def test_phases_behind_a_refined_one_are_refined_while_they_nest(folder: Path) -> None:
    more = "  best: {top: 3}\n  other: {nested: false}\n  last: {balance: {close: 1}}\n"
    subject = load(folder, TWO % f"{READS}, losses_of: main" + more)
    assert subject.refined_phases == ["fine", "best"]
    assert load(folder, TWO % "top: 3").refined_phases == []

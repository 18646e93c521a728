"""Killed and resumed to the same bytes with what else a training can hold: other adapters, diptychs, pictures of the class."""

from __future__ import annotations

from typing import Any

import pytest
from tests.training.conftest import World, photo_rows
from tests.training.test_training_diptych import DIPTYCH, RIGHT
from tests.training.test_training_train import Killed, bytes_of, kill_at, train, verify_once  # noqa: F401

from likeness.tables import PHOTOS, read_rows, write_table

PLACES = [("likeness.training.loop.train_step", 4), ("likeness.training.records.write_atomically", 4)]
"""In a step, and between a state and its record."""
STEPS = {"batch_size": 2, "gradient_accumulation": 2}
OF_CLASS = {"losses": {"prior_preservation": {"ratio": 0.5}}}


def with_class(world: World) -> World:
    """Two pictures of the class beside the photos."""
    table = world.root / "class.parquet"
    rows = photo_rows(world.root / "class", [(64, 64), (48, 48)])
    write_table(table, PHOTOS, [row | {"repeats": 1} for row in rows])
    world.regularisation = [table]
    return world


def check_resumes(world: World, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    """Train once in one go, and once for each place with a kill there."""
    settings = {**STEPS, **changes}
    assert train(world, "straight", **settings).computed == 6
    expected = bytes_of(world.root / "straight")
    for number, (place, at) in enumerate(PLACES):
        (world.store.root / "trainings").rename(world.root / f"trainings-{number}")
        with monkeypatch.context() as patch:
            kill_at(patch, place, at)
            with pytest.raises(Killed):
                train(world, f"again-{number}", **settings)
        outcome = train(world, f"again-{number}", **settings)
        assert 0 < outcome.computed < 6, "it went on, from where it was"
        assert bytes_of(world.root / f"again-{number}") == expected, (place, at)


@pytest.mark.parametrize("kind", ["dora", "lokr"])
def test_other_adapters(pair_world, monkeypatch, kind):
    pair_world.encode()
    check_resumes(pair_world, monkeypatch, {"adapter": {"kind": kind}, "ema": {"decay": 0.9}})


def test_diptychs(pair_world, monkeypatch):
    pair_world.encode(buckets=(DIPTYCH,))
    check_resumes(pair_world, monkeypatch, {"buckets": DIPTYCH, "losses": RIGHT})


def test_pictures_of_the_class(photo_world, monkeypatch):
    world = with_class(photo_world)
    world.encode(regularisation_caption="a photo of a human")
    check_resumes(world, monkeypatch, OF_CLASS)
    log = read_rows(world.root / "straight" / "log.parquet")
    assert [row["loss_prior_preservation"] > 0 for row in log] == [True] * 6

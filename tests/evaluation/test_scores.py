"""Scores by columns say what plain loops over the rows say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from likeness.evaluation.scores import Checkpoint, Scores, read_scores
from likeness.evaluation.statistics import cluster_means
from likeness.tables import SCORES, write_table


def rows_at_random(seed: int) -> list[dict]:
    """Rows in random order with nulls, faceless images, several strengths, halves, sources and a distilled model."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(600):
        step = int(rng.choice([0, 250, 500]))
        value = None if rng.random() < 0.2 else float(rng.random())
        prompt = f"p{rng.integers(4)}"
        variant = str(rng.choice(["main", "other"])) if step else "base"
        rows.append(
            dict.fromkeys(("subject", "prompt", "image", "metric_version"), "x")
            | {"variant": variant, "phase": str(rng.choice(["one", "two"])) if step else "", "step": step}
            | {"lora_sha256": f"{variant}{step}", "base_model": str(rng.choice(["base", "base", "distilled"]))}
            | {"lora_scale": float(rng.choice([1.0, 1.2])), "prompt_id": prompt, "seed": int(rng.integers(3))}
            | {"source_id": str(rng.choice(["", "s1"])), "split": str(rng.choice(["select", "report"]))}
            | {"metric": str(rng.choice(["likeness", "detected"])), "value": value}
            | {"status": "ok" if value is not None else str(rng.choice(["no_face", "no_weights: x"]))}
        )
    return rows


@pytest.mark.parametrize("seed", range(3))
def test_groups_and_means_equal_those_of_plain_loops(seed: int, tmp_path: Path) -> None:
    rows = rows_at_random(seed)
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, part in zip(paths, (rows[:250], rows[250:]), strict=True):
        write_table(path, SCORES, part)
    own = [row for row in rows if row["base_model"] == "base"]
    for scores in (Scores(rows), Scores(read_scores(paths))):
        assert scores.base_model == "base"
        keys = {
            (Checkpoint(row["variant"], row["phase"], row["step"]), row["split"], row["lora_scale"], row["metric"])
            for row in own
        }
        assert set(scores.groups) == keys
        for checkpoint, split, scale, metric in keys:
            same = [
                row
                for row in own
                if (row["variant"], row["phase"], row["step"])
                == (checkpoint.variant, checkpoint.phase, checkpoint.step)
                and (row["split"], row["lora_scale"], row["metric"]) == (split, scale, metric)
            ]
            assert scores.statuses(checkpoint, split, metric, scale) == {row["status"] for row in same}
            for faceless in (None, 0.0):
                triples = []
                for row in same:
                    value = faceless if row["value"] is None and row["status"] == "no_face" else row["value"]
                    if value is not None:
                        triples.append((row["source_id"] or row["prompt_id"], row["prompt_id"], value))
                assert scores.clusters(checkpoint, split, metric, scale, faceless) == cluster_means(triples)
    plain = Scores(rows)
    assert plain.variant_order == list(dict.fromkeys(row["variant"] for row in own))
    assert plain.phase_order["main"] == list(dict.fromkeys(row["phase"] for row in own if row["variant"] == "main"))


def test_no_rows_are_no_scores() -> None:
    scores = Scores([])
    assert scores.candidates == [] and scores.groups == {} and scores.base_model == ""

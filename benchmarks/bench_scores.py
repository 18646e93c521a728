"""Measure how long a million score rows take to become a choice: reading the tables, ranking all checkpoints, best.json.

The bare work beside it is what a query engine needs for the plainest summary of the same files: the mean of every
metric of every checkpoint, by DuckDB on one thread. Both are CPU seconds of this process, without start and imports.

    python benchmarks/bench_scores.py --rows 1000000 --json figures.json
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from figures import show

from likeness.config.evaluation import ChoiceSettings, ChoiceStage
from likeness.evaluation.choice import best_record
from likeness.evaluation.metrics import REGISTRY
from likeness.evaluation.scores import read_scores
from likeness.tables import SCORES, write_table

PROMPTS, SEEDS, STEPS = 12, 4, 50
REPEATS = 3


def write_tables(folder: Path, rows: int) -> list[Path]:
    """Write score tables of many variants of one subject, one a variant, as evaluation does; with at least `rows` rows."""
    per_checkpoint = PROMPTS * SEEDS * len(REGISTRY)
    variants = max(1, -(-rows // (per_checkpoint * STEPS)))
    tables = [("base", [0])] + [(f"v{number}", range(20, 20 * STEPS + 1, 20)) for number in range(variants)]
    rng = np.random.default_rng(0)
    paths = []
    for variant, steps in tables:
        path = folder / variant / "scores.parquet"
        write_table(path, SCORES, score_table(variant, list(steps), rng))
        paths.append(path)
    return paths


def score_table(variant: str, steps: list[int], rng: np.random.Generator) -> pa.Table:
    """Rows of one variant: every step, prompt, seed and metric."""
    place_N = np.indices((len(steps), PROMPTS, SEEDS, len(REGISTRY))).reshape(4, -1)
    count = place_N.shape[1]
    images = [f"{variant}{number:060x}"[-64:] for number in range(count // len(REGISTRY))]
    columns: dict[str, Any] = {
        "subject": ["many"] * count,
        "variant": [variant] * count,
        "phase": ["" if variant == "base" else "main"] * count,
        "step": np.array(steps)[place_N[0]],
        "lora_sha256": np.array([f"{step:064x}" for step in steps])[place_N[0]],
        "base_model": ["base"] * count,
        "lora_scale": [1.0] * count,
        "prompt_id": np.array([f"prompt-{number}" for number in range(PROMPTS)])[place_N[1]],
        "source_id": [""] * count,
        "prompt": np.array([f"the text of prompt {number}" for number in range(PROMPTS)])[place_N[1]],
        "seed": place_N[2] + 1,
        "split": np.array(["select", "report"])[place_N[1] % 2],
        "image": np.repeat(images, len(REGISTRY)),
        "metric": np.array(list(REGISTRY))[place_N[3]],
        "value": rng.random(count),
        "status": ["ok"] * count,
        "metric_version": np.array([f"{name}-1" for name in REGISTRY])[place_N[3]],
    }
    return pa.table(
        {name: pa.array(columns[name], type=SCORES.schema.field(name).type) for name in SCORES.schema.names}
    )


def summarise(paths: list[Path]) -> dict[str, Any]:
    return best_record(read_scores(paths), ChoiceStage(choice=ChoiceSettings(), finalists=3, recipe="character"), {})


def plain_means(paths: list[Path]) -> int:
    connection = duckdb.connect(config={"threads": 1})
    query = "SELECT variant, phase, step, split, metric, avg(value) FROM read_parquet(?) GROUP BY ALL"
    return len(connection.execute(query, [[str(path) for path in paths]]).fetchall())


def least_cpu_s(work: Callable[[list[Path]], Any], paths: list[Path]) -> float:
    """The least CPU seconds of a few repetitions: what the work costs when nothing disturbs it."""
    costs = []
    for _ in range(REPEATS):
        begun = time.process_time()
        work(paths)
        costs.append(time.process_time() - begun)
    return min(costs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="how many score rows")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_tables(Path(temporary), args.rows)
        rows = read_scores(paths).num_rows
        assert summarise(paths)["variant"] is not None
        choice_s, means_s = least_cpu_s(summarise, paths), least_cpu_s(plain_means, paths)
    figures = {"rows": rows, "choice_cpu_s": choice_s, "plain_means_cpu_s": means_s, "ratio": choice_s / means_s}
    show(figures, args.json)


if __name__ == "__main__":
    main()

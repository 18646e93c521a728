"""The miniature truly learns: the demo's own photos and settings, three training seeds, measured on the report half.

The photos are curated once by the workflow. Each seed then trains, draws, measures and chooses through the library, as
the programs do, in a process of its own: this file run as a program. Background colours are read from the drawn images
themselves, without the metrics of the library.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

HOUSE = Path(__file__).resolve().parents[2]
SUBJECTS = ("robin", "robin-smiles")
SEEDS = (42, 43, 44)
TOO_HOT = "long"
"""The variant of robin that trains on past its best."""
CORNER_PX = 3
"""Of a close portrait of 16 px, the upper corners of this side show nothing but background."""

pytestmark = pytest.mark.slow
Row = dict[str, Any]


# ---- the program: one subject, one training seed -------------------------------------------------------------------------


def learn(subject_name: str, seed: int, output_folder: Path) -> None:
    """Train all variants and phases of a subject with this seed, choose, and write outcome.json."""
    from likeness.config.evaluation import ChoiceStage, ScoreStage
    from likeness.evaluation.choice import best_record
    from likeness.evaluation.score import Workplace, loras_by_hash, score_base, score_checkpoints, score_finalists
    from likeness.evaluation.scores import Scores
    from likeness.program import read_settings
    from likeness.store import Store
    from likeness.tables import SCORES, read_rows
    from likeness.workflow import Plan

    plan, store = Plan.load([], {}), Store(Path("results/.store"))
    subject = plan.subjects[subject_name]
    training = subject.training.model_copy(update={"seed": seed})
    plan.subjects[subject_name] = subject.model_copy(update={"training": training})
    wildcards = SimpleNamespace(subject=subject_name)
    curated = Path("results") / subject_name
    manifests = [curated / "phases" / f"{phase}.parquet" for phase in subject.phases]
    trained = train_all(plan, subject_name, store, output_folder)

    stage = read_settings(plan.score_base(wildcards), ScoreStage)
    choice = read_settings(plan.choose_checkpoint(wildcards), ChoiceStage)
    images = curated / f"{subject.kind}.parquet"
    workplace = Workplace(stage, curated / "phases/holdout.parquet", manifests, images, store)
    folder = output_folder / subject_name / "evaluation"
    score_base(workplace, folder / "base")
    tables = [folder / "base/scores.parquet"]
    for (variant, phase), steps in trained.items():
        score_checkpoints(
            workplace, entries_of(variant, phase, steps, store), folder / "base", folder / variant / phase
        )
        tables.append(folder / variant / phase / "scores.parquet")
    loras = loras_by_hash(list(trained.values()), [], store)
    score_finalists(workplace, choice, tables, loras, folder / "base", folder / "report-half")
    tables.append(folder / "report-half/scores.parquet")
    rows = [row for table in tables for row in read_rows(table, SCORES)]
    best = best_record(rows, choice, json.loads((folder / "base/calibration.json").read_text("utf-8")))
    of_variants = {
        variant: curve_of(workplace, choice, Scores(rows), rows, variant, trained, store)
        for variant in subject.variants
    }
    outcome = {"best": best, "rows": rows, "variants": of_variants}
    (output_folder / subject_name / "outcome.json").write_text(json.dumps(outcome), "utf-8")


def train_all(plan: Any, subject_name: str, store: Any, output_folder: Path) -> dict[tuple[str, str], Path]:
    """Encode and train every variant and phase; returns their steps.json files."""
    from likeness.config.training import EncodeStage, TrainStage
    from likeness.program import read_settings
    from likeness.training.encode import encode_samples
    from likeness.training.train import train_lora

    subject, curated, found = plan.subjects[subject_name], Path("results") / subject_name, {}
    for variant in subject.trained_variants:
        previous = None
        for phase in subject.phases_of(variant):
            wildcards = SimpleNamespace(subject=subject_name, variant=variant, phase=phase)
            manifest, folder = curated / "phases" / f"{phase}.parquet", output_folder / subject_name / "train"
            encoded = output_folder / subject_name / "encoded" / f"{phase}.parquet"
            images = curated / f"{subject.kind}.parquet"
            encode_samples(read_settings(plan.encode_samples(wildcards), EncodeStage), manifest, images, store, encoded)
            stage = read_settings(plan.train_lora(wildcards), TrainStage)
            train_lora(stage, manifest, encoded, previous, store, folder / variant / phase)
            previous = found[variant, phase] = folder / variant / phase / "steps.json"
    return found


def entries_of(variant: str, phase: str, steps: Path, store: Any) -> list[Any]:
    from likeness.evaluation.score import entries_of_steps

    return entries_of_steps(variant, phase, steps, store)


def curve_of(
    workplace: Any, choice: Any, scores: Any, rows: Sequence[Row], variant: str, trained: Mapping[Any, Path], store: Any
) -> dict[str, Any]:
    """What the choice takes among one variant's own checkpoints, and the report half of that one and of the last."""
    from likeness.evaluation.choice import rank
    from likeness.evaluation.prompts import REPORT
    from likeness.evaluation.score import BASE_ENTRY
    from likeness.evaluation.scores import BASE, Scores

    own = Scores([row for row in rows if row["variant"] in (BASE, variant)])
    ranking = rank(own, choice)
    assert ranking.chosen and ranking.best and ranking.metric
    entries = {
        entry.checkpoint: entry
        for (name, phase), steps in trained.items()
        if name == variant
        for entry in entries_of(name, phase, steps, store)
    }
    last = own.candidates[-1]
    points = workplace.half(REPORT)
    base_shots = workplace.draw([BASE_ENTRY], points)
    shots = workplace.draw([entries[ranking.chosen], entries[last]], points)
    reported = Scores(workplace.rows("learning", shots, {}, base_shots))
    metric = "csim" if ranking.metric == "likeness" else ranking.metric
    return {
        "best_step": ranking.best.step,
        "chosen_step": ranking.chosen.step,
        "last_step": last.step,
        "select": {str(one): mean_of(own, one, "select", metric) for one in own.candidates},
        "chosen_selected": mean_of(own, ranking.chosen, "select", metric),
        "last_selected": mean_of(own, last, "select", metric),
        "chosen_reported": mean_of(reported, ranking.chosen, REPORT, metric),
        "last_reported": mean_of(reported, last, REPORT, metric),
    }


def mean_of(scores: Any, checkpoint: Any, split: str, metric: str) -> float:
    """Mean over prompts; an image without a face is worth 0, else a collapsed checkpoint is known by its one lucky image."""
    means = scores.clusters(checkpoint, split, metric, faceless=0.0)
    return sum(means.values()) / len(means)


# ---- the tests -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def curated(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the demo's configuration and drawn photos, curated by the workflow."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "config/subjects").mkdir(parents=True)
    shutil.copy(HOUSE / "demo/config/config.yaml", folder / "config")
    for name in SUBJECTS:
        shutil.copy(HOUSE / f"demo/config/subjects/{name}.yaml", folder / "config/subjects")
    (folder / "models").mkdir()
    (folder / "models/miniature").symlink_to(miniature, target_is_directory=True)
    draw = [sys.executable, HOUSE / "scripts/draw_photos.py", "--folder", folder / "data", "--only", *SUBJECTS]
    subprocess.run(draw, check=True, stdout=subprocess.DEVNULL)
    targets = [f"results/{name}/phases/decisions.parquet" for name in SUBJECTS]
    snakemake = [sys.executable, "-m", "snakemake", "-s", HOUSE / "Snakefile", "--directory", folder, "--cores", "2"]
    done = subprocess.run([*snakemake, "--quiet", "all", "--", *targets], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def outcomes(curated: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """What every subject learned with every seed; two at a time."""
    runs = [(name, seed) for name in SUBJECTS for seed in SEEDS]

    def run(name: str, seed: int) -> dict[str, Any]:
        output_folder = curated / "learned" / str(seed)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HOUSE / "scripts")}
        command = [sys.executable, __file__, name, str(seed), str(output_folder)]
        done = subprocess.run(command, cwd=curated, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads((output_folder / name / "outcome.json").read_text("utf-8"))

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda one: run(*one), runs))
    return dict(zip(runs, found, strict=True))


def values_of(
    rows: Sequence[Row], metric: str, split: str, checkpoint: tuple[str, str, int], scale: float
) -> list[float]:
    """Measured values of one checkpoint; prompts without the trigger ask for somebody else and do not count."""
    return [
        row["value"]
        for row in rows
        if (row["variant"], row["phase"], row["step"]) == checkpoint
        and (row["metric"], row["split"], row["lora_scale"]) == (metric, split, scale)
        and row["value"] is not None
    ]


def chosen_of(best: Row) -> tuple[tuple[str, str, int], float]:
    return (best["variant"], best["phase"], best["step"]), best["lora_scale"]


BASE_MODEL = ("base", "", 0)


def background_error(rows: Sequence[Row], store: Path, checkpoint: tuple[str, str, int], scale: float) -> float:
    """Mean absolute difference, 0..1, of the upper corners to the colour that the prompt names, on the report half."""
    from likeness.captions.facts import BACKGROUND_COLOURS
    from likeness.store import Store

    errors = []
    for row in rows:
        drawn = (row["variant"], row["phase"], row["step"]) == checkpoint and row["lora_scale"] == scale
        if not drawn or row["split"] != "report" or row["metric"] != "detected" or "r0bin" not in row["prompt"]:
            continue
        colour = row["prompt"].removesuffix(" background").split()[-1]
        encoded = Store(store).blob_path(row["image"]).read_bytes()
        image_HWC = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"), float) / 255
        corners = image_HWC[:CORNER_PX, :CORNER_PX], image_HWC[:CORNER_PX, -CORNER_PX:]
        errors += [np.abs(corner - BACKGROUND_COLOURS[colour]).mean() for corner in corners]
    assert errors
    return float(np.mean(errors))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_robin_is_learned(outcomes, seed):
    outcome = outcomes["robin", seed]
    checkpoint, scale = chosen_of(outcome["best"])
    ours = np.mean(values_of(outcome["rows"], "csim", "report", checkpoint, scale))
    base = np.mean(values_of(outcome["rows"], "csim", "report", BASE_MODEL, 1.0))
    assert ours >= base + 0.4
    assert outcome["best"]["metrics"]["csim_over_base"]["value"] >= 0.4


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_robins_backgrounds_stay_as_prompted(outcomes, curated, seed):
    outcome = outcomes["robin", seed]
    store = curated / "results/.store"
    base = background_error(outcome["rows"], store, BASE_MODEL, 1.0)
    assert 0 < background_error(outcome["rows"], store, *chosen_of(outcome["best"])) <= 1.5 * base


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_an_over_trained_variant_is_best_before_its_end_and_the_choice_finds_it(outcomes, seed):
    curve = outcomes["robin", seed]["variants"][TOO_HOT]
    assert curve["best_step"] < curve["last_step"] and curve["chosen_step"] < curve["last_step"]
    assert curve["chosen_selected"] > curve["last_selected"] + 0.1
    assert curve["chosen_reported"] > curve["last_reported"]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_smile_is_learned(outcomes, seed):
    outcome = outcomes["robin-smiles", seed]
    checkpoint, scale = chosen_of(outcome["best"])
    ours = np.mean(values_of(outcome["rows"], "target_error", "report", checkpoint, scale))
    base = np.mean(values_of(outcome["rows"], "target_error", "report", BASE_MODEL, 1.0))
    assert 0 < ours <= base / 5


if __name__ == "__main__":
    learn(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

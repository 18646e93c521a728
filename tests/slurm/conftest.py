"""One small project run twice: undisturbed on this machine, and on a cluster where everything goes wrong once."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from tests.slurm.cluster import CannotStart, Cluster
from tests.workflow.conftest import CONFIG, ONE_PHASE, draw_photos
from tests.workflow.project import HOUSE, Project, Run

STEPS, SAVE_EVERY = 240, 60
HUNGRY = "write_config"
HUNGER_MB = 1200
"""More than the rule's first attempt allows (1000), less than its second (2000)."""

SITE = f"""
import sys, time
if any(word.endswith("/{HUNGRY}.py") for word in sys.orig_argv):
    eaten = b"x" * ({HUNGER_MB} << 20)
    time.sleep(4)
"""


@dataclass(frozen=True)
class Crash:
    """When the node was killed: the checkpoints that the training had saved by then, and the job that it lost."""

    saved: tuple[int, ...]
    job: int


@dataclass(frozen=True)
class Disturbed:
    """A run on the cluster that lost a node in the middle of its training and had a job over its memory."""

    project: Project
    run: Run
    crash: Crash


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster; where there cannot be one, the tests are skipped and say why."""
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in cluster.environment.items():
                patch.setenv(name, value)
            yield cluster
    except CannotStart as reason:
        pytest.skip(str(reason))
    finally:
        cluster.stop()


def make_project(folder: Path, miniature: Path) -> Project:
    """The small project, with a training that is long enough to be caught in the middle."""
    project = Project(folder, miniature)
    config = yaml.safe_load(CONFIG)
    config["gpus_per_job"] = 1
    config["defaults"]["training"] |= {"steps": STEPS, "save_every": SAVE_EVERY}
    project.configure(yaml.safe_dump(config, sort_keys=False))
    project.configure(ONE_PHASE, "robin")
    draw_photos(folder / "data" / "robin", count=8, seed=5)
    return project


@pytest.fixture(scope="session")
def local(miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, run on this machine."""
    project = make_project(tmp_path_factory.mktemp("local") / "project", miniature)
    project.succeed()
    return project


@pytest.fixture(scope="session")
def disturbed(cluster: Cluster, miniature: Path, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The project, run on the cluster with the profile for Slurm while its GPU's node dies and one job is hungry."""
    project = make_project(tmp_path_factory.mktemp("cluster") / "project", miniature)
    site = project.folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
        running = pool.submit(run_on_cluster, project)
        crash = crash_while_training(cluster, project, running)
        return Disturbed(project, running.result(), crash)


def run_on_cluster(project: Project) -> Run:
    """Run with the profile as it is shipped, but look at jobs often and use the node's own disk at once."""
    profile = str(HOUSE / "profiles" / "slurm")
    hasty = ("--slurm-init-seconds-before-status-checks", "6", "--latency-wait", "5")
    arrays = ("--slurm-array-jobs", "measure_quality")
    return project.run("--workflow-profile", profile, *hasty, *arrays, cores=16)


def crash_while_training(cluster: Cluster, project: Project, running: Future[Run]) -> Crash:
    """Wait for the first checkpoint of the training, kill the node that it runs on, and bring that back once missed."""
    records = project.folder / "results" / ".store" / "trainings"
    while not (saved := sorted(records.glob("*/record-*.json"))):
        assert not running.done(), running.result().text
        time.sleep(0.02)
    cluster.crash("fx1")
    saved = sorted(records.glob("*/record-*.json"))
    job = max(one.number for one in cluster.submitted() if one.comment.startswith("rule_train_lora"))
    end = time.monotonic() + 60
    while cluster.state_of("fx1").rstrip("*") != "down":
        assert time.monotonic() < end, "the controller never missed the node"
        time.sleep(0.5)
    cluster.revive("fx1")
    return Crash(tuple(int(path.stem.removeprefix("record-")) for path in saved), job)

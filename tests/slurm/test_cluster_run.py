"""A real Slurm with two nodes and one fake GPU: the bytes of a local run, through a dead node and a job over its memory."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster, Ended
from tests.slurm.conftest import HUNGRY, SAVE_EVERY, STEPS, Disturbed
from tests.workflow.faults import CURVES
from tests.workflow.project import Project

from likeness.store import Work, sha256_of_bytes
from likeness.training.train import STEPS as COUNTED

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]

TRAINING = "train_lora/robin/main/main"
GROUPS = {"shard_detect_faces": 2, "merge_merge_faces": 1, "publish_choose_checkpoint": 1}
WITHOUT_MEANING = {".logs", ".benchmarks", ".store"}


def content(path: Path) -> bytes:
    """A file's bytes; a page without its table of measured seconds, the one thing that must differ."""
    data = path.read_bytes()
    if path.suffix == ".html":
        data, tables = re.subn(rb'<table class="timings">.*?</table>', b"", data, flags=re.DOTALL)
        assert tables == (path.name == "index.html"), path
    return data


def digests(project: Project) -> dict[str, str]:
    """The sha256 of every result by its path, and of every file that the store keeps for good."""
    results = project.folder / "results"
    files = [path for path in results.rglob("*") if path.is_file() and CURVES not in path.parts]
    kept = [path for path in files if path.relative_to(results).parts[0] not in WITHOUT_MEANING]
    kept += [path for path in files if path.is_relative_to(results / ".store" / "blobs")]
    return {str(path.relative_to(results)): sha256_of_bytes(content(path)) for path in kept}


def ends_of(cluster: Cluster, comment: str) -> list[Ended]:
    """Every end of the jobs that were submitted for one rule or group."""
    numbers = {job.number for job in cluster.submitted() if job.comment.startswith(comment)}
    return [end for end in cluster.ended() if end.number in numbers]


def test_results_are_those_of_the_local_run_to_the_byte(local: Project, disturbed: Disturbed) -> None:
    assert disturbed.run.code == 0, disturbed.run.text
    here, there = digests(local), digests(disturbed.project)
    assert here == there
    suffixes = Counter(Path(name).suffix for name in here)
    assert suffixes[".parquet"] > 20 and suffixes[".safetensors"] >= 2 + STEPS // SAVE_EVERY, suffixes
    assert "robin/evaluation/main/main/sheet.jpg" in here and "robin/lora/robin.comfyui.safetensors" in here


def test_training_goes_on_from_its_last_checkpoint_when_its_node_dies(cluster: Cluster, disturbed: Disturbed) -> None:
    last = disturbed.crash.saved[-1]
    assert last < STEPS, "the node died too late to prove anything"
    assert f"to step {STEPS}, resumed at step {last}" in disturbed.project.log(TRAINING)
    assert disturbed.run.work[TRAINING] == Work({COUNTED: STEPS - last}, {COUNTED: last}, 1)
    ends = [end for end in cluster.ended() if end.number == disturbed.crash.job]
    assert [end.state for end in ends] == ["NODE_FAIL", "COMPLETED"]
    assert {end.node for end in ends} == {"fx1"}


def test_a_job_over_its_memory_limit_is_tried_again_with_more(cluster: Cluster, disturbed: Disturbed) -> None:
    first, second = ends_of(cluster, f"rule_{HUNGRY}")
    assert (first.state, first.memory_mb) == ("FAILED", 1000)
    assert (second.state, second.memory_mb) == ("COMPLETED", 2000)
    logs = disturbed.project.folder.glob(f".snakemake/slurm_logs/rule_{HUNGRY}/**/{first.number}.log")
    assert "exceeded memory limit" in "".join(path.read_text() for path in logs)


def test_two_gpu_jobs_never_overlap_on_one_gpu(cluster: Cluster, disturbed: Disturbed) -> None:
    wanting = {job.number: job.comment for job in cluster.submitted() if job.wants_gpu}
    assert {comment.split("_wildcards")[0] for comment in wanting.values()} == {
        "rule_encode_samples",
        "rule_score_base",
        "rule_train_lora",
        "rule_score_checkpoints",
        "rule_score_finalists",
    }
    spans = sorted((end for end in cluster.ended() if end.number in wanting), key=lambda end: end.started)
    assert {end.node for end in spans} == {"fx1"}
    assert all(earlier.ended <= later.started for earlier, later in itertools.pairwise(spans))
    waited = [later for earlier, later in itertools.pairwise(spans) if later.submitted < earlier.ended]
    assert waited, "no two GPU jobs were ready at once, so nothing was shown"


def test_cheap_jobs_share_submissions_and_both_nodes_are_used(cluster: Cluster, disturbed: Disturbed) -> None:
    ends = cluster.ended()
    comments = [job.comment for job in cluster.submitted()]
    shared = {group: sum(comment.startswith(f"rule_{group}_") for comment in comments) for group in GROUPS}
    assert shared == GROUPS, comments
    assert sum(comment.startswith("rule_measure_quality") for comment in comments) == 2
    alone = ("rule_index", "rule_detect", "rule_merge_photos_w", "rule_choose", "rule_publish_lora")
    assert not [comment for comment in comments if comment.startswith(alone)]
    assert {end.node for end in ends} == {"fx1", "fx2"}


def test_a_local_run_after_the_cluster_has_nothing_to_do(disturbed: Disturbed) -> None:
    assert disturbed.project.succeed().jobs == set()

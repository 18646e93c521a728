"""A real Slurm with two nodes and one fake GPU: the bytes of a local run, through a dead node and a job over its memory."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
from tests.slurm.cluster import Cluster, Ended
from tests.slurm.conftest import HUNGRY, SAVE_EVERY, STEPS, Disturbed
from tests.workflow.project import Project

from likeness.store import sha256_of_file

pytestmark = pytest.mark.slurm

WITHOUT_MEANING = {".logs", ".benchmarks", ".store"}


def digests(project: Project) -> dict[str, str]:
    """The sha256 of every result by its path, and of every file that the store keeps for good."""
    results = project.folder / "results"
    files = [path for path in results.rglob("*") if path.is_file()]
    kept = [path for path in files if path.relative_to(results).parts[0] not in WITHOUT_MEANING]
    kept += [path for path in files if path.is_relative_to(results / ".store" / "blobs")]
    return {str(path.relative_to(results)): sha256_of_file(path) for path in kept}


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
    log = disturbed.project.log("train_lora/robin/main/main")
    assert f"to step {STEPS}, resumed at step {last}" in log
    assert f"training: {STEPS - last} steps computed, {last} reused" in log
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


def test_cheap_jobs_share_submissions_and_the_others_use_both_nodes(cluster: Cluster, disturbed: Disturbed) -> None:
    ends = cluster.ended()
    submitted = Counter(job.comment.split("_wildcards")[0] for job in cluster.submitted())
    assert submitted["group_shard"] == 2 and submitted["group_merge"] == 1 and submitted["group_publish"] == 1
    assert submitted["rule_measure_quality"] == 2
    assert not [name for name in submitted if name.startswith(("rule_index", "rule_detect", "rule_choose"))]
    assert {end.node for end in ends} == {"fx1", "fx2"}


def test_a_local_run_after_the_cluster_has_nothing_to_do(disturbed: Disturbed) -> None:
    assert disturbed.project.succeed("--dry-run").jobs == ()

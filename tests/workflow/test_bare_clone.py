"""On a bare clone, without data, GPU, token or network: the workflow parses, lints and plans."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tests.workflow.project import HOUSE, Project


def test_lint_and_format_are_clean() -> None:
    lint = subprocess.run(
        [sys.executable, "-m", "snakemake", "--lint"], cwd=HOUSE, capture_output=True, text=True, check=False
    )
    assert "good condition" in lint.stdout + lint.stderr, lint.stdout + lint.stderr
    snakefmt = Path(sys.executable).with_name("snakefmt")
    files = [str(HOUSE / "Snakefile"), str(HOUSE / "workflow" / "Snakefile"), str(HOUSE / "rules")]
    assert subprocess.run([snakefmt, "--check", *files], capture_output=True, check=False).returncode == 0


def test_no_rule_file_over_two_hundred_lines_and_the_snakefile_under_eighty() -> None:
    assert len((HOUSE / "Snakefile").read_text().splitlines()) < 80
    for path in (HOUSE / "rules").glob("*.smk"):
        assert len(path.read_text().splitlines()) <= 200, path


def test_without_a_subject_there_is_only_the_empty_report(tmp_path: Path) -> None:
    run = Project(tmp_path).succeed()
    assert run.jobs == {"write_curation", "write_report"}
    assert "No subject is configured yet" in (tmp_path / "results" / "report" / "index.html").read_text()


def test_the_shim_for_the_workflow_catalog_parses(tmp_path: Path) -> None:
    shim = HOUSE / "workflow" / "Snakefile"
    run = Project(tmp_path).run("--snakefile", str(shim), "--dry-run")
    assert run.code == 0, run.text
    assert f"Using workflow specific profile {shim.parent / 'profiles' / 'default'}" in run.text
    assert (shim.parent / "profiles" / "default").resolve() == HOUSE / "profiles" / "default"


@pytest.mark.slow
@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_a_large_photo_that_was_only_touched_starts_nothing(snakefile: str, tmp_path: Path) -> None:
    project, photo = Project(tmp_path), tmp_path / "data" / "large.bmp"
    project.configure("recipe: character\ntrigger: j4ne\nphotos: data\n", "jane")
    photo.parent.mkdir()
    Image.effect_noise((1024, 1024), 40).convert("RGB").save(photo)
    assert photo.stat().st_size > 2**20, "beyond what Snakemake compares by itself"
    call = ("--snakefile", str(HOUSE / snakefile), "results/jane/photos.parquet")
    assert len(project.succeed(*call).jobs) == 5
    assert project.succeed(*call).jobs == set()
    os.utime(photo)
    assert project.succeed(*call).jobs == set()


@pytest.mark.parametrize("example", sorted((HOUSE / "config" / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_examples_plan_without_photos_and_fail_with_one_clear_error(example: Path, tmp_path: Path) -> None:
    project = Project(tmp_path)
    shutil.copy(example, tmp_path / "config" / "subjects")
    plan = project.run("--dry-run")
    assert plan.code == 0, plan.text
    assert f"Train {'rank32' if example.stem == 'character-9b' else 'main'}" in plan.text
    run = project.run("--config", "shards=1", "--", "curate")
    assert run.code != 0
    assert "data/" in run.text and "error: " in run.text and "Traceback" not in run.text


def test_a_mistake_in_the_configuration_starts_nothing(tmp_path: Path) -> None:
    project = Project(tmp_path)
    project.configure("recipe: character\ntriger: x\nphotos: a\n", "jane")
    run = project.run()
    assert run.code != 0 and run.jobs == set()
    assert "config/subjects/jane.yaml:2" in run.text and "did you mean 'trigger'?" in run.text


@pytest.mark.parametrize("profile", ["slurm", "kubernetes"])
def test_profiles_for_clusters_agree_on_what_decides_reruns_and_plan(profile: str, tmp_path: Path) -> None:
    import yaml

    default = yaml.safe_load((HOUSE / "profiles" / "default" / "config.yaml").read_text())
    other = yaml.safe_load((HOUSE / "profiles" / profile / "config.yaml").read_text())
    for key in ("max-checksum-file-size", "rerun-incomplete", "scheduler"):
        assert default[key] == other[key]
    shutil.copytree(HOUSE / "config" / "examples", tmp_path / "config" / "subjects")
    plan = Project(tmp_path).run("--dry-run", "--workflow-profile", str(HOUSE / "profiles" / profile))
    assert plan.code == 0, plan.text
    assert f"Using workflow specific profile {HOUSE / 'profiles' / profile}" in plan.text
    assert "Train rank32, phase main, of character-9b" in plan.text


def test_the_slurm_profile_names_only_rules_that_exist_and_sends_every_gpu_rule_to_the_gpu_partition() -> None:
    import yaml

    profile = yaml.safe_load((HOUSE / "profiles" / "slurm" / "config.yaml").read_text())
    rules = "\n".join(path.read_text() for path in (HOUSE / "rules").glob("*.smk"))
    bodies = re.findall(r"^rule (\w+):\n(.*?)(?=^rule |\Z)", rules, re.MULTILINE | re.DOTALL)
    asking = {name for name, body in bodies if re.search(r"^ +gpu=", body, re.MULTILINE)}
    sent = {entry.split(":")[0] for entry in profile["set-resources"]}
    assert asking == sent and len(sent) >= 10
    assert {entry.split("=")[0] for entry in profile["groups"]} <= {name for name, _ in bodies} - asking

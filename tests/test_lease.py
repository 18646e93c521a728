"""GPU leases with made-up devices: never two jobs on one, a dead job's lease is free again."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from likeness.errors import UserError
from likeness.lease import lease_device, lease_devices, lease_folder, visible_devices

HOLDER = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from likeness.lease import lease_device
with lease_device(["0", "1"], Path(sys.argv[2]), poll_s=0.02) as place:
    print(place, time.monotonic(), flush=True)
    time.sleep(float(sys.argv[3]))
    print(place, time.monotonic(), flush=True)
"""
SCRIPTS = str(Path(__file__).resolve().parents[1] / "scripts")


def start(folder: Path, hold_s: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, SCRIPTS, str(folder), str(hold_s)], stdout=subprocess.PIPE, text=True
    )


def test_four_jobs_on_two_devices_never_overlap(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 0.3) for _ in range(4)]
    spans = []
    for job in jobs:
        first, last = job.communicate(timeout=60)[0].splitlines()
        place, begin = first.split()
        spans.append((int(place), float(begin), float(last.split()[1])))
    assert {place for place, _, _ in spans} == {0, 1}
    for device in (0, 1):
        own = sorted((begin, end) for place, begin, end in spans if place == device)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(own))


def test_a_killed_job_frees_its_device(tmp_path: Path) -> None:
    job = start(tmp_path, 60)
    assert job.stdout is not None and job.stdout.readline()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    begin = time.monotonic()
    with lease_device(["0"], tmp_path) as place:
        assert place == 0
    assert time.monotonic() - begin < 5


def test_devices_are_chosen_inside_the_given_ones() -> None:
    assert visible_devices(2, "3,GPU-abc") == ["3", "GPU-abc"]
    assert visible_devices(2, None) == ["0", "1"]
    assert visible_devices(0, "0") == []


def test_allocations_of_slurm_do_not_wait_for_each_other_where_both_call_their_device_0(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    folders = [lease_folder(), lease_folder()]
    for allocation in ("7", "7", "8"):
        monkeypatch.setenv("SLURM_JOB_ID", allocation)
        folders.append(lease_folder())
    with lease_device(["0"], folders[2]) as first, lease_device(["0"], folders[4]) as second:
        assert first == second == 0
    assert folders[0] == folders[1] and folders[2] == folders[3]
    assert len(set(folders)) == 3


SNAKEFILE = """
rule all:
    input: expand("done/{job}", job=range(4))

rule use_gpu:
    output: "done/{job}"
    resources: gpu=1
    shell: "{sys.executable} holder.py {wildcards.job} && touch {output}"
"""
JOB = """
import sys, time
from pathlib import Path
sys.path.insert(0, SCRIPTS)
from likeness.lease import lease_device, visible_devices
started = time.monotonic()
with lease_device(visible_devices(2, None), Path("leases"), poll_s=0.02) as place:
    begin = time.monotonic()
    time.sleep(1)
    Path(f"span-{sys.argv[1]}").write_text(f"{place} {started} {begin} {time.monotonic()}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--resources", "mem_mb=4000")], ids=["profile", "user"])
def test_a_users_own_resources_lift_the_profiles_limit_but_not_the_lease(more: tuple[str, ...], tmp_path: Path) -> None:
    """With other --resources Snakemake starts all four jobs at once; two of them wait for a device."""
    (tmp_path / "Snakefile").write_text("import sys\n" + SNAKEFILE)
    (tmp_path / "holder.py").write_text(JOB.replace("SCRIPTS", repr(SCRIPTS)))
    profile = Path(SCRIPTS).parent / "profiles" / "default"
    command = [sys.executable, "-m", "snakemake", "--cores", "4", "--workflow-profile", str(profile), *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spans = [(tmp_path / f"span-{job}").read_text().split() for job in range(4)]
    for device in ("0", "1"):
        own = sorted((float(begin), float(end)) for place, _, begin, end in spans if place == device)
        assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(own))
    alive = [sum(float(other[1]) <= float(span[1]) < float(other[3]) for other in spans) for span in spans]
    assert max(alive) > 2 if more else max(alive) == 1
    assert {place for place, *_ in spans} == ({"0", "1"} if more else {"0"})


def test_a_job_of_several_devices_holds_none_while_it_waits(tmp_path: Path) -> None:
    with lease_device(["0", "1", "2"], tmp_path):
        with lease_devices(["0", "1", "2"], 2, tmp_path) as places:
            assert places == [1, 2]
        waiting = subprocess.Popen(
            [sys.executable, "-c", HOLDER.replace("lease_device(", "lease_devices(").replace('["0", "1"],', '["0", "1"], 2,')
             .replace("import lease_device", "import lease_devices"), SCRIPTS, str(tmp_path), "0"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert waiting.stderr is not None and "waiting for 2 of 2 GPUs" in waiting.stderr.readline()
        with lease_device(["1"], tmp_path, poll_s=0.01) as place:
            assert place == 0, "the waiting job holds nothing"
    assert waiting.communicate(timeout=60)[0].startswith("[0, 1]")


def test_more_devices_than_there_are_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="2 GPUs are asked for, but this job may use 1: 5"),
        lease_devices(["5"], 2, tmp_path),
    ):
        pass

"""The throw-away Slurm cluster of the tests, and what it wrote down about its jobs."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

HERE = Path(__file__).parent
CANNOT = 77
"""Exit code of start.sh where this machine cannot hold a cluster; its output says why."""


class CannotStart(Exception):
    """This machine cannot hold a cluster, for the reason in the message."""


@dataclass(frozen=True)
class Ended:
    """One end of a job, from the log of completed jobs; a requeued job has several, and all are kept."""

    number: int
    state: str
    node: str
    partition: str
    memory_mb: int
    submitted: datetime
    started: datetime
    ended: datetime


@dataclass(frozen=True)
class Submitted:
    """A job as it was asked for; the executor's comment is `rule_<rule>_wildcards…` or `rule_<group>_<its rules>`."""

    number: int
    wants_gpu: bool
    comment: str


@dataclass(frozen=True)
class Cluster:
    """Two nodes, `fx1` with one fake GPU and `fx2`; its state, logs and sockets lie in `folder`."""

    folder: Path

    def start(self) -> None:
        """Start it; raises CannotStart where this machine cannot hold one."""
        command = [str(HERE / "start.sh"), str(self.folder), str(free_ports(3))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode == CANNOT:
            raise CannotStart(done.stdout.strip())
        assert done.returncode == 0, done.stdout + done.stderr

    def stop(self) -> None:
        subprocess.run([str(HERE / "stop.sh"), str(self.folder)], check=True, timeout=60)

    @property
    def environment(self) -> dict[str, str]:
        """Variables under which Slurm's commands find this cluster."""
        return {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]]),
        }

    def crash(self, node: str) -> None:
        """Kill a node with all that runs on it."""
        subprocess.run([str(HERE / "node.sh"), "crash", node, str(self.folder)], check=True, timeout=60)

    def revive(self, node: str) -> None:
        subprocess.run([str(HERE / "node.sh"), "up", node, str(self.folder)], check=True, timeout=60)

    def state_of(self, node: str) -> str:
        return self._ask("sinfo", "--noheader", "--nodes", node, "--partition", "cpu", "--format", "%T")

    def submitted(self) -> list[Submitted]:
        """Every job, waiting, running or ended."""
        columns = "JobID:12,tres-per-job:24,Comment:200"
        rows = self._ask("squeue", "--noheader", "--array", "--states", "all", "--Format", columns).splitlines()
        return [Submitted(int(row[:12]), "gpu" in row[12:36], row[36:].strip()) for row in rows]

    def ended(self) -> list[Ended]:
        """Every end of every job, in order of time."""
        path = self.folder / "jobcomp.log"
        return [read_end(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _ask(self, *command: str) -> str:
        environment = os.environ | self.environment
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout.strip()


def read_end(line: str) -> Ended:
    """Read one line of jobcomp.log: `JobId=3 … JobState=COMPLETED … Tres=cpu=1,mem=1000M,node=1 …`."""
    fields = dict(re.findall(r"(\w+)=(\S*)", line))
    tres = dict(part.split("=", 1) for part in fields["Tres"].split(","))
    size, unit = re.fullmatch(r"([\d.]+)([MG])", tres["mem"]).groups()  # pyright: ignore
    return Ended(
        number=int(fields["JobId"]),
        state=fields["JobState"],
        node=fields["NodeList"],
        partition=fields["Partition"],
        memory_mb=round(float(size) * (1024 if unit == "G" else 1)),
        submitted=datetime.fromisoformat(fields["SubmitTime"]),
        started=datetime.fromisoformat(fields["StartTime"]),
        ended=datetime.fromisoformat(fields["EndTime"]),
    )


def free_ports(count: int) -> int:
    """First of `count` ports in a row that nobody listens on, below the ports that the system hands out by itself."""
    for first in range(20_000 + os.getpid() % 10_000, 32_000):
        with_sockets = [socket.socket() for _ in range(count)]
        try:
            for offset, one in enumerate(with_sockets):
                one.bind(("127.0.0.1", first + offset))
            return first
        except OSError:
            continue
        finally:
            for one in with_sockets:
                one.close()
    raise RuntimeError("no free ports")

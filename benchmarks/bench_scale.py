"""Measure the workflow's own cost: many small photos through all per-photo stages on backends that cost nothing.

One style subject whose photos need no face detector, no masks and no caption model, up to the phase decision. The bare work is
reading, hashing (sha256) and decoding every photo in one plain loop, measured beside it; figures are ratios to that.
CPU seconds count all processes of a run, and hardly depend on what else the machine does; wall seconds do.

    python benchmarks/bench_scale.py --photos 20000 --json figures.json
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from figures import show
from PIL import Image

TARGET = "results/many/phases/decisions.parquet"
HOUSE = Path(__file__).resolve().parents[1]
CONFIG = """\
gpus_per_job: 0
subjects:
  many:
    recipe: style
    trigger: inkw4sh
    photos: data
    base_model: miniature
    faces: {backend: none}
    masks: {backend: folder, model: null}
    captions: {backend: facts}
"""
BARE = """\
import hashlib, io, sys
from pathlib import Path
from PIL import Image
for path in sorted(Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    hashlib.sha256(data).hexdigest()
    Image.open(io.BytesIO(data)).load()
"""


@dataclass(frozen=True)
class Cost:
    """What one command cost: wall and CPU seconds with all its children, and the largest memory of its own process."""

    wall_s: float
    cpu_s: float
    memory_mb: float


def draw_photos(folder: Path, count: int, side_px: int) -> None:
    """Draw photos with distinct content that compress like photos: soft colours under fine grain."""
    folder.mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng(index)
        soft = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
            (side_px, side_px), Image.Resampling.BICUBIC
        )
        grain_HW = rng.integers(0, 16, (side_px, side_px), np.uint8)
        pixels_HWC = np.minimum(np.asarray(soft), 239) + grain_HW[..., None]
        Image.fromarray(pixels_HWC).save(folder / f"photo-{index:05d}.jpg", quality=85)


def measure(command: list[str], folder: Path) -> Cost:
    """Run a command to its end; raises SystemExit with its output where it fails."""
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        process = subprocess.Popen(
            command, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, stdout=output, stderr=output
        )
        peaks: list[float] = [0.0]
        watcher = threading.Thread(target=watch_memory, args=(process.pid, peaks))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall_s = time.perf_counter() - begun
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
        if process.returncode:
            output.seek(0)
            sys.exit(output.read().decode(errors="replace"))
    return Cost(wall_s, usage.ru_utime + usage.ru_stime, max(peaks))


def watch_memory(process: int, peaks: list[float]) -> None:
    """Note the peak resident memory (MB) that the system keeps of a process, until it ends."""
    while True:
        try:
            status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
        except OSError:
            return
        found = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        if not found:
            return
        peaks.append(int(found[0].split()[1]) / 1024)
        time.sleep(0.1)


def snakemake(folder: Path, cores: int) -> Cost:
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(HOUSE / "Snakefile"), "--cores", str(cores)]
    return measure([*command, "--quiet", "--", TARGET], folder)


def count_files(folder: Path) -> int:
    return sum(path.is_file() for path in folder.rglob("*"))


def bench(folder: Path, photos: int, side_px: int, cores: int) -> dict[str, object]:
    """All figures of one project in an empty folder."""
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config" / "config.yaml").write_text(CONFIG, encoding="utf-8")
    if not (folder / "data").exists():
        print(f"drawing {photos} photos", file=sys.stderr)
        draw_photos(folder / "data", photos, side_px)
    costs = {}
    costs["bare"] = measure([sys.executable, "-c", BARE, "data"], folder)
    costs["fresh"] = snakemake(folder, cores)
    costs["nothing to do"] = snakemake(folder, cores)
    draw_photos(folder / "edited", 1, side_px + 8)
    (folder / "edited" / "photo-00000.jpg").replace(folder / "data" / "photo-00000.jpg")
    costs["one photo edited"] = snakemake(folder, cores)
    costs["bare again"] = measure([sys.executable, "-c", BARE, "data"], folder)
    bare_cpu_s = (costs["bare"].cpu_s + costs["bare again"].cpu_s) / 2
    bare_wall_s = (costs["bare"].wall_s + costs["bare again"].wall_s) / 2
    return {
        "photos": photos,
        "side_px": side_px,
        "cores": cores,
        "fresh_over_bare_cpu": costs["fresh"].cpu_s / bare_cpu_s,
        "fresh_over_bare_wall": costs["fresh"].wall_s / bare_wall_s,
        "snakemake_memory_mb": max(cost.memory_mb for name, cost in costs.items() if "bare" not in name),
        "snakemake_files": count_files(folder / ".snakemake"),
        "store_files": count_files(folder / "results" / ".store"),
        "costs": {name: asdict(cost) for name, cost in costs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20000, help="how many photos")
    parser.add_argument("--side-px", type=int, default=512, help="side of each photo, in px")
    parser.add_argument("--cores", type=int, default=2, help="Snakemake's --cores")
    parser.add_argument("--folder", type=Path, help="keep the project here; photos that it has are used")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        figures = bench(folder.resolve(), args.photos, args.side_px, args.cores)
    show(figures, args.json)


if __name__ == "__main__":
    main()

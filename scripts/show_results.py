"""Say where the report, the LoRAs and the score table of a finished run lie, and what was chosen."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from likeness.program import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(), help="the project's folder")
    results = parser.parse_args().folder / "results"
    print(f"\nreport       {results / 'report' / 'index.html'}")
    print(f"score table  {results / 'scores.parquet'}")
    for path in sorted(results.glob("*/best.json")):
        best = json.loads(path.read_text(encoding="utf-8"))
        print(f"{path.parent.name:12} {path.parent / 'lora' / f'{path.parent.name}.safetensors'}: {described(best)}")


def described(best: dict) -> str:
    """One line about a choice."""
    if best.get("variant") is None:
        return f"nothing chosen: {best['rule'].removeprefix('no choice: ')}"
    ranked = best["identity_metric"]
    shown = [name for name in (ranked, f"{ranked}_over_base") if name in best["metrics"]]
    numbers = ", ".join(f"{name} {best['metrics'][name]['value']:+.3f}" for name in shown)
    return f"{best['variant']}, phase {best['phase']}, step {best['step']}; on the report half {numbers or 'nothing'}"


if __name__ == "__main__":
    run(main)

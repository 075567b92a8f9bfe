"""Measure this project beside its alternatives, in one run, as ratios of medians over interleaved rounds.

    python scripts/benchmark.py fit
    python scripts/benchmark.py all --json benchmark.json

Each benchmark's docstring states the floor (operations and bytes) its figures are to be read against.
"""

from __future__ import annotations

import argparse
import importlib
import json
from dataclasses import asdict
from pathlib import Path

# Name to module in scripts/benchmarks, imported only when asked for.
BENCHMARKS = {
    "forward": "benchmarks.forward",
    "fit": "benchmarks.fit",
    "moments": "benchmarks.moments",
    "solve": "benchmarks.solve",
    "memory": "benchmarks.memory",
    "precision": "benchmarks.precision",
    "embed": "benchmarks.embed",
    "levels": "benchmarks.levels",
    "packed": "benchmarks.packed",
    "growth": "benchmarks.growth",
    "start": "benchmarks.start",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=[*BENCHMARKS, "all"], help="what to measure")
    parser.add_argument("--json", type=Path, help="also write machine and ratios to this file")
    parser.add_argument("--figure", type=Path, help="write the figure of growth to this PNG file")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds whose median counts (default 3)")
    args = parser.parse_args()

    from benchmarks.common import machine, table

    results = {}
    print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
    for name in BENCHMARKS if args.which == "all" else [args.which]:
        module = importlib.import_module(BENCHMARKS[name])
        ratios = module.run(args.rounds, args.figure) if name == "growth" else module.run(args.rounds)
        print(f"\n## {name}\n\n{table(ratios)}", flush=True)
        results[name] = [asdict(ratio) for ratio in ratios]
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

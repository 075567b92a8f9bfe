"""Measure this project beside its alternatives, in one run, as ratios of medians over interleaved rounds.

    python scripts/benchmark.py fit
    python scripts/benchmark.py all --json benchmark.json
    python scripts/benchmark.py all --readme          (writes its tables into scripts/benchmarks/README.md)
    python scripts/benchmark.py compiled              (two minutes of compilers, so not in all)

Each benchmark's docstring states the floor (operations and bytes) its figures are to be read against.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

README = Path(__file__).parent / "benchmarks" / "README.md"
# Name to module in scripts/benchmarks, imported only when asked for.
BENCHMARKS = {
    "forward": "benchmarks.forward",
    "limit": "benchmarks.limit",
    "peers": "benchmarks.peers",
    "fit": "benchmarks.fit",
    "moments": "benchmarks.moments",
    "solve": "benchmarks.solve",
    "memory": "benchmarks.memory",
    "precision": "benchmarks.precision",
    "embed": "benchmarks.embed",
    "cores": "benchmarks.cores",
    "levels": "benchmarks.levels",
    "packed": "benchmarks.packed",
    "growth": "benchmarks.growth",
    "ray": "benchmarks.cluster",
    "start": "benchmarks.start",
    "compiled": "benchmarks.compiled",
}
# Two minutes in which compilers work: by itself only.
NOT_IN_ALL = ("compiled",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=[*BENCHMARKS, "all"], help="what to measure")
    parser.add_argument("--json", type=Path, help="also write machine and ratios to this file")
    parser.add_argument("--readme", action="store_true", help="also write the tables into scripts/benchmarks/README.md")
    parser.add_argument("--figure", type=Path, help="write the figure of growth to this PNG file")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds whose median counts (default 3)")
    args = parser.parse_args()

    if args.which == "all":
        results = run_all(args)
    else:
        from benchmarks.common import machine, table

        print("machine:", ", ".join(f"{key} {value}" for key, value in machine().items()))
        module = importlib.import_module(BENCHMARKS[args.which])
        growth = {"figure": args.figure} if args.which == "growth" else {}
        ratios = module.run(args.rounds, **growth)
        print(f"\n## {args.which}\n\n{table(ratios)}", flush=True)
        results = {"machine": machine(), args.which: [asdict(ratio) for ratio in ratios]}
    if args.json is not None:
        args.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if args.readme:
        from benchmarks.common import Ratio, table, write_tables

        said = ", ".join(f"{key} {value}" for key, value in results.pop("machine").items())
        tables = {name: table([Ratio(**ratio) for ratio in ratios]) for name, ratios in results.items()}
        write_tables(README, {"machine": f"{said}; medians of {args.rounds} rounds", **tables})


def run_all(args: argparse.Namespace) -> dict[str, Any]:
    """Every benchmark in a process of its own, so that none finds another's memory or compiled code."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        for name in (name for name in BENCHMARKS if name not in NOT_IN_ALL):
            command = [sys.executable, __file__, name, "--rounds", str(args.rounds), "--json", str(answer)]
            command += ["--figure", str(args.figure)] if args.figure is not None else []
            started = time.perf_counter()
            if subprocess.run(command, check=False).returncode != 0:
                sys.exit(f"benchmark.py: {name} failed, see above")
            results |= json.loads(answer.read_text(encoding="utf-8"))
            print(f"\n{name} took {time.perf_counter() - started:.0f} s", flush=True)
    return results


if __name__ == "__main__":
    main()

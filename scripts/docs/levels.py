"""The table of what each level costs, from what `rd-hf release --level N --plan` computes.

    python scripts/docs/levels.py           write it into scripts/docs/pages/checkpoints.md

The plan's two measured numbers are stated here instead, so that the table is the same wherever it is made: the memory
of a process without a model, and the FLOP per second of a machine. The page says where they come from.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.common import write_tables

PAGE = Path(__file__).resolve().parent / "pages" / "checkpoints.md"
LEVELS = ("35M", "150M", "650M", "3B", "15B")
# Of a process that has imported torch and transformers, in bytes.
BASE = 500_000_000
# scripts/benchmarks/README.md, "limit": 930 tokens through 8M + 35M + 150M in 2,277 ms, 3.8e8 FLOP each.
CPU = 150e9
# The same page, "On a GPU": packed rows in bfloat16 at 47 % of the 784 TFLOP/s of the card's matrix product.
GPU = 370e12
GROUP_TOKENS = 32768
HEAD = ("level", "width", "download", "disk", "memory", "one at a time", "two CPU cores", "one H200")


def render() -> str:
    """The table."""
    from rd_hf.families import esm2_config
    from rd_hf.files import byte_size
    from rd_hf.fitting import FitOptions, draw_sample
    from rd_hf.fitting.sample import plan_batches
    from rd_hf.fitting.settings import CPU_FIT_TOKENS
    from rd_hf.hub.plan import make_plan

    options = FitOptions()
    sample = draw_sample([str(files("rd_hf").joinpath("data/examples/proteins_1000.fasta.gz"))], options)
    lengths = [len(sequence) for sequence in sample.sequences]
    batches = [(len(rows), 2 + max(lengths[row] for row in rows)) for _, rows in plan_batches(sample, CPU_FIT_TOKENS)]
    lines = [HEAD, ("---", *["---:"] * (len(HEAD) - 1))]
    for level in LEVELS:
        config = esm2_config(level)
        plan = make_plan(config, batches, CPU_FIT_TOKENS, GROUP_TOKENS, BASE, flops=CPU)
        sizes = [byte_size(size) for size in (plan.weights, plan.weights + plan.work, plan.resident, plan.sequential)]
        times = [readable_time(plan.flop / rate) for rate in (CPU, GPU)]
        lines.append((level, f"{config.hidden_size:,}", *sizes, *times))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def readable_time(seconds: float) -> str:
    """A time in words, to two digits."""
    if seconds >= 6000:
        return f"{seconds / 3600:.2g} hours"
    return f"{seconds / 60:.2g} minutes" if seconds >= 100 else f"{seconds:.2g} seconds"


if __name__ == "__main__":
    write_tables(PAGE, {"costs": render()})

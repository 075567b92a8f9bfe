"""How the cost of fitting and of embedding grows: with residues, with levels, with processes.

The floor is a straight line through the origin: nothing is computed for two sequences together, so n residues cost n
times what one does, 24 x layers x width^2 floating-point operations for each backbone plus attention, which depends on
how long proteins are and not on how many. A fit adds a little over K^2 / 2 multiply-adds per residue in float64 (K the
sum of widths) and, once, eigendecompositions of matrices as wide as the levels, milliseconds here. Memory is measured
elsewhere (``embed.py``, ``fit.py``). A level adds its backbone. p processes do a p-th of the batches (or parts of
records) each; every one of them reads the whole file.

The family is random and small (32 to 96 wide, two layers), so that a million residues pass in seconds: what grows more
than linearly, in reading, sampling, batching and writing, shows all the better where the layers cost little. The
proteins are the carried ones, whole and in a seeded order, rotated by a few residues each time they come round again,
so that no two are equal and all sizes are alike in length and composition.

One process computes with as many threads as two processes have together (each then has half), so that the comparison
is one of processes and not of cores.
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import REPOSITORY, Ratio, answer_of, carried_proteins, random_family

WORKER = Path(__file__).with_name("growth_worker.py")
SIZES = {"S": (32, 2, 4), "M": (64, 2, 4), "L": (96, 2, 4)}
RESIDUES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
LEVEL_RESIDUES, PROCESS_RESIDUES = 100_000, 300_000
# Where the slope is looked at: below, what is done once is still in the sum.
UPPER = 3
JOBS = ("fit", "embed")
_COLOURS = {"fit": "tab:blue", "embed": "tab:orange"}


@dataclass(frozen=True)
class Growth:
    """Seconds of one job.

    Attributes:
        residues: by number of residues, three levels, one process.
        levels: by number of levels, 100,000 residues, one process.
        processes: by number of processes, 300,000 residues, three levels, the same threads in all.
    """

    residues: Mapping[int, float]
    levels: Mapping[int, float]
    processes: Mapping[int, float]


def run(rounds: int, figure: Path | None = None) -> list[Ratio]:
    """See the module's docstring; ``figure`` is where a PNG of it goes. However many rounds others have, it has one."""
    growth = measure()
    if figure is not None:
        draw(growth, figure)
    return [ratio for job in JOBS for ratio in _ratios(job, growth[job])]


def slope(seconds: Mapping[int, float], upper: int = UPPER) -> float:
    """Least-squares slope of log(seconds) against log(size) over the ``upper`` largest sizes: 1 is linear."""
    sizes = sorted(seconds)[-upper:]
    line = np.polyfit(np.log(sizes), np.log([seconds[size] for size in sizes]), 1)
    return float(line[0])


def write_proteins(path: Path, residues: int) -> None:
    """FASTA of proteins with that many residues in all, the last cut to fit; no two are equal."""
    sequences = carried_proteins()
    left, written = residues, 0
    with path.open("w", encoding="utf-8") as handle:
        for copy in itertools.count():
            for sequence in sequences:
                start = copy * 7 % len(sequence)
                rotated = (sequence[start:] + sequence[:start])[:left]
                handle.write(f">p{written}\n{rotated}\n")
                left, written = left - len(rotated), written + 1
                if left == 0:
                    return


def measure() -> dict[str, Growth]:
    """Times of both jobs."""
    sizes = sorted({*RESIDUES, LEVEL_RESIDUES, PROCESS_RESIDUES})
    single: dict[str, list[float]] = {}
    both: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for size in sizes:
            write_proteins(folder / f"{size}.fasta", size)
        for count in range(1, len(SIZES) + 1):
            random_family(dict(list(SIZES.items())[:count])).save_pretrained(folder / f"levels-{count}")
        whole = folder / f"levels-{len(SIZES)}"
        alone = [(whole, size) for size in RESIDUES]
        # Beside it: fewer levels. The whole family at that size is in the list above.
        alone += [(folder / f"levels-{count}", LEVEL_RESIDUES) for count in range(1, len(SIZES))]
        # Two minutes, and a slope over two decades is steadier than a ratio of two times: one round.
        for job in JOBS:
            single[job] = _work(job, folder, alone, 1)
            (both[job],) = _work(job, folder, [(whole, PROCESS_RESIDUES)], 2)
    growth = {}
    for job in JOBS:
        residues = dict(zip(RESIDUES, single[job], strict=False))
        levels = {number + 1: seconds for number, seconds in enumerate(single[job][len(RESIDUES) :])}
        levels[len(SIZES)] = residues[LEVEL_RESIDUES]
        growth[job] = Growth(residues, levels, {1: residues[PROCESS_RESIDUES], 2: both[job]})
    return growth


def threads() -> int:
    """Threads that all processes of a run have together: an even number, every core where that is even."""
    return max(2, 2 * ((os.cpu_count() or 2) // 2))


def _work(job: str, folder: Path, work: Sequence[tuple[Path, int]], processes: int) -> list[float]:
    """Seconds of each piece of work, done by so many processes."""
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(WORKER), job, str(folder / "scratch")]
    for model, size in work:
        command += [str(model), str(folder / f"{size}.fasta")]
    answer: list[float] = answer_of(
        command, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS=str(threads() // processes), HF_HUB_OFFLINE="1"
    )
    return answer


def _ratios(job: str, growth: Growth) -> list[Ratio]:
    residues = ", ".join(f"{size:,}: {seconds:.2f} s" for size, seconds in growth.residues.items())
    upper = sorted(growth.residues)[-UPPER:]
    levels = ", ".join(f"{number}: {seconds:.2f} s" for number, seconds in sorted(growth.levels.items()))
    each = threads() // 2
    alone, both = growth.processes[1], growth.processes[2]
    return [
        Ratio(
            f"{job}: slope of log time against log residues, {upper[0]:,} to {upper[-1]:,}",
            slope(growth.residues), 1.05, at_least=False, detail=residues,
        ),
        Ratio(
            f"{job}: {len(SIZES)} levels / 1 level, {LEVEL_RESIDUES:,} residues",
            growth.levels[len(SIZES)] / growth.levels[1], None, detail=levels,
        ),
        Ratio(
            f"{job}: 1 process / 2 processes, {PROCESS_RESIDUES:,} residues",
            alone / both, None, detail=f"{alone:.2f} s with {2 * each} threads / {both:.2f} s with {each} each",
        ),
    ]  # fmt: skip


def draw(growth: Mapping[str, Growth], path: Path) -> None:
    """Write a PNG: time against residues (log-log, with slope 1), levels and processes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    residues, levels, processes = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    for job, of in growth.items():
        for axes, seconds in ((residues, of.residues), (levels, of.levels), (processes, of.processes)):
            sizes = sorted(seconds)
            axes.plot(sizes, [seconds[s] for s in sizes], "o-", color=_COLOURS[job], label=job, clip_on=False)
        # Slope 1 through the largest size: what linear growth would have taken all along.
        largest = max(of.residues)
        line = np.array([min(of.residues), largest])
        residues.plot(line, of.residues[largest] * line / largest, ":", color=_COLOURS[job])
    residues.plot([], [], ":", color="grey", label="slope 1")
    residues.set(xscale="log", yscale="log", xlabel="residues", ylabel="seconds")
    residues.legend(frameon=False)
    levels.set(xlabel=f"levels ({LEVEL_RESIDUES:,} residues)", ylim=(0, None), xticks=range(1, len(SIZES) + 1))
    processes.set(xlabel=f"processes ({PROCESS_RESIDUES:,} residues)", ylim=(0, None), xticks=(1, 2))
    for axes in (residues, levels, processes):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)

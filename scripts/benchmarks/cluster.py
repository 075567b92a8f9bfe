"""The same job on one process, on two, and on Ray with one worker and two; and what a much larger one would take.

The floor. Both ways run the same engine on the same parts, so their tokens cost the same. Ray adds a start (its own
processes, and a process that imports torch for each worker), a copy of the records on the disk (staged, in parts of
16,384), and for each part a message to a worker, one back, and two files' names: milliseconds for thousands of records.

Costs are measured on jobs that have little of anything else: a start by a job of ten records, a token by one local
process less its start, a part by a job of many parts of a record each. The simulation then says what the runs with one
worker and two should take (the tokens of two slowed down as those of two local processes are, which share a machine's
memory), and is held against them. Losses and a thousand workers are beyond this machine: there the simulation stands
alone, on the assumptions of ``simulate.py``. Seconds are whole runs of the command, from start to exit.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from benchmarks.common import CARRIED, LONGEST, REPOSITORY, Ratio, carried_proteins, random_family
from benchmarks.resident import resident_mb
from benchmarks.simulate import Costs, parts_of, simulate
from rd_hf.data.fasta import read_fasta

COPIES, SHORT, LETTERS, MANY = 2, 200_000, 20, 64
TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
PROTEINS = 250_000_000
# Residues per second of a worker: an H100 at 300 TFLOP/s and 1.7e9 FLOP per residue, as in rd_hf/embedding/README.md.
H100_650M = 300e12 / 1.7e9
DAY = 86400.0


@dataclass(frozen=True)
class Ran:
    """A run: seconds from start to exit, tokens and their padding as the summary has them, memory early and late."""

    seconds: float
    tokens: int
    padding: float
    early_mb: float
    late_mb: float


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring. One round: the runs are long, and each is held against its neighbours."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_family({"S": (64, 6, 4), "M": (128, 6, 8)}).save_pretrained(folder / "model")
        start, compared = _compared(folder)
        return [*compared, *_short(folder, start["local 2"], start["ray 2"]), *_larger()]


def _compared(folder: Path) -> tuple[dict[str, Ran], list[Ratio]]:
    """Runs of ten records by name, and the table of whole runs."""
    proteins = [(f"c{copy}", sequence) for copy in range(COPIES) for sequence in carried_proteins(copy)]
    whole = _fasta(folder / "whole.fasta", [sequence for _, sequence in proteins])
    few = _fasta(folder / "few.fasta", [sequence for _, sequence in proteins[:10]])
    many = _fasta(folder / "many.fasta", ["MKTAYIAKQR"] * MANY)
    ray_one, ray_two = ["--engine", "ray", "--workers", "1"], ["--engine", "ray", "--workers", "2"]
    start = {
        "local 1": _job(folder, few),
        "local 2": _job(folder, few, launcher=TWO),
        "ray 1": _job(folder, few, *ray_one),
        "ray 2": _job(folder, few, *ray_two),
    }
    parts = _job(folder, many, *ray_one, "--part-records", "1")
    part = max(0.0, (parts.seconds - start["ray 1"].seconds) / MANY)
    ran = {
        "local 1": _job(folder, whole),
        "ray 1": _job(folder, whole, *ray_one),
        "local 2": _job(folder, whole, launcher=TWO),
        "ray 2": _job(folder, whole, *ray_two),
    }
    above = {name: each.seconds - start[name].seconds for name, each in ran.items()}
    token = above["local 1"] / ran["local 1"].tokens
    slowed = above["local 2"] / (above["local 1"] / 2)
    tokens = _tokens_of_parts(ran["ray 1"])
    costs = Costs(start["ray 1"].seconds, token, part)
    said = {
        "1": simulate(tokens, 1, costs, len(proteins), 1).seconds,
        "2": simulate(
            tokens, 2, replace(costs, start=start["ray 2"].seconds, token=token * slowed), len(proteins), 1
        ).seconds,
    }
    overhead = (above["ray 1"] - above["local 1"]) / len(proteins)
    table = [
        Ratio(
            f"{name}, records/s",
            len(proteins) / each.seconds,
            None,
            detail=f"{each.seconds:.1f} s, of which {start[name].seconds:.1f} s for any ten records; "
            f"{each.tokens:,} tokens{' (of its first process)' * (name == 'local 2')}, {each.padding:.1f} % of them "
            "padding",
        )
        for name, each in ran.items()
    ]
    return start, [
        *table,
        Ratio(
            "overhead of Ray beyond its start, ms per record", 1000 * overhead, None,
            detail=f"{1000 * part:.0f} ms per part of one record",
        ),
        *(
            Ratio(
                f"simulated / measured, {name} worker{'s' if name != '1' else ''}",
                said[name] / ran[f"ray {name}"].seconds, 1.1, at_least=False,
                detail=f"{said[name]:.1f} s / {ran[f'ray {name}'].seconds:.1f} s, at least 0.9 too; "
                f"{1e6 * token:.1f} µs per token, {slowed:.2f} times that where two share the machine",
            )
            for name in ("1", "2")
        ),
    ]  # fmt: skip


def _tokens_of_parts(ran: Ran) -> list[float]:
    count = COPIES * 1000
    parts = -(-count // 250)
    return [ran.tokens / parts] * parts


def _short(folder: Path, start_local: Ran, start_ray: Ran) -> list[Ratio]:
    """Many short records: what a record costs beside its tokens, and whether memory grows with their number."""
    generator = random.Random(0)
    short = _fasta(
        folder / "short.fasta", ["".join(generator.choices("LAGVSERTIDPKQNFYMHWC", k=LETTERS)) for _ in range(SHORT)]
    )
    limits = ("--part-records", "4096")
    local = _job(folder, short, *limits, launcher=TWO)
    ray = _job(folder, short, *limits, "--engine", "ray", "--workers", "2")
    whole = local.seconds / ray.seconds
    beyond = (local.seconds - start_local.seconds) / (ray.seconds - start_ray.seconds)
    return [
        Ratio(
            f"{SHORT:,} records of {LETTERS}: throughput of Ray / local, two workers, beyond the start", beyond, 0.85,
            detail=f"{ray.seconds:.0f} s ({start_ray.seconds:.0f} s of them the start) against {local.seconds:.0f} s "
            f"({start_local.seconds:.0f} s); {whole:.2f} with the start",
        ),
        Ratio(
            f"{SHORT:,} records of {LETTERS}: memory of driver and workers late / early",
            ray.late_mb / ray.early_mb, 1.1, at_least=False,
            detail=f"{ray.late_mb:,.0f} MB against {ray.early_mb:,.0f} MB, anonymous, all processes together",
        ),
    ]  # fmt: skip


def _larger() -> list[Ratio]:
    """A job that no one machine does."""
    lengths = [min(len(record.sequence), LONGEST) for record in read_fasta(CARRIED)]
    parts = parts_of(PROTEINS, lengths, 0.03, 16384)
    # Seconds per token of such a worker; staging as the README has it, in a thousand files; ten minutes to be back.
    costs = Costs(start=600, token=1 / H100_650M, part=0.1, adopt=0.02, stage=24e-6)
    table = []
    for workers in (1, 2, 10, 100, 1000):
        well = simulate(parts, workers, costs, PROTEINS, 1000)
        lossy = simulate(parts, workers, costs, PROTEINS, 1000, between_losses=DAY)
        table.append(
            Ratio(
                f"250 million proteins on {workers:,} H100, level 650M, hours (simulated)", lossy.seconds / 3600, None,
                detail=f"each lost once a day: {lossy.lost:,} of {len(parts):,} parts begun twice, "
                f"{100 * lossy.busy:.0f} % of the time in parts that are kept; without a loss "
                f"{well.seconds / 3600:.2f} hours",
            )
        )  # fmt: skip
    return table


def _fasta(path: Path, sequences: list[str]) -> Path:
    path.write_text("".join(f">r{n}\n{sequence}\n" for n, sequence in enumerate(sequences)), encoding="utf-8")
    return path


def _job(folder: Path, fasta: Path, *arguments: str, launcher: tuple[str, ...] = (sys.executable,)) -> Ran:
    """Run the command, and watch the memory of all its processes."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [
            *launcher,
            str(REPOSITORY / "scripts" / "embed.py"),
            "--model",
            str(folder / "model"),
            "--level",
            "S",
        ]
        command += ["--input", str(fasta), "--output", f"{output}/out"]
        command += [*arguments] if "--part-records" in arguments else ["--part-records", "250", *arguments]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        # No token in the home of whoever measures.
        env["RAY_AUTH_MODE"] = "disabled"
        started = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, text=True)
        seen: list[tuple[int, float]] = []
        while process.poll() is None:
            time.sleep(0.5)
            finished = sum(path.stem.isdecimal() for path in Path(output).glob("out/.job/*.json"))
            seen.append((finished, _memory(process.pid)))
        seconds = time.monotonic() - started
        said = process.stdout.read() if process.stdout else ""
        if process.returncode != 0:
            raise RuntimeError(f"the job over {fasta.name} ended with status {process.returncode}")
        parts = max(count for count, _ in seen)
        early = [size for count, size in seen if 2 <= count <= max(3, parts // 4)]
        late = [size for count, size in seen if count >= parts // 2]
    (tokens, padding) = re.findall(r"([\d,]+) tokens computed.* ([\d.]+) % of them padding", said)[0]
    return Ran(seconds, int(tokens.replace(",", "")), float(padding), max(early, default=0.0), max(late, default=0.0))


def _memory(pid: int) -> float:
    """Anonymous memory of a process and all it started, in MB."""
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(resident_mb("RssAnon", process.pid) for process in family)

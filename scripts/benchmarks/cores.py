"""A whole embedding job on two cores: one process with two threads, two processes with one each, and where it goes.

A job is everything from reading the FASTA to the manifest, the model's load included, imports not. ``threads`` is a
job as it is: one batch per thread. ``shared`` is the same with every batch shared by all threads. Both take turns in
one process; two processes take theirs in between. Wall seconds say what a user waits; processor
seconds of one process beside them say how much of it was work, and on a machine that others use are what to compare.

The floor: the products of weights alone, 24 x sum(layers x width^2) operations per token, at the rate that the machine
reaches in them with one thread (see ``limit``), times the cores. ``rd-esm2-mini`` is 64 to 192 wide with heads of 16
numbers: attention, 4 x sum(layers x width) operations per token and neighbour, costs there as much as half of the
products, and counts as the rest. One run under the profiler says what kinds of kernels a job's batches take.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import ESM2_SIZES, LONGEST, REPOSITORY, Ratio, answer_of, paired, random_family
from benchmarks.embed import proteins_file
from benchmarks.limit import peak, seconds_by_kind
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import clean_sequence
from rd_hf.embedding.engine import CPU_BATCH_TOKENS, Engine, Request
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.model.modeling_rd_esm import RDEsmModel

WORKER = Path(__file__).parent / "cores_worker.py"
MINI = REPOSITORY / "hub_configs" / "rd-esm2-mini"
# Proteins of a job: some ten seconds on two cores each.
PROTEINS = {"rd-esm2-mini": 128, "8M + 35M": 32}
PARTS = 2
GOAL = 1.15


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    ratios: list[Ratio] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_family({name: ESM2_SIZES[name] for name in ("8M", "35M")}).save_pretrained(folder / "model")
        for family, model in (("rd-esm2-mini", MINI), ("8M + 35M", folder / "model")):
            sequences = sample(PROTEINS[family])
            fasta = folder / f"{len(sequences)}.fasta"
            fasta.write_text("".join(f">p{n}\n{seq}\n" for n, seq in enumerate(sequences)), encoding="utf-8")
            ratios += _jobs(family, model, fasta, folder, min(rounds, 2))
            ratios.append(_kernels(family, model, sequences))
    return ratios


def sample(count: int) -> list[str]:
    """Proteins of E. coli (or the carried ones) drawn by seed."""
    everything = [clean_sequence(record.sequence)[:LONGEST] for record in read_fasta(proteins_file())]
    return random.Random(0).sample(everything, count)


def _jobs(family: str, model: Path, fasta: Path, folder: Path, rounds: int) -> list[Ratio]:
    took: dict[str, list[dict[str, Any]]] = {"threads": [], "shared": [], "two": []}
    for number in range(rounds):
        # Every second round in reverse order, so that neither always comes after the other.
        order = ["threads", "shared"] if number % 2 == 0 else ["shared", "threads"]
        for one in _work(model, fasta, folder, 1, order):
            took[one["how"]].append(one)
        if number == 0:
            took["two"] += _work(model, fasta, folder, 2, ["threads"])
    wall = {name: [one["wall"] for one in runs] for name, runs in took.items()}
    processor = {name: [one["processor"] for one in runs] for name, runs in took.items()}
    residues = took["threads"][0]["residues"]

    def shown(name: str) -> str:
        seconds, work = statistics.median(wall[name]), statistics.median(processor[name])
        return f"{residues / seconds:,.0f} residues/s ({seconds:.1f} s, {work:.1f} s of processors)"

    stages = took["threads"][-1]["stages"]
    return [
        Ratio(
            f"{family}: shared / threads, one process of two threads", paired(wall["shared"], wall["threads"]), GOAL,
            detail=f"{shown('threads')} against {shown('shared')}",
        ),
        Ratio(
            f"{family}: two processes of one thread each / threads", paired(wall["two"], wall["threads"][:1]), None,
            detail=f"{shown('two')}, of one of them",
        ),
        Ratio(
            f"{family}: share of the job in the model", stages["embed"] / sum(stages.values()), None,
            detail=", ".join(f"{stage} {1e3 * seconds:,.0f} ms" for stage, seconds in stages.items()),
        ),
    ]  # fmt: skip


def _work(model: Path, fasta: Path, folder: Path, processes: int, ways: list[str]) -> list[dict[str, Any]]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    records = len(fasta.read_text(encoding="utf-8").splitlines()) // 2
    command += [str(WORKER), str(folder / "scratch"), str(model), str(fasta), str(records // PARTS), *ways]
    answer: list[dict[str, Any]] = answer_of(
        command, PYTHONPATH=str(REPOSITORY), OMP_NUM_THREADS=str(2 // processes), HF_HUB_OFFLINE="1"
    )
    return answer


def _kernels(family: str, folder: Path, sequences: list[str]) -> Ratio:
    """The share of one thread's time in the model that its products take at their peak, and what all kernels take."""
    model = RDEsmModel.from_pretrained(folder).eval()
    engine = Engine(model, model.config.level_names[-1], EmbeddingOptions())
    requests = [Request(sequence) for sequence in sequences[:: max(1, len(sequences) // 8)]]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        engine.embed(requests)
        tokens = engine.work.tokens
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            engine.embed(requests)
        backbones = [model.config.backbone_config(levels[0]) for levels in model.config.backbone_groups]
        floor = sum(
            24.0 * own.num_hidden_layers * own.hidden_size**2 * tokens / peak(own.hidden_size, CPU_BATCH_TOKENS)
            for own in backbones
        )
    finally:
        torch.set_num_threads(before)
    spent = seconds_by_kind(profiled)
    total = sum(spent.values())
    detail = ", ".join(f"{kind} {100 * value / total:.0f} %" for kind, value in spent.items())
    return Ratio(
        f"{family}: limit / time of the model, one thread", floor / total, None,
        detail=f"{floor:.2f} s of {total:.2f} s for {tokens:,} tokens; {detail}",
    )  # fmt: skip

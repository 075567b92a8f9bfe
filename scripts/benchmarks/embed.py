"""Embedding jobs beside the two loops that people write, all over the same random-weight 8M + 35M family.

``file order``: batches of 16 in file order, padded to the longest, as in most model cards. ``sorted 4,096``: sorted
by length, 4,096 tokens per batch, as in fair-esm's ``extract.py``. Both truncate to 1,022 residues and pool the mean
over residues, as this project's engine is asked to here; all answers are compared before any is timed. Which
sequences: a seeded sample of the E. coli proteome (of the carried proteins where it is absent).

The floor: one token costs 24 x sum(layers x width^2) = 81 million floating-point operations at
8M + 35M, plus 4 x sum(layers x width) for each token it attends to; what a loop computes beyond that for residues,
cls and eos is padding. Padding and cache misses are therefore all there is to win in float32; bfloat16 halves the
bytes and, with AMX or AVX-512 BF16, doubles the rate or better.

Memory: a job over a million tripeptides at the size of rd-esm2-mini, its resident set looked at all along. Late parts
have twelve times the records of early ones and are computed by two threads at once, which takes 30 MB more; what is
left free between them goes back to the machine (``rd_hf/memory.py``; without that 689 MB against 497).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import CARRIED, ESM2_SIZES, LONGEST, REPOSITORY, Ratio, interleaved, medians, random_family
from benchmarks.resident import resident_mb
from rd_hf.data.batching import SPECIAL_TOKENS, collate, token_budget_batches
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import clean_sequence
from rd_hf.embedding.engine import GPU_BATCH_TOKENS, Engine, Request
from rd_hf.embedding.layouts import SPREAD, pool
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import part_limit
from rd_hf.embedding.settings import PART_RECORDS
from rd_hf.model.modeling_rd_esm import RDEsmModel

PROTEOME = REPOSITORY.parent / "shared" / "data" / "sequences" / "ecoli_K12_UP000000625.fasta.gz"
PROTEINS = 32
RECORDS = 1_000_000


def run(rounds: int) -> list[Ratio]:
    """Residues per second as ratios, padding, memory."""
    return [*_speed(rounds), _memory()]


def _speed(rounds: int) -> list[Ratio]:
    everything = [clean_sequence(record.sequence)[:LONGEST] for record in read_fasta(proteins_file())]
    sequences = random.Random(0).sample(everything, PROTEINS)
    residues = sum(map(len, sequences))
    sizes = {name: ESM2_SIZES[name] for name in ("8M", "35M")}
    model, half = random_family(sizes), random_family(sizes).to(torch.bfloat16)
    options = EmbeddingOptions()
    ours, ours_half = Engine(model, "35M", options), Engine(half, "35M", options)
    requests = [Request(sequence) for sequence in sequences]
    candidates: dict[str, Callable[[], object]] = {
        "file order": lambda: _loop(model, sequences, _file_order(sequences)),
        "sorted 4,096": lambda: _loop(model, sequences, _sorted(sequences, 4096)),
        "sorted 4,096 bfloat16": lambda: _loop(half, sequences, _sorted(sequences, 4096)),
        "ours": lambda: ours.embed(requests),
        "ours bfloat16": lambda: ours_half.embed(requests),
    }
    expected = _loop(model, sequences, _sorted(sequences, 4096))
    for row, result in zip(expected, ours.embed(requests), strict=True):
        # Float32 sums in another order: far below 1e-4, which is what acceptance asks of batching.
        torch.testing.assert_close(torch.as_tensor(result), row, atol=1e-4, rtol=1e-4)
    ours.work.tokens = ours.work.padding = 0
    # A minute each.
    seconds = medians(interleaved(candidates, min(rounds, 2)))
    shown = {name: f"{residues / value:,.0f} residues/s ({value:.1f} s)" for name, value in seconds.items()}
    lengths = [len(sequence) for sequence in everything]
    return [
        Ratio(
            "file order / ours, float32", seconds["file order"] / seconds["ours"], 2.5,
            detail=f"{shown['ours']} against {shown['file order']}",
        ),
        Ratio(
            "sorted 4,096 tokens / ours, float32", seconds["sorted 4,096"] / seconds["ours"], 1.1,
            detail=f"{shown['ours']} against {shown['sorted 4,096']}",
        ),
        Ratio(
            "sorted 4,096 tokens float32 / ours bfloat16", seconds["sorted 4,096"] / seconds["ours bfloat16"], 2.0,
            detail=f"{shown['ours bfloat16']}; the target is for a CPU with AMX",
        ),
        Ratio(
            "sorted 4,096 tokens bfloat16 / ours bfloat16", seconds["sorted 4,096 bfloat16"] / seconds["ours bfloat16"],
            None, detail=f"{shown['sorted 4,096 bfloat16']}",
        ),
        Ratio(
            "padding of the sample, % of tokens", 100 * ours.work.padding / ours.work.tokens, 4.0, at_least=False,
            detail=f"{PROTEINS} proteins, {ours.tokens:,} tokens per batch",
        ),
        Ratio(
            "padding of the whole proteome, % of tokens", 100 * _padding(lengths, ours.tokens), 4.0, at_least=False,
            detail=f"{len(lengths):,} proteins, as planned; {100 * _padding(lengths, GPU_BATCH_TOKENS):.2g} % at "
            f"{GPU_BATCH_TOKENS:,} tokens per batch, as on a GPU",
        ),
    ]  # fmt: skip


def proteins_file() -> Path:
    return PROTEOME if PROTEOME.exists() else CARRIED


def _file_order(sequences: Sequence[str]) -> list[list[int]]:
    return [list(range(start, min(start + 16, len(sequences)))) for start in range(0, len(sequences), 16)]


def _sorted(sequences: Sequence[str], tokens: int) -> list[list[int]]:
    """Shortest first, a batch closed when rows x longest row would exceed the tokens."""
    batches: list[list[int]] = [[]]
    for position in sorted(range(len(sequences)), key=lambda position: len(sequences[position])):
        if batches[-1] and (len(batches[-1]) + 1) * (len(sequences[position]) + SPECIAL_TOKENS) > tokens:
            batches.append([])
        batches[-1].append(position)
    return batches


@torch.inference_mode()
def _loop(model: RDEsmModel, sequences: Sequence[str], batches: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """The loop of a model card: batch, forward, mean over residues."""
    answers: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
    for batch in batches:
        chosen = [sequences[position] for position in batch]
        input_ids, attention_mask = collate(chosen)
        states = model(input_ids, attention_mask=attention_mask).last_hidden_state
        for position, row in zip(batch, pool(states, [len(sequence) for sequence in chosen], "mean"), strict=True):
            answers[position] = row
    return answers


def _padding(lengths: Sequence[int], tokens: int) -> float:
    """Share of padding in the batches that a job would make, part by part."""
    whole = start = 0
    while start < len(lengths):
        part = lengths[start : start + part_limit(start, PART_RECORDS)]
        start += len(part)
        for batch in token_budget_batches(part, tokens, SPREAD):
            whole += len(batch) * (max(part[place] for place in batch) + SPECIAL_TOKENS)
    return 1 - (sum(lengths) + SPECIAL_TOKENS * len(lengths)) / whole


def _memory() -> Ratio:
    """Peak resident set late in a job over a million records, against its peak early on."""
    generator = random.Random(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        random_family({"S": (64, 6, 4), "M": (128, 6, 8), "L": (192, 6, 12)}).save_pretrained(folder / "model")
        with (folder / "records.fasta").open("w", encoding="utf-8") as handle:
            for number in range(RECORDS):
                handle.write(f">r{number}\n{''.join(generator.choices('LAGVSERTIDPKQNFYMHWC', k=3))}\n")
        command = [sys.executable, str(REPOSITORY / "scripts" / "embed.py"), "--model", str(folder / "model")]
        command += ["--level", "S", "--input", str(folder / "records.fasta"), "--output", str(folder / "out")]
        started = time.monotonic()
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}
        )
        seen: list[tuple[int, float]] = []  # parts finished, megabytes resident
        while process.poll() is None:
            time.sleep(0.2)
            done = len(list((folder / "out" / ".job").glob("*.json")))
            seen.append((done, resident_mb("VmRSS", process.pid)))
        if process.returncode != 0:
            raise RuntimeError(f"the job over {RECORDS:,} records ended with status {process.returncode}")
        took = time.monotonic() - started
    parts = max(done for done, _ in seen)
    # Early: after two parts, when everything has been allocated once; late: the second half of the job.
    early = max(size for done, size in seen if 2 <= done <= max(3, parts // 8))
    late = max(size for done, size in seen if done >= parts // 2)
    detail = f"{late:,.0f} MB against {early:,.0f} MB; {RECORDS:,} records in {took:.0f} s, {parts} parts"
    return Ratio("memory late / early in a million records", late / early, 1.1, at_least=False, detail=detail)

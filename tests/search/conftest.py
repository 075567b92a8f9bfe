"""Folders to search in, made up or embedded, and the command in this process."""

from __future__ import annotations

import csv
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY, Outcome, run_here

sys.path.insert(0, str(REPOSITORY / "scripts"))

from benchmarks.search import write_folder

from rd_hf.commands import embed as embed_command
from rd_hf.commands import search as search_command

DIMS = {"S": 8, "M": 16, "L": 32}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """The search command in this process, on vectors as they are unless it is told to whiten."""

    def call(*arguments: object) -> Outcome:
        if "--whiten" not in arguments:
            arguments += ("--whiten", "none")
        return run_here(search_command.main, capsys, *arguments)

    return call


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Make a finished folder out of vectors, in files of seven rows."""

    def make(vectors: np.ndarray, name: str = "database", **options: object) -> Path:
        files = (vectors[start : start + 7] for start in range(0, len(vectors), 7))
        (level,) = (level for level, width in DIMS.items() if width == vectors.shape[1])
        return write_folder(tmp_path / name, files, DIMS, level, **options)  # type: ignore[arg-type]

    return make


def protein_like(rows: int, width: int = 32, seed: int = 0, mean_seed: int = 0) -> np.ndarray:
    """(rows, width) float32 about a mean that is large in some channels, as ESM-2's states are."""
    mean = np.random.default_rng(mean_seed).standard_normal(width) * ([10] + [0.1] * (width - 1))
    return (np.random.default_rng(seed).standard_normal((rows, width)) * 0.3 + mean).astype(np.float32)


def by_hand(queries: np.ndarray, rows: np.ndarray, k: int, metric: str, itself: bool = False) -> np.ndarray:
    """(queries, k) records of the nearest rows, from 1, by one matrix in float64; ties to the smaller record."""
    one, other = queries.astype(np.float64)[:, None], rows.astype(np.float64)[None]
    if metric == "cosine":
        closeness = (one * other).sum(-1) / np.linalg.norm(one, axis=-1) / np.linalg.norm(other, axis=-1)
    else:
        closeness = -np.sqrt(((one - other) ** 2).sum(-1))
    # What float32 holds is what is written: values that agree in it are ties.
    closeness = closeness.astype(np.float32)
    if itself:
        np.fill_diagonal(closeness, -np.inf)
    return np.argsort(-closeness, axis=1, kind="stable")[:, :k] + 1


def read_hits(path: Path) -> dict[str, list[str]]:
    """Columns of a tab-separated file."""
    with path.open(newline="") as handle:
        rows = list(csv.DictReader(handle, dialect="excel-tab"))
    return {name: [row[name] for row in rows] for name in rows[0]}


def records_found(path: Path, k: int) -> np.ndarray:
    """(queries, k) records of a file of hits."""
    return np.array(read_hits(path)["record"], dtype=np.int64).reshape(-1, k)


def random_proteins(path: Path, count: int, seed: int = 0) -> list[str]:
    """Write random proteins ``p1``, ... to a FASTA file, the last the same as the first."""
    generator = random.Random(seed)
    sequences = ["".join(generator.choices("LAGVSERTIDPKQNFYMHWC", k=generator.randint(20, 60))) for _ in range(count)]
    sequences[-1] = sequences[0]
    path.write_text("".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(sequences, start=1)))
    return sequences


def embed(model: Path, fasta: Path, output: Path, *more: object) -> Path:
    """The embed command in this process."""
    arguments = ["--model", model, "--input", fasta, "--output", output, "--quiet", *more]
    assert embed_command.main([str(argument) for argument in arguments]) == 0
    return output

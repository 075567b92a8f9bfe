"""A small labelled table that a tiny family can learn from: numbers and classes that follow from the composition."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from rd_hf.training import TrainingSettings

LETTERS = "ACDEFGHIKLMNPQRSTVWY"
WriteTable = Callable[..., Path]


def labelled(count: int = 60, seed: int = 0) -> list[dict[str, str]]:
    """Rows with an id, a sequence, a number (hydrophobic share and noise), a class of it, and a family."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        bias = generator.dirichlet(np.full(20, 0.5))
        sequence = "".join(generator.choice(list(LETTERS), size=int(generator.integers(20, 40)), p=bias))
        share = sum(letter in "AILMFVW" for letter in sequence) / len(sequence) + generator.normal(0, 0.02)
        rows.append(
            {
                "id": f"p{number}",
                "sequence": sequence,
                "score": f"{share:.6f}",
                "kind": "high" if share > 0.33 else "low",
                "family": f"f{number % 12}",
            }
        )
    return rows


def write_table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    """Write rows as a CSV file."""
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path: Path) -> WriteTable:
    """Writes rows as a CSV file, and returns its path."""
    return lambda rows, name="labelled.csv": write_table(tmp_path / name, rows)


@pytest.fixture
def settings(tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., TrainingSettings]:
    """Settings of a training of the tiny family, on the CPU."""

    def make(source: Path, **changed: object) -> TrainingSettings:
        own: dict[str, object] = {"target": "score", "output": tmp_path / "out", "device": "cpu", **changed}
        return TrainingSettings(model=str(tiny_checkpoint), input=str(source), **own)  # type: ignore[arg-type]

    return make

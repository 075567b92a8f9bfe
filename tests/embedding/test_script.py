"""``scripts/embed.py`` as a user runs it: a process of its own, files in, files out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "embed.py"


def embed(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=300)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.fasta"
    path.write_text(">a first\nMKTAYIAKQR\n>b\nACDEFGHIKL\nMNPQ\n>a again\nMKTAYIAKQR\n>bad\nMK*T\n")
    return path


def test_a_fasta_file_becomes_parquet_with_every_record_accounted_for(
    fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    run = embed("--model", tiny_checkpoint, "--input", fasta, "--output", output)
    assert run.returncode == 0, run.stderr
    table = pq.read_table(output / "embeddings-000000.parquet")
    assert table["id"].to_pylist() == ["a", "b", "a"]
    assert table["record"].to_pylist() == [1, 2, 3]
    assert table["length"].to_pylist() == [10, 14, 10]
    values = np.array(table["embedding"].to_pylist())
    assert values.shape == (3, 64)
    assert np.array_equal(values[0], values[2])
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["counts"]["records"] == 4
    assert (output / "rejects.tsv").read_text().splitlines()[1].split("\t")[1:3] == ["4", "bad"]

"""Groups of similar sequences, by the program where it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rd_hf.data.records import InputError
from rd_hf.training import TrainingSettings, run_training
from rd_hf.training.similarity import similarity_groups
from tests.training.conftest import LETTERS, WriteTable, labelled

Make = Callable[..., TrainingSettings]


def relatives(families: int, members: int) -> list[str]:
    """Families of random sequences of 100 residues, one after the other; members differ in a tenth of them."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(families):
        own = generator.choice(list(LETTERS), 100)
        for _ in range(members):
            changed = own.copy()
            changed[generator.choice(100, 10, replace=False)] = generator.choice(list(LETTERS), 10)
            found.append("".join(changed))
    return found


def program(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let ``mmseqs`` be this shell script."""
    (folder / "bin").mkdir()
    (folder / "bin" / "mmseqs").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "mmseqs").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder / "bin"), prepend=":")


def test_where_the_program_is_missing_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"mmseqs of MMseqs2, which is not installed: .* \(Debian's package is mmseqs"):
        similarity_groups(["MKT", "MKV"])


def test_what_the_program_says_of_a_failure_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, "echo disk full >&2; exit 3")
    with pytest.raises(InputError, match=r"easy-cluster failed \(disk full\)"):
        similarity_groups(["MKT", "MKV"])


def test_its_answer_is_read_and_who_is_not_in_it_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, monkeypatch, 'grep -q "^MKV$" $2 && printf "3\\t3\\n3\\t0\\n1\\t1\\n" > $3_cluster.tsv')
    np.testing.assert_array_equal(similarity_groups(["MKT", "MKV", "MKL", "MKI"]), [2, 0, 1, 2])


def test_cross_validation_keeps_similar_sequences_together(table: WriteTable, settings: Make, tmp_path: Path) -> None:
    if shutil.which("mmseqs") is None:
        pytest.skip("MMseqs2 is not installed")
    rows = [{**row, "sequence": sequence} for row, sequence in zip(labelled(40), relatives(10, 4), strict=True)]
    chosen = settings(table(rows), group="similarity", folds=3, inner_folds=2)
    summary = run_training(chosen, lambda _: None, show_progress=False)
    assert "10 groups of similar sequences (MMseqs2: 30% identity over 80% of both) kept together" in summary.text
    said = pq.read_table(tmp_path / "out" / "out_of_fold.parquet").to_pandas()
    assert (said.groupby(np.arange(40) // 4)["fold"].nunique() == 1).all()
    assert said["fold"].nunique() == 3

"""A pooling is one record: added to the table, it is what every entry point computes, and extends where it may."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rd_hf.embedding import Embedder, EmbeddingOptions
from rd_hf.embedding.layouts import Packed, Padded, pool
from rd_hf.model.pooling_rd_esm import POOLINGS, Pooling
from tests.conftest import Outcome
from tests.embedding.conftest import random_fasta, read

Embed = Callable[..., Outcome]
# The first residue commutes with the bases, as each row alone does; the range of its numbers does not.
ADDED = (
    Pooling(
        "first",
        one_row=True,
        affine=True,
        pool_rows=lambda first, rows, positions: rows[0].clone(),
        pool_batch=lambda states, keep: states[:, 1].float().clone(),
    ),
    Pooling(
        "range",
        one_row=True,
        affine=False,
        pool_rows=lambda first, rows, positions: rows.amax(dim=0) - rows.amin(dim=0),
        pool_batch=lambda states, keep: torch.stack(
            [row[own].amax(dim=0) - row[own].amin(dim=0) for row, own in zip(states.float(), keep, strict=True)]
        ),
    ),
)
REDUCED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "first": lambda rows: rows[0],
    "range": lambda rows: rows.max(axis=0) - rows.min(axis=0),
}


@pytest.fixture(autouse=True)
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    for pooling in ADDED:
        monkeypatch.setitem(POOLINGS, pooling.name, pooling)


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path) -> list[object]:
    fasta = random_fasta(tmp_path / "in.fasta", 12, longest=50)
    # Windows of 30 residues: some sequences are one batch's row, others are merged.
    return ["--model", tiny_checkpoint, "--input", fasta, "--max-length", 30, "--overlap", 8, "--device", "cpu"]


def vectors(folder: Path) -> list[np.ndarray]:
    return [np.array(row, np.float32) for row in read(folder)["embedding"].to_pylist()]


@pytest.mark.parametrize("name", REDUCED)
def test_an_added_pooling_is_what_is_computed(embed: Embed, job: list[object], tmp_path: Path, name: str) -> None:
    for pooling in ("residue", name):
        outcome = embed(*job, "--pooling", pooling, "--output", tmp_path / pooling)
        assert outcome.status == 0, outcome.stderr
    expected = [REDUCED[name](rows) for rows in vectors(tmp_path / "residue")]
    found = vectors(tmp_path / name)
    assert all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))
    embedder = Embedder(str(job[1]), pooling=name, max_length=30, overlap=8, device="cpu")
    sequences = [line for line in Path(str(job[3])).read_text().splitlines() if line[0] != ">" and "*" not in line]
    assert all(map(np.array_equal, embedder.embed(sequences)["embedding"], expected))


def test_a_pooling_extends_where_it_commutes(embed: Embed, job: list[object], tmp_path: Path) -> None:
    for pooling in REDUCED:
        assert embed(*job, "--pooling", pooling, "--level", "L0", "--output", tmp_path / pooling).status == 0
    outcome = embed("--extend", tmp_path / "first", "--level", "L1", "--output", tmp_path / "extended")
    assert outcome.status == 0, outcome.stderr
    assert embed(*job, "--pooling", "first", "--level", "L1", "--output", tmp_path / "whole").status == 0
    for one, other in zip(vectors(tmp_path / "extended"), vectors(tmp_path / "whole"), strict=True):
        # The same numbers to a few roundings of float32: the products have other shapes.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)
    outcome = embed("--extend", tmp_path / "range", "--level", "L1", "--output", tmp_path / "refused")
    assert "pooling 'range' does not commute with the bases" in outcome.stderr
    assert not (tmp_path / "refused").exists()


def test_padded_and_packed_rows_pool_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = [4, 2]
    padded = torch.randn(2, 6, 5, generator=generator)
    packed = torch.cat((padded[0], padded[1, :4]))[None]
    for name, pooling in POOLINGS.items():
        if pooling.one_row:
            found = Padded().pooled(padded, lengths, name), Packed().pooled(packed, lengths, name)
            assert np.array_equal(*found), name


@pytest.mark.parametrize("name", ["median", "residue"])
def test_what_gives_no_row_per_sequence_raises(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        pool(torch.zeros(1, 3, 2), [1], name)


def test_an_unknown_pooling_raises_everywhere(embed: Embed, job: list[object], tmp_path: Path) -> None:
    known = ", ".join(POOLINGS)
    calls: list[Callable[[], Any]] = [
        lambda: EmbeddingOptions(pooling="median"),
        lambda: Embedder(str(job[1]), pooling="median"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"pooling must be one of {known}, not 'median'"):
            call()
    with pytest.raises(SystemExit):
        embed(*job, "--pooling", "median", "--output", tmp_path / "out")

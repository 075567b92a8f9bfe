"""Neighbours: exactly those of every pair compared, at every level."""

from __future__ import annotations

import numpy as np
import pytest

from rd_hf.maps import neighbours as module
from rd_hf.maps.neighbours import nearest
from tests.maps.conftest import DIMS, clusters


def brute_force(vectors: np.ndarray) -> np.ndarray:
    """(n, n) float64 cosines, a protein with itself left out."""
    values = vectors.astype(np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    values = values / np.where(lengths > 0, lengths, 1)
    cosines = values @ values.T
    np.fill_diagonal(cosines, -np.inf)
    return cosines


@pytest.mark.parametrize("block", [1, 4 * 400 * 7, 1 << 24])
def test_they_are_those_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK_BYTES", block)
    # Off the origin, as mean embeddings are.
    vectors = clusters(400, 12)[0] + 2
    done: list[int] = []
    found = nearest(vectors, DIMS, 10, done.append)
    assert sum(done) == 400
    for level, width in DIMS.items():
        cosines = brute_force(vectors[:, :width])
        expected = np.argsort(-cosines, axis=1, kind="stable")[:, :10]
        best = np.take_along_axis(cosines, expected, axis=1)
        # Inner products of 12 float32 numbers.
        np.testing.assert_allclose(found[level].similarities, best, atol=1e-6)
        # Where float64 tells two apart by more than that, so must the result.
        clear = np.abs(np.take_along_axis(cosines, found[level].indices, axis=1) - best) < 1e-6
        assert clear.all()
        assert (found[level].indices == expected).mean() > 0.99


def test_equally_near_ones_come_in_input_order() -> None:
    # Each row occurs 30 times, twice as long: exact ties, more of them than neighbours are asked for.
    vectors = np.tile(np.eye(4, 12, dtype=np.float32), (30, 1))
    found = nearest(vectors, {"L": 12}, 10)["L"]
    for row in range(120):
        same = [other for other in range(row % 4, 120, 4) if other != row]
        assert found.indices[row].tolist() == same[:10]
        assert (found.similarities[row] == 1).all()


def test_few_proteins_and_zero_vectors() -> None:
    vectors = np.array([[1, 0], [0, 0], [-1, 0], [1, 1]], dtype=np.float32)
    found = nearest(vectors, {"L": 2}, 10)["L"]
    assert found.indices.shape == (4, 3)
    assert found.indices[0].tolist() == [3, 1, 2]
    np.testing.assert_allclose(found.similarities[0], [0.5**0.5, 0, -1], atol=1e-6)
    assert found.similarities[1].tolist() == [0, 0, 0]

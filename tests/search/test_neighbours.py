"""Exact search: what numpy finds by one matrix in float64, whatever the blocks and however many ties."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.data.records import InputError
from rd_hf.search import neighbours
from rd_hf.search.database import Chunk
from rd_hf.search.neighbours import NOBODY, nearest, score
from tests.search.conftest import by_hand, protein_like

METRICS = ("cosine", "euclidean")


def cut(rows: np.ndarray, size: int) -> Iterator[Chunk]:
    """Rows as blocks, records from 1."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        yield Chunk(np.arange(start + 1, start + len(piece) + 1), piece)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("size", [7, 64, 500])
def test_the_nearest_are_those_of_brute_force(metric: str, size: int) -> None:
    rows, queries = protein_like(300), protein_like(40, seed=1)
    found = nearest(cut(rows, size), queries, 10, metric)
    np.testing.assert_array_equal(found.records, by_hand(queries, rows, 10, metric))
    assert (np.diff(found.closeness, axis=1) <= 0).all()


@pytest.mark.parametrize("metric", METRICS)
def test_differences_below_float32s_resolution_of_the_products_are_told_apart(metric: str) -> None:
    # Rows that differ from each other by 1e-6 of their length: |q|² + |x|² - 2qx in float32 sees nothing of it.
    rng = np.random.default_rng(0)
    rows = (protein_like(1) + 1e-5 * rng.standard_normal((400, 32))).astype(np.float32)
    found = nearest(cut(rows, 100), rows[:50], 5, metric)
    np.testing.assert_array_equal(found.records, by_hand(rows[:50], rows, 5, metric))


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(METRICS),
    st.integers(1, 120),
    st.integers(1, 40),
    st.integers(1, 30),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_ties_go_to_the_smaller_record(seed: int, metric: str, count: int, size: int, k: int, itself: bool) -> None:
    # Few whole numbers: rows that are equal, or as near, by the dozen, more than faiss is asked for.
    rng = np.random.default_rng(seed)
    rows = rng.integers(1, 3, (count, 3)).astype(np.float32)
    queries = rows if itself else rng.integers(1, 3, (5, 3)).astype(np.float32)
    own = np.arange(1, count + 1) if itself else None
    found = nearest(cut(rows, size), queries, k, metric, own)
    there = min(k, count - itself)
    np.testing.assert_array_equal(found.records[:, :there], by_hand(queries, rows, there, metric, itself))
    assert (found.records[:, there:] == NOBODY).all()


@pytest.mark.parametrize("metric", METRICS)
def test_equal_rows_have_equal_scores(metric: str) -> None:
    row = protein_like(1)
    found = nearest(cut(np.repeat(row, 200, axis=0), 33), protein_like(3, seed=5), 150, metric)
    assert (found.closeness == found.closeness[:, :1]).all()
    np.testing.assert_array_equal(found.records, np.tile(np.arange(1, 151), (3, 1)))


def test_a_zero_vector_is_similar_to_nothing() -> None:
    rows = np.stack([np.zeros(4), [1, 0, 0, 0], [-1, 0, 0, 0]]).astype(np.float32)
    found = nearest(cut(rows, 3), rows[:2], 3, "cosine")
    np.testing.assert_array_equal(found.records, [[1, 2, 3], [2, 1, 3]])
    np.testing.assert_array_equal(found.closeness, [[0, 0, 0], [1, 0, -1]])


@pytest.mark.parametrize("metric", METRICS)
def test_candidates_are_ordered_by_their_scores(metric: str) -> None:
    rows, queries = protein_like(100), protein_like(6, seed=1)
    rng = np.random.default_rng(0)
    candidates = np.stack([rng.permutation(100)[:20] + 1 for _ in queries])
    candidates[2, 15:] = NOBODY
    found = score(cut(rows, 9), queries, candidates, 20, metric)
    for query, chosen, records in zip(queries, candidates, found.records, strict=True):
        chosen = np.sort(chosen[chosen != NOBODY])
        expected = chosen[by_hand(query[None], rows[chosen - 1], len(chosen), metric)[0] - 1]
        np.testing.assert_array_equal(records, [*expected, *[NOBODY] * (20 - len(chosen))])


def test_a_candidate_without_a_row_is_an_error() -> None:
    with pytest.raises(InputError, match="1 candidates have no row"):
        score(cut(protein_like(5), 2), protein_like(1), np.array([[2, 6]]), 2, "cosine")


def test_a_missing_faiss_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r'pip install "rd_hf\[search\]"'):
        neighbours.need_faiss()

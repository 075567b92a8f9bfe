"""Nearest neighbours in a stream of chunks: exact, with memory that does not grow with the number of rows.

faiss compares a chunk's rows with all queries at once and in float32, which is fast and good to some digits. Which
rows are returned, and in which order, is decided in float64: all that can be among the nearest, as far as float32 can
tell, are scored again from their vectors. So equal proteins have equal scores, ties go to the smaller record, and the
result does not depend on how the rows were cut into chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.search.database import Chunk, OnRows, unit

# Rows that faiss hands over beyond those asked for: room for what float32 cannot order.
_MARGIN = 8
# Pairs scored at once: 4,096 of 1,280 dimensions are 40 MB per array in float64.
_PAIRS = 4096
# Queries whose similarities to a whole chunk are looked at together.
_TOGETHER = 64
NOBODY = -1
_LAST = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class Hits:
    """The nearest rows of each query, nearest first.

    Attributes:
        records: (queries, k) int64, ``NOBODY`` where there are fewer than k.
        closeness: (queries, k) float32: cosine similarity, or minus the Euclidean distance; -inf for ``NOBODY``.
    """

    records: np.ndarray
    closeness: np.ndarray

    @classmethod
    def none(cls, queries: int, k: int) -> Hits:
        """Nothing found yet."""
        return cls(np.full((queries, k), NOBODY), np.full((queries, k), -np.inf, np.float32))

    def merge(self, queries: np.ndarray, records: np.ndarray, closeness: np.ndarray) -> None:
        """Take what is nearer out of scored pairs, ordered by query, none of which is held already."""
        if not len(queries):
            return
        k = self.records.shape[1]
        touched, starts, counts = np.unique(queries, return_index=True, return_counts=True)
        shape = (len(touched), k + int(counts.max()))
        all_records, all_closeness = np.full(shape, _LAST), np.full(shape, -np.inf, np.float32)
        held = self.records[touched]
        all_records[:, :k] = np.where(held == NOBODY, _LAST, held)
        all_closeness[:, :k] = self.closeness[touched]
        row = np.repeat(np.arange(len(touched)), counts)
        place = k + np.arange(len(queries)) - np.repeat(starts, counts)
        all_records[row, place], all_closeness[row, place] = records, closeness
        order = np.lexsort((all_records, -all_closeness), axis=-1)[:, :k]
        best = np.take_along_axis(all_records, order, axis=1)
        self.records[touched] = np.where(best == _LAST, NOBODY, best)
        self.closeness[touched] = np.take_along_axis(all_closeness, order, axis=1)


def need_faiss() -> Any:
    """Return the faiss module; InputError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(f'a search needs faiss ({error}): pip install "rd_hf[search]"') from error
    return faiss


def closeness(queries: np.ndarray, rows: np.ndarray, metric: str) -> np.ndarray:
    """Score each query with the row beside it in float64: (pairs, width) float32 each to (pairs,) float32.

    It is the cosine similarity (0 with a zero vector), or minus the Euclidean distance. Sums run along each row alone
    and so do not depend on which pairs are scored together.
    """
    one, other = queries.astype(np.float64), rows.astype(np.float64)
    if metric == "euclidean":
        return -np.sqrt(((one - other) ** 2).sum(axis=1)).astype(np.float32)
    lengths = np.sqrt((one * one).sum(axis=1) * (other * other).sum(axis=1))
    return ((one * other).sum(axis=1) / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def nearest(
    chunks: Iterable[Chunk],
    queries: np.ndarray,
    k: int,
    metric: str,
    own: np.ndarray | None = None,
    on_rows: OnRows = lambda rows: None,
) -> Hits:
    """Find the k nearest of all rows for each query, ties in order of their records.

    Args:
        chunks: the rows, records ascending and none twice.
        queries: (queries, width) float32.
        metric: ``cosine`` or ``euclidean``.
        own: (queries,) int64, record to leave out for each query.
    """
    found = Hits.none(len(queries), k)
    comparison: FloatComparison | None = None
    for chunk in chunks:
        comparison = comparison or FloatComparison(queries, metric, chunk.vectors)
        _search_chunk(chunk, queries, found, comparison, metric, own)
        on_rows(len(chunk.records))
    return found


class FloatComparison:
    """Compares queries with rows in float32, by faiss, and says how far that can be trusted.

    Values are cosines, or minus squared distances.
    """

    def __init__(self, queries: np.ndarray, metric: str, some_rows: np.ndarray) -> None:
        self.faiss, self.cosine = need_faiss(), metric == "cosine"
        # faiss forms a squared distance as |q|² + |x|² - 2qx, which cancels badly where a few channels are large in
        # every protein, as they are in ESM-2: both sides are centred.
        self.centre = some_rows.mean(axis=0)
        self.queries = self.prepared(queries)
        self.lengths = np.linalg.norm(self.queries, axis=1)

    def prepared(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors as they are compared: of length one, or centred."""
        return unit(vectors) if self.cosine else vectors - self.centre

    def top(self, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, count) float32 values of the nearest prepared rows, and places of those."""
        if self.cosine:
            return self.faiss.knn(self.queries, rows, count, self.faiss.METRIC_INNER_PRODUCT)
        squares, places = self.faiss.knn(self.queries, rows, count, self.faiss.METRIC_L2)
        return -squares, places

    def all(self, chosen: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(chosen, rows) float32 values of some queries and all prepared rows."""
        product = self.queries[chosen] @ rows.T
        if self.cosine:
            return product
        return 2 * product - (np.einsum("ij,ij->i", rows, rows)[None, :] + self.lengths[chosen, None] ** 2)

    def values(self, closeness: np.ndarray) -> np.ndarray:
        """Closeness as it is compared here."""
        return closeness if self.cosine else -(closeness.astype(np.float64) ** 2)

    def slack(self, rows: np.ndarray) -> np.ndarray:
        """(queries,) how much two values can be off together.

        The roundings of a dot product of w numbers add up to more than 8 sqrt(w) units in |q||x| once in 10^13 times
        (Higham and Mary 2019, SIAM J. Sci. Comput. 41:A2815); the preparation adds some.
        """
        off = (8 * rows.shape[1] ** 0.5 + 16) * float(np.finfo(np.float32).eps) / 2
        if self.cosine:
            return np.full(len(self.queries), 2 * off)
        longest = float(np.sqrt(np.einsum("ij,ij->i", rows, rows).max()))
        return 2 * off * (self.lengths + longest) ** 2


def _search_chunk(
    chunk: Chunk, queries: np.ndarray, found: Hits, comparison: FloatComparison, metric: str, own: np.ndarray | None
) -> None:
    """Merge what a chunk holds into what was found before."""
    rows = comparison.prepared(chunk.vectors)
    count = min(len(rows), found.records.shape[1] + _MARGIN)
    values, places = comparison.top(rows, count)
    slack = comparison.slack(rows)

    def offer(asked: np.ndarray, at: np.ndarray) -> None:
        if own is not None:
            others = chunk.records[at] != own[asked]
            asked, at = asked[others], at[others]
        scores = _score(queries, chunk.vectors, asked, at, metric)
        # faiss and float32 have done their part: only what is at least as near counts.
        near = scores >= found.closeness[asked, -1]
        found.merge(asked[near], chunk.records[at[near]], scores[near])

    worst = comparison.values(found.closeness[:, -1]) - slack
    near = values >= worst[:, None]
    offer(np.nonzero(near)[0], places[near])
    if count == len(rows):
        return
    # Where even the last of faiss' rows may belong to the nearest, so may rows that it left out.
    worst = comparison.values(found.closeness[:, -1]) - slack
    for chosen in _pieces(np.flatnonzero(values[:, -1] >= worst), _TOGETHER):
        mask = comparison.all(chosen, rows) >= worst[chosen, None]
        asked, at = np.nonzero(mask)
        asked = chosen[asked]
        new = (found.records[asked] != chunk.records[at][:, None]).all(axis=1)
        offer(asked[new], at[new])


def score(
    chunks: Iterable[Chunk],
    queries: np.ndarray,
    candidates: np.ndarray,
    k: int,
    metric: str,
    on_rows: OnRows = lambda rows: None,
) -> Hits:
    """Find the k nearest among each query's candidates, scored from their rows; an InputError if one never comes.

    Args:
        chunks: rows, among them all candidates; records ascending within a chunk and in one chunk only.
        candidates: (queries, candidates) int64 records, ``NOBODY`` where there are fewer.
    """
    asked, _ = np.nonzero(candidates != NOBODY)
    records = candidates[candidates != NOBODY]
    order = np.argsort(records, kind="stable")
    asked, records = asked[order], records[order]
    found = Hits.none(len(queries), k)
    scored = 0
    for chunk in chunks:
        low = np.searchsorted(records, chunk.records[0], "left")
        high = np.searchsorted(records, chunk.records[-1], "right")
        at = np.searchsorted(chunk.records, records[low:high])
        here = chunk.records[at] == records[low:high]
        some, at = asked[low:high][here], at[here]
        by_query = np.argsort(some, kind="stable")
        some, at = some[by_query], at[by_query]
        found.merge(some, chunk.records[at], _score(queries, chunk.vectors, some, at, metric))
        scored += len(some)
        on_rows(len(chunk.records))
    if scored != len(records):
        raise InputError(f"{len(records) - scored:,} candidates have no row at this level: make the database again")
    return found


def _score(queries: np.ndarray, vectors: np.ndarray, asked: np.ndarray, at: np.ndarray, metric: str) -> np.ndarray:
    """(pairs,) float32 closeness of query ``asked[i]`` and row ``at[i]``."""
    result = np.empty(len(asked), np.float32)
    for piece in _pieces(np.arange(len(asked)), _PAIRS):
        result[piece] = closeness(queries[asked[piece]], vectors[at[piece]], metric)
    return result


def _pieces(values: np.ndarray, size: int) -> Iterable[np.ndarray]:
    return (values[start : start + size] for start in range(0, len(values), size))

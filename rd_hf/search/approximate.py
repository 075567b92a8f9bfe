"""Approximate indices, kept for the next search: faiss' inverted lists and its graph, over one byte per dimension, and
the signs of dimensions, a bit each, which are all compared.

They only pick candidates, which are then scored from the rows themselves: what an index costs is candidates it
misses, never a wrong score.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rd_hf.data.records import Say
from rd_hf.files import FolderError, file_sha256, replacing, write_text
from rd_hf.search.database import Database, OnRows, every_nth, unit
from rd_hf.search.neighbours import NOBODY, need_faiss

# faiss asks for at least 39 rows per list to train on, and calls 4 to 16 times the root of the rows a good number of
# lists; of them the nearest sixteenth is searched at first, and no fewer than eight.
_ROWS_A_LIST = 39
_LISTS, _SEARCHED, _LEAST_LISTS = 4, 1 / 16, 8
_TRAIN_ROWS = 64
# Links of a node in the graph.
_LINKS = 32


@dataclass(frozen=True, slots=True)
class ApproximateIndex:
    """A faiss index, of a kind of ``settings.index``, over a database's rows at a level, whose records are those."""

    index: Any
    kind: str
    metric: str
    records: np.ndarray
    first: int | None = None  # of the dimensions whose signs it holds; None of other kinds

    def candidates(
        self, queries: np.ndarray, count: int, own: np.ndarray | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return records near each query; queries that find too few look at more of the lists or the graph.

        Args:
            queries, count, own: as ``queries``, ``k`` and ``own`` of :func:`rd_hf.search.neighbours.nearest`.
            allowed: ascending records that may be returned; all for None.

        Returns:
            (queries, candidates) int64 records, ``NOBODY`` where fewer were found; and the numbers (from 0) of the
            queries that did not find as many as there are, since no link of the graph leads to some rows.
        """
        faiss = need_faiss()
        asked = min(len(self.records) if allowed is None else len(allowed), count + (own is not None))
        if self.first is not None:
            rows = self._nearest_signs(_signs(queries, self.first), asked, allowed)
            return self._without_own(np.where(rows < 0, NOBODY, self.records[rows]), count, own), np.arange(0)
        chosen: dict[str, Any] = {}
        if allowed is not None:
            mask = np.packbits(np.isin(self.records, allowed, assume_unique=True), bitorder="little")
            chosen["sel"] = faiss.IDSelectorBitmap(mask)
        prepared = _prepared(queries, self.metric)
        rows = np.full((len(queries), asked), -1)
        pending = np.arange(len(queries))
        for effort in self._efforts(asked):
            if not len(pending):
                break
            if self.kind == "ivf":
                parameters = faiss.SearchParametersIVF(nprobe=effort, **chosen)
            else:
                parameters = faiss.SearchParametersHNSW(efSearch=effort, **chosen)
            _, rows[pending] = self.index.search(prepared[pending], asked, params=parameters)
            pending = pending[(rows[pending] < 0).any(axis=1)]
        return self._without_own(np.where(rows < 0, NOBODY, self.records[rows]), count, own), pending

    @staticmethod
    def _without_own(records: np.ndarray, count: int, own: np.ndarray | None) -> np.ndarray:
        """A record's own row goes; where it was not found, the last of the others does."""
        if own is None:
            return records
        records = np.where(records == own[:, None], NOBODY, records)
        order = np.argsort(records == NOBODY, axis=1, kind="stable")
        return np.take_along_axis(records, order, axis=1)[:, :count]

    def _nearest_signs(self, signs: np.ndarray, asked: int, allowed: np.ndarray | None) -> np.ndarray:
        """(queries, asked) places of the rows with the fewest other signs, among those allowed."""
        faiss, index = need_faiss(), self.index
        places = None
        if allowed is not None:
            # faiss' index of bits takes no selection: one of the rows that are allowed.
            places = np.flatnonzero(np.isin(self.records, allowed, assume_unique=True))
            index = faiss.IndexBinaryFlat(self.index.d)
            index.add(faiss.vector_to_array(self.index.xb).reshape(len(self.records), -1)[places])
        _, found = index.search(signs, asked)
        return found if places is None else np.where(found < 0, found, places[found])

    def _efforts(self, asked: int) -> Iterator[int]:
        """Yield the number of lists, or of nodes of the graph, to look at: each time twice as many, up to all."""
        if self.kind == "ivf":
            effort, most = max(_LEAST_LISTS, round(self.index.nlist * _SEARCHED)), self.index.nlist
        else:
            effort, most = max(64, 2 * asked), len(self.records)
        while effort < most:
            yield effort
            effort *= 2
        yield most if self.kind == "ivf" else effort


def open_index(
    database: Database,
    level: str,
    metric: str,
    kind: str,
    cache: Path,
    report: Say,
    on_rows: OnRows,
    first: int | None = None,
) -> ApproximateIndex:
    """Open the index of a database's rows that an earlier search left in ``cache``, or make one and keep it there.

    Of kind ``binary`` it holds the signs of the level's dimensions from ``first`` on.
    """
    faiss = need_faiss()
    what = [database.content, level, metric, kind, _LISTS, _TRAIN_ROWS, _LINKS]
    read, write, width = faiss.read_index, faiss.write_index, database.levels[level]
    if first is not None:
        what = [database.content, level, kind, first]
        read, write, width = faiss.read_index_binary, faiss.write_index_binary, _bits(width - first)
    if database.whitening is not None:
        what.append(database.whitening.digest)
    path = cache / f"{kind}-{hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]}.faiss"
    records = np.concatenate([records for records, _, _ in database.names()])
    # A file that is damaged is made anew. faiss may follow a number in it that is wrong to anywhere, so that its hash
    # lies beside it.
    note = path.with_suffix(".sha256")
    if path.is_file() and note.is_file() and note.read_bytes().strip() == file_sha256(path).encode():
        with suppress(RuntimeError):
            index = read(str(path))
            if index.ntotal == len(records) and index.d == width:
                return ApproximateIndex(index, kind, metric, records, first)
    index = _build(faiss, database, level, metric, kind, on_rows, first)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(index, str(temporary))
        write_text(note, f"{file_sha256(path)}\n")
    except (OSError, FolderError, RuntimeError) as error:
        report(f"the index cannot be kept in {cache} ({error}): the next search makes it anew; name another --cache")
    return ApproximateIndex(index, kind, metric, records, first)


def _build(
    faiss: Any, database: Database, level: str, metric: str, kind: str, on_rows: OnRows, first: int | None
) -> Any:
    width, rows = database.levels[level], database.rows
    if first is not None:
        index = faiss.IndexBinaryFlat(_bits(width - first))
        for chunk in database.chunks(level):
            index.add(_signs(chunk.vectors, first))
            on_rows(len(chunk.records))
        return index
    lists = max(1, min(round(_LISTS * rows**0.5), rows // _ROWS_A_LIST))
    index = faiss.index_factory(width, f"IVF{lists},SQ8" if kind == "ivf" else f"HNSW{_LINKS}_SQ8", faiss.METRIC_L2)
    # Every n-th row: the order of a proteome says nothing about its embeddings, but the first rows may be a family.
    every = max(1, rows // max(1, _TRAIN_ROWS * lists if kind == "ivf" else 65536))
    index.train(_prepared(np.concatenate(list(every_nth(database.chunks(level), every, on_rows))), metric))
    for chunk in database.chunks(level):
        index.add(_prepared(chunk.vectors, metric))
        on_rows(len(chunk.records))
    return index


def _prepared(vectors: np.ndarray, metric: str) -> np.ndarray:
    """Vectors whose Euclidean order is the metric's: of unit length for the cosine."""
    return unit(vectors) if metric == "cosine" else vectors


def _bits(width: int) -> int:
    """How many bits so many signs take: whole bytes."""
    return -(-width // 8) * 8


def _signs(vectors: np.ndarray, first: int) -> np.ndarray:
    """Signs of the dimensions from ``first`` on, (rows, bytes) uint8."""
    return np.packbits(vectors[:, first:] > 0, axis=1)

"""Hits as rows of a table, as they are found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from rd_hf.data.labels import Cells
from rd_hf.search.labels import labels_of
from rd_hf.search.neighbours import NOBODY, Hits

# Distance and labels of each neighbour of a query.
Neighbours = list[tuple[float, tuple[str, ...]]]


def hits_table(
    records: np.ndarray,
    query_ids: pa.StringArray,
    found: Hits,
    ids_of: Callable[[np.ndarray], pa.StringArray],
    metric: str,
    level: str,
    labels: Cells | None,
) -> tuple[pa.Table, list[Neighbours]]:
    """Hits of some queries as rows, and each query's neighbours as label transfer takes them.

    Args:
        records, query_ids: of the queries.
        found: their hits.
        ids_of: returns the ids of ascending records of the database.
        metric, level: by which and at which they were scored.
        labels: of the database's proteins, where labels are transferred.
    """
    cosine = metric == "cosine"
    there = found.records != NOBODY
    there[:, 0] = True  # A row for each query, though it may be an empty one.
    query, rank = np.nonzero(there)
    hits, closeness = found.records[query, rank], found.closeness[query, rank]
    empty = hits == NOBODY
    unique, place = np.unique(hits[~empty], return_inverse=True)
    places = np.zeros(len(hits), np.int64)
    places[~empty] = place
    ids = ids_of(unique).take(pa.array(places, mask=empty))
    scores = closeness if cosine else -closeness
    columns: dict[str, Any] = {
        "query_record": pa.array(records[query], pa.int64()),
        "query_id": query_ids.take(pa.array(query)),
        "rank": pa.array(rank + 1, pa.int32(), mask=empty),
        "record": pa.array(hits, pa.int64(), mask=empty),
        "id": ids,
        "similarity" if cosine else "distance": pa.array(scores, pa.float32(), mask=empty),
        "level": pa.repeat(pa.scalar(level), len(query)),
    }
    neighbours: list[Neighbours] = [[] for _ in records]
    if labels is not None:
        known = [None if name is None else labels_of(name, labels) for name in ids.to_pylist()]
        columns["labels"] = pa.array(known, pa.list_(pa.string()))
        for asked, near, names in zip(query, closeness.astype(np.float64), known, strict=True):
            if names is not None:
                neighbours[asked].append((float(1 - near if cosine else -near), names))
    return pa.table(columns), neighbours

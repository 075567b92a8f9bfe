"""Hits to a file, as they are found: Parquet or text, whole or not at all."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rd_hf.data.labels import Cells
from rd_hf.files import explain_errors, replacing
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


@contextmanager
def table_writer(path: Path) -> Iterator[Callable[[pa.Table], None]]:
    """Write tables of one schema to a file, which appears when all are written; yields what appends one.

    Lists become text with ``;`` between their items where the file is text.

    Args:
        path: ends in ``.parquet``, ``.tsv`` or ``.csv``.
    """
    writer: Any = None
    with ExitStack() as opened:
        temporary = opened.enter_context(replacing(path))

        def write(table: pa.Table) -> None:
            """Append rows; FolderError if the disk is full or the folder cannot be written to."""
            nonlocal writer
            with explain_errors(path.parent):
                if path.suffix == ".parquet":
                    writer = writer or opened.enter_context(pq.ParquetWriter(temporary, table.schema))
                    writer.write_table(table)
                    return
                if writer is None:
                    text = opened.enter_context(temporary.open("w", encoding="utf-8", newline=""))
                    dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
                    writer = csv.writer(text, dialect=dialect, lineterminator="\n")
                    writer.writerow(table.column_names)
                writer.writerows(zip(*map(_as_text, table.columns), strict=True))

        yield write


def _as_text(column: pa.ChunkedArray) -> list[str]:
    """Cells as text; Arrow writes a float32 with the digits that it has."""
    if pa.types.is_list(column.type):
        return [";".join(items or ()) for items in column.to_pylist()]
    return pc.cast(column, pa.string()).to_pylist()

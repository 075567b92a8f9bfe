"""Hits as rows of a table, and label transfer: the labels of a query's nearest neighbours, and how reliable they are.

Littmann et al. 2021 (Sci Rep 11:1160, doi:10.1038/s41598-020-80786-0): with the distance d to the nearest neighbour
the reliability of its labels is 0.5 / (0.5 + d); over k neighbours that of a label is the sum of this over the
neighbours that have it, divided by k. There d is Euclidean; for the cosine it is one minus the similarity here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from rd_hf.data.labels import Cells, Matches, known_as, split_labels
from rd_hf.search.database import Database
from rd_hf.search.neighbours import NOBODY, Hits

# Names that a sentence about many gives.
SHOWN = 3
# Distance and labels of each neighbour of a query.
Neighbours = list[tuple[float, tuple[str, ...]]]


@dataclass(slots=True)
class Tally:
    """Counts proteins, and names the first few of them in words by ``str``."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, ids: pa.StringArray, mask: np.ndarray) -> None:
        """Count those of these proteins that the mask has."""
        places = np.flatnonzero(mask)
        self.count += len(places)
        self.names += ids.take(pa.array(places[: SHOWN - len(self.names)])).to_pylist()

    def __str__(self) -> str:
        return ", ".join(map(repr, self.names)) + (", ..." if self.count > SHOWN else "")


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label that a query was given, its reliability in (0, 1], and how many neighbours have it."""

    label: str
    reliability: float
    neighbours: int


def labelled(database: Database, labels: Cells, path: str) -> tuple[np.ndarray, str | None]:
    """Find the proteins of a database that have a label in the table ``path``; an InputError if none has.

    Returns:
        Their ascending records; and in one sentence how many proteins have no label, which labels are of no protein,
        and whether ids were found by accession. None if all fits.
    """
    matches = Matches(path, labels)
    records: list[np.ndarray] = []
    without = Tally()
    for numbers, ids, _ in database.names():
        has = np.array([key is not None for key in matches.find(ids.to_pylist())], dtype=bool)
        records.append(numbers[has])
        without.add(ids, ~has)
    matches.require(database.path, database.rows, *without.names[:1])
    parts = [str(matches)] if matches.by_accession else []
    if without.count:
        parts.append(f"{without.count:,} of {database.rows:,} proteins have no label and are left out ({without})")
    if matches.unused:
        unused = Tally(len(matches.unused), sorted(matches.unused)[:SHOWN])
        parts.append(f"{unused.count:,} labelled ids are not in the database ({unused})")
    return np.concatenate(records), f"{path}: {'; '.join(parts)}" if parts else None


def hits_table(
    records: np.ndarray,
    query_ids: pa.StringArray,
    found: Hits,
    ids_of: Callable[[np.ndarray], pa.StringArray],
    metric: str,
    level: str,
    labels: Cells | None,
) -> tuple[pa.Table, list[Neighbours]]:
    """Hits of some queries, as rows, and each query's neighbours as :func:`transfer` takes them.

    ``ids_of`` returns the ids of ascending records of the database, whose proteins have ``labels``, if any are
    transferred.
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
        keys = [known_as(name, labels) for name in ids.to_pylist()]
        known = [None if key is None else split_labels(labels[key]) for key in keys]
        columns["labels"] = pa.array(known, pa.list_(pa.string()))
        for asked, near, names in zip(query, closeness.astype(np.float64), known, strict=True):
            if names is not None:
                neighbours[asked].append((float(1 - near if cosine else -near), names))
    return pa.table(columns), neighbours


def transfer(neighbours: Neighbours, k: int) -> list[Prediction]:
    """Labels of a query's neighbours, most reliable first, ties in order of their text.

    Of ``k`` neighbours that were asked for, one that is not there counts for no label.
    """
    total: dict[str, list[float]] = {}
    for distance, labels in neighbours:
        # The cosine of a protein with itself can exceed one in its last digit.
        reliability = 0.5 / (0.5 + max(0.0, distance))
        for label in labels:
            total.setdefault(label, []).append(reliability)
    predictions = [Prediction(label, sum(each) / k, len(each)) for label, each in total.items()]
    return sorted(predictions, key=lambda one: (-one.reliability, one.label))


def predictions_table(
    query_records: np.ndarray, query_ids: pa.StringArray, predictions: list[list[Prediction]]
) -> pa.Table:
    """One row per query and label; a query that was given none has a row without label and reliability."""
    rows = np.repeat(np.arange(len(predictions)), [max(1, len(one)) for one in predictions])
    flat: list[Prediction | None] = []
    for one in predictions:
        flat += one or [None]
    return pa.table(
        {
            "query_record": pa.array(query_records[rows], pa.int64()),
            "query_id": query_ids.take(pa.array(rows)),
            "label": pa.array([each and each.label for each in flat], pa.string()),
            "reliability": pa.array([each and each.reliability for each in flat], pa.float32()),
            "neighbours": pa.array([each.neighbours if each else 0 for each in flat], pa.int32()),
        }
    )

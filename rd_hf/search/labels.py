"""Label transfer: what a query's nearest neighbours are called, and how far that is to be relied on.

Littmann et al. 2021 (Sci Rep 11:1160, doi:10.1038/s41598-020-80786-0): with the distance d to the nearest neighbour
the reliability of its labels is 0.5 / (0.5 + d); over k neighbours that of a label is the sum of this over the
neighbours that have it, divided by k. There d is Euclidean; for the cosine it is one minus the similarity here.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from rd_hf.data.columns import ID_COLUMNS
from rd_hf.data.records import InputError, readable
from rd_hf.data.streams import DAMAGED, damaged, open_text
from rd_hf.search.database import Database

# Several labels in one cell.
_BETWEEN = ";"
# Names in a sentence about many.
SHOWN = 3


@dataclass(frozen=True, slots=True)
class Prediction:
    """A label that a query was given.

    Attributes:
        label: the label.
        reliability: in (0, 1].
        neighbours: that have it.
    """

    label: str
    reliability: float
    neighbours: int


def read_labels(path: str | Path, column: str | None = None) -> dict[str, tuple[str, ...]]:
    """Labels of each id.

    Args:
        path: tab-separated, ids in the first column, compressed or not. Several labels of an id stand in one cell with
            ``;`` between them, or on several lines. Cells may be quoted, and a row is a line. A first line whose first
            cell is called as a column of ids is (``id``, ``name``, ``accession``, ...) is a header; with ``column`` it
            always is one.
        column: name of the column with the labels; by default the second.

    Raises:
        InputError: no such file or column, a line without a second cell, or no label at all.
    """
    found: dict[str, dict[str, None]] = {}
    place = 1
    number = 0
    with open_text(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):
                row = _cells(line)
                if number == 1 and column is not None:
                    if column not in row:
                        raise InputError(f"{path} has no column {column!r}; its columns are {', '.join(row)}")
                    place = row.index(column)
                    continue
                if not line.strip() or (number == 1 and row[0].lower() in ID_COLUMNS):
                    continue
                if len(row) <= place:
                    raise InputError(f"{path} line {number} has no column {place + 1}: give id, tab, label")
                labels = [label.strip() for label in row[place].split(_BETWEEN)]
                found.setdefault(row[0], {}).update(dict.fromkeys(filter(None, labels)))
        except DAMAGED as error:
            raise damaged(path, number, error, "line") from error
    labels_of = {name: tuple(labels) for name, labels in found.items() if labels}
    if not labels_of:
        raise InputError(f"{path} gives no id a label: give lines of id, tab, label")
    return labels_of


def _cells(line: str) -> list[str]:
    """Cells of a tab-separated line, with the quotes of a spreadsheet where they are whole; else quotes are letters."""
    line = readable(line.rstrip("\n"))
    cells = line.split("\t")
    if '"' in line:
        with suppress(csv.Error):
            cells = next(csv.reader([line], delimiter="\t", strict=True))
    return [cell.strip() for cell in cells]


@dataclass(frozen=True, slots=True)
class Labelled:
    """The labelled part of a database.

    Attributes:
        records: ascending int64 records that have a label: neighbours are sought among these.
        note: in one sentence how many have none, and which labels are of no protein; None if all fits.
    """

    records: np.ndarray
    note: str | None


def labelled(database: Database, labels: Mapping[str, tuple[str, ...]], path: str) -> Labelled:
    """Find the labelled records of a database.

    Raises:
        InputError: none of its ids has a label.
    """
    having: list[np.ndarray] = []
    without: list[str] = []
    missing = 0
    unused = set(labels)
    for records, ids, _ in database.names():
        texts = ids.to_pylist()
        mask = np.array([text in labels for text in texts], dtype=bool)
        having.append(records[mask])
        unused.difference_update(texts)
        missing += int((~mask).sum())
        without += [text for text, has in zip(texts, mask, strict=True) if not has][: SHOWN - len(without)]
    chosen = np.concatenate(having) if having else np.empty(0, np.int64)
    if not len(chosen):
        raise InputError(
            f"{path} labels none of the {database.rows:,} proteins of {database.path} (its first id is "
            f"{next(iter(labels))!r}, the database's {without[0]!r}): give the ids as the database has them"
        )
    parts = []
    if missing:
        parts.append(
            f"{missing:,} of {database.rows:,} proteins have no label and are left out ({some(without, missing)})"
        )
    if unused:
        parts.append(f"{len(unused):,} labelled ids are not in the database ({some(sorted(unused), len(unused))})")
    return Labelled(chosen, f"{path}: {'; '.join(parts)}" if parts else None)


def some(names: list[str], of: int) -> str:
    """The first of so many names."""
    return ", ".join(repr(name) for name in names[:SHOWN]) + (", ..." if of > SHOWN else "")


def reliability(distance: float) -> float:
    """0.5 / (0.5 + d) for a distance of at least 0."""
    # The cosine of a protein with itself can exceed one in its last digit.
    return 0.5 / (0.5 + max(0.0, distance))


def transfer(neighbours: list[tuple[float, tuple[str, ...]]], k: int) -> list[Prediction]:
    """Labels of a query's neighbours.

    Args:
        neighbours: distance and labels of each.
        k: neighbours that were asked for; one that is not there speaks for no label.

    Returns:
        The labels, most reliable first, ties in order of their text.
    """
    total: dict[str, list[float]] = {}
    for distance, labels in neighbours:
        for label in labels:
            total.setdefault(label, []).append(reliability(distance))
    predictions = [Prediction(label, sum(each) / k, len(each)) for label, each in total.items()]
    return sorted(predictions, key=lambda one: (-one.reliability, one.label))


def predictions_table(
    query_records: np.ndarray, query_ids: pa.StringArray, predictions: list[list[Prediction]]
) -> pa.Table:
    """One row a query and label; a query that was given none has a row without label and reliability."""
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

"""What a map's points are coloured by: columns of labels, or the inputs that the proteins came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rd_hf.data.labels import Cells, Matches, read_labels, split_labels
from rd_hf.data.records import InputError
from rd_hf.maps.proteins import Proteins
from rd_hf.maps.settings import MapSettings


@dataclass(frozen=True, slots=True)
class Column:
    """One column of labels, for the proteins that are drawn.

    Attributes:
        name: of the column.
        labels: the different labels, the most frequent first, ties in alphabetical order.
        codes: (n,) int32, the label of each protein counted from 1 in ``labels``; 0 where it has none.
    """

    name: str
    labels: list[str]
    codes: np.ndarray

    @classmethod
    def of(cls, name: str, values: Sequence[str]) -> Column:
        """Make a column from the label of each protein; an empty label is none."""
        counts = Counter(value for value in values if value)
        labels = sorted(counts, key=lambda label: (-counts[label], label))
        numbers = {label: number for number, label in enumerate(labels, start=1)}
        return cls(name, labels, np.array([numbers.get(value, 0) for value in values], dtype=np.int32))


def columns_of(settings: MapSettings, proteins: Proteins) -> tuple[list[Column], list[str]]:
    """Return what to colour by, the column asked for first, and sentences that a user should know of it.

    Raises:
        InputError: no such table or column, or the table labels none of the proteins.
    """
    columns: list[Column] = []
    notes: list[str] = []
    if settings.labels:
        columns, notes = _labelled(settings, proteins)
    if len(set(proteins.sources)) > 1 and all(one.name != "input" for one in columns):
        columns.append(Column.of("input", [Path(source).name for source in proteins.sources]))
    if settings.color_by is not None:
        names = [one.name for one in columns]
        if settings.color_by not in names:
            raise InputError(
                f"{settings.labels or settings.embeddings} has no column {settings.color_by!r} to colour by: it has "
                f"{', '.join(names) or 'none'}"
            )
        columns.sort(key=lambda one: one.name != settings.color_by)
    return columns, notes


def _labelled(settings: MapSettings, proteins: Proteins) -> tuple[list[Column], list[str]]:
    """The columns of a table, and how they fit the proteins."""
    path, columns, notes = str(settings.labels), [], []
    table = read_labels(path, all_columns=True)
    matches = Matches(path, dict.fromkeys(name for cells in table.values() for name in cells))
    known_as = matches.find(proteins.ids)
    matches.require(settings.embeddings, len(proteins.ids), proteins.ids[0])
    for name, cells in table.items():
        column = Column.of(name, [_label(cells, key) for key in known_as])
        columns.append(column)
        if unlabelled := int((column.codes == 0).sum()):
            notes.append(f"proteins without {name} in {path}, drawn grey: {unlabelled:,}")
        if several := sum(len(cells.get(key or "", ())) > 1 for key in known_as):
            notes.append(f"proteins with several labels as {name} in {path}, drawn as one such as 'A;B': {several:,}")
    if matches.by_accession:
        notes.append(str(matches))
    # Where a sample is drawn, most labels are those of proteins that it leaves out.
    if matches.unused and proteins.total == len(proteins.ids):
        notes.append(f"ids of {path} that belong to no protein of {settings.embeddings}: {len(matches.unused):,}")
    return columns, notes


def _label(cells: Cells, key: str | None) -> str:
    """The one label of a protein, since a point has one colour: several become one, as they stand in one cell."""
    found = cells.get(key or "", ())
    return found[0] if len(found) == 1 else ";".join(split_labels(found))

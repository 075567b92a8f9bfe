"""What a map's points are coloured by: columns of labels, or the inputs that the proteins came from.

A column whose labels are numbers is drawn on a scale where there are more of them than colours that differ.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rd_hf.data.labels import Cells, Matches, read_labels, split_labels
from rd_hf.data.records import InputError
from rd_hf.maps.proteins import Proteins
from rd_hf.maps.settings import MapSettings

# A decimal number as tables write it; float() alone would take "nan", "infinity" and "1_000" for one.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
# What tables write where a number is not known.
_UNKNOWN = frozenset({"na", "n/a", "nan", "null", "none", "-", "?"})
# Up to so many different numbers are categories: each has a colour of its own (rd_hf.maps.page).
_MOST_CATEGORIES = 7


@dataclass(frozen=True, slots=True)
class Column:
    """One column of labels, for the proteins that are drawn."""

    name: str
    labels: list[str]  # each once, the most frequent first, ties in the order of numbers, then of the alphabet
    codes: np.ndarray  # (n,) int32, the label of each protein counted from 1 in ``labels``; 0 where it has none
    # (n,) float64 of each protein, NaN where it has none or several; None where labels are not numbers.
    numbers: np.ndarray | None = None
    scale: bool = False  # whether the page opens with a scale of the numbers, and not with a colour for each

    @classmethod
    def of(cls, name: str, values: Sequence[str], categories: bool = False) -> Column:
        """Make a column from the label of each protein; an empty one is none, ``categories`` never have a scale."""
        counts = Counter(value for value in values if value)
        read = {label: _number(label) for label in counts}
        # Of equally frequent labels numbers come first, by their value.
        value_of = {label: number for label, number in read.items() if number is not None and math.isfinite(number)}
        different = set(value_of.values())
        numeric = None not in read.values() and len(different) > 1
        labels = sorted(counts, key=lambda label: (-counts[label], value_of.get(label, math.inf), label))
        codes = {label: code for code, label in enumerate(labels, start=1)}
        return cls(
            name,
            labels,
            np.array([codes.get(value, 0) for value in values], dtype=np.int32),
            np.array([read.get(value, math.nan) for value in values], dtype=np.float64) if numeric else None,
            numeric and not categories and len(different) > _MOST_CATEGORIES,
        )


def _number(label: str) -> float | None:
    """The finite number that a label is; NaN if it says that none is known, or several; None for any other text."""
    if label.lower() in _UNKNOWN:
        return math.nan
    found = [float(part) if _NUMBER.fullmatch(part) else math.inf for part in split_labels([label])]
    if not found or not all(map(math.isfinite, found)):
        return None
    return found[0] if len(found) == 1 else math.nan


def columns_of(settings: MapSettings, proteins: Proteins) -> tuple[list[Column], list[str]]:
    """Return what to colour by, the column asked for first, and sentences that a user should know of it.

    Raises:
        InputError: no such table or column, or the table labels none of the proteins.
    """
    columns: list[Column] = []
    notes: list[str] = []
    if settings.labels:
        columns, notes = _labelled(settings, proteins)
    _refuse_unknown(settings, settings.categories, columns, "to draw as categories")
    if len(set(proteins.sources)) > 1 and all(one.name != "input" for one in columns):
        columns.append(Column.of("input", [Path(source).name for source in proteins.sources]))
    if settings.color_by is not None:
        _refuse_unknown(settings, [settings.color_by], columns, "to colour by")
        columns.sort(key=lambda one: one.name != settings.color_by)
    return columns, notes


def _refuse_unknown(settings: MapSettings, wanted: Sequence[str], columns: Sequence[Column], what: str) -> None:
    names = [one.name for one in columns]
    if unknown := [name for name in wanted if name not in names]:
        raise InputError(
            f"{settings.labels or settings.embeddings} has no column {unknown[0]!r} {what}: it has "
            f"{', '.join(names) or 'none'}"
        )


def _labelled(settings: MapSettings, proteins: Proteins) -> tuple[list[Column], list[str]]:
    """The columns of a table, and how they fit the proteins."""
    path, columns, notes = str(settings.labels), [], []
    table = read_labels(path, all_columns=True)
    matches = Matches(path, dict.fromkeys(name for cells in table.values() for name in cells))
    known_as = matches.find(proteins.ids)
    matches.require(settings.embeddings, len(proteins.ids), proteins.ids[0])
    for name, cells in table.items():
        column = Column.of(name, [_label(cells, key) for key in known_as], name in settings.categories)
        columns.append(column)
        if column.scale and column.numbers is not None:
            notes.append(f"{name} in {path} holds numbers: drawn on a scale; --categories {name} gives each a colour")
        missing = np.isnan(column.numbers) if column.scale and column.numbers is not None else column.codes == 0
        if unlabelled := int(missing.sum()):
            what = f"one number as {name}" if column.scale else name
            notes.append(f"proteins without {what} in {path}, drawn grey: {unlabelled:,}")
        several = 0 if column.scale else sum(len(cells.get(key or "", ())) > 1 for key in known_as)
        if several:
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

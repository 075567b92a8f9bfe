"""Labels of proteins: a table of ids and one or more columns of labels."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rd_hf.data.fasta import DAMAGED, InputError, damaged, open_text
from rd_hf.data.sources import ID_COLUMNS


@dataclass(frozen=True, slots=True)
class Column:
    """One column of labels, for the proteins that are drawn.

    Attributes:
        name: of the column.
        labels: the different labels, the most frequent first, ties in alphabetical order.
        codes: (n,) int32, a protein's label counted from 1 in ``labels``; 0 where it has none.
    """

    name: str
    labels: list[str]
    codes: np.ndarray

    @property
    def unlabelled(self) -> int:
        """Proteins without a label."""
        return int((self.codes == 0).sum())


def column(name: str, values: Sequence[str]) -> Column:
    """A column from each protein's label; an empty label is none."""
    counts = Counter(value for value in values if value)
    labels = sorted(counts, key=lambda label: (-counts[label], label))
    numbers = {label: number for number, label in enumerate(labels, start=1)}
    return Column(name, labels, np.array([numbers.get(value, 0) for value in values], dtype=np.int32))


def read_labels(path: str | Path) -> dict[str, dict[str, str]]:
    """Read a tab-separated table (gzip or not) whose header names the id column and one or more label columns.

    Args:
        path: such as ``id<TAB>kingdom<TAB>family``; the id column is called id, name, accession, entry, ...

    Returns:
        For each column id -> label; cells that are empty are left out.

    Raises:
        InputError: no such file, no header, no label column, a row of another width, an id with two labels.
    """
    numbered = 1
    try:
        with open_text(path) as handle:
            rows = csv.reader(handle, delimiter="\t")
            header = [cell.strip() for cell in next(rows, [])]
            places = [place for place, cell in enumerate(header) if cell.lower() in ID_COLUMNS]
            names = [cell for place, cell in enumerate(header) if places and place != places[0]]
            if not places or not names or len(set(header)) != len(header) or not all(header):
                raise InputError(
                    f"{path}: the first line must name the columns, tab-separated and each once, such as "
                    f"id<TAB>kingdom, and is {chr(9).join(header)!r}"
                )
            table: dict[str, dict[str, str]] = {name: {} for name in names}
            for row in rows:
                numbered = rows.line_num
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise InputError(
                        f"{path} line {numbered} has {len(row)} cells where the header has {len(header)}: separate "
                        "them by single tabs"
                    )
                name = row.pop(places[0]).strip()
                for key, cell in zip(names, row, strict=True):
                    label = cell.strip()
                    if label and table[key].setdefault(name, label) != label:
                        raise InputError(
                            f"{path} line {numbered}: {name!r} has {table[key][name]!r} and {label!r} as {key}: keep "
                            "one label an id"
                        )
    except DAMAGED as error:
        raise damaged(path, numbered, error) from error
    except csv.Error as error:
        raise InputError(f"{path} cannot be read after line {numbered}: {error}") from error
    return table


def label_columns(path: str | Path, ids: Sequence[str]) -> tuple[list[Column], int]:
    """The columns of a table of labels, for proteins of these ids.

    Returns:
        The columns, and how many of the table's ids belong to none of the proteins.

    Raises:
        InputError: as :func:`read_labels`, or the table labels none of the proteins.
    """
    table = read_labels(path)
    named = {name for values in table.values() for name in values}
    foreign = named - set(ids)
    if named == foreign:
        example = f"its first id is {min(foreign)!r}" if foreign else "it is empty"
        raise InputError(
            f"{path} labels none of the {len(ids):,} proteins: {example}, the first protein's is {ids[0]!r}; write "
            "ids as the embedding folder has them"
        )
    return [column(name, [values.get(one, "") if one else "" for one in ids]) for name, values in table.items()], len(
        foreign
    )

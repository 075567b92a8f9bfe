"""Labels of proteins: a table of ids and one or more columns of labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rd_hf.data.columns import ID_COLUMNS
from rd_hf.data.records import InputError, readable
from rd_hf.data.tables import BadRow, delimited


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
    """Read a table (tab-separated, or with commas or semicolons; compressed or not) whose header names the columns.

    Args:
        path: such as ``id<TAB>kingdom<TAB>family``. The id column is the first that is called id, name, accession,
            entry, ...; every other column holds labels.

    Returns:
        For each column id -> label; cells that are empty are left out.

    Raises:
        InputError: no such file, no header, no label column, a row of another width, an id with two labels.
    """

    def is_id(cell: str) -> bool:
        return cell.strip().lower() in ID_COLUMNS

    with delimited(path, ".tsv", lambda columns: any(map(is_id, columns))) as table:
        ids = next(filter(is_id, table.columns), None)
        names = [column for column in table.columns if column != ids]
        called = [column.strip() for column in table.columns]
        if ids is None or not names or len(set(called)) != len(called) or not all(called):
            raise InputError(
                f"{path}: the first line must name the columns, each once, such as id<TAB>kingdom, and is "
                f"{chr(9).join(table.columns)!r}{table.about}"
            )
        found: dict[str, dict[str, str]] = {name: {} for name in names}
        for row in table.read(table.columns):
            if isinstance(row, BadRow):
                raise InputError(f"{path}: {row.reason}; mend the row")
            one = readable(row[ids].strip())
            for name in names:
                label = readable(row[name].strip())
                if label and found[name].setdefault(one, label) != label:
                    raise InputError(
                        f"{path}: {one!r} has two labels as {name}, {found[name][one]!r} and {label!r}: keep one, "
                        "since a point has one colour"
                    )
    return {readable(name.strip()): labels for name, labels in found.items()}


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

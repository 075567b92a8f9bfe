"""Labels of proteins: a table of ids and labels, as people and tools write them.

The table is text; tabs, commas or semicolons separate its cells (see :mod:`rd_hf.data.tables`). Its first line is a
header if one of its cells is the name of an id column (``id``, ``name``, ``accession``, ``entry``, ...), or if a column
is asked for by its name. Ids are in the first column of such a name, else in the first column; all other columns hold
labels. Without a header the second column holds the labels.

A protein may have several labels: on several lines, or in one cell with ``;`` between them. Empty cells are no labels.
Ids are those of the proteins. Where a protein has an id like ``db|ACCESSION|NAME``, as in UniProt, the accession alone
is an id too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rd_hf.data.columns import ID_COLUMNS
from rd_hf.data.records import InputError, Source, readable
from rd_hf.data.tables import BadRow, Row, delimited

# The column of labels of a table without a header.
UNNAMED = "label"

# The different cells of each id that has a label, in the order of the table.
Cells = Mapping[str, Sequence[str]]


def read_labels(path: Source, column: str | None = None, all_columns: bool = False) -> dict[str, Cells]:
    """Read a table of labels, whose format this module describes: for each column that was read the cells of each id.

    Args:
        path: of the table.
        column: the one to read, by its name in the header; by default the first that does not hold the ids.
        all_columns: read all columns of labels. Each row must then have as many cells as the header.

    Raises:
        InputError: no such file or column, a header or a row that is ambiguous, or no label at all.
    """

    def is_row(cells: Sequence[str]) -> bool:
        return column is None and not any(map(_is_id, cells))

    def wanted(cells: Sequence[str]) -> bool:
        if column is not None:
            return column in map(str.strip, cells)
        # A row begins with an id, which holds nothing that separates cells.
        return not is_row(cells) or (len(cells) > 1 and ";" not in cells[0])

    with delimited(path, ".tsv", wanted, is_row=is_row) as table:
        header = not is_row(table.columns)
        names = [name.strip() for name in table.columns] if header else ["", UNNAMED]
        ids, chosen = _places(path, names, column, all_columns, table.about)
        found: dict[str, dict[str, list[str]]] = {readable(names[place]): {} for place in chosen}
        for row in table.read(table.columns):
            name, *cells = _cells(path, row, table.columns, [ids, *chosen], all_columns and header)
            for labels, cell in zip(found.values(), cells, strict=True):
                if name and split_labels([cell]) and cell not in labels.setdefault(name, []):
                    labels[name].append(cell)
    if not any(found.values()):
        raise InputError(f"{path} gives no id a label: give lines of id, tab, label")
    return dict(found)


def _is_id(name: str) -> bool:
    return name.strip().lower() in ID_COLUMNS


def _places(path: Source, names: list[str], column: str | None, all_columns: bool, about: str) -> tuple[int, list[int]]:
    """Where the ids stand, and the labels that are read."""
    if column is not None and column not in names:
        raise InputError(f"{path} has no column {column!r}; its columns are {', '.join(names)}{about}")
    candidates = [place for place, name in enumerate(names) if name != column] or [0]
    ids = next((place for place in candidates if _is_id(names[place])), candidates[0])
    others = [place for place in range(len(names)) if place != ids]
    chosen = [names.index(column)] if column is not None else others if all_columns else others[:1]
    if not chosen or any(names.count(names[place]) > 1 or not names[place] for place in chosen):
        raise InputError(
            f"{path}: the first line must name the columns, each once, such as id<TAB>kingdom, and is "
            f"{chr(9).join(names)!r}{about}"
        )
    return ids, chosen


def _cells(path: Source, row: Row, columns: Sequence[str], places: Sequence[int], strict: bool) -> list[str]:
    """Cells of a row at these places; all empty where the row is."""
    cells = row.cells if isinstance(row, BadRow) else [row[name] for name in columns]
    if isinstance(row, BadRow) and (strict or not cells):
        raise InputError(f"{path}: {row.reason}; mend the row")
    if not any(map(str.strip, cells)):
        return [""] * len(places)
    if len(cells) <= max(places):
        number = row.line if isinstance(row, BadRow) else 1
        raise InputError(f"{path} line {number} has no column {max(places) + 1}: give id, tab, label")
    return [readable(cells[place].strip()) for place in places]


def split_labels(cells: Iterable[str]) -> tuple[str, ...]:
    """The labels in some cells, each once."""
    parts = (part.strip() for cell in cells for part in cell.split(";"))
    return tuple(dict.fromkeys(filter(None, parts)))


def known_as(name: str | None, table: Collection[str]) -> str | None:
    """What a table calls a protein: its id, or the accession in it; None where the table has neither."""
    if name in table:
        return name
    parts = (name or "").split("|")
    return parts[1] if len(parts) == 3 and parts[1] in table else None


@dataclass(slots=True)
class Matches:
    """Finds proteins among the ids of a table of labels, and counts how: by their id, or by the accession in it.

    ``path`` is the table's, ``table`` its ids, ``unused`` those that no protein has had yet.
    """

    path: str
    table: Collection[str]
    by_id: int = 0
    by_accession: int = 0
    unused: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unused = set(self.table)

    def find(self, names: Iterable[str | None]) -> list[str | None]:
        """What the table calls each of these proteins; None for those that it does not have."""
        found = []
        for name in names:
            key = known_as(name, self.table)
            if key is not None:
                self.by_id += key == name
                self.by_accession += key != name
                self.unused.discard(key)
            found.append(key)
        return found

    def require(self, folder: object, proteins: int, first: str = "") -> None:
        """Raise InputError if none of so many proteins, the first of which has this id, was found."""
        if not self.by_id and not self.by_accession:
            raise InputError(
                f"{self.path} labels none of the {proteins:,} proteins of {folder}: its first id is "
                f"{next(iter(self.table))!r}, the first protein's is {first!r}; write ids as the embedding folder has "
                "them"
            )

    def __str__(self) -> str:
        """How proteins were found, where it was not by their ids alone."""
        by_id = f"{self.by_id:,} proteins matched by their id, {self.by_accession:,} by the accession in it"
        return by_id if self.by_accession else ""

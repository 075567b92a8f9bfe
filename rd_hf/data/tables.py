"""Tables in: CSV, TSV, JSON lines and Parquet as columns and rows, every line and row of them accounted for.

:data:`FORMATS` is the place where an input format is added. Text tables are read as they are written in this field:
comma and semicolon tables follow RFC 4180; tab-separated ones mostly do not quote, so that a cell may begin with a
quotation mark (UniProt, BLAST), and those of spreadsheets do. A line is read plainly where that gives the header's
number of cells, else with its quotes, over several lines if need be; a header in quotes says that all quotes are meant.
A line that fits in neither way is one row with a problem.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from rd_hf.data.records import InputError, OnRead, Say, Source
from rd_hf.data.streams import DAMAGED, damaged, open_bytes, open_text
from rd_hf.data.values import as_list

if TYPE_CHECKING:
    import pyarrow as pa

DELIMITERS = {".csv": ",;\t", ".tsv": "\t,;", ".tab": "\t,;"}
_NAMES = {",": "commas", ";": "semicolons", "\t": "tabs"}
# Lines that one quoted cell may span: enough for a wrapped titin, and a stray quote costs no more than this.
_LONGEST_CELL = 4096


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be told apart into cells, with the reason in words and the number of the line.

    The ``cells`` are of a tab-separated line that has more or fewer of them than the header.
    """

    reason: str
    cells: Sequence[str] = ()
    line: int = 0


Row = Mapping[str, Any] | BadRow


@dataclass(slots=True)
class Table:
    """Column names as the source has them, and rows to be read once.

    Attributes:
        columns: in order; a name may occur twice.
        read: yields the rows with at least the columns named: a value per column, or what is wrong with the row.
        kinds: Arrow types of the columns, where the format has types.
        about: what to add to a complaint about the columns, such as how they were told apart.
        blank: returns how many blank lines the rows read so far had before or between them.
    """

    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[Row]]
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    about: str = ""
    blank: Callable[[], int] = lambda: 0


class _Lines:
    """The lines of a text, counted; some can be given back."""

    def __init__(self, source: Source, handle: Iterable[str]) -> None:
        self._source, self._handle = source, iter(handle)
        self._returned: deque[str] = deque()
        self.number = 0
        self.blank = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._returned:
            line = self._returned.popleft()
        else:
            try:
                line = next(self._handle)
            except DAMAGED as error:
                raise damaged(self._source, self.number, error, "line") from error
        self.number += 1
        return line

    def unread(self, lines: Sequence[str]) -> None:
        self._returned.extendleft(reversed(lines))
        self.number -= len(lines)


def _quoted(first: str, lines: _Lines, delimiter: str) -> tuple[list[str] | None, list[str]]:
    """Cells of a row with quotes by RFC 4180 (None where it breaks that or has none), and the further lines it took."""
    if '"' not in first:
        return None, []
    taken: list[str] = []

    def feed() -> Iterator[str]:
        yield first
        for line in islice(lines, _LONGEST_CELL):
            taken.append(line)
            yield line

    try:
        return next(csv.reader(feed(), delimiter=delimiter, strict=True)), taken
    except csv.Error:
        return None, taken


def _split(line: str, delimiter: str) -> list[str]:
    """Cells of a line, its quotes being letters like others."""
    return line.removesuffix("\n").split(delimiter)


def _header(source: Source, lines: _Lines, kind: str, wanted: Callable[[Sequence[str]], bool]) -> tuple[Any, ...]:
    """Column names, the delimiter, whether quotes are meant everywhere, and the line that they were read from."""
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise InputError(f"{source} holds no rows")
    delimiters = DELIMITERS[kind]
    declared = re.fullmatch(r"sep=(.)\n?", first)
    if declared:
        # How Excel is told the delimiter.
        delimiters, first = declared[1], next(lines, "")
    found = []
    for delimiter in delimiters:
        cells, taken = _quoted(first, lines, delimiter)
        lines.unread(taken)
        if cells is None or taken:
            found.append((_split(first, delimiter), delimiter, False, first))
        else:
            found.append((cells, delimiter, True, first))
        if wanted(found[-1][0]):
            return found[-1]
    return max(found, key=lambda each: len(each[0]))


@contextmanager
def delimited(
    source: Source,
    kind: str,
    wanted: Callable[[Sequence[str]], bool],
    on_read: OnRead | None = None,
    say: Say | None = None,
    is_row: Callable[[Sequence[str]], bool] = lambda cells: False,
) -> Iterator[Table]:
    """Open a CSV or TSV file; an InputError if there is no such file, no header, or a damaged one.

    Args:
        kind: suffix that names the format; says which delimiter is looked for first.
        wanted: whether these column names are those that are needed: decides between delimiters.
        on_read: called with the number of bytes each time some are read.
        say: called with a sentence if rows span several lines.
        is_row: whether the cells of the first line are a row already; the columns are then called 1, 2, and so on.
    """
    # The largest field a C long can name on every platform; csv's own default stops at 131,072 letters.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_text(source, on_read) as handle:
        lines = _Lines(source, handle)
        columns, delimiter, quoted, first = _header(source, lines, kind, wanted)
        if is_row(columns):
            lines.unread([first])
            columns = [str(number) for number in range(1, len(columns) + 1)]
        yield Table(
            columns,
            lambda _: _rows(source, lines, columns, delimiter, quoted, say),
            about=f" (told apart by {_NAMES.get(delimiter, repr(delimiter))})",
            blank=lambda: lines.blank,
        )


def _rows(
    source: Source, lines: _Lines, columns: Sequence[str], delimiter: str, all_quoted: bool, say: Say | None
) -> Iterator[Row]:
    """Yield the rows after the header."""
    width = len(columns)
    plain_first = delimiter == "\t" and not all_quoted
    reported = False
    for first in lines:
        if not first.strip("\n"):
            lines.blank += 1
            continue
        number = lines.number
        quoted, taken = _quoted(first, lines, delimiter)
        # Lines that each fit as they are, though quotes would join them.
        each_fits = bool(taken) and all(len(_split(line, delimiter)) == width for line in (first, *taken))
        fits = quoted is not None and len(quoted) == width
        if fits and each_fits and not all_quoted and not plain_first:
            for line in range(number, lines.number + 1):
                yield BadRow(
                    f"line {line} is a row by itself and, by a quotation mark that begins in line {number}, part of a "
                    "longer one: double or remove that mark"
                )
            continue
        if quoted is not None and fits and not (each_fits and plain_first):
            if taken and say is not None and not reported:
                reported = True
                span = f"{number} to {lines.number}"
                say(f"{source}: quoted cells span lines, first {span}; they are read as one row")
            cells = quoted
        else:
            lines.unread(taken)
            cells = _split(first, delimiter) if plain_first or quoted is None else quoted
        if len(cells) == width:
            yield dict(zip(columns, cells, strict=True))
        else:
            unit = "cell" if len(cells) == 1 else "cells"
            reason = f"line {number} has {len(cells)} {unit} where the header has {width}"
            yield BadRow(reason, cells if delimiter == "\t" else (), number)


@contextmanager
def json_lines(source: Source, on_read: OnRead | None = None, **_: Any) -> Iterator[Table]:
    """Open a file of one JSON object per line; its columns are those of the first.

    An InputError if there is no such file or no row, or while reading, of a line that is no JSON object.
    """
    with open_text(source, on_read) as handle:
        yield of_rows(source, _objects(source, _Lines(source, handle)))


def of_rows(source: Source, rows: Iterator[Row]) -> Table:
    """A table of rows that name their columns themselves, the first those of all; InputError where there is no row."""
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} holds no rows")
    if isinstance(first, BadRow):
        raise InputError(f"{source} cannot be read: {first.reason}; mend it")
    return Table(list(first), lambda _: chain([first], rows))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise KeyError
    return found


def _objects(source: Source, lines: _Lines) -> Iterator[Row]:
    number = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_object)
        except KeyError:
            row = BadRow(f"line {lines.number} gives two values for one key")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{source} cannot be read after record {number} (line {lines.number}): {error}; give one JSON object "
                "a line"
            ) from error
        if not isinstance(row, (dict, BadRow)):
            raise InputError(f"{source} line {lines.number} is no JSON object; give one object a line")
        number += 1
        yield row


@contextmanager
def parquet(source: Source, on_read: OnRead | None = None, **_: Any) -> Iterator[Table]:
    """Open a Parquet file; a thousand rows are in memory at a time. Raises InputError if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Opened here: the library takes no name that is not UTF-8.
        with open_bytes(source) as raw, pq.ParquetFile(raw) as file:
            row_bytes = raw.seek(0, io.SEEK_END) / max(1, file.metadata.num_rows)

            def read(columns: Sequence[str]) -> Iterator[Row]:
                for batch in file.iter_batches(batch_size=1000, columns=list(columns)):
                    values = [as_list(batch.column(column)) for column in columns]
                    yield from (dict(zip(columns, cells, strict=True)) for cells in zip(*values, strict=True))
                    if on_read is not None:
                        on_read(round(row_bytes * batch.num_rows))

            if file.metadata.num_rows == 0:
                raise InputError(f"{source} holds no rows")
            schema = file.schema_arrow
            yield Table(schema.names, read, {column.name: column.type for column in schema})
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source} is no readable Parquet file: {error}") from error


# The formats of tables by the suffix of a file's name, in the order in which the pages name them. Each opens a file:
# a context manager, called with the source and by name ``wanted``, ``on_read`` and ``say`` as in :func:`delimited`,
# that gives a Table; a format whose rows name their columns makes it with :func:`of_rows`.
FORMATS: dict[str, Callable[..., AbstractContextManager[Table]]] = {
    **{suffix: partial(delimited, kind=suffix) for suffix in DELIMITERS},
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), json_lines),
    ".parquet": parquet,
}

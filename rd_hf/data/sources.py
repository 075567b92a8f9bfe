"""Any input a user names, as one stream of raw records.

A source is a FASTA file (gzip or not; ``-`` for standard input), a table with a sequence column (CSV, TSV or
JSON lines, gzip or not, and Parquet), or a dataset on the Hub (``owner/name``, optionally ``owner/name:split``).
Tables are read row by row as text: no type is guessed, so that the peptide ``NA`` stays Asn-Ala.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rd_hf.data.fasta import DAMAGED, FastaRecord, InputError, damaged, open_text, read_fasta

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
SEQUENCE_COLUMNS = ("sequence", "seq", "mutated_sequence", "protein_sequence", "protein")
ID_COLUMNS = ("id", "name", "mutant", "accession", "entry", "protein_id")
_HUB_DATASET = re.compile(r"[\w.-]+/[\w.-]+(:[\w.-]+)?")

Rows = Iterator[Mapping[str, Any]]


def table_format(source: str | Path) -> str | None:
    """Suffix that says which kind of table a path is (``.gz`` looked through), None for FASTA and the Hub."""
    suffixes = [suffix.lower() for suffix in Path(source).suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in TABLES else None


def is_hub_dataset(source: str | Path) -> bool:
    """Whether a source names a Hub dataset: ``owner/name`` without a file of that name or a file's suffix."""
    text = str(source)
    return bool(_HUB_DATASET.fullmatch(text)) and not Path(text).suffix and not Path(text).exists()


def source_size(source: str | Path) -> int | None:
    """Bytes of a file, None where they are not known before the end (standard input, the Hub)."""
    path = Path(source)
    return path.stat().st_size if str(source) != "-" and path.is_file() else None


def read_records(
    source: str | Path,
    sequence_column: str | None = None,
    id_column: str | None = None,
    positions_column: str | None = None,
    on_read: Callable[[int], None] | None = None,
) -> Iterator[FastaRecord]:
    """Stream the raw records of one source, numbered from 1.

    Args:
        source: path, ``-``, or Hub dataset id with an optional ``:split`` (default ``train``).
        sequence_column: column of a table that holds sequences; by default the first of
            :data:`SEQUENCE_COLUMNS` that exists.
        id_column: column that holds ids; by default the first of :data:`ID_COLUMNS`, else the row number.
        positions_column: column that holds the residues of interest, counted from 1: a list of numbers or text
            such as ``23 45``.
        on_read: told the number of bytes each time some are read from a file.

    Raises:
        InputError: the source does not exist, is damaged, has no record, or no such column.
    """
    kind = table_format(source)
    rows: Rows
    if kind == ".parquet":
        rows = _parquet_rows(source, on_read)
    elif kind is not None:
        rows = _text_rows(source, kind, on_read)
    elif is_hub_dataset(source):
        rows = _hub_rows(str(source))
    else:
        if positions_column is not None:
            raise InputError(f"{source} is FASTA, which has no column {positions_column!r}: give a table")
        yield from read_fasta(source, on_read)
        return

    first = next(rows, None)
    if first is None:
        raise InputError(f"{source} holds no rows")
    sequences = _pick(source, first, sequence_column, SEQUENCE_COLUMNS)
    if sequences is None:
        raise InputError(
            f"{source} has no column named {' or '.join(SEQUENCE_COLUMNS)}; its columns are "
            f"{', '.join(map(str, first))}: name one with --sequence-column"
        )
    ids = _pick(source, first, id_column, ID_COLUMNS)
    positions = _pick(source, first, positions_column, ())
    for number, row in enumerate(itertools.chain([first], rows), start=1):
        record_id = str(number) if ids is None or row.get(ids) is None else str(row[ids])
        yield FastaRecord(
            number,
            record_id,
            record_id,
            "".join(str(row.get(sequences) or "").split()),
            () if positions is None else _positions(source, number, row.get(positions)),
        )


def _pick(source: str | Path, row: Mapping[str, Any], asked: str | None, usual: Iterable[str]) -> str | None:
    """The column asked for, or the first usual one, whatever its case."""
    if asked is not None:
        if asked not in row:
            raise InputError(f"{source} has no column {asked!r}; its columns are {', '.join(map(str, row))}")
        return asked
    by_lower = {column.lower(): column for column in row if isinstance(column, str)}
    return next((by_lower[name] for name in usual if name in by_lower), None)


def _positions(source: str | Path, number: int, value: Any) -> tuple[int, ...]:
    """Residue numbers out of a list or a text cell such as ``[23, 45]`` or ``23;45``."""
    words = re.findall(r"[^\s,;\[\]]+", value) if isinstance(value, str) else value
    if isinstance(words, int):
        words = [words]
    try:
        return tuple(int(word) for word in words or ())
    except (TypeError, ValueError) as error:
        raise InputError(f"{source} record {number}: positions {value!r} are not whole numbers") from error


def _text_rows(source: str | Path, kind: str, on_read: Callable[[int], None] | None) -> Rows:
    """Rows of a CSV, TSV or JSON lines file."""
    number = 0
    # The largest field a C long can name on every platform; csv's own default stops at 131,072 letters.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_text(source, on_read) as handle:
        try:
            if kind in (".csv", ".tsv"):
                rows: Iterable[Any] = csv.DictReader(handle, delimiter="," if kind == ".csv" else "\t")
            else:
                rows = (json.loads(line) for line in handle if line.strip())
            for number, row in enumerate(rows, start=1):
                if not isinstance(row, dict):
                    raise InputError(f"{source} record {number} is no JSON object; give one object a line")
                yield row
        except DAMAGED as error:
            raise damaged(source, number, error) from error
        except (csv.Error, json.JSONDecodeError) as error:
            raise InputError(f"{source} cannot be read after record {number}: {error}") from error


def _parquet_rows(source: str | Path, on_read: Callable[[int], None] | None) -> Rows:
    """Rows of a Parquet file, a thousand in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(source)
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path (relative to {Path.cwd()})")
    try:
        with pq.ParquetFile(path) as file:
            bytes_a_row = path.stat().st_size / max(1, file.metadata.num_rows)
            wanted = [field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)]
            wanted += [field.name for field in file.schema_arrow if pa.types.is_list(field.type)]
            for batch in file.iter_batches(batch_size=1000, columns=wanted):
                yield from batch.to_pylist()
                if on_read is not None:
                    on_read(round(bytes_a_row * batch.num_rows))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {error}") from error


def _hub_rows(source: str) -> Rows:
    """Rows of a Hub dataset, streamed."""
    # Imported here: reading FASTA must not pay for datasets' start-up.
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        yield from load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # datasets raises many kinds; the user needs one sentence
        raise InputError(
            f"{source} is neither a file here nor a readable Hub dataset ({type(error).__name__}: {error})"
        ) from error

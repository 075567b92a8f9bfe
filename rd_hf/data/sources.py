"""Any input a user names, as one stream of raw records.

A source is a FASTA file (gzip or not; ``-`` for standard input), a table (CSV, TSV, Parquet, JSON lines) with a
sequence column, or a dataset on the Hub (``owner/name``, optionally ``owner/name:split``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from rd_hf.data.fasta import FastaRecord, InputError, read_fasta

TABLE_FORMATS = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"sep": "\t"}),
    ".parquet": ("parquet", {}),
    ".jsonl": ("json", {}),
    ".json": ("json", {}),
}
SEQUENCE_COLUMNS = ("sequence", "seq", "mutated_sequence", "protein_sequence", "protein")
ID_COLUMNS = ("id", "name", "mutant", "accession", "entry", "protein_id")


def _pick(columns: Iterable[str], asked: str | None, usual: tuple[str, ...]) -> str | None:
    """The column asked for, or the first usual one, whatever its case."""
    by_lower = {column.lower(): column for column in columns}
    if asked is not None:
        return asked if asked in by_lower.values() else None
    return next((by_lower[name] for name in usual if name in by_lower), None)


def read_records(
    source: str | Path, sequence_column: str | None = None, id_column: str | None = None
) -> Iterator[FastaRecord]:
    """Stream the raw records of one source, numbered from 1.

    Args:
        source: path, ``-``, or Hub dataset id with an optional ``:split`` (default ``train``).
        sequence_column: column of a table that holds sequences; by default the first of
            :data:`SEQUENCE_COLUMNS` that exists.
        id_column: column that holds ids; by default the first of :data:`ID_COLUMNS`, else the row number.

    Raises:
        InputError: the source does not exist, is damaged, has no record, or no such column.
    """
    path = Path(source)
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    table = next((suffix for suffix in suffixes if suffix in TABLE_FORMATS), None)
    on_hub = str(source) != "-" and not path.exists() and table is None and str(source).count("/") == 1
    if table is None and not (on_hub and not path.suffix):
        yield from read_fasta(source)
        return
    # Imported here: reading FASTA must not pay for datasets' start-up.
    from datasets import IterableDataset, load_dataset

    if table is not None:
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path (relative to {Path.cwd()})")
        builder, options = TABLE_FORMATS[table]
        arguments: dict[str, object] = {"data_files": str(path), "split": "train", **options}
    else:
        builder, _, split = str(source).partition(":")
        arguments = {"split": split or "train"}
    try:
        rows = load_dataset(builder, streaming=True, **arguments)
        assert isinstance(rows, IterableDataset)
        first = next(iter(rows), None)
    except Exception as error:  # datasets raises many kinds; the user needs one sentence
        raise InputError(f"{source} cannot be read as a dataset: {type(error).__name__}: {error}") from error
    if first is None:
        raise InputError(f"{source} holds no rows")
    sequences = _pick(first, sequence_column, SEQUENCE_COLUMNS)
    if sequences is None:
        raise InputError(
            f"{source} has no column {sequence_column or 'named like ' + ' or '.join(SEQUENCE_COLUMNS)!r}; "
            f"its columns are {', '.join(first)}: name one with --sequence-column"
        )
    ids = _pick(first, id_column, ID_COLUMNS)
    if id_column is not None and ids is None:
        raise InputError(f"{source} has no column {id_column!r}; its columns are {', '.join(first)}")
    for number, row in enumerate(rows, start=1):
        record_id = str(number) if ids is None or row[ids] is None else str(row[ids])
        yield FastaRecord(number, record_id, record_id, "".join(str(row[sequences] or "").split()))

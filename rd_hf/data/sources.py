"""Any input a user names, as one stream of raw records.

A source is a FASTA file (``-`` for standard input), a table with a sequence column in one of the formats of
:data:`rd_hf.data.tables.FORMATS`, either compressed or not, here or at an address (:mod:`rd_hf.data.remote`), or a
dataset on the Hub (``owner/name``, optionally ``owner/name:split``). Tables are read row by row as text: no type is
guessed, so that the peptide ``NA`` stays Asn-Ala. Every record of a source comes out: what holds no protein comes with
the problem it has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rd_hf.carried import input_place, is_carried_input
from rd_hf.data.columns import ID_COLUMNS, SEQUENCE_COLUMNS, check_sequences, holds_sequences, pick
from rd_hf.data.fasta import read_fasta
from rd_hf.data.missing import no_file, no_such_file
from rd_hf.data.nucleotides import watch_nucleotides
from rd_hf.data.records import FastaRecord, InputError, OnRead, Say, Source, not_encodable, readable
from rd_hf.data.remote import facts_of, is_remote
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.streams import SUFFIXES
from rd_hf.data.tables import FORMATS, BadRow, Row, Table, of_rows
from rd_hf.data.values import id_text, position_numbers, sequence_text
from rd_hf.network import hub_asked_once

_HUB_DATASET = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]+)?")


def table_format(source: Source) -> str | None:
    """The suffix of a path that names one of the formats of tables, compressed or not; None for FASTA and the Hub."""
    # Behind the path of an address may stand a query.
    name = urlsplit(str(source)).path if is_remote(source) else input_place(source)
    suffixes = [suffix.lower() for suffix in Path(name).suffixes]
    if suffixes and suffixes[-1] in SUFFIXES:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in FORMATS else None


def is_hub_dataset(source: Source) -> bool:
    """Whether a source names a Hub dataset: ``owner/name`` without a file of that name or a file's suffix."""
    text = str(source)
    return bool(_HUB_DATASET.fullmatch(text)) and not Path(text).suffix and not Path(text).exists()


def is_there(source: Source) -> bool:
    """Whether there is an input of this name: a file, carried proteins, an address, or what reads as a Hub dataset."""
    return is_remote(source) or Path(input_place(source)).exists() or is_hub_dataset(source)


def check_sources(sources: Sequence[str], processes: int = 1) -> None:
    """Look at every source before the first is read: a typing error in the last one should not cost a night.

    An InputError if one is not there, or standard input would be read twice, or by several ``processes``.
    """
    for source in sources:
        if source == "-":
            if processes > 1:
                raise InputError("standard input cannot be shared by several processes: write it to a file first")
        elif is_remote(source):
            facts_of(source)
        elif not is_there(source):
            raise no_such_file(source)
        elif Path(source).is_dir() and not is_carried_input(source):
            raise no_file(Path(source))
    if list(sources).count("-") > 1:
        raise InputError("standard input ('-') can be read once only")


def source_size(source: Source) -> int | None:
    """Bytes of a file here, None where they are not known before the end (standard input, the Hub, an address)."""
    path = Path(input_place(source))
    return path.stat().st_size if str(source) != "-" and path.is_file() else None


def read_records(
    source: Source,
    sequence_column: str | None = None,
    id_column: str | None = None,
    positions_column: str | None = None,
    on_read: OnRead | None = None,
    say: Say | None = None,
    strict: bool = False,
) -> Iterator[FastaRecord]:
    """Stream the raw records of one source, numbered from 1.

    Args:
        source: path, address, ``-``, the name of carried proteins (:mod:`rd_hf.carried`), or Hub dataset id with an
            optional ``:split`` (default ``train``).
        sequence_column: column of a table that holds sequences; by default the first of
            :data:`rd_hf.data.columns.SEQUENCE_COLUMNS` that exists, which must not hold names.
        id_column: column that holds ids; by default the first of :data:`rd_hf.data.columns.ID_COLUMNS`, else the row
            number.
        positions_column: column that holds the residues of interest, counted from 1: a list of numbers or text
            such as ``23 45``.
        on_read: called with the number of bytes each time some are read from a file.
        say: called with a sentence, at most once each, on what a user should know of the source: that it looks like
            nucleotides, which column was read where that is not plain, that ids are not text, that cells span lines.
        strict: refuse a source that looks like nucleotides, or has words before its first FASTA record.

    Raises:
        InputError: the source does not exist, is damaged, has no record, no such column, or names in it.
    """
    kind = table_format(source)
    if kind is None and not is_hub_dataset(source):
        if positions_column is not None:
            raise InputError(f"{source} is FASTA, which has no column {positions_column!r}: give a table")
        records = read_fasta(source, on_read, say, strict)
    else:
        records = _read_table(source, kind, (sequence_column, id_column, positions_column), on_read, say)
    yield from watch_nucleotides(source, records, say, strict)


def _read_table(
    source: Source,
    kind: str | None,
    asked: tuple[str | None, str | None, str | None],
    on_read: OnRead | None,
    say: Say | None,
) -> Iterator[FastaRecord]:
    sequence_column, id_column, positions_column = asked

    def wanted(columns: Sequence[str]) -> bool:
        return holds_sequences(columns) if sequence_column is None else sequence_column in columns

    with open_table(source, kind, wanted, on_read, say) as table:
        sequences = pick(source, table, sequence_column, SEQUENCE_COLUMNS, "sequence")
        if sequences is None:
            raise InputError(
                f"{source} has no column named {' or '.join(SEQUENCE_COLUMNS)}; its columns are "
                f"{', '.join(table.columns)}{table.about}: name one with --sequence-column"
            )
        ids = pick(source, table, id_column, ID_COLUMNS, "id")
        positions = pick(source, table, positions_column, (), "positions")
        rows = table.read(list(dict.fromkeys(column for column in (sequences, ids, positions) if column is not None)))
        if sequence_column is None:
            rows = check_sequences(source, rows, sequences, ids, say)
        number, reported = 0, False
        for number, row in enumerate(rows, start=1):
            record = _record(number, row, sequences, ids, positions)
            if (text := readable(record.id)) != record.id:
                if say is not None and not reported:
                    reported = True
                    say(not_encodable(source, number))
                record = replace(record, id=text, description=text)
            yield record
        if number == 0:
            raise InputError(f"{source} holds no rows")


def open_table(
    source: Source,
    kind: str | None,
    wanted: Callable[[Sequence[str]], bool],
    on_read: OnRead | None = None,
    say: Say | None = None,
) -> AbstractContextManager[Table]:
    """Open a file of a format of tables (see :func:`table_format`), or, where that is None, a Hub dataset.

    Args and errors are those of :func:`rd_hf.data.tables.delimited`.
    """
    if kind is None:
        return nullcontext(of_rows(source, _hub_rows(str(source))))
    return FORMATS[kind](input_place(source), wanted=wanted, on_read=on_read, say=say)


def _record(number: int, row: Row, sequences: str, ids: str | None, positions: str | None) -> FastaRecord:
    """The record of a row, with the problem of its first cell that has one."""
    record_id, letters, problem = str(number), "", ""
    residues: tuple[int, ...] = ()
    try:
        if isinstance(row, BadRow):
            raise RejectedSequenceError(row.reason)
        found = None if ids is None else id_text(row.get(ids))
        record_id = record_id if found is None else found
        letters = "".join(sequence_text(row.get(sequences)).split())
        residues = () if positions is None else position_numbers(row.get(positions))
    except RejectedSequenceError as error:
        problem = str(error)
    return FastaRecord(number, record_id, record_id, letters, residues, problem)


def _hub_rows(source: str) -> Iterator[Mapping[str, Any]]:
    """Rows of a Hub dataset, streamed."""
    # Imported here: reading FASTA must not pay for datasets' start-up.
    from datasets import load_dataset

    name, _, split = source.partition(":")
    try:
        # The first row too: what it is made of is asked for as late as that.
        with hub_asked_once(name, instead="give a file"):
            rows = iter(load_dataset(name, split=split or "train", streaming=True))
            first = next(rows, None)
        if first is not None:
            yield first
            yield from rows
    except InputError:
        raise
    except Exception as error:  # datasets raises many kinds; the user needs one sentence
        raise InputError(
            f"{source} is neither a file here nor a readable Hub dataset ({type(error).__name__}: {error})"
        ) from error

"""Which column of a table holds what: by its name, in a stated order, and by what its first cells look like.

Names are compared without case, blanks and signs: ``AA_sequence``, ``aa sequence`` and ``AASequence`` are one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from typing import Any

from rd_hf.data.records import InputError, Say, Source
from rd_hf.data.residues import RESIDUES, RejectedSequenceError
from rd_hf.data.tables import BadRow, Row, Table
from rd_hf.data.values import arrow_holds, sequence_text

# In the order in which they are looked for: what is a sequence by its name comes before what may be.
SEQUENCE_COLUMNS = (
    *("sequence", "seq", "mutated_sequence", "protein_sequence", "protein_seq", "amino_acid_sequence"),
    *("aa_sequence", "aa_seq", "primary", "protein"),
)
ID_COLUMNS = ("id", "name", "mutant", "accession", "entry", "protein_id", "sequence_id", "seq_id", "uniprot_id")
# Nothing is said of these: they are what a user expects to be read.
_PLAIN = ("sequence", "seq")
# Columns that hold names as often as sequences, and so have to look like sequences.
_EITHER = ("primary", "protein")
_LOOKED_AT = 100
# Letters that a protein has and its name has not; fewer in a column called "protein" may be either.
_PROTEIN = 25
_RESIDUES = re.compile(rf"[{RESIDUES}J*.-]+", re.IGNORECASE | re.ASCII)
# Hemoglobin, Hsp70, P68871, alpha-1: what is written for readers, or for a database.
_NAME = re.compile(r"[A-Z][a-z]+|.*[\d,;:/()'\"].*", re.DOTALL)
# Sequences come in blocks of equal length, of which the last may be shorter.
_BLOCKS = 10


def column_key(name: str) -> str:
    """Return what is left of a column's name to compare it by."""
    return re.sub(r"[\W_]+", "", name.lower())


def holds_sequences(columns: Iterable[str]) -> bool:
    """Whether one of these columns is named as if it held sequences."""
    return not {column_key(name) for name in SEQUENCE_COLUMNS}.isdisjoint(map(column_key, columns))


def pick(source: Source, table: Table, asked: str | None, usual: Iterable[str], role: str) -> str | None:
    """Return the column asked for, or the first of the usual ones, None where there is none.

    ``role`` is "sequence", "id" or "positions". An InputError if the column asked for is not there, two may be meant,
    or its type holds nothing of the kind.
    """
    if asked is not None:
        found = [column for column in table.columns if column == asked]
        if not found:
            raise InputError(
                f"{source} has no column {asked!r}; its columns are {', '.join(table.columns)}{table.about}"
            )
    else:
        keys = [column_key(column) for column in table.columns]
        wanted = next((key for key in map(column_key, usual) if key in keys), None)
        found = [column for column, key in zip(table.columns, keys, strict=True) if key == wanted]
        if not found:
            return None
    if len(found) > 1:
        raise InputError(
            f"{source} has {len(found)} columns ({', '.join(found)}) that may hold the {role}: rename all but one, or "
            f"name one with --{role}-column"
        )
    kind = table.kinds.get(found[0])
    if kind is not None and not arrow_holds(kind, role):
        what = {"sequence": "no text", "id": "neither text nor numbers", "positions": "no whole numbers"}[role]
        raise InputError(f"{source}: column {found[0]!r} holds {kind}, {what}: name another with --{role}-column")
    return found[0]


def check_sequences(
    source: Source, rows: Iterator[Row], sequences: str, ids: str | None, say: Say | None
) -> Iterator[Row]:
    """Return all rows, once the first of them show that the column that was picked by its name holds sequences.

    Where the name alone does not say so, ``say`` is told which columns are read. An InputError if it holds names.
    """
    seen, rows = _ahead(rows, _LOOKED_AT)
    cells = [cell for row in seen if not isinstance(row, BadRow) and (cell := _text(row.get(sequences)).strip())]
    key = column_key(sequences)
    if key in _EITHER:
        names = [cell for cell in cells if not _is_protein(cell)]
        holds_names = 2 * len(names) > len(cells)
    else:
        names = [cell for cell in cells if is_name(cell)]
        # What no residue is in is the problem of its record, and so is one odd record among others.
        holds_names = len(names) == len(cells) > 1 and any(_RESIDUES.fullmatch("".join(c.split())) for c in names)
    if holds_names:
        shown = ", ".join(repr(cell if len(cell) <= 30 else f"{cell[:27]}...") for cell in names[:3])
        raise InputError(
            f"{source}: column {sequences!r} holds {shown}, which look like names: name the column of sequences with "
            "--sequence-column"
        )
    if key not in _PLAIN and say is not None:
        others = "" if ids is None else f", ids from column {ids!r}"
        say(f"{source}: sequences are read from column {sequences!r}{others}; --sequence-column names another")
    return rows


def is_name(text: str) -> bool:
    """Whether a cell reads as a name, a sentence or an identifier, every letter of which may yet be a residue's."""
    words = text.split()
    if len(words) > 1 and len(text.splitlines()) == 1:
        sizes = {len(word) for word in words[:-1]}
        in_blocks = len(sizes) == 1 and not sizes.pop() % _BLOCKS
        return not in_blocks or not _RESIDUES.fullmatch("".join(words))
    return bool(_NAME.fullmatch(text))


def _is_protein(text: str) -> bool:
    letters = "".join(text.split())
    return len(letters) >= _PROTEIN and not is_name(text) and bool(_RESIDUES.fullmatch(letters))


def _text(cell: Any) -> str:
    with suppress(RejectedSequenceError):
        return sequence_text(cell)
    return ""


def _ahead(rows: Iterator[Row], count: int) -> tuple[list[Row], Iterator[Row]]:
    """The first rows, and all of them from the start; what ends them early ends them there again."""
    seen: list[Row] = []

    def after(error: InputError) -> Iterator[Row]:
        raise error
        yield

    try:
        seen.extend(islice(rows, count))
    except InputError as error:
        rows = after(error)
    return seen, chain(seen, rows)

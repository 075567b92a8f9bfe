"""The rows of a table of labelled sequences: cells as text, sequences cleaned, and what is left out with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Number
from pathlib import Path
from typing import Any

from rd_hf.data.columns import ID_COLUMNS, SEQUENCE_COLUMNS, check_sequences, column_key, pick
from rd_hf.data.records import InputError, readable
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import is_hub_dataset, open_table, table_format
from rd_hf.data.tables import BadRow, Table
from rd_hf.data.values import id_text, sequence_text
from rd_hf.training.residues import read_fasta_pair
from rd_hf.training.rows import PARTS, TRAIN, VALIDATION, YES, LabelledRow, LeftOut, of_parts
from rd_hf.training.settings import SIMILARITY, TrainingSettings
from rd_hf.training.variants import MisfitError, read_wild_type, variant

# What a split column is called, and the one beside it that says which of its training rows validate (FLIP's files).
_SPLIT_COLUMNS, _VALIDATES = ("set", "split"), "validation"


def cell_text(value: Any) -> str:
    """A cell as text without blanks around it, empty where nothing is there; RejectedSequenceError for a list."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return ""
    if isinstance(value, str):
        return readable(value.strip())
    if isinstance(value, bytes):
        return cell_text(value.decode("utf-8", "replace"))
    if isinstance(value, Number) or type(value).__name__ in ("bool", "bool_"):
        return "" if isinstance(value, float) and math.isnan(value) else str(value)
    raise RejectedSequenceError(f"a cell holds a value of type {type(value).__name__}, no text or number")


def read_rows(settings: TrainingSettings, say: Callable[[str], None]) -> tuple[list[LabelledRow], list[LeftOut]]:
    """Read the table of a training.

    Args:
        settings: name the file and its columns.
        say: called with sentences on what a user should know of the file.

    Raises:
        InputError: the file, or a column that is asked for, is not there or cannot be read; no row can be used.
    """
    source = settings.input
    kind = table_format(source)
    if kind is None and not is_hub_dataset(source) and Path(settings.target).is_file():
        for name in ("group", "split_column", "sequence_column", "id_column", "mutant"):
            if getattr(settings, name) not in (None, SIMILARITY if name == "group" else None):
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{source} is FASTA, which has no columns: leave {flag} out, or give a table")
        return read_fasta_pair(source, settings.target, say)
    if kind is None and not is_hub_dataset(source):
        raise InputError(
            f"{source} is no table, which has a column {settings.target!r} beside the sequences: give a file whose "
            "name ends in .csv, .tsv, .jsonl or .parquet, the name of a Hub dataset, or for classes of residues a "
            "FASTA file as --target too"
        )
    with open_table(source, kind, lambda columns: settings.target in columns, say=say) as table:
        columns = _Columns.of(settings, table)
        rows = table.read(list(dict.fromkeys(columns.named())))
        wild_type = None if settings.wild_type is None else read_wild_type(settings.wild_type)
        if settings.sequence_column is None and wild_type is None:
            rows = check_sequences(source, rows, columns.sequence, columns.id, say)
        used: list[LabelledRow] = []
        left_out: list[LeftOut] = []
        for number, row in enumerate(rows, start=1):
            where = f"record {number}" if kind is None or table.kinds else f"row {number + 1 + table.blank()}"
            name = str(number)
            try:
                if isinstance(row, BadRow):
                    raise RejectedSequenceError(row.reason)
                name = readable((columns.id and id_text(row.get(columns.id))) or name)
                used.append(columns.labelled(number, where, name, row, wild_type))
            except MisfitError as error:
                raise InputError(f"{source}, {where}: {error}; check --wild-type, positions count from 1") from error
            except RejectedSequenceError as error:
                left_out.append(LeftOut(number, where, name, str(error)))
    if not used:
        first = f": {left_out[0].where}: {left_out[0].reason}" if left_out else ""
        raise InputError(f"{source} has no row that can be used{first}; check --target and --sequence-column")
    return columns.with_parts(source, used, left_out), left_out


@dataclass(frozen=True)
class _Columns:
    """Names of the columns that are read, None for those that are not; a sequence may be given by substitutions."""

    sequence: str
    id: str | None
    target: str
    group: str | None
    split: str | None
    validates: str | None
    split_asked: bool

    @classmethod
    def of(cls, settings: TrainingSettings, table: Table) -> _Columns:
        source = settings.input
        target = _named(source, table, settings.target, "--target")
        group = settings.group
        if group == SIMILARITY and group not in table.columns:
            group = None  # it follows from the sequences
        elif group is not None:
            group = _named(source, table, group, "--group")
        if settings.mutant is not None:
            sequence: str | None = _named(source, table, settings.mutant, "--mutant")
        else:
            sequence = pick(source, table, settings.sequence_column, SEQUENCE_COLUMNS, "sequence")
        if sequence is None:
            raise InputError(
                f"{source} has no column named {' or '.join(SEQUENCE_COLUMNS)}; its columns are "
                f"{', '.join(table.columns)}{table.about}: name one with --sequence-column"
            )
        asked = settings.split_column not in (None, "none")
        split = validates = None
        if asked:
            split = _named(source, table, str(settings.split_column), "--split-column")
        elif settings.split_column is None and settings.group is None and settings.scheme == "random":
            split = _usual(table.columns, _SPLIT_COLUMNS)
        if split is not None:
            validates = _usual(table.columns, (_VALIDATES,))
        named_id = pick(source, table, settings.id_column, ID_COLUMNS, "id")
        return cls(sequence, named_id, target, group, split, validates, asked)

    def named(self) -> Iterable[str]:
        """The columns to read."""
        every = (self.sequence, self.id, self.target, self.group, self.split, self.validates)
        return [name for name in every if name is not None]

    def labelled(
        self, number: int, where: str, name: str, row: Mapping[str, Any], wild_type: str | None
    ) -> LabelledRow:
        """The row; RejectedSequenceError where it cannot be used, MisfitError where it is of another wild type."""
        target = cell_text(row.get(self.target))
        if not target:
            raise RejectedSequenceError("no target")
        cell = "".join(sequence_text(row.get(self.sequence)).split())
        sequence = clean_sequence(cell) if wild_type is None else variant(wild_type, cell)
        group = "" if self.group is None else cell_text(row.get(self.group))
        if self.group is not None and not group:
            raise RejectedSequenceError("no group")
        part = "" if self.split is None else cell_text(row.get(self.split))
        if self.validates is not None and cell_text(row.get(self.validates)).lower() in YES:
            part = VALIDATION if PARTS.get(part.lower()) == TRAIN else part
        return LabelledRow(number, where, name, sequence, target, group, part)

    def with_parts(self, source: str, rows: list[LabelledRow], left_out: list[LeftOut]) -> list[LabelledRow]:
        """The rows with the names of parts that are used here; a column that says something else is no split."""
        if self.split is None:
            return rows
        other = next((row for row in rows if row.part and row.part.lower() not in PARTS), None)
        if other is not None and self.split_asked:
            raise InputError(
                f"{source}, {other.where}: {self.split} is {other.part!r}, and must be train, val or test: mend the "
                "row, or leave --split-column out"
            )
        if other is not None:
            return [replace(row, part="") for row in rows]
        found = [replace(row, part=PARTS.get(row.part.lower(), "")) for row in rows]
        return of_parts(
            f"{source}: column {self.split!r}", "give --split-column none for cross-validation", found, left_out
        )


def _named(source: str, table: Table, name: str, flag: str) -> str:
    """A column that is asked for; InputError where it is not there, or there twice."""
    if table.columns.count(name) != 1:
        how = "two columns" if name in table.columns else "no column"
        raise InputError(
            f"{source} has {how} {name!r}; its columns are {', '.join(table.columns)}{table.about}: give {flag} one of "
            "them"
        )
    return name


def _usual(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column of one of these names, compared without case and signs."""
    return next((column for column in columns if column_key(column) in names), None)

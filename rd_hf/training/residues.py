"""Classes of residues: strings as long as their sequences, of a table or of a FASTA file beside the sequences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.training.rows import PARTS, TRAIN, VALIDATION, YES, LabelledRow, LeftOut, of_parts

# A shorter string may be a class of the whole sequence, and shorter digits a number.
_SHORT, _NUMBER = 4, 16
_SET = re.compile(r"\bSET=(\w+)", re.IGNORECASE)
_VALIDATES = re.compile(r"\bVALIDATION=(\w+)", re.IGNORECASE)


def is_of_residues(rows: Sequence[LabelledRow]) -> bool:
    """Whether targets are strings of classes of residues: all but a few as long as their sequence."""

    def fits(row: LabelledRow) -> bool:
        is_number = any(letter.isdigit() for letter in row.target) and len(row.target) < _NUMBER
        return len(row.target) == len(row.sequence) >= _SHORT and not is_number

    return 2 * sum(map(fits, rows)) > len(rows)


def residue_targets(
    source: str, column: str, rows: Sequence[LabelledRow], unknown: str | None
) -> tuple[tuple[str, ...], np.ndarray, tuple[np.ndarray, ...]]:
    """Classes, targets and units of :class:`rd_hf.training.data.Examples`, of one row for each sequence.

    Raises:
        InputError: labels of another length than their sequence, or no residue with a class.
    """
    for row in rows:
        if len(row.target) != len(row.sequence):
            raise InputError(
                f"{source}, {row.where} ({row.id}): {column} has {len(row.target)} letters, and its sequence "
                f"{len(row.sequence)} residues: give a letter for each residue, without gaps"
            )
    letters = np.array(list("".join(row.target for row in rows)))
    classes = tuple(sorted(set(letters.tolist()) - {unknown}))
    targets = np.full(len(letters), -1, dtype=np.int64)
    for number, name in enumerate(classes):
        targets[letters == name] = number
    ends = np.cumsum([len(row.sequence) for row in rows])
    units = tuple(
        start + np.flatnonzero(own >= 0)
        for start, own in zip([0, *ends[:-1]], np.split(targets, ends[:-1]), strict=True)
    )
    if not classes:
        raise InputError(f"{source}: {column} gives no residue a class: check --unknown")
    return classes, targets, units


def read_fasta_pair(sequences: str, labels: str, say: Callable[[str], None]) -> tuple[list[LabelledRow], list[LeftOut]]:
    """Rows of a FASTA file of sequences, with the strings that another has for the same ids.

    Headers of labels may say SET=train (or val, test) and VALIDATION=True, as FLIP's and biotrainer's do.

    Raises:
        InputError: a file that is not there or is no FASTA, an id that occurs twice, or no id in both.
    """
    found: dict[str, tuple[str, str]] = {}
    for record in read_fasta(labels, say=say):
        if record.id in found:
            raise InputError(f"{labels} has the id {record.id!r} twice: keep one record an id")
        found[record.id] = record.description, record.sequence
    used, left_out, seen = [], [], set[str]()
    for record in read_fasta(sequences, say=say):
        where = f"record {record.number}"
        if record.id in seen:
            raise InputError(f"{sequences} has the id {record.id!r} twice: keep one record an id")
        seen.add(record.id)
        if record.id not in found:
            left_out.append(LeftOut(record.number, where, record.id, "no target"))
            continue
        header, letters = found[record.id]
        try:
            cleaned = clean_sequence(record.letters())
        except RejectedSequenceError as error:
            left_out.append(LeftOut(record.number, where, record.id, str(error)))
            continue
        part = _part(labels, record.id, header)
        used.append(LabelledRow(record.number, where, record.id, cleaned, letters, "", part))
    if not used:
        raise InputError(f"{labels} has labels for no sequence of {sequences}: give both the same ids")
    if any(row.part for row in used):
        used = of_parts(f"{labels}: SET= in its headers", "remove it from all for cross-validation", used, left_out)
    return used, left_out


def _part(labels: str, name: str, header: str) -> str:
    """The part that a header names; empty where it names none."""
    named, validates = _SET.search(header), _VALIDATES.search(header)
    if named is None:
        return ""
    part = PARTS.get(named[1].lower())
    if part is None:
        raise InputError(f"{labels}, {name}: SET={named[1]} must be train, val or test: mend the header")
    return VALIDATION if part == TRAIN and validates and validates[1].lower() in YES else part

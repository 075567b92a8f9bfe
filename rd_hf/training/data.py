"""Labelled rows as examples: one for each different sequence, with its target as a number or a class.

Rows of one sequence are one example, so that equal sequences never stand on both sides of a split and copies of a row
change no score: numbers are averaged, of classes the most frequent counts (the first of those that tie), and of several
labels all that any of the rows has.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.training.residues import is_of_residues, residue_targets
from rd_hf.training.rows import TEST, TRAIN, VALIDATION, LabelledRow, LeftOut

# What stands for a number that is missing.
_NO_NUMBER = frozenset({"na", "n/a", "nan", "null", "none", "-"})
# A sequence that is in several parts belongs to the first of these that has it.
_FIRST = (TEST, VALIDATION, TRAIN)


@dataclass(frozen=True)
class Examples:
    """n different sequences.

    Attributes:
        sequences: cleaned.
        targets: (n,) float64 numbers, or (n,) int64 positions in ``classes``; of several labels (n, classes) int64, 1
            where a sequence has the label and 0 where not; of residues (all residues,), one sequence after the other,
            -1 where the class is not known.
        classes: or labels, in alphabetical order; empty for numbers.
        rows: of the table that are used.
        example_of: of each row the number of its example, (rows,) int64.
        groups: (n,) int64, what cross-validation keeps together; None without groups.
        parts: (n,) text, "train", "val" or "test"; None for cross-validation.
        left_out: rows that are not used.
        wild_type: of which all sequences are variants of equal length; empty where they are whole proteins.
        units: of each sequence which residues are known, as rows of the targets, (known,) int64 each; None where a
            target is one of the sequence.
        notes: sentences on what was merged or left out.
    """

    sequences: tuple[str, ...]
    targets: np.ndarray
    classes: tuple[str, ...]
    rows: tuple[LabelledRow, ...]
    example_of: np.ndarray
    groups: np.ndarray | None = None
    parts: np.ndarray | None = None
    left_out: tuple[LeftOut, ...] = ()
    wild_type: str = ""
    units: tuple[np.ndarray, ...] | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def task(self) -> str:
        """Key of :data:`rd_hf.training.settings.SCORES`."""
        if self.units is not None:
            return "residues"
        if self.targets.ndim == 2:
            return "multi_label"
        return "classification" if self.classes else "regression"

    def rows_of(self, examples: np.ndarray) -> np.ndarray:
        """Rows of targets and features that belong to examples: their own numbers, or those of known residues."""
        if self.units is None:
            return examples
        return np.concatenate([self.units[example] for example in examples.tolist()])

    @property
    def digest(self) -> str:
        """Of sequences, targets and how they are split: what a result depends on."""
        parts = [self.sequences, self.targets.tolist(), self.classes]
        parts += [None if one is None else one.tolist() for one in (self.groups, self.parts)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def make_examples(
    source: str,
    column: str,
    rows: Sequence[LabelledRow],
    left_out: Sequence[LeftOut],
    task: str | None,
    wild_type: str = "",
    unknown: str | None = None,
) -> Examples:
    """Examples of the rows of a table.

    Args:
        source, column: names of the table and of the target, for messages.
        rows, left_out: as :func:`rd_hf.training.table.read_rows` gives them.
        task: key of :data:`rd_hf.training.settings.SCORES`; None for what the column holds: numbers, other than just
            two whole ones such as 0 and 1, are numbers; strings as long as the sequences are classes of residues; text
            with ``;`` in any cell are several labels.
        wild_type: of which the sequences are variants, if they are.
        unknown: letter of residues whose class is not known.

    Raises:
        InputError: text in a column of numbers, no target, one that is constant, or labels of residues of another
            length than their sequence.
    """
    left_out = list(left_out)
    numbers = {row.number: _number(row.target) for row in rows}
    if task is None:
        task = _task_of(source, column, rows, numbers)
    if task == "regression":
        _check_numbers(source, column, rows, numbers)
        left_out += [LeftOut(row.number, row.where, row.id, "no target") for row in rows if _isnan(numbers[row.number])]
        rows = [row for row in rows if not _isnan(numbers[row.number])]
    rows, moved = _of_one_part(rows)
    left_out += moved
    members: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        members.setdefault(row.sequence, []).append(place)
    if not members:
        raise InputError(f"{source}: column {column!r} holds no target in any row: give --target another column")
    classes: tuple[str, ...] = ()
    units = None
    if task == "residues":
        kept = [rows[places[0]] for places in members.values()]
        classes, targets, units = residue_targets(source, column, kept, unknown)
    elif task == "regression":
        targets = np.array([np.mean([numbers[rows[p].number] for p in places]) for places in members.values()])
    elif task == "multi_label":
        every = [set().union(*(_labels(rows[p].target) for p in places)) for places in members.values()]
        classes = tuple(sorted(set().union(*every)))
        targets = np.array([[name in own for name in classes] for own in every], dtype=np.int64)
    else:
        classes = tuple(sorted({row.target for row in rows}))
        code = {name: number for number, name in enumerate(classes)}
        targets = np.array([code[_most_frequent([rows[p].target for p in places])] for places in members.values()])
    if len(np.unique(targets[targets >= 0] if targets.ndim == 1 and classes else targets, axis=0)) < 2:
        shown = rows[0].target
        raise InputError(f"{source}: column {column!r} is {shown!r} in all rows, so there is nothing to learn from it")
    example_of = np.empty(len(rows), dtype=np.int64)
    for example, places in enumerate(members.values()):
        example_of[places] = example
    first = [rows[places[0]] for places in members.values()]
    return Examples(
        sequences=tuple(members),
        targets=targets,
        classes=classes,
        rows=tuple(rows),
        example_of=example_of,
        groups=_groups(rows, example_of, len(members)) if rows[0].group else None,
        parts=np.array([row.part for row in first]) if rows[0].part else None,
        left_out=tuple(sorted(left_out, key=lambda one: one.number)),
        wild_type=wild_type,
        units=units,
        notes=tuple(_counted(rows, members, left_out)),
    )


def _number(cell: str) -> float | None:
    """A cell as a number, NaN where it stands for a missing one, None where it is text."""
    if cell.lower() in _NO_NUMBER:
        return math.nan
    try:
        return float(cell)
    except ValueError:
        return None


def _isnan(number: float | None) -> bool:
    return number is not None and math.isnan(number)


def _task_of(source: str, column: str, rows: Sequence[LabelledRow], numbers: Mapping[int, float | None]) -> str:
    """The task that a column says; InputError where it is numbers but for a few cells."""
    if is_of_residues(rows):
        return "residues"
    text = [row for row in rows if numbers[row.number] is None]
    there = {number for number in numbers.values() if number is not None and not math.isnan(number)}
    if text and 2 * len(text) < len(rows) and len(there) > 2:
        row = text[0]
        more = f" (and {len(text) - 1} more rows)" if len(text) > 1 else ""
        raise InputError(
            f"{source}, {row.where} ({row.id}){more}: {column} is {row.target!r} in a column of numbers: mend or empty "
            "the cell, or give --task classification where each value is a class"
        )
    if text and any(";" in row.target for row in rows):
        return "multi_label"
    two_whole = len(there) == 2 and all(number.is_integer() for number in there)
    return "classification" if text or two_whole else "regression"


def _check_numbers(source: str, column: str, rows: Sequence[LabelledRow], numbers: Mapping[int, float | None]) -> None:
    for row in rows:
        number = numbers[row.number]
        if number is None or math.isinf(number):
            raise InputError(
                f"{source}, {row.where} ({row.id}): {column} is {row.target!r}, not a finite number: mend or empty the "
                "cell, or give --task classification where each value is a class"
            )


def _of_one_part(rows: Sequence[LabelledRow]) -> tuple[list[LabelledRow], list[LeftOut]]:
    """Rows of which no sequence is in two parts, and those that are left out for it."""
    own: dict[str, str] = {}
    for row in rows:
        held = own.setdefault(row.sequence, row.part)
        if row.part and _FIRST.index(row.part) < _FIRST.index(held):
            own[row.sequence] = row.part
    kept = [row for row in rows if row.part == own[row.sequence]]
    reason = "its sequence is in the {} set too"
    return kept, [
        LeftOut(row.number, row.where, row.id, reason.format(own[row.sequence]))
        for row in rows
        if row.part != own[row.sequence]
    ]


def _labels(cell: str) -> set[str]:
    """The labels of a cell; of ``;`` alone there is none."""
    return {name.strip() for name in cell.split(";")} - {""}


def with_known_labels(examples: Examples, least: int) -> Examples:
    """Without the labels that fewer examples to learn from have, or lack: of these nothing can be learnt.

    Raises:
        InputError: none is left.
    """
    learnt = examples.targets if examples.parts is None else examples.targets[examples.parts == TRAIN]
    having = learnt.sum(axis=0)
    kept = np.minimum(having, len(learnt) - having) >= least
    if kept.all():
        return examples
    rare = [name for name, keep in zip(examples.classes, kept, strict=True) if not keep]
    said = (
        f"Labels that fewer than {least} sequences to learn from have, or lack, left out: {len(rare):,} "
        f"({', '.join(rare[:3])}{', ...' if len(rare) > 3 else ''})."
    )
    if not kept.any():
        raise InputError(f"{said} No label remains: give more sequences, or lower --cv-folds")
    classes = tuple(name for name in examples.classes if name not in rare)
    return replace(examples, targets=examples.targets[:, kept], classes=classes, notes=(*examples.notes, said))


def _most_frequent(names: Sequence[str]) -> str:
    return Counter(names).most_common(1)[0][0]


def _groups(rows: Sequence[LabelledRow], example_of: np.ndarray, count: int) -> np.ndarray:
    """Numbers of the groups of examples; groups that share a sequence are one."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    first: dict[int, str] = {}
    for row, example in zip(rows, example_of.tolist(), strict=True):
        parent[root(row.group)] = root(first.setdefault(example, row.group))
    roots = [root(first[example]) for example in range(count)]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _counted(rows: Sequence[LabelledRow], members: dict[str, list[int]], left_out: Sequence[LeftOut]) -> list[str]:
    """Sentences on rows that are merged or left out."""
    notes = [f"{len(rows):,} rows with a target, {len(members):,} different sequences."]
    differ = sum(len({rows[place].target for place in places}) > 1 for places in members.values())
    if differ:
        notes.append(
            f"Sequences with different targets in several rows: {differ:,}; numbers are averaged, of classes the most "
            "frequent counts, of several labels all count, of residues the first row."
        )
    empty = sum(one.reason == "no target" for one in left_out)
    if empty:
        notes.append(f"Rows without a target, left out: {empty:,}.")
    others = [one for one in left_out if one.reason != "no target"]
    if others:
        first = others[0]
        notes.append(
            f"Rows that cannot be used, left out: {len(others):,}, the first {first.where} ({first.id}): "
            f"{first.reason}."
        )
    return notes

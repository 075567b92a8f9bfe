"""One row of labelled sequences, as every reader gives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rd_hf.data.records import InputError

TRAIN, VALIDATION, TEST = "train", "val", "test"
PARTS = {
    **dict.fromkeys(("train", "training"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev"), VALIDATION),
    **dict.fromkeys(("test", "testing"), TEST),
}
YES = ("true", "1", "yes")


@dataclass(frozen=True, slots=True)
class LabelledRow:
    """One row that can be used.

    Attributes:
        number: of the record in its table, from 1.
        where: how a message calls it: "row 8" of a text, as an editor counts lines, or "record 7".
        id: its id, or the number.
        sequence: cleaned.
        target: cell of the target, not empty.
        group: cell of the group; empty without groups.
        part: "train", "val", "test"; empty for cross-validation.
    """

    number: int
    where: str
    id: str
    sequence: str
    target: str
    group: str = ""
    part: str = ""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that is not used, and why."""

    number: int
    where: str
    id: str
    reason: str


def of_parts(where: str, mend: str, rows: Sequence[LabelledRow], left_out: list[LeftOut]) -> list[LabelledRow]:
    """Rows that have a part, of which there must be train and test; those that have none are left out.

    Args:
        where: what names the parts, for messages.
        mend: how to do without them.

    Raises:
        InputError: no row of the train or test set.
    """
    for part in (TRAIN, TEST):
        if not any(row.part == part for row in rows):
            raise InputError(f"{where} names no row of the {part} set: mend it, or {mend}")
    left_out += [LeftOut(row.number, row.where, row.id, "neither train, val nor test") for row in rows if not row.part]
    return [row for row in rows if row.part]

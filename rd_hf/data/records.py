"""What every reader gives: raw records, and one kind of error for input that cannot be used."""

from __future__ import annotations

from dataclasses import dataclass

from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.text import readable


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence that names the file and the mend."""

    def __init__(self, message: str) -> None:
        # A file's name may be any bytes; a sentence about it must reach any terminal.
        super().__init__(readable(message))


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One record as its source has it.

    Attributes:
        number: position in the source, counted from 1.
        id: first word of the header, possibly empty; text that can be encoded.
        description: the whole header without ``>``; text that can be encoded.
        sequence: letters as written, white space removed, not yet cleaned.
        positions: residues asked for, counted from 1; only tables can name any.
        problem: why the reader found no record here that could be embedded, empty where it did.
    """

    number: int
    id: str
    description: str
    sequence: str
    positions: tuple[int, ...] = ()
    problem: str = ""

    def letters(self) -> str:
        """The sequence, to be cleaned.

        Raises:
            RejectedSequenceError: the reader found a problem; the message is the reason.
        """
        if self.problem:
            raise RejectedSequenceError(self.problem)
        return self.sequence

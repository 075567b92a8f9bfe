"""What every reader gives: raw records, one kind of error for input that cannot be used, and text that can be encoded.

Files hold bytes that are not in the encoding they claim, JSON holds half a surrogate pair, and a file's name is any
bytes. Such text becomes readable and stays distinct: the byte 0xFF is kept as the four characters ``\\xff``, a lone
surrogate as ``\\ud800``.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The name of an input, as a user gives it.
Source = str | Path
# Told a sentence that a user should know; and the number of bytes each time some are read.
Say = Callable[[str], None]
OnRead = Callable[[int], None]
# Decoding with this error handler keeps each byte that cannot be decoded as one lone surrogate, whichever the encoding
# (Python's own "surrogateescape" cannot do UTF-16).
KEEP_BYTES = "rd_hf.keep_bytes"
_BYTES = range(0xDC00, 0xDD00)
_CANNOT_BE_ENCODED = re.compile("[\ud800-\udfff]")


def _keep_bytes(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(_BYTES.start + byte) for byte in error.object[error.start : error.end]), error.end


codecs.register_error(KEEP_BYTES, _keep_bytes)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - _BYTES.start:02x}" if code in _BYTES else f"\\u{code:04x}"


def readable(text: str) -> str:
    """Return ``text`` with whatever no encoding can write as backslash escapes."""
    return text if text.isascii() else _CANNOT_BE_ENCODED.sub(_escape, text)


class RejectedSequenceError(ValueError):
    """A sequence that cannot be embedded; the message is the reason that goes to the rejects file."""


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence that names the file and what to do."""

    def __init__(self, message: str) -> None:
        # A file's name may be any bytes; a sentence about it must reach any terminal.
        super().__init__(readable(message))


def not_encodable(path: Source, number: int) -> str:
    """The sentence on the first id or header of a source that is not text."""
    return readable(
        f"{path}: from record {number} on, bytes of ids or headers that are not in the file's encoding are kept as "
        "\\xff and the like; save the file as UTF-8 to have them as letters"
    )


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
        """Return the sequence, to be cleaned; raises RejectedSequenceError if the reader found a problem."""
        if self.problem:
            raise RejectedSequenceError(self.problem)
        return self.sequence

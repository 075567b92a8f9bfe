"""FASTA in: one file (plain or gzip, or standard input), a stream of raw records out.

The grammar is Biopython's; this module adds what real downloads need around it: compression told by
content instead of by name, a byte order mark, Pearson ``;`` comments, and errors that name the file.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from Bio.SeqIO.FastaIO import SimpleFastaParser

GZIP_MAGIC = b"\x1f\x8b"
# What reading a damaged gzip stream raises.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence that names the file and the mend."""


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One record as its source has it.

    Attributes:
        number: position in the source, counted from 1.
        id: first word of the header, possibly empty.
        description: the whole header without ``>``.
        sequence: letters as written, white space removed, not yet cleaned.
        positions: residues asked for, counted from 1; only tables can name any.
    """

    number: int
    id: str
    description: str
    sequence: str
    positions: tuple[int, ...] = ()


class _CountedFile(io.FileIO):
    """A file that tells how many of its (compressed) bytes were read: what a progress bar needs."""

    def __init__(self, path: Path, on_read: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer) or 0
        self._on_read(count)
        return count


def open_text(path: str | Path, on_read: Callable[[int], None] | None = None) -> TextIO:
    """Open ``path`` ("-" is standard input) as text, decompressing when the content is gzip.

    Line ends are universal, a byte order mark is skipped; bytes that are not UTF-8 become U+FFFD, so that one
    odd header never stops a run.

    Args:
        path: the file.
        on_read: told the number of bytes each time some are read from the disk.

    Raises:
        InputError: no such file, the path is a folder, or it may not be read.
    """
    buffered: Any
    if str(path) == "-":
        buffered = sys.stdin.buffer
    else:
        path = Path(path)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the files in it, for example {path}/*.fasta.gz")
        try:
            buffered = io.BufferedReader(_CountedFile(path, on_read or (lambda count: None)), 1 << 16)
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file; check the path (relative to {Path.cwd()})") from error
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    is_gzip = buffered.peek(2)[:2] == GZIP_MAGIC
    stream: Any = gzip.GzipFile(fileobj=buffered) if is_gzip else buffered
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline=None)


def damaged(path: str | Path, number: int, error: Exception) -> InputError:
    """The error for a gzip stream that breaks off after ``number`` whole records."""
    return InputError(
        f"{path} is damaged after record {number} ({error}); fetch the file again, its gzip stream is cut short"
    )


def read_fasta(path: str | Path, on_read: Callable[[int], None] | None = None) -> Iterator[FastaRecord]:
    """Stream the records of a FASTA file (``.gz`` or not, "-" for standard input).

    Lines that start with ``;`` are comments (Pearson), text before the first ``>`` is skipped, blank
    lines and blanks inside sequence lines are ignored. Nothing is judged here: records with an empty
    id or no residues are passed on for :func:`rd_hf.data.residues.clean_sequence` to decide.

    Args:
        path: the file.
        on_read: told the number of bytes each time some are read from the disk.

    Raises:
        InputError: the file is missing, holds no record, or ends early (a gzip cut off half-way); the
            message names the file and the last whole record.
    """
    number = 0
    with open_text(path, on_read) as handle:
        lines = (line for line in handle if not line.startswith(";"))
        try:
            for header, sequence in SimpleFastaParser(lines):
                number += 1
                words = header.split(None, 1)
                yield FastaRecord(number, words[0] if words else "", header.strip(), "".join(sequence.split()))
        except DAMAGED as error:
            raise damaged(path, number, error) from error
    if number == 0:
        raise InputError(f"{path} holds no FASTA record: no line starts with '>'")

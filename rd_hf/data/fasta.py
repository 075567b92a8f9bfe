"""FASTA in: one file (plain or gzip, or standard input), a stream of raw records out.

The grammar is Biopython's; this module adds what real downloads need around it: compression told by
content instead of by name, Pearson ``;`` comments, and errors that name the file.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from Bio.SeqIO.FastaIO import SimpleFastaParser

GZIP_MAGIC = b"\x1f\x8b"


class InputError(ValueError):
    """Input that cannot be used; the message is one sentence that names the file and the mend."""


@dataclass(frozen=True, slots=True)
class FastaRecord:
    """One record as the file has it.

    Attributes:
        number: position in the file, counted from 1.
        id: first word of the header, possibly empty.
        description: the whole header without ``>``.
        sequence: letters as written, white space removed, not yet cleaned.
    """

    number: int
    id: str
    description: str
    sequence: str


def open_text(path: str | Path) -> TextIO:
    """Open ``path`` ("-" is standard input) as text, decompressing when the content is gzip.

    Line ends are universal; bytes that are not UTF-8 become U+FFFD, so that one odd header never
    stops a run.

    Raises:
        InputError: no such file, or the path is a folder.
    """
    raw: BinaryIO
    if str(path) == "-":
        raw = sys.stdin.buffer
    else:
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such file; check the path (relative to {Path.cwd()})")
        if path.is_dir():
            raise InputError(f"{path} is a folder; give the FASTA files in it, for example {path}/*.fasta.gz")
        try:
            raw = path.open("rb")
        except OSError as error:
            raise InputError(f"{path} cannot be opened: {error.strerror}") from error
    buffered = raw if isinstance(raw, io.BufferedReader) else io.BufferedReader(raw)  # type: ignore[type-var]
    is_gzip = buffered.peek(2)[:2] == GZIP_MAGIC
    stream: Any = gzip.GzipFile(fileobj=buffered) if is_gzip else buffered
    return io.TextIOWrapper(stream, encoding="utf-8", errors="replace", newline=None)


def read_fasta(path: str | Path) -> Iterator[FastaRecord]:
    """Stream the records of a FASTA file (``.gz`` or not, "-" for standard input).

    Lines that start with ``;`` are comments (Pearson), text before the first ``>`` is skipped, blank
    lines and blanks inside sequence lines are ignored. Nothing is judged here: records with an empty
    id or no residues are passed on for :func:`rd_hf.data.residues.clean_sequence` to decide.

    Raises:
        InputError: the file is missing, holds no record, or ends early (a gzip cut off half-way); the
            message names the file and the last whole record.
    """
    number = 0
    with open_text(path) as handle:
        lines = (line for line in handle if not line.startswith(";"))
        try:
            for header, sequence in SimpleFastaParser(lines):
                number += 1
                words = header.split(None, 1)
                yield FastaRecord(number, words[0] if words else "", header.strip(), "".join(sequence.split()))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{path} is damaged after record {number} ({error}); fetch the file again, its gzip stream is cut short"
            ) from error
    if number == 0:
        raise InputError(f"{path} holds no FASTA record: no line starts with '>'")

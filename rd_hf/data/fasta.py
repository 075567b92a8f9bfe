"""FASTA in: one file (compressed or not, or standard input), a stream of raw records out.

The grammar is Biopython's; this module adds what real downloads need around it: Pearson ``;`` comments, files that
were joined without a line end between them, and that no line is ever skipped which might be a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from Bio.SeqIO.FastaIO import SimpleFastaParser

from rd_hf.data.records import FastaRecord, InputError
from rd_hf.data.streams import DAMAGED, damaged, open_text
from rd_hf.data.text import readable

__all__ = ["FastaRecord", "InputError", "read_fasta"]


# A line of words: no header, and neither a sequence, a table, nor another format's first line.
_WORDS = re.compile(r"[^\W\d_]+( [\w.,:;()'/-]+)+")


def _lines(path: str | Path, handle: Iterable[str], tell: Callable[[str], None], strict: bool) -> Iterator[str]:
    """Lines from the first ``>`` on, without comments.

    Raises:
        InputError: something stands before the first ``>`` that is neither blank, a comment nor words; with ``strict``
            words too.
    """
    begun = False
    for number, line in enumerate(handle, start=1):
        # Files that each begin with a byte order mark and were joined have it at the start of later lines too.
        line = line.removeprefix("\ufeff")
        if not line or line.startswith(";"):
            continue
        if not begun:
            begun = line.startswith(">")
            text = line.strip()
            # "#" is how an alignment search begins its A3M.
            if not begun and text and not text.startswith("#"):
                where = f"line {number} ({text[:30]!r}) stands before any '>'"
                if strict or not _WORDS.fullmatch(text):
                    raise InputError(
                        f"{path} holds no FASTA record at its start: {where}; remove it, or let the file's name end in "
                        ".csv, .tsv, .jsonl or .parquet if it is a table"
                    )
                tell(f"{path}: {where} and is left out; remove it, or begin it with ';'")
        yield line


def read_fasta(
    path: str | Path,
    on_read: Callable[[int], None] | None = None,
    say: Callable[[str], None] | None = None,
    strict: bool = False,
) -> Iterator[FastaRecord]:
    """Stream the records of a FASTA file (compressed or not, "-" for standard input).

    Lines that start with ``;`` are comments (Pearson), so are those with ``#`` before the first record; blank
    lines and blanks inside sequence lines are ignored; a line of words before the first record is left out and said.
    Nothing is judged here: records with an empty
    id or no residues are passed on for :func:`rd_hf.data.residues.clean_sequence` to decide.

    Args:
        path: the file.
        on_read: told the number of bytes each time some are read from the disk.
        say: told in a sentence what a user should know of the file.
        strict: refuse words before the first record.

    Raises:
        InputError: the file is missing, holds no record, begins with something else, or ends early (a download cut
            off half-way); the message names the file and the last whole record.
    """
    number = 0
    told = False
    tell = say or (lambda sentence: None)
    with open_text(path, on_read) as handle:
        try:
            for header, letters in SimpleFastaParser(_lines(path, handle, tell, strict)):
                number += 1
                header = header.strip()
                words = header.split(None, 1)
                text = readable(header)
                if text != header and not told:
                    told = True
                    tell(not_encodable(path, number))
                sequence = "".join(letters.split())
                problem = ""
                if ">" in sequence:
                    problem = "'>' inside a line of the sequence: a line end is missing before the next record"
                yield FastaRecord(number, readable(words[0]) if words else "", text, sequence, (), problem)
        except DAMAGED as error:
            raise damaged(path, number, error) from error
    if number == 0:
        raise InputError(f"{path} holds no FASTA record: no line starts with '>'")


def not_encodable(path: str | Path, number: int) -> str:
    """The sentence on the first id or header of a source that is not text."""
    return readable(
        f"{path}: from record {number} on, bytes of ids or headers that are not in the file's encoding are kept as "
        "\\xff and the like; save the file as UTF-8 to have them as letters"
    )

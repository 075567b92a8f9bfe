"""FASTA in: one file (compressed or not, or standard input), a stream of raw records out.

The grammar is Biopython's; this module adds what real downloads need around it: Pearson ``;`` comments, files that
were joined without a line end between them, and that no line is ever skipped which might be a record.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from Bio.SeqIO.FastaIO import SimpleFastaParser

from rd_hf.carried import input_place
from rd_hf.data.records import FastaRecord, InputError, OnRead, Say, Source, not_encodable, readable
from rd_hf.data.streams import DAMAGED, damaged, open_text

# A line of words: no header, and neither a sequence, a table, nor another format's first line.
_WORDS = re.compile(r"[^\W\d_]+( [\w.,:;()'/-]+)+")
_JOINED = "'>' inside a line of the sequence: a line end is missing before the next record"


def _lines(path: Source, handle: Iterable[str], say: Say, strict: bool) -> Iterator[str]:
    """Yield lines from the first ``>`` on, without comments; only blank lines, comments and words may stand before."""
    started = False
    for number, line in enumerate(handle, start=1):
        # Files that each begin with a byte order mark and were joined have it at the start of later lines too.
        line = line.removeprefix("\ufeff")
        if not line or line.startswith(";"):
            continue
        if not started:
            started = line.startswith(">")
            text = line.strip()
            # "#" is how an alignment search begins its A3M.
            if not started and text and not text.startswith("#"):
                where = f"line {number} ({text[:30]!r}) stands before any '>'"
                if strict or not _WORDS.fullmatch(text):
                    raise InputError(
                        f"{path} holds no FASTA record at its start: {where}; remove it, or let the file's name end in "
                        ".csv, .tsv, .jsonl or .parquet if it is a table"
                    )
                say(f"{path}: {where} and is left out; remove it, or begin it with ';'")
        yield line


def read_fasta(
    path: Source, on_read: OnRead | None = None, say: Say | None = None, strict: bool = False
) -> Iterator[FastaRecord]:
    """Stream the records of a FASTA file (compressed or not, "-" for standard input, "example" for carried proteins).

    Lines that start with ``;`` are comments (Pearson), so are those with ``#`` before the first record; blank lines
    and blanks inside sequence lines are ignored; a line of words before the first record is left out and reported, or
    with ``strict`` refused. Records with an empty id or no residues are passed on for
    :func:`rd_hf.data.residues.clean_sequence` to decide. Other arguments as in :func:`rd_hf.data.sources.read_records`.

    Raises:
        InputError: the file is missing, holds no record, begins with something else, or ends early (a download cut
            off half-way); the message names the file and the last whole record.
    """
    number, escaped = 0, False
    say = say or (lambda sentence: None)
    with open_text(input_place(path), on_read) as handle:
        try:
            for header, lines in SimpleFastaParser(_lines(path, handle, say, strict)):
                number += 1
                header = header.strip()
                text = readable(header)
                if text != header and not escaped:
                    escaped = True
                    say(not_encodable(path, number))
                sequence = "".join(lines.split())
                name = readable(header.split(None, 1)[0]) if header else ""
                yield FastaRecord(number, name, text, sequence, (), _JOINED if ">" in sequence else "")
        except DAMAGED as error:
            raise damaged(path, number, error) from error
    if number == 0:
        raise InputError(f"{path} holds no FASTA record: no line starts with '>'")

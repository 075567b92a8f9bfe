"""What happens to input, as the tests' own parameters; ``table.py`` makes the embedding's README say them."""

from __future__ import annotations

import bz2
import datetime
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

NAN = float("nan")


@dataclass(frozen=True)
class Case:
    """Something that is put in, and what comes of it.

    Attributes:
        what: in words, for the table.
        value: what is put in.
        gives: what is read, None where there is nothing to embed.
        reason: why not: of a record's rejection, or the sentence of a source's refusal, as far as it is the same for
            all sources.
    """

    what: str
    value: Any
    gives: Any = None
    reason: str = ""


LETTERS = [
    Case("the 20 amino acids", "LAGVSERTIDPKQNFYMHWC", "LAGVSERTIDPKQNFYMHWC"),
    Case("`X` `B` `Z` `U` `O`: ESM-2 has a token for each", "MXBZUOM", "MXBZUOM"),
    Case("`J` (Leu or Ile): no token", "MJK", "MXK"),
    Case("lower case", "mkTAyj", "MKTAYX"),
    Case("gaps of an alignment", "M-K..T", "MKT"),
    Case("white space", " M K\tT\n", "MKT"),
    Case("`*` at the end", "MKT*", "MKT"),
    Case("several of them", "MKT**", "MKT"),
    Case("`*` and gaps at the end", "MKT*--", "MKT"),
    Case("nothing", "", None, "no residues"),
    Case("a stop alone", "*", None, "no residues"),
    Case("gaps alone", "-.-", None, "no residues"),
    Case("`*` inside", "MK*T", None, "stop codon '*' inside the sequence (position 3 of 4)"),
    Case("a digit", "MK1T", None, "'1' is not a residue (position 3 of 4)"),
    Case("`>` inside", "M>K", None, "'>' is not a residue (position 2 of 3)"),
    # str.upper() would make it the residues SS, and the next one S.
    Case("`ß`", "MKß", None, "'ß' is not a residue (position 3 of 3)"),
    Case("a long s", "MKſ", None, "'ſ' is not a residue (position 3 of 3)"),
    Case("Cyrillic `М`", "МK", None, "'М' is not a residue (position 1 of 2)"),
    Case("NUL", "MK\0", None, r"'\x00' is not a residue (position 3 of 3)"),
]

SEQUENCE_VALUES = [
    Case("text", "MKT", "MKT"),
    Case("text that spells a number or a value", "NAN", "NAN"),
    Case("numpy's text", np.str_("MKT"), "MKT"),
    Case("bytes in UTF-8", b"MKT", "MKT"),
    Case("a byte array", bytearray(b"MKT"), "MKT"),
    Case("nothing (null, a missing key)", None, ""),
    Case("pandas' NA", pd.NA, ""),
    Case("pandas' NaT", pd.NaT, ""),
    Case("NaN", NAN, None, "the sequence is missing (NaN)"),
    Case("numpy's NaN", np.float32("nan"), None, "the sequence is missing (NaN)"),
    Case("infinity", float("inf"), None, "the sequence is the number inf, no text"),
    Case("a whole number", 5, None, "the sequence is the number 5, no text"),
    Case("true", True, None, "the sequence is the truth value True, no text"),
    Case("numpy's true", np.True_, None, "the sequence is the truth value True, no text"),
    Case("a list of letters", ["M", "K"], None, "the sequence is a value of type list, no text"),
    Case("an object", {"seq": "MK"}, None, "the sequence is a value of type dict, no text"),
    Case("bytes that are not UTF-8", b"MK\xff", None, "the sequence is bytes that are not UTF-8 (at byte 3)"),
]

ID_VALUES = [
    Case("text", "p1", "p1"),
    Case("empty text", "", ""),
    Case("a whole number", 7, "7"),
    Case("numpy's whole number", np.uint64(2**63), "9223372036854775808"),
    Case("a number with a point", 1.5, "1.5"),
    Case("a date", datetime.date(2026, 1, 2), "2026-01-02"),
    Case("bytes in UTF-8", "å".encode(), "å"),
    Case("bytes that are not UTF-8", b"p\xe5", r"p\xe5"),
    Case("half of a surrogate pair", "p\ud800", r"p\ud800"),
    Case("nothing", None, "the record's number"),
    Case("NaN", NAN, "the record's number"),
    Case("a list", ["p1"], None, "the id is a value of type list, no text"),
    Case("an object", {"id": 1}, None, "the id is a value of type dict, no text"),
]

POSITION_VALUES = [
    Case("a list", [23, 45], (23, 45)),
    Case("a tuple of numpy's", (np.int8(23), np.int64(45)), (23, 45)),
    Case("an array", np.array([23, 45]), (23, 45)),
    Case("an array of floats that are whole", np.array([23.0, 45.0]), (23, 45)),
    Case("a list of text", ["23", "45"], (23, 45)),
    Case("a whole number", 23, (23,)),
    Case("a float that is whole", 23.0, (23,)),
    Case("text with blanks", "23 45", (23, 45)),
    Case("text with commas", "23,45", (23, 45)),
    Case("text with semicolons", "23;45", (23, 45)),
    Case("a list as text", "[23, 45]", (23, 45)),
    Case("text of a float that is whole", "23.0", (23,)),
    Case("bytes", b"23 45", (23, 45)),
    Case("nothing", None, ()),
    Case("NaN", NAN, ()),
    Case("an empty list", [], ()),
    Case("a substitution", "A23V", None, "positions 'A23V' are not whole numbers"),
    Case("a range", "1-5", None, "positions '1-5' are not whole numbers"),
    Case("a fraction", 1.5, None, "positions 1.5 are not whole numbers"),
    Case("text of a fraction", "1.5", None, "positions '1.5' are not whole numbers"),
    Case("infinity", float("inf"), None, "positions inf are not whole numbers"),
    Case("true", True, None, "positions True are not whole numbers"),
    Case("a list with a gap", [1, None], None, "positions [1, None] are not whole numbers"),
    Case("a list of lists", [[1], [2]], None, "positions [[1], [2]] are not whole numbers"),
    Case("an object", {"at": 1}, None, "positions {'at': 1} are not whole numbers"),
]


def _dictionary(kind: pa.DataType) -> pa.DataType:
    return pa.dictionary(pa.int32(), kind)


def _newer(name: str, *of: pa.DataType) -> list[pa.DataType]:
    """A type that the oldest supported pyarrow has not; none there."""
    return [getattr(pa, name)(*of)] if hasattr(pa, name) else []


TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.binary(),
    pa.large_binary(),
    *_newer("string_view"),
    *_newer("binary_view"),
    pa.binary(10),
    _dictionary(pa.string()),
    _dictionary(pa.large_string()),
    _dictionary(pa.binary()),
]
NO_TEXT_TYPES = [
    pa.float64(),
    pa.bool_(),
    pa.int64(),
    pa.list_(pa.string()),
    pa.struct([("seq", pa.string())]),
    pa.timestamp("s"),
    _dictionary(pa.int64()),
]
ID_TYPES = [*TEXT_TYPES, pa.int8(), pa.int64(), pa.uint64(), _dictionary(pa.int32())]
POSITION_TYPES = [
    pa.list_(pa.int32()),
    pa.list_(pa.uint8()),
    pa.list_(pa.float64()),
    pa.list_(pa.string()),
    pa.large_list(pa.int64()),
    pa.list_(pa.int64(), 2),
    *_newer("list_view", pa.int32()),
    *_newer("large_list_view", pa.int32()),
    *TEXT_TYPES[:2],
    *_newer("string_view"),
]
NO_POSITION_TYPES = [pa.bool_(), pa.list_(pa.bool_()), pa.list_(pa.list_(pa.int32())), pa.struct([("at", pa.int32())])]

# Rows of a table with the header id, note, sequence; "|" stands for the delimiter. What is given: (id, sequence) of
# each record, with a reason instead of a sequence where it is rejected.
_SHORT = "line 2 has 2 cells where the header has 3"
_LONG = "line 2 has 4 cells where the header has 3"
NEXT = ("p9", "AAAAA")
TAB_ROWS = [
    Case("a cell that begins with a quotation mark", 'p2|"b|GSHMAS\np3|c" x|MKV', [("p2", "GSHMAS"), ("p3", "MKV")]),
    Case("and one that ends with one", 'p2|"b|GSHMAS\np3|c"|MKV', [("p2", "GSHMAS"), ("p3", "MKV")]),
    Case("a quotation mark that nothing closes", 'p2|"b|GSHMAS\np3|c|MKV', [("p2", "GSHMAS"), ("p3", "MKV")]),
    Case("a cell in quotes", '"p2"|b|"GSHMAS"', [("p2", "GSHMAS")]),
    Case("a delimiter in quotes", 'p2|"a|b"|GSHMAS', [("p2", "GSHMAS")]),
    Case("a line end in quotes", 'p2|"a\nb"|GSHMAS', [("p2", "GSHMAS")]),
    Case("a quoted name inside a cell", 'p2|"Nuclear" factor|GSHMAS', [("p2", "GSHMAS")]),
    Case("a blank line", "\np2|b|GSHMAS", [("p2", "GSHMAS")]),
    Case("a cell too few", "p2|GSHMAS", [("1", _SHORT)]),
    Case("a cell too many", "p2|b|GSHMAS|MKV", [("1", _LONG)]),
    Case("an empty cell too many", "p2|b|GSHMAS|", [("1", _LONG)]),
    Case("too few and a quotation mark", 'p2|"b\np3|c" x|MKV', [("1", _SHORT), ("p3", "MKV")]),
]
_BOTH = (
    "line {} is a row by itself and, by a quotation mark that begins in line 2, part of a longer one: double or remove "
    "that mark"
)
COMMA_ROWS = [
    Case("a delimiter in quotes", 'p2,"a,b",GSHMAS', [("p2", "GSHMAS")]),
    Case("a line end in quotes", 'p2,"a\nb",GSHMAS', [("p2", "GSHMAS")]),
    Case("doubled quotation marks", 'p2,"a ""b"", c",GSHMAS', [("p2", "GSHMAS")]),
    Case("a quotation mark that nothing closes", 'p2,"b,GSHMAS\np3,c,MKV', [("p2", "GSHMAS"), ("p3", "MKV")]),
    Case("text after a closing one", 'p2,"b,GSHMAS\np3,c" x,MKV', [("p2", "GSHMAS"), ("p3", "MKV")]),
    Case(
        "rows that quotes may join or not", 'p2,"b,GSHMAS\np3,c",MKV', [("1", _BOTH.format(2)), ("2", _BOTH.format(3))]
    ),
    Case("a cell too few", "p2,GSHMAS", [("1", _SHORT)]),
    Case("a cell too many", "p2,b,GSHMAS,MKV", [("1", _LONG)]),
    Case("a cell too few by its quotes", 'p2,"b,GSHMAS"', [("1", _SHORT)]),
]

DELIMITED = [
    Case("`.csv` with commas", ("a.csv", "id,sequence\np1,MKT\n"), ("p1", "MKT")),
    Case("`.csv` with semicolons", ("a.csv", "id;sequence;score\np1;MKT;1,5\n"), ("p1", "MKT")),
    Case("`.csv` with tabs", ("a.csv", "id\tsequence\np1\tMKT\n"), ("p1", "MKT")),
    Case("`.csv` of one column", ("a.csv", "sequence\nMKT\n"), ("1", "MKT")),
    Case("`.csv` that says `sep=;`", ("a.csv", "sep=;\nid;sequence\np1;MKT\n"), ("p1", "MKT")),
    Case("`.tsv` with commas", ("a.tsv", "id,sequence\np1,MKT\n"), ("p1", "MKT")),
    Case("`.tab`", ("a.tab", "Entry\tSequence\np1\tMKT\n"), ("p1", "MKT")),
    Case("a header in quotes", ("a.tsv", '"id"\t"sequence"\n"p\t1"\t"MKT"\n'), ("p\t1", "MKT")),
    Case("commas in a header of semicolons", ("a.csv", "id, of ours;sequence\np1;MKT\n"), ("1", "MKT")),
]

TEXT = ">p1 first\nMKTAYIAKQR\n>p2\nGAVLIM\n"
RECORDS = [("p1", "MKTAYIAKQR"), ("p2", "GAVLIM")]
TABLE = "id,sequence\np1,MKTAYIAKQR\np2,GAVLIM\n"


def arrow_compress(kind: str) -> Callable[[bytes], bytes]:
    """A compressor of whole streams."""

    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, kind) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": arrow_compress("zstd"),
    "lz4": arrow_compress("lz4"),
}
ENCODINGS = {
    "UTF-8": ("", "utf-8"),
    "UTF-8 with a mark": ("", "utf-8-sig"),
    "UTF-16 with a mark": ("", "utf-16"),
    "UTF-16, little end first": ("", "utf-16-le"),
    "UTF-16, big end first": ("", "utf-16-be"),
    "UTF-16, big end first, with a mark": ("\ufeff", "utf-16-be"),
    "UTF-32 with a mark": ("", "utf-32"),
    "UTF-32, big end first": ("", "utf-32-be"),
}


def _tar() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        entry = tarfile.TarInfo("a.fasta")
        entry.size = len(TEXT)
        archive.addfile(entry, io.BytesIO(TEXT.encode()))
    return held.getvalue()


def _zip() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("a.fasta", TEXT)
    return held.getvalue()


def _parquet() -> bytes:
    import pyarrow.parquet as pq

    held = io.BytesIO()
    pq.write_table(pa.table({"sequence": ["MK"]}), held)
    return held.getvalue()


REFUSED_FILES = [
    Case("tar", _tar(), None, "is a tar archive: unpack it (tar xf) and give the files in it"),
    Case("tar.gz", gzip.compress(_tar()), None, "is a tar archive: unpack it (tar xf) and give the files in it"),
    Case("tar.xz", lzma.compress(_tar()), None, "is a tar archive: unpack it (tar xf) and give the files in it"),
    Case("zip", _zip(), None, "is a zip archive (or an Excel file): unzip it, or save the sheet as CSV"),
    Case("7z", b"7z\xbc\xaf\x27\x1c\x00\x04", None, "is a 7z archive: unpack it (7z x)"),
    Case("RAR", b"Rar!\x1a\x07\x01\x00", None, "is a RAR archive: unpack it"),
    Case("compress", b"\x1f\x9d\x90\x3e", None, "is compressed with compress (.Z): unpack it (gzip -d)"),
    Case("lzip", b"LZIP\x01\x0c", None, "is compressed with lzip: unpack it (lzip -d)"),
    Case("lzma", lzma.compress(TEXT.encode(), lzma.FORMAT_ALONE), None, "is compressed with lzma: unpack it"),
    Case(
        "Parquet by another name",
        _parquet(),
        None,
        "is a Parquet file: let the name of a table of sequences",
    ),
    Case("HDF5", b"\x89HDF\r\n\x1a\n", None, "is an HDF5 file: write its sequences as FASTA or Parquet"),
    Case("PDF", b"%PDF-1.7\n", None, "is a PDF: give its sequences as FASTA"),
]
_BEFORE = "holds no FASTA record at its start: line {} ({!r}) stands before any '>'"
FASTA_TEXTS = [
    Case("`;` comments, anywhere", ";c\n>p1\nMK\n;c\nTA\n", [("p1", "MKTA")]),
    Case("`#` before the first record (A3M)", "#2\t1\n>p1\nMK\n", [("p1", "MK")]),
    Case("blank lines", "\n\n>p1\n\nMK\n", [("p1", "MK")]),
    Case("joined files, each with a mark", "\ufeff>p1\nMK\n\ufeff>p2\nML\n", [("p1", "MK"), ("p2", "ML")]),
    Case("words before the first record: said; `--strict` refuses", "Some header\n>p1\nMK\n", [("p1", "MK")]),
    Case("a first line that may be a sequence", "MKTAYIAKQR\n>p2\nMK\n", None, _BEFORE.format(1, "MKTAYIAKQR")),
    Case("`>` inside the first line", "x >p1\nMK\n>p2\nML\n", None, _BEFORE.format(1, "x >p1")),
    Case("a blank before the first `>`", " >p1\nMK\n>p2\nML\n", None, _BEFORE.format(1, ">p1")),
    Case("FASTQ", "@r1\nMK\n+\nII\n", None, _BEFORE.format(1, "@r1")),
    Case("a table named `.fasta`", "id,sequence\np1,MK\n", None, _BEFORE.format(1, "id,sequence")),
    Case(
        "joined files without a line end between them",
        ">p1\nMK>p2\nML\n>p3\nMV\n",
        [("p1", "'>' inside a line of the sequence: a line end is missing before the next record"), ("p3", "MV")],
    ),
    Case("no `>` at all", "\n;c\n", None, "holds no FASTA record: no line starts with '>'"),
]

"""From a file's bytes to text: compression and encoding told by content, archives refused by name.

Reads gzip, bzip2, xz, zstd and lz4, also several streams end to end (bgzip, pbzip2, pixz, pzstd, ``cat``) and one in
another; UTF-8, UTF-16 and UTF-32, with a byte order mark or, where every other byte is empty, without. Whatever
follows a compressed stream and is none is an error, never the end.
"""

from __future__ import annotations

import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from rd_hf.data.missing import no_file, no_such_file
from rd_hf.data.records import KEEP_BYTES, InputError, OnRead, Source
from rd_hf.data.remote import is_remote, open_remote

# What reading a damaged compressed stream raises: gzip, xz, and with OSError pyarrow's and a failing disk's.
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, OSError)
SUFFIXES = (".gz", ".bgz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
# Enough to see a tar archive's mark, which is at byte 257.
_HEAD = 512
_CHUNK = 1 << 16

_COMPRESSED: dict[bytes, str] = {
    b"\x1f\x8b": "gzip",
    # The marks of a first block, and of an empty file's end, so that a table may begin with these letters.
    **{b"BZh%d" % size + block: "bz2" for size in range(1, 10) for block in (b"1AY&SY", b"\x17rE8P\x90")},
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    # A frame to skip, which zstd and lz4 share; pzstd begins with one.
    **{bytes([first]) + b"\x2a\x4d\x18": "zstd" for first in range(0x50, 0x60)},
}
_REFUSED: dict[bytes, tuple[str, str]] = {
    b"PK\x03\x04": ("a zip archive (or an Excel file)", "unzip it, or save the sheet as CSV, and give the files in it"),
    b"PK\x05\x06": ("an empty zip archive", "give the files themselves"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it (7z x) and give the files in it"),
    b"Rar!\x1a\x07": ("a RAR archive", "unpack it and give the files in it"),
    b"\x1f\x9d": ("compressed with compress (.Z)", "unpack it (gzip -d) and give the result"),
    b"LZIP\x01": ("compressed with lzip", "unpack it (lzip -d) and give the result"),
    b"\x89LZO": ("compressed with lzop", "unpack it (lzop -d) and give the result"),
    b"\xff\x06\x00\x00sNaPpY": ("compressed with snappy", "unpack it and give the result"),
    b"\x5d\x00\x00": ("compressed with lzma", "unpack it (xz -d --format=lzma) and give the result"),
    b"PAR1\x15": ("a Parquet file", "let the name of a table of sequences end in .parquet, and write labels as text"),
    b"ARROW1\x00\x00": ("an Arrow file", "write it as Parquet and give that"),
    b"\x89HDF": ("an HDF5 file", "write its sequences as FASTA or Parquet and give that"),
    b"SQLite format 3": ("an SQLite database", "write its sequences as FASTA or CSV and give that"),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "save the sheet as CSV and give that"),
    b"%PDF": ("a PDF", "give its sequences as FASTA"),
    b"BAM\x01": ("a BAM file", "give proteins as FASTA"),
}
# UTF-32 first: its little-endian mark begins with that of UTF-16.
_MARKS: dict[bytes, str] = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


class _Stream(io.RawIOBase):
    """A stream of what an iterator of bytes gives."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self._rest = iter(chunks), memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _chunks(source: Any, on_read: OnRead | None = None) -> Iterator[bytes]:
    """Yield the bytes of a stream as they come: an error further on must not cost what came before it."""
    while chunk := source.read1(_CHUNK):
        if on_read is not None:
            on_read(len(chunk))
        yield chunk


def _unpacked_xz(source: Any) -> Iterator[bytes]:
    """All xz streams of a file. lzma's own file object ends, without an error, where something else follows one."""
    decoder = None
    for data in _chunks(source):
        # Streams may be padded with zero bytes.
        while decoder is not None or (data := data.lstrip(b"\0")):
            decoder = decoder or lzma.LZMADecompressor(lzma.FORMAT_XZ)
            yield decoder.decompress(data, _CHUNK)
            data = b""
            if decoder.eof:
                data, decoder = decoder.unused_data, None
            elif decoder.needs_input:
                break
    if decoder is not None:
        raise EOFError("the compressed stream has no end")


def _decompressed(kind: str, source: Any) -> Any:
    """A buffered stream of what ``source`` holds, in small steps: what is read before damage is found is kept."""
    if kind == "gzip":
        return gzip.GzipFile(fileobj=source)
    if kind == "xz":
        return io.BufferedReader(_Stream(_unpacked_xz(source)), _CHUNK)
    # Imported here: what is not compressed so must not pay for it.
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(source, mode="r"), kind))


def _encoding(head: bytes) -> str:
    """The encoding that the first bytes of a text show."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    # Mostly ASCII in two or four bytes a character: one of them is never empty, the others nearly always.
    known = head[: len(head) - len(head) % 4]
    for width, encoding in ((4, "utf-32"), (2, "utf-16")):
        for place, order in ((0, "le"), (width - 1, "be")):
            filled = known[place::width]
            if len(known) >= 8 and 0 not in filled and known.count(0) >= 0.9 * (len(known) - len(filled)):
                return f"{encoding}-{order}"
    return "utf-8-sig"


@contextmanager
def open_text(path: Source, on_read: OnRead | None = None) -> Iterator[TextIO]:
    """Open ``path`` ("-" is standard input) as text, whatever it is compressed with and encoded in.

    Line ends are universal, a byte order mark is skipped; bytes that cannot be decoded are kept as
    :data:`rd_hf.data.records.KEEP_BYTES` says, so that one odd header never stops a run. ``on_read`` is called with the
    number of bytes each time some are read from the disk. An InputError if there is no such file, the path is a folder,
    it may not be read, or it is an archive or another kind of file that holds no text.
    """
    with open_bytes(path) as stream:
        if str(path) != "-":
            stream = io.BufferedReader(_Stream(_chunks(stream, on_read)), _CHUNK)
        while True:
            try:
                head = stream.read(_HEAD)
            except DAMAGED as error:
                raise damaged(path, 0, error) from error
            # A pipe has no way back of its own.
            stream = io.BufferedReader(_Stream(chain([head], _chunks(stream))), _CHUNK)
            _refuse(path, head)
            kind = next((kind for magic, kind in _COMPRESSED.items() if head.startswith(magic)), None)
            if kind is None:
                break
            stream = _decompressed(kind, stream)
        yield io.TextIOWrapper(stream, encoding=_encoding(head), errors=KEEP_BYTES, newline=None)


def open_bytes(path: Source) -> AbstractContextManager[Any]:
    """Open a file, here or remote, or standard input ("-"), as it is; raises InputError."""
    if str(path) == "-":
        if sys.stdin is None or sys.stdin.closed:
            raise InputError("standard input is closed: pipe FASTA into the command, or name a file instead of -")
        return nullcontext(sys.stdin.buffer)
    if is_remote(path):
        return open_remote(str(path))
    if Path(path).is_dir():
        raise no_file(Path(path))
    try:
        return Path(path).open("rb")
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened: {error.strerror}") from error


def _refuse(path: Source, head: bytes) -> None:
    """Raise where the first bytes are those of a known kind of file that holds no text."""
    if head[257:262] == b"ustar":
        raise InputError(f"{path} is a tar archive: unpack it (tar xf) and give the files in it")
    for magic, (kind, mend) in _REFUSED.items():
        if head.startswith(magic):
            raise InputError(f"{path} is {kind}: {mend}")


def damaged(path: Source, number: int, error: Exception, unit: str = "record") -> InputError:
    """Return the error for a compressed stream that breaks off after ``number`` whole records (or lines)."""
    return InputError(
        f"{path} is damaged after {unit} {number} ({error}); fetch the file again, its compressed stream is cut short "
        "or changed"
    )

"""The inputs, read once: each by a task of its own, into Parquet files that any worker can take a few records from.

Every format is read by this project's own reader, so that the same records come out as in the local job. (Ray's reader
of CSV and JSON guesses types, to which the peptide ``NA`` is a missing value and ``1e5`` a number.) One task reads one
file, however large; what follows is shared out by records, in the parts of the local job.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from rd_hf.data.fasta import FastaRecord, InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import source_size
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import Cut, Part, digest, read_all, row_bytes, rows_of
from rd_hf.embedding.settings import JobSettings
from rd_hf.files import explain_errors

FILE_RECORDS, FILE_LETTERS = 16384, 32 << 20
# Rows that are read back together: a part begins anywhere in a file.
ROW_GROUP = 1024
# Files of another format are not read back: their input is read again.
_FORMAT = 2


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file of consecutive records of one input."""

    name: str
    source: int  # number of the input
    first: int  # number of its first record among all, from 1
    records: int


class StagingFolder:
    """The folder of staged files, within that of an embedding job.

    An input that was read to its end is noted there: ``chunks``, the ``file`` and ``records`` of each of its staged
    files in order, and ``notes``, sentences for the user.
    """

    def __init__(self, folder: OutputFolder, settings: JobSettings, keys: bool) -> None:
        self.path = folder.journal / "staged"
        self._folder, self._settings, self._keys = folder, settings, keys

    def _note_path(self, index: int) -> Path:
        return self.path / f"{index:06d}.json"

    def identity(self, index: int) -> dict[str, Any] | None:
        """What staged files are only good for, an input as it is now, read in this way; None for what has no size."""
        source, settings = self._settings.inputs[index], self._settings
        if source_size(source) is None:
            return None
        status = os.stat(source)
        columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        # With other poolings a record counts for other numbers of rows.
        rows = [settings.options.pooling, list(settings.options.positions)]
        asked = [*columns, settings.strict, *rows, self._keys, _FORMAT]
        return {"source": str(Path(source).resolve()), "bytes": status.st_size, "time": status.st_mtime_ns, "as": asked}

    def find(self, index: int) -> dict[str, Any] | None:
        """The note of an input that an earlier run read, None if it was not, or may have changed since."""
        try:
            note = json.loads(self._note_path(index).read_bytes())
            if note["identity"] is None or note.pop("identity") != self.identity(index):
                return None
            return note if all((self.path / chunk["file"]).is_file() for chunk in note["chunks"]) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def note(self, index: int, note: dict[str, Any], identity: dict[str, Any] | None) -> None:
        """Note an input as read, if it can be known again."""
        if identity is not None:
            content = json.dumps({"identity": identity, **note}).encode()
            self._folder.write(self._note_path(index), lambda handle: handle.write(content))

    @staticmethod
    def files(notes: Sequence[dict[str, Any]]) -> list[StagedFile]:
        """The staged files of all inputs, in order."""
        found, first = [], 1
        for source, note in enumerate(notes):
            for chunk in note["chunks"]:
                found.append(StagedFile(chunk["file"], source, first, chunk["records"]))
                first += chunk["records"]
        return found

    def remove(self) -> None:
        """Take the staged files away."""
        shutil.rmtree(self.path, ignore_errors=True)


def stage(settings: JobSettings, index: int, keys: bool) -> Iterator[dict[str, Any]]:
    """Read input number ``index`` to its end and write it to staged files.

    A file's name and content follow from the input alone, so that a task that Ray starts again, and even one that it
    took for lost, write the same. With ``keys``, it also tells what each sequence is once cleaned.

    Yields:
        ``index``, ``file``, ``records``, ``bytes`` (read since the last), ``notes`` and ``error``: one for each file,
        and a last one without a file.
    """
    folder = OutputFolder(settings.output)
    path = folder.journal / "staged"
    notes: list[str] = []
    reads: list[int] = []
    count = 0

    def answer(file: str = "", records: int = 0, error: str = "") -> dict[str, Any]:
        size = sum(reads)
        reads.clear()
        return {"index": index, "file": file, "records": records, "bytes": size, "notes": notes, "error": error}

    def write(records: list[FastaRecord]) -> dict[str, Any]:
        nonlocal count
        name = f"{index:06d}-{count:06d}.parquet"
        with explain_errors(folder.path, JobError):
            path.mkdir(exist_ok=True)
            half = path / f"{name}.{secrets.token_hex(4)}.tmp"
            write_records(half, records, settings, keys)
            os.replace(half, path / name)
        count += 1
        return answer(name, len(records))

    alone = replace(settings, inputs=(settings.inputs[index],), called=(settings.names[index],))
    records: list[FastaRecord] = []
    letters = 0
    try:
        for _, record in read_all(alone, reads.append, notes.append):
            if len(records) == FILE_RECORDS or (records and letters + len(record.sequence) > FILE_LETTERS):
                yield write(records)
                records, letters = [], 0
            records.append(record)
            letters += len(record.sequence)
        yield write(records)
        yield answer()
    except (InputError, JobError) as error:
        yield answer(error=str(error))


def write_records(path: Path, records: list[FastaRecord], settings: JobSettings, keys: bool) -> None:
    """Write a staged file; see :func:`stage`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # JSON escapes what UTF-8 does not have: half a surrogate pair, which stands for a byte of another encoding.
    columns = {
        "record": pa.array([json.dumps(astuple(record)) for record in records], pa.large_string()),
        "rows": pa.array([rows_of(record, settings.options) for record in records], pa.int64()),
        "letters": pa.array([len(record.sequence) for record in records], pa.int64()),
    }
    if keys:
        columns["key"] = pa.array([_key_of_record(record, settings.options) for record in records], pa.binary(16))
    pq.write_table(pa.table(columns), path, row_group_size=ROW_GROUP, compression="zstd")


def read_records(path: Path, start: int, stop: int) -> list[FastaRecord]:
    """Records ``start`` to ``stop`` (exclusive) of a staged file."""
    import pyarrow.parquet as pq

    first, last = start // ROW_GROUP, (stop - 1) // ROW_GROUP
    with pq.ParquetFile(path) as file:
        texts = file.read_row_groups(list(range(first, last + 1)), columns=["record"])["record"]
    found = []
    for text in texts.slice(start - first * ROW_GROUP, stop - start).to_pylist():
        number, name, description, sequence, positions, problem = json.loads(text)
        found.append(FastaRecord(number, name, description, sequence, tuple(positions), problem))
    return found


def _key_of_record(record: FastaRecord, options: EmbeddingOptions) -> bytes | None:
    """The key of a record's cleaned sequence; None for one that will be rejected."""
    # Not by the engine's own function, which imports torch.
    try:
        sequence = clean_sequence(record.letters())
    except RejectedSequenceError:
        return None
    return None if options.long == "error" and len(sequence) > options.max_length else key_of(sequence)


def key_of(sequence: str) -> bytes:
    """Sixteen bytes that stand for a cleaned sequence: two of a billion share them with odds of 1 in 10^21."""
    return hashlib.blake2b(sequence.encode(), digest_size=16).digest()


@dataclass(slots=True)
class PlannedPart:
    """A part before its records are read."""

    index: int
    first_record: int  # its number among all, from 1
    letters: int = 0
    # Where the records are staged: name of a file, number of the input, start and stop (exclusive) in the file.
    slices: list[tuple[str, int, int, int]] = field(default_factory=list)

    def read(self, path: Path, settings: JobSettings) -> Part:
        """The part with its records, out of the folder of staged files, as the local job would have it in hand."""
        records: list[tuple[str, FastaRecord]] = []
        for file, source, start, stop in self.slices:
            records += ((settings.names[source], record) for record in read_records(path / file, start, stop))
        return Part(self.index, self.first_record, records, digest(records))


def plan(
    files: Sequence[StagedFile], path: Path, settings: JobSettings, widths: dict[str, int]
) -> Iterator[PlannedPart]:
    """Cut the staged records as :func:`rd_hf.embedding.parts.cut_parts` would; only their sizes are read."""
    import pyarrow.parquet as pq

    cut = Cut(settings, row_bytes(widths))
    part = PlannedPart(0, 1)
    for file in files:
        table = pq.read_table(path / file.name, columns=["rows", "letters"])
        start = 0
        sizes = zip(table["rows"].to_pylist(), table["letters"].to_pylist(), strict=True)
        for place, (rows, letters) in enumerate(sizes):
            if cut.begins(rows, letters):
                if place > start:
                    part.slices.append((file.name, file.source, start, place))
                yield part
                part, start = PlannedPart(part.index + 1, cut.first_record), place
            part.letters += letters
        part.slices.append((file.name, file.source, start, file.records))
    if part.slices:
        yield part

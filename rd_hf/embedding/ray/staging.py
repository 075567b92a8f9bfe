"""The inputs, read once: each by a task of its own, into Parquet files that any worker can take a few records from.

Every format is read by this project's own reader, so that the same records come out as in the local job. (Ray's reader
of CSV and JSON guesses types, to which the peptide ``NA`` is a missing value and ``1e5`` a number.) One task reads one
file, however large; what follows is shared out by records.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rd_hf.data.fasta import FastaRecord, InputError
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.sources import source_size
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.parts import read_all, rows_of
from rd_hf.embedding.settings import JobSettings
from rd_hf.files import explain_errors

CHUNK_RECORDS, CHUNK_LETTERS = 16384, 32 << 20
# Rows that are read back together: a part begins anywhere in a chunk.
GROUP = 1024
# Whatever a string holds comes back as it was, half a surrogate pair too.
_ERRORS = "surrogatepass"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A staged file: its name in the folder of staged files, and how many records it holds."""

    file: str
    records: int


@dataclass(frozen=True, slots=True)
class Staged:
    """An input that was read to its end: its chunks in order, and what a user should know of it."""

    chunks: tuple[Chunk, ...]
    notes: tuple[str, ...]

    @property
    def records(self) -> int:
        """How many the input has."""
        return sum(chunk.records for chunk in self.chunks)


class Staging:
    """The folder of staged files, within that of an embedding job."""

    def __init__(self, folder: OutputFolder, settings: JobSettings, keys: bool) -> None:
        self.path = folder.journal / "staged"
        self._folder, self._settings, self._keys = folder, settings, keys

    def remove(self) -> None:
        """Take the staged files away."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _mark_path(self, index: int) -> Path:
        return self.path / f"{index:06d}.json"

    def _identity(self, index: int) -> dict[str, Any]:
        """What staged files are only good for: this input as it is now, read in this way."""
        source, settings = self._settings.inputs[index], self._settings
        status = os.stat(source)
        columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        # With other poolings a record counts for other numbers of rows.
        asked = [*columns, settings.strict, settings.options.pooling, list(settings.options.positions), self._keys]
        return {"source": str(Path(source).resolve()), "bytes": status.st_size, "time": status.st_mtime_ns, "as": asked}

    def kept(self, index: int) -> Staged | None:
        """An input that an earlier run read, None if it was not, or may have changed since."""
        try:
            found = json.loads(self._mark_path(index).read_bytes())
            if source_size(self._settings.inputs[index]) is None or found["identity"] != self._identity(index):
                return None
            staged = Staged(tuple(Chunk(**chunk) for chunk in found["chunks"]), tuple(found["notes"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return staged if all((self.path / chunk.file).is_file() for chunk in staged.chunks) else None

    def keep(self, index: int, staged: Staged, identity: Mapping[str, Any] | None) -> None:
        """Note an input as read."""
        if identity is not None:
            content = {
                "identity": identity,
                "chunks": [{"file": chunk.file, "records": chunk.records} for chunk in staged.chunks],
                "notes": staged.notes,
            }
            self._folder.write(self._mark_path(index), lambda handle: handle.write(json.dumps(content).encode()))

    def identity(self, index: int) -> dict[str, Any] | None:
        """As an input is now; None for what cannot be told."""
        return None if source_size(self._settings.inputs[index]) is None else self._identity(index)


def stage(settings: JobSettings, index: int, keys: bool) -> Iterator[dict[str, Any]]:
    """Read input number ``index`` to its end and write it as chunks; one row for each, a last one without a file.

    A chunk's name and content follow from the input alone, so that a task that Ray starts again, and even one that it
    took for lost, write the same.

    Args:
        settings: of the job.
        index: of the input.
        keys: whether to note what each sequence is once cleaned.

    Yields:
        ``index``, ``file`` (empty in the last row), ``records``, ``bytes`` (read so far), ``notes`` (JSON) and
        ``error``.
    """
    folder = OutputFolder(settings.output)
    path = folder.journal / "staged"
    notes = list[str]()
    done, count, read = list[FastaRecord](), 0, 0

    def on_read(size: int) -> None:
        nonlocal read
        read += size

    def row(file: str = "", records: int = 0, error: str = "") -> dict[str, Any]:
        return {
            **{"index": index, "file": file, "records": records, "bytes": read},
            **{"notes": json.dumps(notes), "error": error},
        }

    def write(records: list[FastaRecord]) -> dict[str, Any]:
        nonlocal count
        name = f"{index:06d}-{count:06d}.parquet"
        with explain_errors(folder.path, JobError):
            path.mkdir(exist_ok=True)
            half = path / f"{name}.{secrets.token_hex(4)}.tmp"
            _write(half, records, settings, keys)
            os.replace(half, path / name)
        count += 1
        return row(name, len(records))

    one = _of_one_input(settings, index)
    letters = 0
    try:
        for _, record in read_all(one, on_read, notes.append):
            if len(done) == CHUNK_RECORDS or (done and letters + len(record.sequence) > CHUNK_LETTERS):
                yield write(done)
                done, letters = [], 0
            done.append(record)
            letters += len(record.sequence)
        yield write(done)
        yield row()
    except (InputError, JobError) as error:
        yield row(error=str(error))


def _of_one_input(settings: JobSettings, index: int) -> JobSettings:
    return replace(settings, inputs=(settings.inputs[index],), called=(settings.names[index],))


def _write(path: Path, records: list[FastaRecord], settings: JobSettings, keys: bool) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def text(values: Iterator[str]) -> pa.Array:
        return pa.array([value.encode("utf-8", _ERRORS) for value in values], pa.large_binary())

    columns = {
        "number": pa.array([record.number for record in records], pa.int64()),
        "id": text(record.id for record in records),
        "description": text(record.description for record in records),
        "sequence": text(record.sequence for record in records),
        "positions": text(json.dumps(record.positions) if record.positions else "" for record in records),
        "problem": text(record.problem for record in records),
        "rows": pa.array([rows_of(record, settings.options) for record in records], pa.int64()),
        "letters": pa.array([len(record.sequence) for record in records], pa.int64()),
    }
    if keys:
        columns["key"] = pa.array([_key(record, settings) for record in records], pa.binary(16))
    pq.write_table(pa.table(columns), path, row_group_size=GROUP, compression="zstd")


def _key(record: FastaRecord, settings: JobSettings) -> bytes | None:
    from rd_hf.embedding.engine import prepare

    try:
        return key_of(prepare(record.letters(), (), settings.options).sequence)
    except RejectedSequenceError:
        return None


def key_of(sequence: str) -> bytes:
    """Sixteen bytes that stand for a cleaned sequence: two of a billion share them with odds of 1 in 10^21."""
    return hashlib.blake2b(sequence.encode(), digest_size=16).digest()


def read_chunk(path: Path, start: int, stop: int) -> list[FastaRecord]:
    """Records ``start`` to ``stop`` (exclusive) of a staged file."""
    import pyarrow.parquet as pq

    names = ["number", "id", "description", "sequence", "positions", "problem"]
    with pq.ParquetFile(path) as file:
        first, last = start // GROUP, (stop - 1) // GROUP
        table = file.read_row_groups(list(range(first, last + 1)), columns=names)
    table = table.slice(start - first * GROUP, stop - start)
    numbers, *texts = (table[name].to_pylist() for name in names)
    found = []
    for number, *cells in zip(numbers, *texts, strict=True):
        record_id, description, sequence, positions, problem = (cell.decode("utf-8", _ERRORS) for cell in cells)
        asked = tuple(json.loads(positions)) if positions else ()
        found.append(FastaRecord(number, record_id, description, sequence, asked, problem))
    return found

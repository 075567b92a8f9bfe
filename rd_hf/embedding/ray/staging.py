"""The staged inputs, the parts that are cut of them, and the sequences that several parts share.

Each input is read once, by a task of its own, into Parquet files that any worker can take a few records from. Every
format is read by this project's own reader, so that the same records come out as in the local job. (Ray's reader of CSV
and JSON guesses types, to which the peptide ``NA`` is a missing value and ``1e5`` a number.) One task reads one file,
however large; what follows is shared out by records, in the parts of the local job.

A part computes each of its sequences once. Those that lie in several parts are found by a shuffle of sixteen bytes per
record, computed in groups before the parts, and looked up by the parts as they are made. Rows are numbered in the order
of the first record that has the sequence, so that a group's sequences lie together in few staged files.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field, replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rd_hf.carried import input_place
from rd_hf.data.records import FastaRecord, InputError
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
# Shared sequences that are computed together; small, so that few are still in hand when the first part that needs them
# begins.
GROUP = 2048
# By the first byte of a key.
_BUCKETS = 256
_KEY = np.dtype("S16")


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
        place = Path(input_place(source)).resolve()
        status = os.stat(place)
        columns = (settings.sequence_column, settings.id_column, settings.positions_column)
        # With other poolings a record counts for other numbers of rows.
        rows = [settings.options.pooling, list(settings.options.positions)]
        asked = [*columns, settings.strict, *rows, self._keys, _FORMAT]
        return {"source": str(place), "bytes": status.st_size, "time": status.st_mtime_ns, "as": asked}

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
    took for lost, write the same. With ``keys``, each record has that of its cleaned sequence.

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


@dataclass(frozen=True, slots=True)
class SharedSequences:
    """``count`` sequences that ``copies`` records have, and a folder among the staged files.

    It holds the sorted ``keys`` and their ``rows``, and for each row the number of its first ``records``; then a file
    for each group of rows, once it is computed.
    """

    path: Path
    count: int
    copies: int

    @property
    def groups(self) -> int:
        """How many groups they make."""
        return -(-self.count // GROUP)

    def group_path(self, group: int) -> Path:
        """File of a group: (rows, width) float32; a row that could not be computed is NaN."""
        # The name that groups had in earlier versions, whose jobs may be gone on with.
        return self.path / f"block-{group:06d}.npy"

    def find(self, sequence: str) -> np.ndarray | None:
        """(widest,) float32 of a cleaned sequence; None if it is not shared, or not computed (yet)."""
        keys = _array(self.path / "keys.npy")
        key = np.array(key_of(sequence), dtype=_KEY)
        place = int(np.searchsorted(keys, key))
        if place == len(keys) or keys[place] != key:
            return None
        group, row = divmod(int(_array(self.path / "rows.npy")[place]), GROUP)
        try:
            value = np.array(_array(self.group_path(group))[row])
        except FileNotFoundError:
            return None
        return value if len(value) and np.isfinite(value).all() else None

    def sequences(self, group: int, files: Sequence[StagedFile]) -> Iterator[str]:
        """The raw sequences of a group's rows, in order, out of all staged files."""
        records = _array(self.path / "records.npy")[group * GROUP : (group + 1) * GROUP]
        homes = np.searchsorted([file.first for file in files], records, side="right") - 1
        for home, pairs in groupby(zip(homes.tolist(), records.tolist(), strict=True), key=lambda pair: pair[0]):
            places = [record - files[home].first for _, record in pairs]
            found = read_records(self.path.parent / files[home].name, places[0], places[-1] + 1)
            yield from (found[place - places[0]].sequence for place in places)


@cache
def _array(path: Path) -> np.ndarray:
    """An array on the disk, opened once per process."""
    return np.load(path, mmap_mode="r")


def find_shared(files: Sequence[StagedFile], path: Path, parts: Sequence[PlannedPart]) -> SharedSequences:
    """Shuffle the keys of all records, and write down beside the staged files those that lie in several parts."""
    import ray

    starts = np.array([part.first_record for part in parts], dtype=np.int64)
    rows = [{"file": str(path / file.name), "first": file.first} for file in files]
    data: Any = ray.data.from_items(rows, override_num_blocks=len(rows))
    keyed = data.map_batches(_keys_of_files, batch_size=None, batch_format="pyarrow", num_cpus=1)
    # Ray's default of 200 partitions takes longer than a small job.
    several = keyed.groupby("bucket", num_partitions=min(len(rows), _BUCKETS)).map_groups(
        in_several_parts, batch_format="pyarrow", num_cpus=1, fn_kwargs={"starts": starts}
    )
    keys, records, copies = [np.empty(0, _KEY)], [np.empty(0, np.int64)], 0
    for batch in several.iter_batches(batch_size=None, batch_format="pyarrow"):
        if batch.num_rows:
            keys.append(np.array(batch["key"].to_pylist(), dtype=_KEY))
            records.append(batch["record"].to_numpy())
            copies += int(batch["copies"].to_numpy().sum())
    return write_shared(np.concatenate(keys), np.concatenate(records), copies, path)


def _keys_of_files(batch: pa.Table) -> pa.Table:
    """Keys of staged files, each with its record's number and its first byte, by which they are shuffled."""
    tables = []
    for file, first in zip(batch["file"].to_pylist(), batch["first"].to_pylist(), strict=True):
        column = pq.read_table(file, columns=["key"])["key"].combine_chunks()
        known = column.is_valid().to_numpy(zero_copy_only=False)
        numbers = first + np.flatnonzero(known)
        column = column.drop_null()
        buckets = np.array([key[0] for key in column.to_pylist()], dtype=np.int64)
        tables.append(pa.table({"key": column, "record": numbers, "bucket": buckets}))
    return pa.concat_tables(tables)


def in_several_parts(bucket: pa.Table, starts: np.ndarray) -> pa.Table:
    """The keys of a bucket that lie in several of the parts that start at these records.

    Columns: ``key``, ``record`` (the first that has it) and ``copies`` (records that have it).
    """
    found = bucket.group_by("key").aggregate([("record", "min"), ("record", "max"), ("record", "count")])
    first, last = (np.searchsorted(starts, found[f"record_{end}"].to_numpy(), side="right") for end in ("min", "max"))
    chosen = found.select(["key", "record_min", "record_count"]).filter(pa.array(first != last, pa.bool_()))
    return chosen.rename_columns(["key", "record", "copies"])


def write_shared(keys: np.ndarray, records: np.ndarray, copies: int, path: Path) -> SharedSequences:
    """Write down shared sequences, given by key and first record in any order, beside the staged files."""
    by_record = np.argsort(records)
    keys, records = keys[by_record], records[by_record]
    by_key = np.argsort(keys)
    # Groups of an earlier run are good for the same sequences in the same order only.
    name = hashlib.sha256(keys.tobytes() + records.tobytes()).hexdigest()[:16]
    shared = SharedSequences(path / f"shared-{name}", len(keys), copies)
    shared.path.mkdir(parents=True, exist_ok=True)
    for what, values in (("keys", keys[by_key]), ("rows", by_key), ("records", records)):
        np.save(shared.path / f"{what}.npy", values, allow_pickle=False)
    return shared

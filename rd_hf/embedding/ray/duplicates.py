"""Sequences that several parts share, computed once for all of them.

A part computes each of its sequences once. Those that lie in several parts are found by a shuffle of sixteen bytes per
record, computed in groups before the parts, and looked up by the parts as they are made. Rows are numbered in the order
of the first record that has the sequence, so that a group's sequences lie together in few staged files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rd_hf.embedding.parts import Part
from rd_hf.embedding.ray.staging import PlannedPart, StagedFile, key_of, read_records
from rd_hf.embedding.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

    from rd_hf.embedding.engine import Request

# Small, so that few are still in hand when the first part that needs them begins.
GROUP = 2048
# By the first byte of a key.
_BUCKETS = 256
_KEY = np.dtype("S16")


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
    """An array on the disk, opened once a process."""
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
    import pyarrow as pa
    import pyarrow.parquet as pq

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

    Returns:
        ``key``, ``record`` (the first that has it) and ``copies`` (records that have it).
    """
    import pyarrow as pa

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


@dataclass(slots=True)
class DeduplicatingWorker(Worker):
    """Makes a part from what was computed before, and computes the rest of it."""

    shared: SharedSequences | None = field(default=None, kw_only=True)

    def compute(self, part: Part, places: list[int], requests: list[Request]) -> list[np.ndarray | str]:
        found: list[Any] = [None] * len(requests)
        if self.shared is not None:
            with self.stages.stage("read"):
                found = [self.shared.find(request.sequence) for request in requests]
        left = [index for index, value in enumerate(found) if value is None]
        # Spelled out, since super() without arguments does not find the class that slots made anew.
        computed = Worker.compute(self, part, [places[i] for i in left], [requests[i] for i in left])
        for index, value in zip(left, computed, strict=True):
            found[index] = value
        return found

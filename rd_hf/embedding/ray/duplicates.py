"""Sequences that several parts share, computed once for all of them.

A part computes each of its sequences once. Those that lie in several parts are found by a shuffle of sixteen bytes a
record, computed in blocks before the parts, and looked up by the parts as they are made. Rows are numbered in the order
of the first record that has the sequence, so that a block's sequences lie together in few staged files.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rd_hf.embedding.parts import Part
from rd_hf.embedding.ray.plan import PlannedPart
from rd_hf.embedding.ray.staging import Staged, key_of, read_chunk
from rd_hf.embedding.worker import Worker

if TYPE_CHECKING:
    import pyarrow as pa

    from rd_hf.embedding.engine import Request

# Small, so that few are still in hand when the first part that needs them begins.
BLOCK = 2048
_BUCKETS = 256
_KEY = np.dtype("S16")


@dataclass(frozen=True, slots=True)
class Shared:
    """What was found, in a folder among the staged files: ``keys`` (sorted) and the ``rows`` they have, and for each
    row the number of its first ``records``; then a file a block of rows, as they are computed.

    Attributes:
        path: of the folder.
        count: sequences.
        copies: records that have one of them.
    """

    path: Path
    count: int
    copies: int

    @property
    def blocks(self) -> int:
        """How many blocks they make."""
        return -(-self.count // BLOCK)

    def block_path(self, block: int) -> Path:
        """File of a block: (rows, width) float32; a row that could not be computed is NaN."""
        return self.path / f"block-{block:06d}.npy"


def first_records(staged: Sequence[Staged]) -> list[tuple[str, int]]:
    """Staged files in order, each with the number of its first record among all."""
    found, first = [], 1
    for each in staged:
        for chunk in each.chunks:
            found.append((chunk.file, first))
            first += chunk.records
    return found


def find_shared(staged: Sequence[Staged], path: Path, parts: Sequence[PlannedPart]) -> Shared:
    """Shuffle the keys of all records, and write down those that lie in several parts.

    Args:
        staged: of each input, with keys.
        path: of the staged files.
        parts: of the job.
    """
    import ray

    starts = np.array([part.first_record for part in parts], dtype=np.int64)
    chunks = [{"file": str(path / file), "first": first} for file, first in first_records(staged)]
    data: Any = ray.data.from_items(chunks, override_num_blocks=len(chunks))
    keyed = data.map_batches(_keys, batch_size=None, batch_format="pyarrow", num_cpus=1)
    several = keyed.groupby("bucket").map_groups(
        _in_several, batch_format="pyarrow", num_cpus=1, fn_kwargs={"starts": starts}
    )
    keys, records, copies = [np.empty(0, _KEY)], [np.empty(0, np.int64)], 0
    for batch in several.iter_batches(batch_size=None, batch_format="pyarrow"):
        if batch.num_rows:
            keys.append(np.array(batch["key"].to_pylist(), dtype=_KEY))
            records.append(batch["record"].to_numpy())
            copies += int(batch["copies"].to_numpy().sum())
    return _written(np.concatenate(keys), np.concatenate(records), copies, path)


def _written(keys: np.ndarray, records: np.ndarray, copies: int, path: Path) -> Shared:
    by_record = np.argsort(records)
    keys, records = keys[by_record], records[by_record]
    by_key = np.argsort(keys)
    # Blocks of an earlier run are good for the same sequences in the same order only.
    name = hashlib.sha256(keys.tobytes() + records.tobytes()).hexdigest()[:16]
    shared = Shared(path / f"shared-{name}", len(keys), copies)
    shared.path.mkdir(parents=True, exist_ok=True)
    for what, values in (("keys", keys[by_key]), ("rows", by_key), ("records", records)):
        np.save(shared.path / f"{what}.npy", values, allow_pickle=False)
    return shared


def _keys(batch: pa.Table) -> pa.Table:
    """Keys of staged files, each with its record's number and a bucket."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for file, first in zip(batch["file"].to_pylist(), batch["first"].to_pylist(), strict=True):
        column = pq.read_table(file, columns=["key"])["key"].combine_chunks()
        numbers = first + np.arange(len(column), dtype=np.int64)
        known = column.is_valid().to_numpy(zero_copy_only=False)
        column = column.drop_null()
        heads = np.array([key[0] % _BUCKETS for key in column.to_pylist()], dtype=np.int64)
        tables.append(pa.table({"key": column, "record": numbers[known], "bucket": heads}))
    return pa.concat_tables(tables)


def _in_several(bucket: pa.Table, starts: np.ndarray) -> pa.Table:
    """Of a bucket's keys those that lie in several parts: each with its first record and the number of its records."""
    import pyarrow as pa

    keys = np.array(bucket["key"].to_pylist(), dtype=_KEY)
    records = bucket["record"].to_numpy()
    order = np.lexsort((records, keys))
    keys, records = keys[order], records[order]
    begins = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1]))) if len(keys) else np.empty(0, np.int64)
    ends = np.concatenate((begins[1:], [len(keys)])) if len(keys) else begins
    part_of = np.searchsorted(starts, records, side="right")
    # Sorted by record within a key: its first and last part tell whether there are several.
    chosen = part_of[begins] != part_of[ends - 1] if len(keys) else np.empty(0, bool)
    begins, ends = begins[chosen], ends[chosen]
    # A numpy string leaves out zero bytes at its end.
    found = [bytes(key).ljust(16, b"\0") for key in keys[begins]]
    return pa.table(
        {
            "key": pa.array(found, pa.binary(16)),
            "record": pa.array(records[begins], pa.int64()),
            "copies": pa.array(ends - begins, pa.int64()),
        }
    )


def sequences_of(shared: Shared, block: int, chunks: Sequence[tuple[str, int]]) -> Iterator[str]:
    """The raw sequences of a block's rows, in order.

    Args:
        shared: what was found.
        block: number of the block.
        chunks: from :func:`first_records`.
    """
    records = np.load(shared.path / "records.npy", mmap_mode="r")[block * BLOCK : (block + 1) * BLOCK]
    firsts = [first for _, first in chunks]
    homes = np.searchsorted(firsts, records, side="right") - 1
    for home, group in groupby(zip(homes.tolist(), records.tolist(), strict=True), key=lambda pair: pair[0]):
        file, first = chunks[home]
        places = [record - first for _, record in group]
        found = read_chunk(shared.path.parent / file, places[0], places[-1] + 1)
        yield from (found[place - places[0]].sequence for place in places)


class SharedRows:
    """Looks up what was computed before the parts."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._keys = np.load(shared.path / "keys.npy", mmap_mode="r")
        self._rows = np.load(shared.path / "rows.npy", mmap_mode="r")
        self._blocks: dict[int, np.ndarray] = {}

    def find(self, sequence: str) -> np.ndarray | None:
        """(widest,) float32 of a cleaned sequence; None if it is not shared, or not computed (yet)."""
        key = np.array(key_of(sequence), dtype=_KEY)
        place = int(np.searchsorted(self._keys, key))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        block, row = divmod(int(self._rows[place]), BLOCK)
        if block not in self._blocks:
            try:
                self._blocks[block] = np.load(self._shared.block_path(block), mmap_mode="r")
            except FileNotFoundError:
                return None
        value = np.array(self._blocks[block][row])
        return value if len(value) and np.isfinite(value).all() else None


@dataclass(slots=True)
class SharingWorker(Worker):
    """Does a part from what was computed before, and computes the rest of it."""

    shared: SharedRows = field(kw_only=True)

    def compute(self, part: Part, places: list[int], requests: list[Request]) -> list[np.ndarray | str]:
        with self.stages.stage("read"):
            found = [self.shared.find(request.sequence) for request in requests]
        left = [index for index, value in enumerate(found) if value is None]
        # Spelled out, since super() without arguments does not find the class that slots made anew.
        computed = Worker.compute(self, part, [places[i] for i in left], [requests[i] for i in left])
        results: list[Any] = list(found)
        for index, value in zip(left, computed, strict=True):
            results[index] = value
        return results

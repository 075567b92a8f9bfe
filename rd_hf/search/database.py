"""A folder of embeddings as something to search: checked against its manifest, read as Arrow, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rd_hf.data.records import InputError
from rd_hf.embedding.finished import COLUMNS, finished_manifest, model_of, options_of, part_files

# Embeddings in a block: enough rows for a matrix product to be worth its name, few enough to forget.
BLOCK_BYTES = 64 << 20
# An id weighs little: rows of a batch of names.
_NAMES = 65536
# A length that the folder does not have.
UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows.

    Attributes:
        records: (rows,) int64, ascending: numbers of the records in the job that made them, from 1.
        vectors: (rows, width) float32.
        ids: (rows,) text, where they were asked for.
    """

    records: np.ndarray
    vectors: np.ndarray
    ids: pa.StringArray | None = None


class Transform(Protocol):
    """What rows go through when they are read."""

    @property
    def digest(self) -> str:
        """Changes whenever its result does."""

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """(rows, width) float32 to the same shape."""


class Database:
    """A finished folder of an embedding job with one row a protein.

    Attributes:
        path: the folder.
        model: that made it.
        options: with which it was made.
        levels: width of each level that its rows hold, smallest first; the largest may be cut.
        rows: number of rows.
        inputs: what the job read.
        transform: what rows of any level go through when they are read, where it is set; its result depends on the
            row alone.
        columns_of_inputs: the job's sequence, id and positions columns, for reading those inputs again.

    Raises:
        InputError: no such folder, it is not finished, has rows per residue, or files are missing.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.transform: Transform | None = None
        folder, manifest = finished_manifest(path)
        job: dict[str, Any] = manifest["job"]
        self.model = model_of(manifest)
        self.options = replace(options_of(job), batch_tokens=None)
        self._columns = {name: (entry["level"], entry["width"]) for name, entry in manifest["columns"].items()}
        self.inputs = tuple(job["inputs"])
        self.columns_of_inputs = tuple(job[name] for name in COLUMNS)
        self.parts = tuple(manifest["parts"])
        if not self.options.one_row:
            raise InputError(
                f"{path} holds embeddings with pooling {self.options.pooling!r}, many rows a protein: a search needs "
                "one a protein, so embed with --pooling mean, max or cls"
            )
        self.levels = self.model.held(max(width for _, width in self._columns.values()))
        self.rows = sum(part["written"] for part in self.parts)
        part_files(folder, manifest, ("record", "id", "length"))

    @property
    def content(self) -> tuple[str, ...]:
        """Hash of each file: equal for copies of one folder."""
        return tuple(part["sha256"] for part in self.parts)

    def blocks(
        self, level: str, wanted: np.ndarray | None = None, with_ids: bool = False, plain: bool = False
    ) -> Iterator[Block]:
        """Stream the rows at a level, reading one block ahead.

        Args:
            level: one of ``levels``: its own column, or the first dimensions of the next larger one.
            wanted: ascending records; what cannot hold any of them is not read. Blocks still hold others too.
            with_ids: read ids as well.
            plain: as they are stored, even where ``transform`` is set.

        Raises:
            InputError: a file is not what the manifest says.
        """
        width = self.levels[level]
        column, (of, stored) = min(
            ((name, entry) for name, entry in self._columns.items() if entry[1] >= width), key=lambda item: item[1][1]
        )
        names = ["record", column, *(["id"] if with_ids else [])]
        last = 0
        for file, batch in _ahead(self._batches(names, max(1, BLOCK_BYTES // (4 * stored)), wanted)):
            records = batch.column("record").to_numpy()
            values = batch.column(column)
            kind = values.type
            if not pa.types.is_fixed_size_list(kind) or kind.list_size != stored or values.null_count:
                raise InputError(f"{file}: column {column} is not {stored} numbers a row: embed again")
            if records[0] <= last or (np.diff(records) <= 0).any():
                raise InputError(f"{file}: its records are not in order: embed again")
            last = int(records[-1])
            vectors: np.ndarray = (
                np.asarray(values.flatten()).reshape(-1, stored)[:, :width].astype(np.float32, copy=False)
            )
            if self.options.normalize and of != level:
                # Each level was normalised for itself: the first dimensions of a larger one are a scaled copy.
                length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
                vectors = vectors / np.where(length > 0, length, 1)
            vectors = np.ascontiguousarray(vectors)
            if self.transform is not None and not plain:
                vectors = self.transform(vectors)
            yield Block(records, vectors, batch.column("id") if with_ids else None)

    def names(self, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, pa.StringArray, np.ndarray]]:
        """Stream records (ascending), ids and lengths in residues (``UNKNOWN`` where there is none)."""
        for _, batch in self._batches(["record", "id", "length"], _NAMES, wanted):
            yield (
                batch.column("record").to_numpy(),
                batch.column("id"),
                pc.fill_null(batch.column("length"), UNKNOWN).to_numpy(),
            )

    def ids(self, records: np.ndarray) -> pa.StringArray:
        """Ids of ascending records."""
        found = [
            ids.filter(pa.array(np.isin(numbers, records))) for numbers, ids, _ in self.names(records)
        ]  # fmt: skip
        return pa.concat_arrays(found) if found else pa.array([], pa.string())

    def _batches(
        self, columns: list[str], size: int, wanted: np.ndarray | None
    ) -> Iterator[tuple[Path, pa.RecordBatch]]:
        for part in self.parts:
            path = self.path / part["file"]
            first, beyond = part["first_record"], part["first_record"] + part["records"]
            if not part["written"] or (wanted is not None and not _holds(wanted, first, beyond - 1)):
                continue
            try:
                with pq.ParquetFile(path, memory_map=True) as file:
                    missing = set(columns) - set(file.schema_arrow.names)
                    if missing:
                        raise InputError(f"{path} has no column {min(missing)}: embed again")
                    for batch in file.iter_batches(size, row_groups=_row_groups(file, wanted), columns=columns):
                        if batch.num_rows:
                            yield path, batch
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{path} is no readable Parquet file ({error}): embed again") from error


def _holds(wanted: np.ndarray, first: int, last: int) -> bool:
    """Whether any of the ascending records lies in a range, its ends included."""
    return bool(np.searchsorted(wanted, last, "right") > np.searchsorted(wanted, first, "left"))


def _row_groups(file: pq.ParquetFile, wanted: np.ndarray | None) -> list[int]:
    """Row groups that may hold one of the wanted records, by the statistics that each carries."""
    groups = list(range(file.metadata.num_row_groups))
    if wanted is None:
        return groups
    place = [file.metadata.schema.column(leaf).path for leaf in range(file.metadata.num_columns)].index("record")
    seen = {group: file.metadata.row_group(group).column(place).statistics for group in groups}
    return [group for group, range_ in seen.items() if range_ is None or _holds(wanted, range_.min, range_.max)]


def _ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, the next one being read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def keep(blocks: Iterator[Block], records: np.ndarray | None) -> Iterator[Block]:
    """Of each block the rows whose records are among these; all of them for None."""
    for block in blocks:
        if records is None:
            yield block
            continue
        mask = np.isin(block.records, records, assume_unique=True)
        if mask.any():
            ids = None if block.ids is None else pc.filter(block.ids, pa.array(mask))
            yield Block(block.records[mask], block.vectors[mask], ids)

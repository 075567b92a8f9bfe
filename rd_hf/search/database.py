"""A folder of embeddings as something to search: checked against its manifest, read as Arrow, block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rd_hf.data.records import InputError
from rd_hf.embedding.reader import EmbeddingFolder

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
        self.transform: Transform | None = None
        self._folder = folder = EmbeddingFolder(path)
        self.path, self.model, self.inputs, self.rows = folder.path, folder.model, folder.inputs, folder.rows
        self.options = replace(folder.options, batch_tokens=None)
        self._columns = {name: (held["level"], held["width"]) for name, held in folder.manifest["columns"].items()}
        self.columns_of_inputs = folder.input_columns
        if not self.options.one_row:
            raise InputError(
                f"{path} holds embeddings with pooling {self.options.pooling!r}, many rows a protein: a search needs "
                "one a protein, so embed with --pooling mean, max or cls"
            )
        self.levels = self.model.held(folder.width)
        folder.check_files(("record", "id", "length"))

    @property
    def content(self) -> tuple[str, ...]:
        """Hash of each file: equal for copies of one folder."""
        return tuple(part["sha256"] for part in self._folder.parts)

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
        for file, batch in _ahead(self._folder.batches(names, max(1, BLOCK_BYTES // (4 * stored)), wanted)):
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
        for _, batch in self._folder.batches(["record", "id", "length"], _NAMES, wanted):
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

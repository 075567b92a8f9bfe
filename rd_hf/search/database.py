"""A folder of embeddings as something to search: one row per protein, read chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rd_hf.data.records import InputError
from rd_hf.embedding.options import OFF, PLAIN, EmbeddingOptions
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.storage import covering

if TYPE_CHECKING:
    from rd_hf.search.whitening import RowWhitening

# Embeddings in a chunk: enough rows for a matrix product to be worth its name, and little memory.
CHUNK_BYTES = 64 << 20
# An id weighs little: rows of a batch of names.
_NAMES = 65536
# A length that the folder does not have.
UNKNOWN = -1

# Called with the number of rows each time some are read.
OnRows = Callable[[int], object]


class Chunk(NamedTuple):
    """Consecutive rows.

    Attributes:
        records: (rows,) int64, ascending: numbers of the records in the job that made them, from 1.
        vectors: (rows, width) float32.
    """

    records: np.ndarray
    vectors: np.ndarray


class Database(EmbeddingFolder):
    """A finished folder of an embedding job with one row per protein; an InputError if it is none, or lacks files.

    Its ``options`` are those with which it was made, but for the size of batches; by ``whitening``, where it is set,
    rows of any level are whitened as they are read.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path)
        self.whitening: RowWhitening | None = None
        self.options = replace(self.options, batch_tokens=None)
        if not self.options.one_row:
            raise InputError(
                f"{path} holds embeddings with pooling {self.options.pooling!r}, many rows a protein: a search needs "
                "one a protein, so embed with --pooling mean, max or cls"
            )
        self.check_files(("record", "id", "length"))

    @property
    def content(self) -> tuple[str, ...]:
        """Hash of each file: equal for copies of one folder."""
        return tuple(part["sha256"] for part in self.parts)

    def chunks(self, level: str, wanted: np.ndarray | None = None, as_stored: bool = False) -> Iterator[Chunk]:
        """Stream the rows at one of ``levels``, reading one chunk ahead; an InputError if a file is not as written.

        Args:
            wanted: ascending records, of which chunks are; what cannot hold any of them is not read. All for None.
            as_stored: not whitened.
        """
        width = self.levels[level]
        columns = covering(self.columns, width)
        size = max(1, CHUNK_BYTES // (4 * columns[-1].stop))
        last = 0
        for file, batch in _read_ahead(self.batches(["record", *self.columns_for(width)], size, wanted)):
            records = batch.column("record").to_numpy()
            if records[0] <= last or (np.diff(records) <= 0).any():
                raise InputError(f"{file}: its records are not in order: embed again")
            last = int(records[-1])
            if wanted is not None:
                # Before anything is computed of the others.
                chosen = np.isin(records, wanted, assume_unique=True)
                if not chosen.any():
                    continue
                records, batch = records[chosen], batch.filter(pa.array(chosen))
            vectors = self.vectors(batch, width).astype(np.float32, copy=False)
            if self.options.normalize and columns[-1].level != level:
                # Each level was normalised for itself: the first dimensions of a larger one are a scaled copy.
                vectors = unit(vectors)
            vectors = np.ascontiguousarray(vectors)
            yield Chunk(records, vectors if self.whitening is None or as_stored else self.whitening(vectors))

    def names(self, wanted: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, pa.StringArray, np.ndarray]]:
        """Stream records (ascending), ids and lengths in residues (``UNKNOWN`` where there is none)."""
        for _, batch in self.batches(["record", "id", "length"], _NAMES, wanted):
            lengths = pc.fill_null(batch.column("length"), UNKNOWN).to_numpy()
            yield batch.column("record").to_numpy(), batch.column("id"), lengths

    def ids_of(self, records: np.ndarray) -> pa.StringArray:
        """Ids of ascending records."""
        found = [ids.filter(pa.array(np.isin(numbers, records))) for numbers, ids, _ in self.names(records)]
        return pa.concat_arrays(found) if found else pa.array([], pa.string())


def plain(options: EmbeddingOptions, **others: Any) -> EmbeddingOptions:
    """Options with which vectors are embedded to be compared at once: whole, in float32; the others as they were."""
    return replace(options, output_dtype="float32", layout=PLAIN, compile=OFF, **others)


def unit(vectors: np.ndarray) -> np.ndarray:
    """(rows, width) float32 of length one; zero vectors stay zero."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    return vectors / np.where(lengths > 0, lengths, 1)


def _read_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, the next one being read while the caller works on this one."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield batch


def every_nth(chunks: Iterator[Chunk], n: int, on_rows: OnRows) -> Iterator[np.ndarray]:
    """Vectors of every n-th row, as copies: those of a memory-mapped file cannot be written to."""
    seen = 0
    for chunk in chunks:
        yield chunk.vectors[-seen % n :: n].copy()
        seen += len(chunk.records)
        on_rows(len(chunk.records))


def joined(chunks: list[Chunk]) -> Chunk:
    """One chunk of several."""
    return Chunk(*map(np.concatenate, zip(*chunks, strict=True)))


def regrouped(chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """The same rows in chunks of so many; the last may have fewer."""
    held: list[Chunk] = []
    for chunk in chunks:
        held.append(chunk)
        while sum(len(one.records) for one in held) >= size:
            whole = joined(held)
            yield Chunk(whole.records[:size], whole.vectors[:size])
            held = [Chunk(whole.records[size:], whole.vectors[size:])]
    if held and len(held[0].records):
        yield joined(held)

"""The proteins of a finished embedding folder, as far as a map needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rd_hf.data.records import InputError
from rd_hf.embedding.columns import finish
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.reader import EmbeddingFolder

# A page of more would no longer be fluent, and the neighbours' cost grows with the square.
MOST_PROTEINS = 50_000
_TEXT = ("source", "record", "id", "description", "length")


@dataclass(frozen=True, slots=True)
class Proteins:
    """What a folder holds of the proteins that are drawn, in input order."""

    ids: list[str]  # which may repeat or be empty
    descriptions: list[str]
    sources: list[str]
    records: np.ndarray  # (n,) int64, number in the input, counted from 1
    lengths: np.ndarray  # (n,) int64, residues; 0 where the folder, converted from stored embeddings, lacks them
    vectors: np.ndarray  # (n, widest drawn level) float32, as stored
    levels: dict[str, int]  # width of each level drawn, smallest first
    normalized: bool  # whether the folder's vectors have length one, each level for itself
    model: str
    pooling: str
    total: int  # proteins that the folder holds

    def at(self, level: str) -> np.ndarray:
        """(n, width) float32: the embeddings of a level, which are a prefix of the widest."""
        width = self.levels[level]
        if not self.normalized:
            return self.vectors[:, :width]
        return finish(self.vectors, width, EmbeddingOptions(normalize=True))


def read_proteins(
    path: str | Path,
    levels: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
    on_read: Callable[[int, int], object] = lambda rows, total: None,
) -> Proteins:
    """Read what a map needs of a finished embedding job, a batch of rows at a time and no other column.

    By default all levels; with ``sample`` so many proteins, chosen by ``seed`` uniformly without replacement, where the
    folder holds more. ``on_read`` is called with the number of rows each time some are read, and with that of all.

    Raises:
        InputError: no such folder, not finished, damaged, not one vector per protein, a level that it does not hold,
            too few proteins or more than a page can show.
    """
    folder = EmbeddingFolder(path)
    folder.check_files(_TEXT)
    total = folder.rows
    if total < 3:
        raise InputError(f"{folder.path} holds {total} proteins, and a map needs at least 3: embed more")
    if sample is None and total > MOST_PROTEINS:
        raise InputError(
            f"{folder.path} holds {total:,} proteins, more than the {MOST_PROTEINS:,} that one page shows well: "
            "draw a random sample of them with --num-sequences 20000"
        )
    if not folder.options.one_row:
        raise InputError(
            f"{folder.path} holds a row a residue (pooling {folder.options.pooling}), and a map draws one point a "
            "protein: embed with --pooling mean, max or cls"
        )
    held = folder.levels
    for level in levels:
        if level not in held:
            raise InputError(f"{path} holds no level {level!r}: it holds {', '.join(held)}")
    drawn = {level: width for level, width in held.items() if not levels or level in levels}
    chosen = np.arange(total)
    if sample is not None and sample < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, sample, replace=False))
    text, vectors = _read(folder, chosen, max(drawn.values()), on_read)
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{folder.path} record {text['record'][bad[0]]} ({text['id'][bad[0]] or 'no id'}): its embedding is not "
            "finite; embed again"
        )
    return Proteins(
        ids=[one or "" for one in text["id"]],
        descriptions=[one or "" for one in text["description"]],
        sources=[one or "" for one in text["source"]],
        records=np.array(text["record"], dtype=np.int64),
        lengths=np.array([one or 0 for one in text["length"]], dtype=np.int64),
        vectors=vectors,
        levels=drawn,
        normalized=folder.options.normalize,
        model=folder.model.name,
        pooling=folder.options.pooling,
        total=total,
    )


def _read(
    folder: EmbeddingFolder, chosen: np.ndarray, width: int, on_read: Callable[[int, int], object]
) -> tuple[dict[str, list[Any]], np.ndarray]:
    """Columns of the chosen rows, which ascend from 0, and the first dimensions of their vectors."""
    vectors = np.empty((len(chosen), width), dtype=np.float32)
    text: dict[str, list[Any]] = {name: [] for name in _TEXT}
    start = filled = 0
    for _, batch in folder.batches([*_TEXT, *folder.columns_for(width)]):
        wanted = chosen[filled : np.searchsorted(chosen, start + batch.num_rows)] - start
        start += batch.num_rows
        vectors[filled : filled + len(wanted)] = folder.vectors(batch, width)[wanted]
        for name in _TEXT:
            text[name] += batch.column(name).take(pa.array(wanted)).to_pylist()
        filled += len(wanted)
        on_read(batch.num_rows, folder.rows)
    return text, vectors

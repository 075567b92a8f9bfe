"""The proteins of a finished embedding folder, as far as a map needs them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rd_hf.data.records import InputError
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.options import EmbeddingOptions

# A page of more would no longer be fluent, and the neighbours' cost grows with the square.
MOST_PROTEINS = 50_000
_TEXT = ("source", "record", "id", "description", "length")


@dataclass(frozen=True, slots=True)
class Proteins:
    """What a folder holds of the proteins that are drawn, in input order.

    Attributes:
        ids, descriptions, sources: text, one each a protein; ids may repeat or be empty.
        records: (n,) int64, number in the input, counted from 1.
        lengths: (n,) int64, residues.
        vectors: (n, widest drawn level) float32, as stored.
        levels: width of each level drawn, smallest first.
        normalized: the folder's vectors have length one, each level for itself.
        model, pooling: of the folder.
        total: proteins that the folder holds.
    """

    ids: list[str]
    descriptions: list[str]
    sources: list[str]
    records: np.ndarray
    lengths: np.ndarray
    vectors: np.ndarray
    levels: dict[str, int]
    normalized: bool
    model: str
    pooling: str
    total: int

    def at(self, level: str) -> np.ndarray:
        """(n, width) float32: the embeddings of a level, which are a prefix of the widest."""
        cut = self.vectors[:, : self.levels[level]]
        if not self.normalized:
            return cut
        length = np.linalg.norm(cut, axis=1, keepdims=True)
        return np.asarray(cut / np.where(length > 0, length, 1), dtype=np.float32)


def read_proteins(
    path: str | Path,
    levels: Sequence[str] = (),
    sample: int | None = None,
    seed: int = 0,
    on_read: Callable[[int, int], None] | None = None,
) -> Proteins:
    """Read what a map needs, a batch of rows at a time and no other column.

    Args:
        path: folder of a finished embedding job.
        levels: those to draw, by default all that the folder holds.
        sample: draw so many proteins, chosen uniformly without replacement, where the folder holds more.
        seed: of that choice.
        on_read: told rows read and rows in all.

    Raises:
        InputError: no such folder, not finished, damaged, not one vector a protein, a level that it does not hold,
            too few proteins or more than a page can show.
    """
    folder = OutputFolder(path)
    manifest = _finished(folder)
    parts = [folder.path / str(part["file"]) for part in manifest.get("parts", [])]
    total = sum(int(part["written"]) for part in manifest.get("parts", []))
    if total < 3:
        raise InputError(f"{folder.path} holds {total} proteins, and a map needs at least 3: embed more")
    if sample is None and total > MOST_PROTEINS:
        raise InputError(
            f"{folder.path} holds {total:,} proteins, more than the {MOST_PROTEINS:,} that one page shows well: "
            "draw a random sample of them with --sample 20000"
        )
    chosen = np.arange(total)
    if sample is not None and sample < total:
        chosen = np.sort(np.random.default_rng(seed).choice(total, sample, replace=False))
    about = _described(parts[0])
    widths = _levels(folder.path, about, levels)
    column = EmbeddingOptions(levels=tuple(about["levels"])).column(max(about["levels"], key=about["nested_dims"].get))
    widest = max(widths.values())
    vectors = np.empty((len(chosen), widest), dtype=np.float32)
    text: dict[str, list[Any]] = {name: [] for name in _TEXT}
    start = filled = 0
    for batch in _batches(parts, about, column):
        wanted = chosen[filled : np.searchsorted(chosen, start + batch.num_rows)] - start
        start += batch.num_rows
        if len(wanted):
            block = batch.column(column)
            values = block.flatten().to_numpy().reshape(batch.num_rows, -1)[wanted, :widest]
            vectors[filled : filled + len(wanted)] = values
            for name in _TEXT:
                text[name] += batch.column(name).take(pa.array(wanted)).to_pylist()
            filled += len(wanted)
        if on_read is not None:
            on_read(batch.num_rows, total)
    if start != total:
        raise InputError(f"{folder.path} holds {start:,} rows where its manifest says {total:,}: embed again")
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise InputError(
            f"{folder.path} record {text['record'][bad[0]]} ({text['id'][bad[0]] or 'no id'}): its embedding is not "
            "finite; embed again"
        )
    return Proteins(
        ids=text["id"],
        descriptions=text["description"],
        sources=text["source"],
        records=np.array(text["record"], dtype=np.int64),
        lengths=np.array(text["length"], dtype=np.int64),
        vectors=vectors,
        levels=widths,
        normalized=bool(about.get("normalize")),
        model=str(about["model"]),
        pooling=str(about["pooling"]),
        total=total,
    )


def _finished(folder: OutputFolder) -> dict[str, Any]:
    """The manifest of a finished job."""
    if not folder.manifest_path.is_file():
        raise InputError(f"{folder.path} is no folder of embeddings (no manifest): make one with rd-hf embed")
    try:
        manifest = folder.manifest() or {}
    except JobError as error:
        raise InputError(f"{folder.manifest_path} is damaged: embed again into another folder") from error
    if manifest.get("status") != "complete":
        raise InputError(f"{folder.path} is not finished: give its rd-hf embed command again, then draw it")
    return manifest


def _described(part: Path) -> dict[str, Any]:
    """What a part's file says about its embeddings."""
    try:
        metadata = pq.read_schema(part).metadata or {}
        about = dict(json.loads(metadata[b"rd_hf"]))
    except FileNotFoundError as error:
        raise InputError(f"{part} is missing: give the folder's rd-hf embed command again") from error
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise InputError(f"{part} is damaged or was not written by rd-hf embed: embed again") from error
    return about


def _levels(path: Path, about: dict[str, Any], asked: Sequence[str]) -> dict[str, int]:
    """Width of each level to draw, smallest first."""
    if about["pooling"] not in ("mean", "max", "cls"):
        raise InputError(
            f"{path} holds a row a residue (pooling {about['pooling']}), and a map draws one point a protein: embed "
            "with --pooling mean, max or cls"
        )
    held = dict(sorted(about["nested_dims"].items(), key=lambda item: int(item[1])))
    for level in asked:
        if level not in held:
            raise InputError(f"{path} holds no level {level!r}: it holds {', '.join(held)}")
    return {level: int(width) for level, width in held.items() if not asked or level in asked}


def _batches(parts: Sequence[Path], about: dict[str, Any], column: str) -> Iterator[pa.RecordBatch]:
    """All rows in order, the columns of a map only."""
    for part in parts:
        if _described(part).get("fingerprint") != about.get("fingerprint"):
            raise InputError(f"{part} was made by another model than {parts[0].name}: embed again")
        try:
            with pq.ParquetFile(part) as file:
                yield from file.iter_batches(batch_size=4096, columns=[*_TEXT, column])
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{part} cannot be read ({error}): embed again") from error

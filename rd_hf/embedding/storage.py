"""Which dimensions of the embeddings each column of a folder holds, by its layout. Imports nothing heavy.

In layout ``plain`` a column holds whole vectors: ``embedding``, or ``embedding_<level>`` where several levels were
asked for. In layout ``blocks`` each level's block is a column, ``block_<level>``, and a level is the columns up to its
own, one after the other. The names differ, since ``embedding_35M`` is all of a level and ``block_35M`` what it adds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from rd_hf.embedding.options import BLOCKS, BYTES, EmbeddingOptions

# Manifests of folders that earlier versions read too, and of those whose columns they would take for something else.
MANIFEST_FORMAT, LATER_FORMAT = FORMATS = (2, 3)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of embeddings: dimensions ``first`` to ``stop`` (from 0, the latter left out) of those of ``level``."""

    name: str
    level: str
    first: int
    stop: int

    @property
    def width(self) -> int:
        """How many dimensions it holds."""
        return self.stop - self.first


def columns_of(options: EmbeddingOptions, widths: Mapping[str, int], nested_dims: Mapping[str, int]) -> list[Column]:
    """Return the columns of a job.

    Args:
        options: of the job.
        widths: of the levels that were asked for, the last perhaps cut.
        nested_dims: width of each level of the model, smallest first.
    """
    if options.layout != BLOCKS:
        return [Column(options.column(level), level, 0, width) for level, width in widths.items()]
    widest = max(widths.values())
    ends = {level: min(width, widest) for level, width in nested_dims.items()}
    blocks = zip(ends, pairwise([0, *ends.values()]), strict=True)
    return [Column(f"block_{level}", level, first, stop) for level, (first, stop) in blocks if first < stop]


def format_of(options: EmbeddingOptions) -> int:
    """Return the format that a manifest with these options names, which tells earlier versions to keep off."""
    return LATER_FORMAT if options.layout == BLOCKS or options.output_dtype in BYTES else MANIFEST_FORMAT


def described(columns: Iterable[Column]) -> dict[str, dict[str, Any]]:
    """Return columns as a manifest has them."""
    return {column.name: {"level": column.level, "width": column.width} for column in columns}


def read_columns(manifest: Mapping[str, Mapping[str, Any]], layout: str) -> list[Column]:
    """Return the columns that a manifest has, in its order."""
    widths = [one["width"] for one in manifest.values()]
    firsts = [0, *accumulate(widths)] if layout == BLOCKS else [0] * len(widths)
    return [
        Column(name, one["level"], first, first + one["width"])
        for (name, one), first in zip(manifest.items(), firsts, strict=False)
    ]


def covering(columns: Iterable[Column], width: int) -> list[Column]:
    """Return the columns that hold the first ``width`` dimensions, in their order: the narrowest, or all blocks."""
    columns = list(columns)
    blocks = [column for column in columns if column.first < width]
    if any(column.first for column in columns):
        return blocks
    return [min((column for column in columns if column.stop >= width), key=lambda column: column.stop)]

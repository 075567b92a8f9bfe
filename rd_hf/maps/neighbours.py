"""Nearest neighbours of every protein at every level, exact, in a single read of the pairs.

Levels are prefixes of each other, so the inner products of a level are those of the level before plus the ones of
the appended dimensions: all levels together cost what the largest costs alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

# Bytes of one chunk of similarities (queries x all proteins, float32).
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest neighbours at one level, the protein itself left out."""

    indices: np.ndarray  # (n, k) int64, nearest first; equally near ones in input order
    similarities: np.ndarray  # (n, k) float32, cosine


def nearest(
    vectors: np.ndarray, levels: Mapping[str, int], k: int, on_proteins: Callable[[int], object] = lambda count: None
) -> dict[str, Neighbours]:
    """Find the ``k`` neighbours (n - 1 where it is more) of each of (n, widest) float32 vectors, for each level.

    ``levels`` are widths, smallest first; a zero vector's similarity to anything is 0. ``on_proteins`` is called with
    the number of proteins that are done each time some are.
    """
    count = len(vectors)
    k = min(k, count - 1)
    values = torch.from_numpy(np.ascontiguousarray(vectors))
    lengths = {level: torch.linalg.vector_norm(values[:, :width], dim=1) for level, width in levels.items()}
    found = {level: Neighbours(np.empty((count, k), np.int64), np.empty((count, k), np.float32)) for level in levels}
    rows = min(count, max(1, _CHUNK_BYTES // (4 * count)))
    # Made once: fresh memory of this size costs more than the arithmetic in it.
    all_products, all_cosines = torch.empty(rows, count), torch.empty(rows, count)
    for start in range(0, count, rows):
        chunk = values[start : start + rows]
        products, cosines = all_products[: len(chunk)].zero_(), all_cosines[: len(chunk)]
        begin = 0
        for level, width in levels.items():
            products.addmm_(chunk[:, begin:width], values[:, begin:width].T)
            begin = width
            scales = 1 / torch.where(lengths[level] > 0, lengths[level], torch.inf)
            torch.mul(products, scales, out=cosines).mul_(scales[start : start + rows, None])
            cosines[torch.arange(len(chunk)), torch.arange(start, start + len(chunk))] = -torch.inf
            indices, similarities = _largest(cosines, k)
            found[level].indices[start : start + rows] = indices
            found[level].similarities[start : start + rows] = similarities
        on_proteins(len(chunk))
    return found


def _largest(values: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of each row's ``k`` largest, in falling order, ties by place: topk leaves ties open."""
    least = values.topk(k, dim=1).values[:, -1:]
    # Row by row in rising order of columns; more than k where values tie at the end.
    rows, columns = np.divmod(np.flatnonzero((values >= least).numpy()), values.shape[1])
    chosen = values.numpy()[rows, columns]
    order = np.lexsort((columns, -chosen, rows))
    starts = np.searchsorted(rows, np.arange(len(values)))
    picked = order[starts[:, None] + np.arange(k)]
    return columns[picked], chosen[picked]

"""Numbers in fewer bits than floats have: whole numbers of one byte on a grid, or signs, eight in a byte.

A grid (``int8``) has 255 places for each dimension, evenly spread about its mean, so wide as the model's fit saw that
dimension vary. Every job of a model has the same one, so that the first numbers of a level are the smaller level's, bit
for bit. It is the same for all who read: a number is ``centre + step * stored``, and the folder's manifest has both.

Of signs (``binary``) the first dimension is the highest bit of the first byte, as in ``numpy.packbits``; a bit is set
where a number is above zero. Bytes nest as dimensions do, at multiples of eight.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.embedding.options import BINARY, INT8, EmbeddingOptions

if TYPE_CHECKING:
    import torch

BITS = 8
# Stored numbers are -127 to 127: as many on either side of the mean.
MOST = 127
# Deviations on either side that a grid reaches: see the README for what others lose by clipping or rounding.
GRID_DEVIATIONS = 6.0


def stored_width(width: int, output_dtype: str) -> int:
    """Return how many numbers, or bytes of bits, so many dimensions are stored as."""
    return width // BITS if output_dtype == BINARY else width


def stored_type(output_dtype: str) -> np.dtype:
    """Return the type of each of them."""
    return np.dtype(np.uint8 if output_dtype == BINARY else output_dtype)


def make_grid(spreads: Sequence[torch.Tensor], options: EmbeddingOptions) -> np.ndarray:
    """Return the centre and the step of each dimension, (2, width) float32.

    Args:
        spreads: of each block (2, 2, 2, its width): of residues and of means over a sequence's; plain and whitened;
            mean and deviation.
        options: that say which of them is stored.
    """
    own = [spread[int(options.one_row), int(options.whiten)].cpu().numpy() for spread in spreads]
    return grid_of(*np.concatenate(own, axis=1))


def grid_of(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Return the grid, (2, width) float32, of dimensions with this mean and deviation, (width,) each."""
    centre, deviation = mean.astype(np.float32), deviation.astype(np.float32)
    # A dimension that never varied needs a step all the same.
    step = np.where(deviation > 0, deviation * np.float32(GRID_DEVIATIONS / MOST), 1).astype(np.float32)
    return np.stack((centre, step))


def described_grid(grid: np.ndarray) -> dict[str, list[float]]:
    """Return a grid as a manifest has it: the shortest numbers that are the same in float32."""
    centre, step = ([float(str(number)) for number in row] for row in grid)
    return {"centre": centre, "step": step}


def read_grid(manifest: Mapping[str, Any]) -> np.ndarray | None:
    """Return the grid of a folder's manifest, (2, width) float32; None where its numbers lie on none."""
    grid = manifest.get("grid")
    return None if grid is None else np.array((grid["centre"], grid["step"]), np.float32)


def quantized(values: np.ndarray, output_dtype: str, grid: np.ndarray | None = None) -> np.ndarray:
    """Return dimensions, (..., width) float32, as they are stored: (..., stored width), contiguous.

    Args:
        values: them.
        output_dtype: as which.
        grid: (2, width), of ``int8``. What lies beyond it is stored as its end.
    """
    if output_dtype == BINARY:
        return np.packbits(values > 0, axis=-1)
    if output_dtype == INT8:
        values = np.clip(_places(values, grid), -MOST, MOST)
    return np.ascontiguousarray(values, dtype=output_dtype)


def beyond(values: np.ndarray, grid: np.ndarray) -> int:
    """Count the numbers, of (..., width) or wider, that a grid clips."""
    return int((np.abs(_places(values[..., : grid.shape[1]], grid)) > MOST).sum())


def _places(values: np.ndarray, grid: np.ndarray | None) -> np.ndarray:
    assert grid is not None
    return np.rint((values - grid[0]) / grid[1])


def dequantize(values: np.ndarray, grid: np.ndarray | str | os.PathLike | None = None) -> np.ndarray:
    """Return what is stored as floats.

    Args:
        values: of a folder or an `Embedder`: with ``output_dtype="int8"`` (rows, width) int8 of any level, with
            ``"binary"`` (rows, width / 8) uint8; or with other leading dimensions; or floats.
        grid: of int8 the folder that the numbers are from, or an `Embedder`'s ``grid``; of a block by itself its own
            columns of that.

    Returns:
        (rows, width) float32: of int8 the number on the grid, of a sign 1 above zero and else -1; floats as they are.

    Raises:
        ValueError: numbers of another type, int8 without a grid, or with one that is narrower.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return values
    if values.dtype == np.uint8:
        return np.unpackbits(values, axis=-1).astype(np.float32) * 2 - 1
    if values.dtype != np.int8:
        raise ValueError(f"what is stored in bytes is uint8 (signs) or int8, and these numbers are {values.dtype}")
    if isinstance(grid, str | os.PathLike):
        from rd_hf.embedding.reader import EmbeddingFolder

        grid = EmbeddingFolder(grid).grid
    if grid is None or grid.shape[1] < values.shape[-1]:
        raise ValueError(
            f"{values.shape[-1]:,} numbers of int8 lie on a grid of as many dimensions: give the folder that they are "
            "from, or the Embedder's grid"
        )
    centre, step = grid[:, : values.shape[-1]]
    return values.astype(np.float32) * step + centre


def refuse_odd_widths(output_dtype: str, held: Mapping[str, int], name: str) -> None:
    """Raise an InputError where bytes of signs would not end where a level does.

    Args:
        output_dtype: asked for.
        held: width of each level that is stored, the last perhaps cut.
        name: of the model.
    """
    for level, width in held.items() if output_dtype == BINARY else ():
        if width % BITS:
            raise InputError(
                f"{name}: binary has eight dimensions in a byte, and level {level} would end within one, at dimension "
                f"{width:,}: store float16, or choose levels and a --width that are multiples of 8"
            )

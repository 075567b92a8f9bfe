"""Numbers in fewer bits than floats have: the signs of whitened dimensions, eight in a byte.

The first dimension is the highest bit of the first byte, as in ``numpy.packbits``; a bit is set where a number is above
zero. Bytes nest as dimensions do, at multiples of eight: the first bytes of a level are the smaller level's.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.embedding.options import BINARY

BITS = 8


def stored_width(width: int, output_dtype: str) -> int:
    """Return how many numbers, or bytes of bits, so many dimensions are stored as."""
    return width // BITS if output_dtype == BINARY else width


def stored_type(output_dtype: str) -> np.dtype:
    """Return the type of each of them."""
    return np.dtype(np.uint8 if output_dtype == BINARY else output_dtype)


def quantized(values: np.ndarray, output_dtype: str) -> np.ndarray:
    """Return dimensions, (..., width) float32, as they are stored: (..., stored width), contiguous."""
    if output_dtype == BINARY:
        return np.packbits(values > 0, axis=-1)
    return np.ascontiguousarray(values, dtype=output_dtype)


def dequantize(values: np.ndarray) -> np.ndarray:
    """Return what is stored as floats.

    Args:
        values: (rows, width / 8) uint8, or with other leading dimensions: signs of a folder or an `Embedder` with
            ``output_dtype="binary"``; or floats.

    Returns:
        (rows, width) float32, 1 for a dimension above zero and else -1; floats as they are.

    Raises:
        ValueError: numbers of another type.
    """
    values = np.asarray(values)
    if values.dtype.kind == "f":
        return values
    if values.dtype != np.uint8:
        raise ValueError(f"signs are stored as bytes (uint8), and these numbers are {values.dtype}")
    return np.unpackbits(values, axis=-1).astype(np.float32) * 2 - 1


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

"""From pooled float32 arrays to what is stored: levels cut, normalised, cast, as Arrow columns.

``pyarrow.array`` imports pandas wherever that is installed, to see whether it was given one of its columns: a third
of a second that a small job does not have. Columns are made from their buffers instead, which also copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa

from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.quantization import quantized, stored_type, stored_width


def finish(
    values: np.ndarray, width: int, options: EmbeddingOptions, first: int = 0, grid: np.ndarray | None = None
) -> np.ndarray:
    """Cut an embedding, (..., widest) float32, to what is stored of it: (..., width) of ``options.output_dtype``.

    Of ``binary`` it is (..., width / 8) uint8; of ``int8``, places on the ``grid``, which is that of all dimensions.

    A zero vector stays zero when normalised. ``first`` dimensions are left out, which then are in another column.
    """
    cut = values[..., first : first + width]
    if options.normalize:
        length = np.linalg.norm(cut, axis=-1, keepdims=True)
        cut = cut / np.where(length > 0, length, 1)
    return quantized(cut, options.output_dtype, None if grid is None else grid[:, first : first + width])


def why_not_stored(values: np.ndarray, widths: Mapping[str, int], options: EmbeddingOptions) -> str | None:
    """Say why an embedding cannot be stored as asked, None where it can: numbers beyond the dtype's range cannot."""
    if not np.isfinite(values).all():
        return f"its embedding is not finite in {options.dtype}: use --dtype float32 or bfloat16"
    if options.output_dtype == "float16" and not options.normalize:
        # Every smaller level is a prefix of the widest: one look is enough.
        largest = float(np.abs(values[..., : max(widths.values())]).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            return f"its embedding reaches {largest:.3g}, beyond float16: use --output-dtype float32"
    return None


def value_type(width: int, options: EmbeddingOptions) -> pa.DataType:
    """Return the Arrow type of one record's embedding: a fixed-size list, or a list of them for several rows."""
    dtype = options.output_dtype
    vector = pa.list_(pa.from_numpy_dtype(stored_type(dtype)), stored_width(width, dtype))
    return vector if options.one_row else pa.list_(vector)


def value_column(rows: np.ndarray, offsets: np.ndarray | None = None) -> pa.Array:
    """Make a column that shares the memory of vectors, (n, width) contiguous: one a record, or those between offsets.

    Args:
        rows: of all records, in their order.
        offsets: (records + 1,) where the rows of each record begin and the last ones end.
    """
    flat, kind = numbers(rows.reshape(-1)), pa.list_(pa.from_numpy_dtype(rows.dtype), rows.shape[1])
    vectors = pa.FixedSizeListArray.from_arrays(flat, type=kind)
    return vectors if offsets is None else pa.ListArray.from_arrays(_offsets(np.diff(offsets)), vectors)


def to_arrow(
    values: Sequence[np.ndarray],
    width: int,
    options: EmbeddingOptions,
    first: int = 0,
    grid: np.ndarray | None = None,
) -> pa.Array:
    """Make one column for records whose embeddings are (widest,) or (rows, widest) float32 each; see :func:`finish`."""
    if not values:
        return pa.nulls(0, value_type(width, options))
    if options.one_row:
        return value_column(finish(np.stack(values), width, options, first, grid))
    # Cut, normalised and cast record by record, so that only one float32 copy of a long protein is about.
    rows = np.concatenate([finish(rows, width, options, first, grid) for rows in values])
    return value_column(rows, np.cumsum([0, *map(len, values)]))


def numbers(values: np.ndarray, valid: np.ndarray | None = None) -> pa.Array:
    """Make a column of numbers that shares the memory of an array, (n,) contiguous; ``valid`` is False for nulls."""
    bits = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [bits, pa.py_buffer(values)])


def texts(values: Sequence[str]) -> pa.Array:
    """Make a column of text."""
    encoded = [value.encode() for value in values]
    buffers = [None, _offsets([len(value) for value in encoded]).buffers()[1], pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.string(), len(encoded), buffers)


def integer_lists(values: Sequence[Sequence[int]]) -> pa.Array:
    """Make a column of lists of int32."""
    flat = np.fromiter(chain.from_iterable(values), np.int32)
    return pa.ListArray.from_arrays(_offsets([len(value) for value in values]), numbers(flat))


def _offsets(lengths: Sequence[int] | np.ndarray) -> pa.Array:
    """Where each of n lists begins and the last one ends: (n + 1,) int32, as Arrow has it."""
    ends = np.cumsum([0, *lengths], dtype=np.int64)
    if ends[-1] > np.iinfo(np.int32).max:
        raise OverflowError(f"{ends[-1]:,} items do not fit in a column: use a smaller --part-records")
    return numbers(ends.astype(np.int32))

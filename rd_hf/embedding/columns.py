"""From pooled float32 arrays to what is stored: levels cut, normalised, cast, as Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from rd_hf.embedding.options import EmbeddingOptions


def finish(values: np.ndarray, width: int, options: EmbeddingOptions) -> np.ndarray:
    """The first ``width`` dimensions of an embedding as they are stored.

    Args:
        values: (..., widest) float32.
        width: of the level.
        options: normalisation and dtype.

    Returns:
        (..., width) of ``options.output_dtype``. A zero vector stays zero when normalised.
    """
    cut = values[..., :width]
    if options.normalize:
        length = np.linalg.norm(cut, axis=-1, keepdims=True)
        cut = cut / np.where(length > 0, length, 1)
    return np.ascontiguousarray(cut, dtype=options.output_dtype)


def why_not_stored(values: np.ndarray, widths: Mapping[str, int], options: EmbeddingOptions) -> str | None:
    """Why an embedding cannot be stored as asked, or None: numbers beyond the dtype's range are not let through."""
    if not np.isfinite(values).all():
        return f"its embedding is not finite in {options.dtype}: use --dtype float32 or bfloat16"
    if options.output_dtype == "float16" and not options.normalize:
        # Every smaller level is a prefix of the widest: one look is enough.
        largest = float(np.abs(values[..., : max(widths.values())]).max(initial=0.0))
        if largest > float(np.finfo(np.float16).max):
            return f"its embedding reaches {largest:.3g}, beyond float16: use --output-dtype float32"
    return None


def value_type(width: int, options: EmbeddingOptions) -> pa.DataType:
    """Arrow type of one record's embedding: fixed-size list, or a list of them where there is a row a residue."""
    vector = pa.list_(pa.from_numpy_dtype(np.dtype(options.output_dtype)), width)
    return vector if options.one_row else pa.list_(vector)


def to_arrow(values: Sequence[np.ndarray], width: int, options: EmbeddingOptions) -> pa.Array:
    """One level's column for records whose embeddings are (widest,) or (rows, widest) float32 each."""
    kind = value_type(width, options)
    if not values:
        return pa.array([], type=kind)
    if options.one_row:
        return pa.FixedSizeListArray.from_arrays(finish(np.stack(values), width, options).reshape(-1), type=kind)
    offsets = np.concatenate(([0], np.cumsum([len(rows) for rows in values]))).astype(np.int32)
    # Cut, normalised and cast record by record, so that only one float32 copy of a long protein is about.
    flat = np.concatenate([finish(rows, width, options).reshape(-1) for rows in values])
    return pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(flat, type=kind.value_type), type=kind)

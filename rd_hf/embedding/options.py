"""What is embedded and how: the choices that decide an embedding's values. Imports nothing heavy."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from rd_hf.model.pooling_rd_esm import MAX_RESIDUES as MAX_RESIDUES
from rd_hf.model.pooling_rd_esm import OVERLAP as OVERLAP

POOLINGS = ("mean", "max", "cls", "residue", "positions")
# What the model computes in unless a user names another: one for every entry point, level and device, so that the same
# protein has the same numbers wherever it is embedded.
DTYPE = "float32"
MODEL_DTYPES = ("float32", "bfloat16", "float16")
# What versions up to 0.2 had for "whichever is measured to be faster".
OLD_DTYPE = "auto"
AUTO_MEANS = (
    f"dtype {OLD_DTYPE!r} means {DTYPE} now, which every level, command and device computes in unless told otherwise: "
    f"leave it out, or name {', '.join(MODEL_DTYPES[:-1])} or {MODEL_DTYPES[-1]}"
)
OUTPUT_DTYPES = ("float32", "float16")
LONG_POLICIES = ("error", "truncate", "window")


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """How sequences become embeddings.

    Attributes:
        levels: levels of the family to return, all cut from one pass of the largest; empty means the largest
            that the model has.
        pooling: ``mean`` or ``max`` over residues (never cls, eos or padding), ``cls``, ``residue`` (one row a
            residue) or ``positions`` (one row for each position asked for).
        positions: residues to return with pooling ``positions``, counted from 1 as in mutation names; a job may
            name others for each record.
        dtype: what the model computes in. Pooling and the projections compute in float32 whichever it is.
        output_dtype: what is stored. Arrow has no bfloat16: float32 holds its values exactly.
        normalize: divide each vector by its Euclidean length, each level for itself.
        long: what happens to a sequence of more than ``max_length`` residues. ``window``: overlapping windows,
            merged with tapered weights; ``truncate``: the first ``max_length`` residues; ``error``: rejected.
        max_length: longest sequence, in residues, that the model sees at once.
        overlap: least number of residues that neighbouring windows share.
        batch_tokens: tokens a batch, padding included; by default what suits the device.
        width: dimensions to return, the first of the embedding: of the level given, or of the whole family. No backbone
            beyond the smallest level that has so many runs.
        whiten: scale and weigh each level's block by the statistics that the model holds, see
            :mod:`rd_hf.model.whitening_rd_esm`; before anything is cut or normalised.

    Raises:
        ValueError: an unknown choice, or numbers that do not fit together.
    """

    levels: tuple[str, ...] = ()
    pooling: str = "mean"
    positions: tuple[int, ...] = ()
    dtype: str = DTYPE
    output_dtype: str = "float32"
    normalize: bool = False
    long: str = "window"
    max_length: int = MAX_RESIDUES
    overlap: int = OVERLAP
    batch_tokens: int | None = None
    width: int | None = None
    whiten: bool = False

    def __post_init__(self) -> None:
        if self.dtype == OLD_DTYPE:
            warnings.warn(AUTO_MEANS, FutureWarning, stacklevel=3)
            object.__setattr__(self, "dtype", DTYPE)
        if self.output_dtype == "bfloat16":
            raise ValueError("Arrow has no bfloat16: store float32, which holds bfloat16 values exactly, or float16")
        for name, allowed in (
            ("pooling", POOLINGS),
            ("dtype", MODEL_DTYPES),
            ("output_dtype", OUTPUT_DTYPES),
            ("long", LONG_POLICIES),
        ):
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {value!r}")
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels must differ, got {', '.join(self.levels)}")
        if self.max_length < 1:
            raise ValueError(f"max_length must be positive, not {self.max_length}")
        if self.long == "window" and not 0 <= self.overlap < self.max_length:
            raise ValueError(f"overlap must be at least 0 and below max_length {self.max_length}, not {self.overlap}")
        if self.batch_tokens is not None and self.batch_tokens < 1:
            raise ValueError(f"batch_tokens must be positive, not {self.batch_tokens}")
        if self.width is not None and self.width < 1:
            raise ValueError(f"width must be positive, not {self.width}")
        if self.width is not None and len(self.levels) > 1:
            raise ValueError(
                f"width {self.width} cuts one embedding, and levels {', '.join(self.levels)} are several: give one "
                "level or none"
            )
        if any(position < 1 for position in self.positions):
            raise ValueError(f"positions count residues from 1, got {min(self.positions)}")
        if self.positions and self.pooling != "positions":
            raise ValueError(f"positions are given, but pooling is {self.pooling!r}: set pooling to 'positions'")

    @property
    def one_row(self) -> bool:
        """Whether a sequence becomes one vector (mean, max, cls) rather than one a residue or position."""
        return self.pooling in ("mean", "max", "cls")

    def column(self, level: str) -> str:
        """Column that holds a level: ``embedding``, or ``embedding_<level>`` where several were asked for."""
        return f"embedding_{level}" if len(self.levels) > 1 else "embedding"

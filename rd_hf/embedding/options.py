"""What is embedded and how: the choices that decide an embedding's values. Imports nothing heavy."""

from __future__ import annotations

import argparse
import warnings
from dataclasses import dataclass

from rd_hf.flags import flag
from rd_hf.model.pooling_rd_esm import MAX_RESIDUES, OVERLAP, POOLINGS, pooling_named
from rd_hf.options import check_options, option, whole

# What the model computes in unless a user names another: one for every entry point, level and device, so that the same
# protein has the same numbers wherever it is embedded.
DTYPE = "float32"
# What versions up to 0.2 had for "whichever is measured to be faster".
OLD_DTYPE = "auto"
# What is stored; of int8 a place on the model's grid, of binary the sign of each whitened dimension, eight in a byte.
INT8, BINARY = BYTES = ("int8", "binary")
OUTPUT_DTYPES = ("float32", "float16", *BYTES)
# How vectors lie in columns: whole, or what each level adds in a column of its own. What is not said is PLAIN.
PLAIN, BLOCKS = LAYOUTS = ("plain", "blocks")
# Whether layers are compiled; what a manifest does not say is "off".
COMPILE = (AUTO, ON, OFF) = ("auto", "on", "off")
COMPILE_MEANS = (
    ": on, off (default; what is gone on with or extended keeps what it has), or auto (on a GPU, where the input is "
    "large enough to be worth the minute it takes). Last digits differ"
)
# As rd-hf search has them; it also whitens by the database, which an embedding job has none of.
WHITENED = {"model": True, "none": False}


class _ModelDtypes(tuple):
    """Names of dtypes; the one of earlier versions is still taken, and not listed."""

    def __contains__(self, name: object) -> bool:
        return name == OLD_DTYPE or super().__contains__(name)


MODEL_DTYPES = _ModelDtypes(("float32", "bfloat16", "float16"))
AUTO_MEANS = (
    f"dtype {OLD_DTYPE!r} means {DTYPE} now, which every level, command and device computes in unless told otherwise: "
    f"leave it out, or name {', '.join(MODEL_DTYPES[:-1])} or {MODEL_DTYPES[-1]}"
)


def whitened(word: str) -> bool:
    """Whether vectors are whitened, of the word that was typed."""
    if word not in WHITENED:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(WHITENED)}")
    return WHITENED[word]


@dataclass(frozen=True, slots=True)
class EmbeddingOptions:
    """How sequences become embeddings.

    Raises:
        ValueError: an unknown choice, or numbers that do not fit together.
    """

    levels: tuple[str, ...] = flag(
        "level",
        (),
        " or several, all cut from one run of the largest (default: the model's largest). Smaller levels are the "
        "first dimensions of larger ones, so one level is enough unless vectors are normalised",
    )
    pooling: str = flag(
        "pooling",
        "mean",
        ": mean or max (never of cls, eos or padding), cls in their place, residue (a row for each), or positions (of "
        "those)",
        choices=POOLINGS,
    )
    positions: tuple[int, ...] = option(
        (),
        "residues to return with pooling positions, counted from 1; a table may name others for each record",
        kind=whole(1),
    )
    dtype: str = flag(
        "dtype",
        DTYPE,
        f", on every device and at every level (default {DTYPE}; a folder that is gone on with or extended keeps its "
        "own). bfloat16 is faster on GPUs, and on CPUs that have it in hardware; appended columns then differ by a few "
        "per cent, see the README. Pooling and projections compute in float32",
        choices=MODEL_DTYPES,
    )
    compile: str | None = flag("compile", None, COMPILE_MEANS, choices=COMPILE)
    output_dtype: str = flag(
        "output_dtype",
        "float32",
        "; float32 holds bfloat16's values exactly, which Arrow lacks; int8 is a place on a grid that comes with the "
        "model, binary the sign of each whitened dimension, eight in a byte (it whitens by itself)",
        choices=OUTPUT_DTYPES,
    )
    layout: str = flag(
        "layout", PLAIN, ", so that a smaller level is read without the bytes of larger ones", choices=LAYOUTS
    )
    normalize: bool = flag("normalize", False)
    long: str = option(
        "window",
        "sequences beyond --max-length: window (overlapping windows, merged with tapered weights; the default, since "
        "no residue and no record is lost and the cost stays linear in length), truncate (the first residues only) or "
        "error (to the rejects)",
        choices=("error", "truncate", "window"),
    )
    max_length: int = flag("max_length", MAX_RESIDUES, "; what becomes of a longer sequence says --long")
    overlap: int = option(OVERLAP, "residues that neighbouring windows share at least", kind=whole(0))
    batch_tokens: int | None = flag(
        "batch_tokens",
        None,
        " (default: 2,048 on a CPU, as its memory allows on a GPU); halved when a batch does not fit in memory",
    )
    width: int | None = option(
        None,
        "the first N dimensions alone, of the level given or the family: backbones beyond those that it needs stay out",
        kind=whole(1),
    )
    whiten: bool = flag(
        "whiten",
        False,
        ": centre, scale and weigh it by what came with the model, before anything is cut or normalised; the folder is "
        "never mixed with a plain one (default none; --whiten alone is --whiten model)",
        kind=whitened,
        nargs="?",
        const=True,
        metavar=f"{{{','.join(WHITENED)}}}",
    )

    def __post_init__(self) -> None:
        if self.dtype == OLD_DTYPE:
            warnings.warn(AUTO_MEANS, FutureWarning, stacklevel=3)
            object.__setattr__(self, "dtype", DTYPE)
        if self.output_dtype == "bfloat16":
            raise ValueError("Arrow has no bfloat16: store float32, which holds bfloat16 values exactly, or float16")
        check_options(self)
        if len(set(self.levels)) != len(self.levels):
            raise ValueError(f"levels must differ, got {', '.join(self.levels)}")
        if self.long == "window" and not self.overlap < self.max_length:
            raise ValueError(f"overlap must be at least 0 and below max_length {self.max_length}, not {self.overlap}")
        if self.width is not None and len(self.levels) > 1:
            raise ValueError(
                f"width {self.width} cuts one embedding, and levels {', '.join(self.levels)} are several: give one "
                "level or none"
            )
        if self.output_dtype == INT8:
            if self.normalize:
                raise ValueError(
                    "int8 is of plain or whitened dimensions, whose grids a fit stores, and normalize scales each "
                    "vector by a length of its own: leave one of them away"
                )
            if self.pooling in ("max", "cls"):
                raise ValueError(
                    f"int8 has grids of residues and of their means, and none of pooling {self.pooling!r}: choose "
                    "pooling 'mean', 'residue' or 'positions', or store float16"
                )
        if self.output_dtype == BINARY:
            if self.normalize:
                raise ValueError("binary keeps signs, which have no length to normalize: leave one of them away")
            if self.pooling == "max":
                raise ValueError(
                    "binary keeps signs, and the largest of many residues is above zero nearly everywhere: choose "
                    "pooling 'mean', or store float16"
                )
            # About zero, and each as likely as the other: signs of plain dimensions say little.
            object.__setattr__(self, "whiten", True)
        if self.layout == BLOCKS and self.normalize:
            raise ValueError(
                "normalize scales each level by itself, and in layout 'blocks' levels share their columns: leave one "
                "of them away"
            )
        if self.positions and not self.takes_positions:
            raise ValueError(f"positions are given, but pooling is {self.pooling!r}: set pooling to 'positions'")

    @property
    def one_row(self) -> bool:
        """Whether a sequence becomes one vector, and not one per residue or position."""
        return pooling_named(self.pooling).one_row

    @property
    def commutes(self) -> bool:
        """Whether pooling before a basis or a whitening gives what pooling after it gives."""
        return pooling_named(self.pooling).affine

    @property
    def takes_positions(self) -> bool:
        """Whether each sequence comes with the positions whose rows are wanted."""
        return self.pooling == "positions"

    def column(self, level: str) -> str:
        """Column that holds a level: ``embedding``, or ``embedding_<level>`` where several were asked for."""
        return f"embedding_{level}" if len(self.levels) > 1 else "embedding"

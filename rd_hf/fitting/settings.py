"""What a fit is asked to do, and what it did. Imports nothing heavy: the command's arguments are made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rd_hf.embedding.options import COMPILE, COMPILE_MEANS, DTYPE
from rd_hf.flags import FOLDER, READS, flag
from rd_hf.options import check_options, option, real, whole

if TYPE_CHECKING:
    from rd_hf.bases.chain import FitReport
    from rd_hf.bases.regression import RegressionKind

# Tokens of a batch where nobody names a number, and no GPU's memory says it.
CPU_FIT_TOKENS = 4096


@dataclass(frozen=True)
class FitOptions:
    """The choices that decide a fit's sample and its bases.

    Attributes:
        residual_directions: how many each level after the first keeps; None is what the family's config says, by
            default the paper's k_i - k_(i-1).
        one_pass: layers of the largest backbone, beside its final state, that the nested embedding is read out of
            too; None for no readout.
    """

    num_sequences: int | None = flag("num_sequences", None, " out of the distinct ones (default: all)")
    seed: int = flag("seed", 0, ": the sample and its held-out part", kind=int)
    heldout_fraction: float = option(0.1, "share kept out of the fit to judge it", kind=real(0, below=1))
    regression: RegressionKind = option(
        "pcr",
        "of the larger level on the smaller: principal components above the noise edge (default), all, or ridge",
        choices=("pcr", "ols", "ridge"),
    )
    ridge_alpha: float = option(1.0, "penalty of the ridge regression", kind=real(above=0))
    residual_directions: tuple[int, ...] | None = None
    max_length: int = flag("max_length", 1022, "; of a longer sequence the first ones are used")
    batch_tokens: int | None = flag(
        "batch_tokens",
        None,
        " (default: 4,096 on a CPU, as its memory allows on a GPU); an unfinished fit keeps its own",
    )
    one_pass: tuple[int, ...] | None = None
    block_weights: tuple[float, ...] | None = flag(
        "block_weights",
        None,
        ", by which --whiten of embed and search multiplies it: one number per level (default: chosen without labels, "
        "so that each level judges as its backbone does)",
        kind=real(0),
        nargs="+",
    )

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class FitSettings:
    """A whole fit: which family, on which sequences, and where the model goes.

    Attributes:
        options: of the fit; its ``residual_directions`` and ``one_pass`` follow from ``keep`` and ``one_pass`` here.
    """

    data: tuple[str, ...] = flag("input", MISSING, f": {READS}", nargs="+", required=True, former=("--data",))
    output: str | Path = flag("output", MISSING, f": {FOLDER}", kind=Path, required=True, metavar="DIR")
    config: str | None = flag(
        "config",
        None,
        ": rd-esm2-35M, -150M, -650M, -3B or -15B, rd-esmc-600M or -6B, rd-esm2-650M-esmc-600M, the "
        "carried rd-esm2-mini, a folder or a Hub id",
    )
    backbones: tuple[str, ...] = flag(
        "backbones",
        (),
        ", two or more, smallest first: Hub ids or folders, or layers of them; a reverse-distilled family, without "
        "NAME=, stands for all of its levels",
    )
    revision_of: tuple[str, ...] = option(
        (), "another commit of a level's backbone than the one that --config pins", metavar="LEVEL=COMMIT"
    )
    resume: bool = option(False, "without effect: a fit goes on by itself", hidden=True)
    sequence_column: str | None = flag("sequence_column", None, " (default: sequence, ...)")
    keep: tuple[str | int, ...] = option(
        (),
        "residual directions each level after the first keeps: one number per level, or 'all', which loses nothing "
        "(default: as --config says, or as the widths grow by; where they do not grow, it must be given)",
        metavar="N",
    )
    one_pass: tuple[int, ...] | None = flag(
        "one_pass",
        None,
        ", too: out of these layers of it (0 is what the "
        "first is given) and its final state; by default four, evenly spread. Each takes a backbone's width more of "
        "the moments, whose memory and state on disk grow with the square of all widths: four layers and all levels "
        "take 0.5 GB per set of residues at 650M and 1.9 GB at 3B, and there are up to four sets (at most 16 GiB in "
        "all: two layers at 15B)",
        kind=whole(0),
        nargs="*",
        metavar="LAYER",
    )
    form: str | None = option(
        None,
        "save bases only, or backbones too (default: as --config says; of --backbones, full where one of them is a "
        "folder)",
        choices=("bases", "full"),
    )
    max_shard_size: int | str = option("5GB", "largest file of weights to write", metavar="SIZE")
    dtype: str = flag("dtype", DTYPE, choices=("float32", "bfloat16"))
    compile: str | None = flag("compile", None, COMPILE_MEANS, choices=COMPILE)
    group_tokens: int | None = flag(
        "group_tokens",
        None,
        ": hold one backbone at a time, loaded anew for every group of batches of N tokens, whose states (all widths, "
        "4 or 2 bytes each) are held meanwhile (default: hold all backbones)",
        former=("--window-tokens",),
    )
    checkpoint_seconds: float = option(60.0, "between two saves of the state", kind=real(0))
    options: FitOptions = FitOptions()

    def __post_init__(self) -> None:
        check_options(self)
        if (self.config is None) == (not self.backbones):
            raise ValueError("a fit needs either config or backbones, and not both")
        tokens = self.options.batch_tokens or CPU_FIT_TOKENS
        if self.group_tokens is not None and self.group_tokens < tokens:
            raise ValueError(f"--group-tokens {self.group_tokens:,} must be at least --batch-tokens {tokens:,}")
        if self.group_tokens is not None and self.form == "full":
            raise ValueError("--group-tokens holds no backbones that --form full could save: save bases only")
        for word in () if self.keep == ("all",) else self.keep:
            if not str(word).removeprefix("-").isdecimal():
                raise ValueError(f"--keep {word} is neither a number of directions nor 'all'")
        for word in self.revision_of:
            if not all(word.partition("=")):
                raise ValueError(f"--revision-of {word}: write it as LEVEL=COMMIT, for example 3B=476b639933c8")


@dataclass(frozen=True)
class FitSummary:
    """What a fit did; as text, tables to judge it by."""

    output: str
    reports: tuple[FitReport, ...] = ()  # per level, smallest first; none where an earlier run had finished the fit

    def __str__(self) -> str:
        if not self.reports:
            return f"{self.output} holds a finished fit; nothing is left to do"
        read = [report.one_pass for report in self.reports if report.one_pass and report.one_pass.strength is not None]
        lines = _table(_LEVELS, [_level_cells(report) for report in self.reports])
        if read:
            cells = [(r.level, f"{r.strength:.0e}", r.state_r2, r.block_r2, r.level_r2, r.cosine) for r in read]
            lines += _table(_ONE_PASS, cells)
        return "\n".join((*lines, f"saved to {self.output}"))


# Columns of the tables, and how wide they are.
_LEVELS = {"level": 8, "width": 6, "components": 12, "R2 fit": 8, "R2 held-out": 12, "residual kept": 14}
_LEVELS |= {"linear in prefix": 17, "left": 8, "best linear": 12}
_ONE_PASS = {"one pass": 8, "ridge": 7, "R2 of state": 12, "R2 of block": 12, "R2 of level": 12, "cosine": 7}


def _level_cells(report: FitReport) -> tuple[object, ...]:
    own, held = report.training, report.heldout
    if own is None:
        return report.level, report.nested_width, "(copied)"
    used = f"{report.selected_components} of {report.components}"
    judged = held or own
    explained = own.r2, held and held.r2, judged.residual_variance_kept
    decoded = own.block_r2, judged.reconstruction_error, judged.decoder_error
    return report.level, report.nested_width, used, *explained, *decoded


def _table(columns: Mapping[str, int], rows: Sequence[tuple[object, ...]]) -> list[str]:
    def text(cell: object) -> str:
        return "-" if cell is None else f"{cell:.4f}" if isinstance(cell, float) else str(cell)

    return [
        " ".join(f"{text(cell):>{width}}" for cell, width in zip(row, columns.values(), strict=False))
        for row in (tuple(columns), *rows)
    ]

"""What the studies are asked for: arguments of the evaluations that they are made of, and some of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rd_hf.evaluation.options import HALF, AssayOptions, EvaluationOptions, ResidueOptions
from rd_hf.options import option, whole

FIT_DATA = "FASTA, table or dataset the model's bases were fitted on"


@dataclass(frozen=True)
class AblationOptions(AssayOptions):
    """Ablations of one family."""

    model: tuple[str, ...] = option((), "the family: folder or Hub id", nargs=1, required=True)
    study: tuple[str, ...] = option((), "which ablations (default: all)")
    fit_data: tuple[str, ...] = option((), FIT_DATA, required=True)
    sizes: tuple[int, ...] = option(
        (500, 1000, 2000, 5000), "of the sequences study; beyond all: left out", kind=whole(1)
    )
    seeds: int = option(1, "repeats of the random folds", kind=whole(1))
    representations: tuple[str, ...] = ("raw",)
    splits: tuple[str, ...] = ("random",)
    low_n: tuple[int, ...] = ()
    control: bool = False


@dataclass(frozen=True)
class AnglesOptions(EvaluationOptions):
    """Principal angles between levels."""

    model: tuple[str, ...] = option((), "the family: folder or Hub id", nargs=1, required=True)
    fit_data: tuple[str, ...] = option((), FIT_DATA, required=True)
    dimensions: tuple[int, ...] = option(
        (4, 16, 32, 48),
        "how many of each level's first; as many as the smaller is wide, and more: left out",
        kind=whole(1),
    )
    representations: tuple[str, ...] = ("rd", "pca")


@dataclass(frozen=True)
class BlockOptions(ResidueOptions):
    """What the residual blocks of one family hold."""

    model: tuple[str, ...] = option((), "reverse-distilled family: folder or Hub id", nargs=1, required=True)
    fit_data: tuple[str, ...] = option((), FIT_DATA, required=True)
    secondary_structure: Path | None = option(None, "folder of FLIP's splits.zip", kind=Path, required=True)


@dataclass(frozen=True)
class FrontierOptions(AssayOptions):
    """Cost against score."""

    model: tuple[str, ...] = option((), "reverse-distilled families: folders or Hub ids", required=True)
    variants: int | None = option(
        None, "draw at most N variants of each assay (default: all)", kind=whole(1), metavar="N"
    )
    seeds: int = option(3, "repeats of the random folds", kind=whole(1))
    threads: int | None = option(1, "threads that embed, and are timed", kind=whole(1))
    representations: tuple[str, ...] = ("raw", "rd")
    splits: tuple[str, ...] = ("random",)
    low_n: tuple[int, ...] = ()
    control: bool = False


@dataclass(frozen=True)
class WidthOptions(AssayOptions):
    """Score against width."""

    assays: tuple[Path, ...] = option((), "CSV files in ProteinGym's format, or folders of them", kind=Path)
    data: Path | None = option(None, "folder with one FASTA file of SCOP domains", kind=Path)
    fit_data: tuple[str, ...] = option((), FIT_DATA, required=True)
    widths: tuple[int, ...] = option((), "where to cut (default: where levels end, and below)", kind=whole(1))
    seeds: int = option(1, "repeats of every split", kind=whole(1))
    low_n: tuple[int, ...] = option((96,), "training variants of the low-n panels (96)", kind=whole(1), nargs="*")
    threads: int | None = option(HALF, "threads that embed and rank (default: half the cores)", kind=whole(1))
    representations: tuple[str, ...] = ("raw", "rd", "rd_all")
    splits: tuple[str, ...] = ("random",)
    control: bool = False

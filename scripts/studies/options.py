"""What the studies are asked for: arguments of the evaluations that they are made of, and some of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rd_hf.evaluation.options import FITTED_ON, HALF, SCANS, AssayOptions, EvaluationOptions, ResidueOptions
from rd_hf.flags import flag
from rd_hf.options import option, whole

FIT_DATA = f" that {FITTED_ON}: FASTA, a table or a Hub dataset"


@dataclass(frozen=True)
class OneSplitOptions(AssayOptions):
    """A study that probes in random folds alone."""

    representations: tuple[str, ...] = ("raw",)
    splits: tuple[str, ...] = ("random",)
    low_n: tuple[int, ...] = ()
    control: bool = False


@dataclass(frozen=True)
class AblationOptions(OneSplitOptions):
    """Ablations of one family."""

    model: tuple[str, ...] = flag("model", (), ": folder or Hub id", nargs=1, required=True)
    study: tuple[str, ...] = option((), "which ablations (default: all)", metavar="NAME")
    fit_data: tuple[str, ...] = flag("input", (), FIT_DATA, required=True, former=("--fit-data",))
    sizes: tuple[int, ...] = option(
        (500, 1000, 2000, 5000), "fits of the sequences study; beyond all: left out", kind=whole(1)
    )
    seeds: int = flag("repeats", 1, former=("--seeds",))


@dataclass(frozen=True)
class AnglesOptions(EvaluationOptions):
    """Principal angles between levels."""

    model: tuple[str, ...] = flag("model", (), ": folder or Hub id", nargs=1, required=True)
    fit_data: tuple[str, ...] = flag("input", (), FIT_DATA, required=True)
    dimensions: tuple[int, ...] = option(
        (4, 16, 32, 48),
        "how many of each level's first; as many as the smaller is wide, and more: left out",
        kind=whole(1),
    )
    representations: tuple[str, ...] = ("rd", "pca")


@dataclass(frozen=True)
class BlockOptions(ResidueOptions):
    """What the residual blocks of one family hold."""

    model: tuple[str, ...] = flag("model", (), ": folder or Hub id", nargs=1, required=True)
    secondary_structure: Path | None = option(
        None, "folder of FLIP's splits.zip", kind=Path, required=True, metavar="DIR"
    )
    data: Path | None = flag("domains", None, kind=Path)


@dataclass(frozen=True)
class FrontierOptions(OneSplitOptions):
    """Cost against score."""

    model: tuple[str, ...] = flag("model", (), " or several: folders or Hub ids", required=True)
    variants: int | None = flag("variants", None, " (default: all)")
    seeds: int = flag("repeats", 3, former=("--seeds",))
    threads: int | None = flag("threads", 1, " that embed, and are timed")
    representations: tuple[str, ...] = ("raw", "rd")


@dataclass(frozen=True)
class WidthOptions(AssayOptions):
    """Score against width."""

    assays: tuple[Path, ...] = flag("assays", (), SCANS, kind=Path)
    data: Path | None = flag("domains", None, kind=Path, former=("--data",))
    fit_data: tuple[str, ...] = flag("input", (), FIT_DATA, required=True, former=("--fit-data",))
    widths: tuple[int, ...] = option((), "where to cut (default: where levels end, and below)", kind=whole(1))
    seeds: int = flag("repeats", 1, former=("--seeds",))
    low_n: tuple[int, ...] = flag("low_n", (96,), " (default: 96)", nargs="*")
    threads: int | None = flag("threads", HALF, " that embed and rank (default: half the cores)")
    representations: tuple[str, ...] = ("raw", "rd", "rd_all")
    splits: tuple[str, ...] = ("random",)
    control: bool = False


@dataclass(frozen=True)
class NestedOptions(OneSplitOptions):
    """Other blocks for the same prefix."""

    backbones: tuple[str, ...] = flag(
        "backbones",
        (),
        ", smallest first, each by its own name; layers of all but the first are read too",
        required=True,
    )
    layers: tuple[int, ...] = option((2, 4), "layers that are read beside the last", kind=whole(1))
    fit_data: tuple[str, ...] = flag("input", (), FIT_DATA, required=True)
    fit_sequences: int | None = flag("num_sequences", 2000, " out of --input")
    max_length: int = flag("max_length", 400, "; what is longer is cut")
    means: int = option(1000, "of which proteins, at most, the means are used too", kind=whole(2), metavar="N")
    variants: int = flag("variants", 375)
    longest_assay: int = option(120, "leave out assays of longer proteins", kind=whole(1), metavar="N")
    explore: bool = option(
        False, "probe every candidate on the other assays too, not only the chosen one", action="store_true"
    )
    development: int = flag("development", 10, ": the choice is made on them")
    data: Path | None = flag("domains", None, kind=Path)
    longest: int = option(
        150, "leave longer domains out, as queries and as answers", kind=whole(1), flags=("--longest-domain",)
    )
    seeds: int = flag("repeats", 1)


@dataclass(frozen=True)
class ReadoutOptions(OneSplitOptions):
    """Other readouts in one pass."""

    model: tuple[str, ...] = flag("model", (), " with a readout: folder or Hub id", nargs=1, required=True)
    fit_data: tuple[str, ...] = flag("input", (), FIT_DATA, required=True)
    fit_sequences: int | None = flag("num_sequences", 500, " out of --input")
    max_length: int = flag("max_length", 400, "; what is longer is cut")
    components: tuple[int, ...] = option((32, 64), "leading components whose products are read too", kind=whole(1))
    variants: int = flag("variants", 375)
    development: int = flag("development", 10, ": they alone are probed")
    seeds: int = flag("repeats", 1)

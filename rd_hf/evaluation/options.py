"""What evaluations are asked for, each option once: the commands' arguments are made of these fields.

Imports nothing heavy, since the commands' help is made of it too.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from rd_hf.flags import FOLDER, GPU, NAMES, flag
from rd_hf.options import check_options, option, real, whole

# Kinds of contenders, in the order of tables and legends.
KINDS = {
    "raw": "raw backbone",
    "rd": "reverse-distilled",
    "pca": "concatenation + PCA",
    "pca_chain": "chain of PCAs",  # the baseline of the first publication's code
    "concat": "concatenation",
    "one_pass": "read out in one pass",
    "rd_all": "reverse-distilled, all directions",
    "random": "random projection",
    "one_hot": "one-hot",
}
# Those that are fitted on sequences here, not read from the model.
FITTED_KINDS = ("pca", "pca_chain", "rd_all")
CONTENDERS = tuple(kind for kind in KINDS if kind not in {"one_pass", "pca_chain"})
EMBEDDINGS = tuple(kind for kind in CONTENDERS if kind != "one_hot")
POOLINGS = ("mean", "site", "difference")  # attributes of PooledStates
# ProteinGym's labelled folds, and the splits that are drawn here.
LABELLED_SPLITS = {"random": "fold_random_5", "modulo": "fold_modulo_5", "contiguous": "fold_contiguous_5"}
SPLITS = (*LABELLED_SPLITS, "by_mutations", "singles_to_multiples")
# What is looked for among homologues, and what is masked then.
MASKED = {"superfamily": "family", "fold": "superfamily"}
# Standardised features: the eigenvalues of X^T X sum to n p, from 24 x 64 up to 5,000 x 5,000 here, so that these
# reach from hardly any shrinkage to nearly the mean.
STRENGTHS = (
    *(0.01, 0.03162277660168379, 0.1, 0.31622776601683794, 1.0, 3.1622776601683795, 10.0, 31.622776601683793, 100.0),
    *(316.2277660168379, 1e3, 3162.2776601683795, 1e4, 31622.776601683792, 1e5, 316227.7660168379, 1e6),
)
# scikit-learn's ``C`` of logistic regression, from strong to weak, so that each fit starts from the last. The loss is
# summed over rows. A longer path does not come back once the loss of the rows that judge has risen so often.
INVERSE_STRENGTHS = tuple(10.0**power for power in range(-5, 3))
RISES = 2
HALF = max(1, (os.cpu_count() or 1) // 2)
# Arguments of every evaluation, by the group of the help that they stand in.
FIT = ("fit_data", "fit_sequences", "fit_seed")
RUN = ("device", "batch_tokens", "cache")


SCANS = ": CSV files in ProteinGym's format (mutant, mutated_sequence, DMS_score), or folders of them"
FITTED_ON = "the model's bases were fitted on"


@dataclass(frozen=True)
class EvaluationOptions:
    """Whose embeddings are judged, where the backbones run, and where results are written.

    Raises:
        ValueError: a value that is not allowed.
    """

    model: tuple[str, ...] = flag("model", (), f" or several, or plain ESM-2 models: {NAMES}")
    backbones: tuple[str, ...] = flag(
        "backbones",
        (),
        ", as rd-hf fit takes it, for example rd-esm2-mini 8M=my-esm2-8M; its bases are fitted on --input",
    )
    output: Path = flag("output", None, f", a report and its data: {FOLDER}", kind=Path, required=True, metavar="DIR")
    representations: tuple[str, ...] = flag("representations", CONTENDERS, f" (default: {' '.join(CONTENDERS)})")
    depth: tuple[float, ...] = option(
        (1.0,),
        "relative depth of the backbone layer: 1 is the final state (default), 0.5 half-way; other depths than 1 "
        "refit the bases on --input",
        kind=real(0, most=1),
    )
    fit_data: tuple[str, ...] = flag(
        "input",
        (),
        f" that {FITTED_ON}: FASTA, a table or a Hub dataset; pca, pca_chain and rd_all are fitted on them",
        former=("--fit-data",),
    )
    fit_sequences: int | None = flag(
        "num_sequences", None, " out of --input (default: as many as the model records)", former=("--fit-sequences",)
    )
    fit_seed: int | None = flag(
        "seed",
        None,
        ": sequences out of --input (default: as the model records, or 0)",
        kind=int,
        former=("--fit-seed",),
    )
    threads: int | None = flag("threads", None, " (default: all cores)")
    device: str | None = flag("device", None, f" {GPU}")
    batch_tokens: int = flag("batch_tokens", 4096)
    cache: Path | None = flag("cache", None, ", states of models (default: cache in --output)", kind=Path)
    seed: int = 0  # of the random projection

    def __post_init__(self) -> None:
        check_options(self)
        _check_names("representation", self.representations, KINDS)


@dataclass(frozen=True)
class ProbeOptions:
    """How a ridge probe's strength is chosen: by mean R^2 on folds of the training set."""

    strengths: tuple[float, ...] = STRENGTHS  # scikit-learn's alpha
    inner_folds: int = 5
    seed: int = 0  # of the inner folds

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"ridge strengths must be positive, got {self.strengths}")


@dataclass(frozen=True)
class AssayOptions(EvaluationOptions):
    """An evaluation on deep mutational scans."""

    assays: tuple[Path, ...] = flag("assays", (), SCANS, kind=Path, required=True)
    pooling: tuple[str, ...] = flag(
        "pooling",
        ("mean",),
        ": mean, or of the mutated positions alone their mean (site) or its difference to the wild type's "
        "(difference) (default mean)",
        choices=POOLINGS,
    )
    folds: Path | None = option(
        None, "ProteinGym's fold labels of single mutants (cv_folds_singles.tsv.gz)", kind=Path, metavar="FILE"
    )
    splits: tuple[str, ...] = option(
        ("random", "by_mutations", "singles_to_multiples"),
        "random, modulo, contiguous (ProteinGym's folds of single mutants; random is redrawn for each seed after "
        "the first), by_mutations (all variants), singles_to_multiples; default: all but modulo and contiguous",
        choices=SPLITS,
    )
    seeds: int = flag("repeats", 3, former=("--seeds",))
    low_n: tuple[int, ...] = flag("low_n", (24, 96, 384), " (default: 24 96 384)", nargs="*")
    inner_folds: int = option(5, "folds of what is learnt from, that choose the strength of a probe", kind=whole(2))
    control: bool = option(
        True, "leave out the shuffled-score control (kept by default)", flags=("--no-control",), action="store_false"
    )
    reference: Path | None = option(
        None, "ProteinGym's supervised Spearman table, quoted beside ours", kind=Path, metavar="FILE"
    )
    jobs: int = option(os.cpu_count() or 1, "processes that probe (default: all cores)", kind=whole(1))
    threads: int | None = flag("threads", HALF, " that embed meanwhile (default: half the cores)")

    @property
    def probe(self) -> ProbeOptions:
        """How the strength of a probe is chosen."""
        return ProbeOptions(inner_folds=self.inner_folds)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_names("pooling", self.pooling, POOLINGS)
        _check_names("split", self.splits, SPLITS)
        if self.low_n and min(self.low_n) < 2 * self.inner_folds:
            raise ValueError(f"low-n sizes start at {2 * self.inner_folds} variants, got {min(self.low_n)}")


@dataclass(frozen=True)
class ResidueOptions(EvaluationOptions):
    """An evaluation on single residues."""

    model: tuple[str, ...] = flag("model", (), f" or several, or plain ESM-2 models: {NAMES}", required=True)
    secondary_structure: Path | None = option(None, "folder of FLIP's splits.zip", kind=Path, metavar="DIR")
    metal_binding: Path | None = option(
        None, "folder of bindPredict's development and independent sets", kind=Path, metavar="DIR"
    )
    train_chains: int = option(400, "training chains drawn", kind=whole(1))
    validation_chains: int = option(100, "validation chains drawn", kind=whole(1))
    resamples: int = option(500, "bootstrap resamples of the test chains", kind=whole(1))
    inverse_strengths: tuple[float, ...] = INVERSE_STRENGTHS  # compared by log loss on the validation chains


@dataclass(frozen=True)
class HomologyOptions(EvaluationOptions):
    """An evaluation on remote homologues."""

    data: Path = flag("domains", None, kind=Path, required=True, former=("--data",))
    representations: tuple[str, ...] = flag(
        "representations",
        EMBEDDINGS,
        f" (default: {' '.join(EMBEDDINGS)}); blocks of rd and rd_all come with them",
    )
    levels: tuple[str, ...] = option(
        tuple(MASKED),
        "what is looked for (default: superfamily fold)",
        choices=tuple(MASKED),
        flags=("--scop-level",),
        former=("--levels",),
    )
    max_length: int | None = option(
        None,
        "leave longer domains out, as queries and as answers",
        kind=whole(1),
        flags=("--longest-domain",),
        former=("--max-length",),
    )
    search: bool = option(
        True, "leave out the weights that labels choose (kept by default)", flags=("--no-search",), action="store_false"
    )


def _check_names(what: str, given: Collection[str], known: Collection[str]) -> None:
    unknown = [name for name in given if name not in known]
    if unknown or not given:
        raise ValueError(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")

"""What a training is asked to do, and what it found. Imports nothing heavy: the command's arguments are made of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from rd_hf.flags import FOLDER, GPU, NAMES, flag
from rd_hf.options import check_options, option, real, whole

TASKS = ("regression", "classification", "multi_label", "residues")
FEATURES = ("augmented", "embedding", "one_hot")
# In place of a column of groups.
SIMILARITY = "similarity"
# ProteinGym's ways to split variants by position.
SCHEMES = ("random", "modulo", "contiguous")
RULES = ("paired", "breiman", "best")
# What levels are judged by; the first of each task unless another is named.
SCORES = {
    "regression": ("spearman", "pearson", "r2"),
    "classification": ("accuracy", "balanced_accuracy", "macro_f1", "auroc"),
    "multi_label": ("auroc", "macro_f1"),
    "residues": ("accuracy", "balanced_accuracy", "macro_f1", "auroc"),
}


@dataclass(frozen=True)
class TrainingSettings:
    """A whole training: which model and labelled sequences, how it is judged, and where the checkpoint goes.

    Raises:
        ValueError: a value that is not allowed, or two that exclude each other.
    """

    model: str = flag("model", MISSING, f": {NAMES}", required=True)
    input: str = flag(
        "input",
        MISSING,
        " with what is known of them: CSV, TSV, JSON lines (compressed or not), Parquet, or a Hub dataset "
        "owner/name[:split]; FASTA where --target is a FASTA file of labels",
        required=True,
    )
    target: str = option(
        MISSING,
        "column with what is to be predicted: a number, a class, several labels with ; between them, or a string of "
        "classes of residues as long as the sequence; beside a FASTA file of sequences a FASTA file of such strings",
        required=True,
        metavar="COLUMN",
    )
    output: str | Path = flag(
        "output", MISSING, f": the trained checkpoint, {FOLDER}", kind=Path, required=True, metavar="DIR"
    )
    task: str | None = option(
        None,
        "what the target is: a number (regression), one of several classes (classification), any of several labels "
        "(multi_label), or a class for each residue (residues); by default it follows from the column, and is said",
        choices=TASKS,
    )
    unknown: str | None = option(
        None, "letter of residues whose class is not known, which are not learnt from", metavar="LETTER"
    )
    revision: str | None = flag("revision", None)
    sequence_column: str | None = flag("sequence_column", None, " (default: sequence, ...)")
    id_column: str | None = flag("id_column", None, " (default: id, name, ...)")
    mutant: str | None = option(
        None,
        "column with substitutions of one protein, such as A42G or A42G:K50R (WT for none), in place of sequences",
        metavar="COLUMN",
    )
    wild_type: str | None = option(
        None, "FASTA file with the one sequence that --mutant counts positions of, from 1", metavar="FILE"
    )
    features: str | None = option(
        None,
        "of --mutant: the embedding beside the substitutions themselves (augmented, the default for numbers), the "
        "embedding or the substitutions (one_hot) alone",
        choices=FEATURES,
    )
    scheme: str = option(
        "random",
        "how --mutant is split: at random (default), by position modulo the folds, or in contiguous stretches of "
        "positions, so that what is tested is substituted nowhere in what is learnt from",
        choices=SCHEMES,
    )
    split_column: str | None = option(
        None,
        "column that says of each row whether it is train, val or test (default: one called set or split, where its "
        "cells say so; 'none' for cross-validation all the same)",
        metavar="COLUMN",
    )
    group: str | None = option(
        None,
        "column of groups, such as families, that cross-validation keeps together; or 'similarity' for groups of "
        "similar sequences by MMseqs2, where it is installed (and no column has that name)",
        metavar="COLUMN",
    )
    folds: int = option(5, "folds of the cross-validation", kind=whole(2), flags=("--cv-folds",))
    inner_folds: int = option(5, "folds of what is learnt from, that choose the strength of a probe", kind=whole(2))
    seed: int = flag("seed", 0, ", the folds here", kind=whole(0))
    up_to: str | None = option(
        None, "largest level that runs, is judged and gets a head (default: the model's largest)", metavar="LEVEL"
    )
    level: str | None = flag("level", None, " that answers (default: the one that --rule chooses)")
    rule: str = option(
        "paired",
        "which level is enough: the smallest whose difference to the best is within one standard error of that "
        "difference over the same folds (paired), the smallest whose score is within one standard error of the best's "
        "(breiman, looser), or the best itself; default paired",
        choices=RULES,
    )
    score: str | None = option(
        None,
        "what levels are judged by: spearman (default), pearson or r2 of numbers; accuracy (default), "
        "balanced_accuracy, macro_f1 or auroc of classes; auroc (default) or macro_f1 of several labels",
        choices=tuple(dict.fromkeys(name for names in SCORES.values() for name in names)),
    )
    interval: float = option(0.9, "share of new numbers that intervals are to cover", kind=real(above=0, below=1))
    device: str | None = flag("device", None, f" {GPU}")
    batch_tokens: int | None = flag("batch_tokens", None, " (default: as the device takes them)")

    def __post_init__(self) -> None:
        check_options(self)
        if self.unknown is not None and len(self.unknown) != 1:
            raise ValueError(f"--unknown {self.unknown!r} must be one letter")
        if (self.mutant is None) != (self.wild_type is None):
            raise ValueError("--mutant names substitutions of the sequence in --wild-type: give both, or neither")
        for name in ("features", "scheme"):
            if self.mutant is None and getattr(self, name) not in (None, "random"):
                raise ValueError(f"--{name} is of variants of one protein: give --mutant and --wild-type")
        if self.mutant is not None and self.sequence_column is not None:
            raise ValueError("--mutant stands in place of sequences: give it or --sequence-column")
        if self.scheme != "random" and (self.group is not None or self.split_column not in (None, "none")):
            raise ValueError(f"--scheme {self.scheme} splits by position: leave --group and --split-column out")
        if self.group is not None and self.split_column not in (None, "none"):
            raise ValueError(
                "--group keeps groups together in cross-validation, and --split-column says which rows are tested: "
                "give one of them"
            )


@dataclass(frozen=True)
class TrainingSummary:
    """What a training found.

    Attributes:
        text: for people: the data, the table of levels, and what was chosen.
        output: the checkpoint's folder.
        level: that answers.
        scores: of each level, smallest first.
        finished_before: whether the folder held this training already.
    """

    text: str
    output: str
    level: str
    scores: dict[str, float]
    finished_before: bool = False

    def __str__(self) -> str:
        return self.text

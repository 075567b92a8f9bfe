"""Which variants train and which test: ProteinGym's folds where they are labelled, seeded ones elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from rd_hf.data.fasta import InputError
from rd_hf.evaluation.assays import MIN_VARIANTS, Assay, variant_name

OUTER_FOLDS = 5
LABELLED = {"random": "fold_random_5", "modulo": "fold_modulo_5", "contiguous": "fold_contiguous_5"}
SCHEMES = (*LABELLED, "by_mutations", "singles_to_multiples")
LOW_N = "low_n"

FoldLabels = Mapping[str, pd.DataFrame]


@dataclass(frozen=True)
class Fold:
    """One training and test set.

    Attributes:
        scheme: one of :data:`SCHEMES` or "low_n".
        repeat: seed of the draw; 0 of a labelled scheme is ProteinGym's own labelling.
        fold: number within the repeat.
        train, test: row numbers of the assay, int64, disjoint.
    """

    scheme: str
    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray


def read_fold_labels(path: str | Path) -> FoldLabels:
    """ProteinGym's labels of single mutants: for each DMS_id a frame indexed by :func:`variant_name`.

    Raises:
        InputError: no such file, a column or cell is missing, or a variant has two folds.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; leave --folds out to draw folds by seed")
    table = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", dtype={"DMS_id": str, "mutant": str})
    absent = {"DMS_id", "mutant", *LABELLED.values()} - set(table.columns)
    if absent:
        raise InputError(f"{path} lacks the column {', '.join(sorted(absent))}; it must label ProteinGym's folds")
    table = table[["DMS_id", "mutant", *LABELLED.values()]].drop_duplicates()
    empty = table.isna().any(axis=1)
    if empty.any():
        row = table.index[empty][0]
        raise InputError(f"{path}, row {row + 2}: a cell is empty; give the variant's assay, name and folds, or none")
    table = table.assign(mutant=table["mutant"].map(variant_name)).drop_duplicates()
    twice = table.duplicated(["DMS_id", "mutant"])
    if twice.any():
        row = table[twice].iloc[0]
        raise InputError(
            f"{path} gives {row['mutant']} of {row['DMS_id']} two different folds, which would put it in training and "
            "test at once; keep one"
        )
    return {str(name): group.set_index("mutant") for name, group in table.groupby("DMS_id")}


def _labelled(assay: Assay, labels: FoldLabels | None, scheme: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the labelled single mutants and their labels, or None where the assay has no labels."""
    if labels is None or assay.name not in labels:
        return None
    column = labels[assay.name][LABELLED[scheme]]
    names = [variant_name(mutant) for mutant in assay.mutants]
    rows = np.array([row for row, name in enumerate(names) if name in column.index], dtype=np.int64)
    if len(rows) < MIN_VARIANTS:
        return None
    return rows, column.loc[[names[row] for row in rows]].to_numpy()


def _seeded(rows: np.ndarray, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for train, test in KFold(OUTER_FOLDS, shuffle=True, random_state=seed).split(rows):
        yield rows[train], rows[test]


def folds(assay: Assay, scheme: str, repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Cross-validation folds of one scheme.

    - "random", "modulo", "contiguous": ProteinGym's five folds of the labelled single mutants. Random folds are
      drawn anew for each repeat after the first, which gives their spread; the other two are fixed by the
      sequence and have one repeat. Without labels, "random" is a seeded five-fold split of all variants and the
      other two are empty.
    - "by_mutations": seeded five-fold split of all variants of an assay that has multiple mutants.
    - "singles_to_multiples": train on every single mutant, test on every multiple one; one repeat.

    Args:
        repeats: how many seeded repeats, seeds 0 to repeats - 1.
        labels: what :func:`read_fold_labels` returned.

    Raises:
        ValueError: unknown scheme.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"unknown split {scheme!r}: choose from {', '.join(SCHEMES)}")
    every = np.arange(len(assay.mutants))
    counts = assay.mutation_counts
    result: list[Fold] = []
    if scheme in LABELLED:
        found = _labelled(assay, labels, scheme)
        if found is not None:
            rows, label = found
            for number, value in enumerate(np.unique(label)):
                test = label == value
                result.append(Fold(scheme, 0, number, rows[~test], rows[test]))
        if scheme == "random":
            rows = every if found is None else found[0]
            for repeat in range(0 if found is None else 1, repeats):
                for number, (train, test) in enumerate(_seeded(rows, repeat)):
                    result.append(Fold(scheme, repeat, number, train, test))
    elif counts.max() > 1:
        if scheme == "by_mutations":
            for repeat in range(repeats):
                for number, (train, test) in enumerate(_seeded(every, repeat)):
                    result.append(Fold(scheme, repeat, number, train, test))
        elif (counts == 1).sum() >= MIN_VARIANTS:
            result.append(Fold(scheme, 0, 0, every[counts == 1], every[counts > 1]))
    return result


def low_n_folds(assay: Assay, sizes: Sequence[int], repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Training sets of a few variants, as a user has them; everything else is the test set.

    The variants are those of the "random" scheme. The draws of one repeat are nested: 24 variants are part of
    the 96. A size that would leave fewer than a fifth of the variants to test is left out.

    Args:
        sizes: numbers of training variants.
        repeats: draws a size, seeds 0 to repeats - 1.
    """
    found = _labelled(assay, labels, "random")
    rows = np.arange(len(assay.mutants)) if found is None else found[0]
    result = []
    for repeat in range(repeats):
        order = np.random.default_rng(repeat).permutation(rows)
        for number, size in enumerate(sorted(sizes)):
            if size <= 0.8 * len(rows):
                result.append(Fold(LOW_N, repeat, number, order[:size], order[size:]))
    return result

"""Which variants train and which test: ProteinGym's folds where they are labelled, seeded ones elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from sklearn.model_selection import KFold

from rd_hf.data.fasta import InputError
from rd_hf.evaluation.assays import MIN_VARIANTS, Assay, variant_name
from rd_hf.evaluation.options import LABELLED_SPLITS, SPLITS

OUTER_FOLDS = 5
LOW_N = "low_n"

FoldLabels = Mapping[str, pd.DataFrame]


class Fold(NamedTuple):
    """One training and test set: row numbers of the assay, int64, disjoint."""

    split: str  # of SPLITS, or "low_n"
    repeat: int  # seed of the draw; 0 of a labelled split is ProteinGym's own labelling
    fold: int  # number within the repeat
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
    columns = ["DMS_id", "mutant", *LABELLED_SPLITS.values()]
    table = pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",", dtype={"DMS_id": str, "mutant": str})
    absent = set(columns) - set(table.columns)
    if absent:
        raise InputError(f"{path} lacks the column {', '.join(sorted(absent))}; it must label ProteinGym's folds")
    table = table[columns].drop_duplicates()
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


def _labelled(assay: Assay, labels: FoldLabels | None, split: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the labelled single mutants and their labels, or None where the assay has no labels."""
    if labels is None or assay.name not in labels:
        return None
    column = labels[assay.name][LABELLED_SPLITS[split]]
    names = [variant_name(mutant) for mutant in assay.mutants]
    rows = np.array([row for row, name in enumerate(names) if name in column.index], dtype=np.int64)
    if len(rows) < MIN_VARIANTS:
        return None
    return rows, column.loc[[names[row] for row in rows]].to_numpy()


def _seeded(split: str, rows: np.ndarray, seeds: range) -> list[Fold]:
    """Five folds for each seed."""
    return [
        Fold(split, seed, number, rows[train], rows[test])
        for seed in seeds
        for number, (train, test) in enumerate(KFold(OUTER_FOLDS, shuffle=True, random_state=seed).split(rows))
    ]


def folds(assay: Assay, split: str, repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Cross-validation folds of one split.

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
        ValueError: unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    every = np.arange(len(assay.mutants))
    counts = assay.mutation_counts
    if split in LABELLED_SPLITS:
        found = _labelled(assay, labels, split)
        if found is None:
            return _seeded(split, every, range(repeats)) if split == "random" else []
        rows, label = found
        published = [
            Fold(split, 0, number, rows[label != value], rows[label == value])
            for number, value in enumerate(np.unique(label))
        ]
        return published + (_seeded(split, rows, range(1, repeats)) if split == "random" else [])
    if counts.max() == 1:
        return []
    if split == "by_mutations":
        return _seeded(split, every, range(repeats))
    return [Fold(split, 0, 0, every[counts == 1], every[counts > 1])] if (counts == 1).sum() >= MIN_VARIANTS else []


def low_n_folds(assay: Assay, sizes: Sequence[int], repeats: int, labels: FoldLabels | None = None) -> list[Fold]:
    """Training sets of a few variants, as a user has them; everything else is the test set.

    The variants are those of the "random" split. The draws of one repeat are nested: 24 variants are part of
    the 96. A size that would leave fewer than a fifth of the variants to test is left out.

    Args:
        sizes: numbers of training variants.
        repeats: draws of each size, seeds 0 to repeats - 1.
    """
    found = _labelled(assay, labels, "random")
    rows = np.arange(len(assay.mutants)) if found is None else found[0]
    orders = [np.random.default_rng(repeat).permutation(rows) for repeat in range(repeats)]
    return [
        Fold(LOW_N, repeat, number, order[:size], order[size:])
        for repeat, order in enumerate(orders)
        for number, size in enumerate(sorted(sizes))
        if size <= 0.8 * len(rows)
    ]

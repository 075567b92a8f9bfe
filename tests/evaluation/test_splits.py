"""Folds: ProteinGym's where labelled, seeded elsewhere, never a variant on both sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rd_hf.data.records import InputError
from rd_hf.evaluation.assays import Assay, Fold, FoldLabels, folds, low_n_folds, read_fold_labels
from rd_hf.evaluation.options import SPLITS
from tests.evaluation.conftest import FOLDS_FILE


def covered(chosen: list[Fold]) -> list[int]:
    return sorted(np.concatenate([fold.test for fold in chosen]).tolist())


@pytest.mark.parametrize("split", SPLITS)
def test_train_and_test_never_share_a_variant(assay: Assay, fold_labels: FoldLabels, split: str) -> None:
    found = folds(assay, split, 2, fold_labels)
    assert found
    for fold in found:
        assert not set(fold.train) & set(fold.test)


@pytest.mark.parametrize(("split", "column"), [("random", "fold_random_5"), ("contiguous", "fold_contiguous_5")])
def test_first_repeat_is_proteingyms_labelling(assay: Assay, fold_labels: FoldLabels, split: str, column: str) -> None:
    table = pd.read_csv(FOLDS_FILE, sep="\t")
    first = [fold for fold in folds(assay, split, 3, fold_labels) if fold.repeat == 0]
    for fold in first:
        mutants = {assay.mutants[row] for row in fold.test}
        assert mutants == set(table.loc[table[column] == fold.fold, "mutant"])
    assert covered(first) == np.flatnonzero(assay.mutation_counts == 1).tolist()


def test_labels_are_of_the_variant_whatever_its_name(assay: Assay, tmp_path: Path) -> None:
    """A folds file may name a double mutant's substitutions in another order, and a variant twice."""
    table = pd.read_csv(FOLDS_FILE, sep="\t")
    first = table.iloc[0]
    doubles = [mutant for mutant in assay.mutants if ":" in mutant]
    turned = [":".join(reversed(mutant.split(":"))) for mutant in doubles]
    more = pd.DataFrame([{**first, "mutant": name} for name in turned])
    path = tmp_path / "folds.csv"
    pd.concat([table, table.tail(2), more, more.assign(mutant=doubles)]).to_csv(path, index=False)
    labels = read_fold_labels(path)
    assert covered(list(folds(assay, "modulo", 1, labels))) == list(range(len(assay.mutants)))
    other = more.assign(mutant=doubles, fold_modulo_5=first["fold_modulo_5"] + 1)
    pd.concat([table, more, other]).to_csv(path, index=False)
    with pytest.raises(InputError, match="two different folds, which would put it in training and test at once"):
        read_fold_labels(path)
    pd.concat([table, more.assign(fold_modulo_5=None)]).to_csv(path, index=False)
    with pytest.raises(InputError, match=f"row {len(table) + 2}: a cell is empty"):
        read_fold_labels(path)


def test_random_folds_are_redrawn_for_later_repeats_and_labelled_ones_are_not(
    assay: Assay, fold_labels: FoldLabels
) -> None:
    found = folds(assay, "random", 3, fold_labels)
    tests = {repeat: [fold.test.tolist() for fold in found if fold.repeat == repeat] for repeat in range(3)}
    assert len({str(test) for test in tests.values()}) == 3
    assert {fold.repeat for fold in folds(assay, "modulo", 3, fold_labels)} == {0}


def test_without_labels_every_variant_is_tested_once_a_repeat(assay: Assay) -> None:
    found = folds(assay, "random", 2)
    for repeat in range(2):
        assert covered([fold for fold in found if fold.repeat == repeat]) == list(range(len(assay.mutants)))
    assert folds(assay, "modulo", 2) == []


def test_multiple_mutants_have_schemes_of_their_own(assay: Assay) -> None:
    counts = assay.mutation_counts
    (fold,) = folds(assay, "singles_to_multiples", 3)
    assert set(counts[fold.train]) == {1}
    assert set(counts[fold.test]) == {2}
    assert covered(list(folds(assay, "by_mutations", 1))) == list(range(len(counts)))


def test_low_n_draws_are_nested_and_test_on_all_the_rest(assay: Assay) -> None:
    small, large = low_n_folds(assay, (24, 96, 10_000), 1)
    assert set(small.train) < set(large.train)
    assert (len(small.train), len(large.train)) == (24, 96)
    for fold in (small, large):
        assert sorted([*fold.train, *fold.test]) == list(range(len(assay.mutants)))

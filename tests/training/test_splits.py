"""Rows become examples, and examples folds: nothing that is tested was learnt from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.model_selection import KFold

from rd_hf.data.records import InputError, RejectedSequenceError
from rd_hf.training.data import Examples, make_examples
from rd_hf.training.rows import LabelledRow
from rd_hf.training.settings import TrainingSettings
from rd_hf.training.splits import make_folds
from rd_hf.training.variants import MisfitError, position_folds, positions_of, variant

SETTINGS = TrainingSettings(model="m", input="t.csv", target="score", output="o")


def rows_of(*cells: tuple[str, str], groups: str = "", parts: tuple[str, ...] = ()) -> list[LabelledRow]:
    return [
        LabelledRow(
            n, f"row {n + 1}", f"p{n}", sequence, target, groups[n - 1 : n], parts[n - 1] if parts else ""
        )
        for n, (sequence, target) in enumerate(cells, start=1)
    ]  # fmt: skip


def made(rows: list[LabelledRow], task: str | None = None) -> Examples:
    return make_examples("t.csv", "score", rows, [], task)


def many(count: int, **others: object) -> Examples:
    return made(rows_of(*(("MK" + "A" * n, f"{n}.5") for n in range(count)), **others))  # type: ignore[arg-type]


def test_rows_of_one_sequence_are_one_example() -> None:
    found = made(rows_of(("MKA", "1"), ("MKC", "5.5"), ("MKA", "2"), ("MKA", "3")))
    assert found.sequences == ("MKA", "MKC")
    np.testing.assert_array_equal(found.targets, [2.0, 5.5])
    np.testing.assert_array_equal(found.example_of, [0, 1, 0, 0])
    assert any("different targets in several rows: 1;" in note for note in found.notes)


def test_of_classes_the_most_frequent_counts_and_of_those_that_tie_the_first() -> None:
    found = made(rows_of(("MKA", "b"), ("MKA", "a"), ("MKC", "b"), ("MKC", "a"), ("MKC", "a")))
    assert found.classes == ("a", "b")
    np.testing.assert_array_equal(found.targets, [1, 0])


@pytest.mark.parametrize(
    ("cells", "task"),
    [
        (("1.5", "2", "3"), "regression"),
        (("1", "2", "3"), "regression"),
        (("0", "1", "0"), "classification"),
        (("a", "b", "a"), "classification"),
        (("1.5", "nan", "2.5"), "regression"),
    ],
)
def test_the_task_follows_from_the_column(cells: tuple[str, ...], task: str) -> None:
    assert made(rows_of(*((f"MK{letter}", cell) for letter, cell in zip("ACD", cells, strict=True)))).task == task


def test_missing_numbers_are_left_out_and_counted() -> None:
    found = made(rows_of(("MKA", "1.5"), ("MKC", "NaN"), ("MKD", "2.5"), ("MKE", "n/a")))
    assert len(found.sequences) == 2
    assert [one.id for one in found.left_out] == ["p2", "p4"]
    assert any("without a target, left out: 2." in note for note in found.notes)


@pytest.mark.parametrize(
    ("cells", "task", "says"),
    [
        (("1", "2", "x3", "4"), None, r"t\.csv, row 4 \(p3\): score is 'x3' in a column of numbers: mend"),
        (("1", "2", "inf", "4"), None, r"t\.csv, row 4 \(p3\): score is 'inf', not a finite number"),
        (("a", "b", "c", "d"), "regression", r"row 2 \(p1\): score is 'a', not a finite number"),
        (("2", "2", "2", "2"), None, "is '2' in all rows, so there is nothing to learn"),
        (("nan", "na", "nan", "nan"), "regression", "holds no target in any row"),
    ],
)
def test_a_column_that_cannot_be_learnt_is_a_sentence(cells: tuple[str, ...], task: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        made(rows_of(*((f"MK{letter}", cell) for letter, cell in zip("ACDE", cells, strict=True))), task)


def test_random_folds_are_those_of_scikit_learn() -> None:
    folds = make_folds(many(30), SETTINGS)
    expected = list(KFold(5, shuffle=True, random_state=0).split(np.arange(30)))
    for fold, (train, test) in zip(folds, expected, strict=True):
        np.testing.assert_array_equal(fold.train, train)
        np.testing.assert_array_equal(fold.test, test)
        inner = KFold(5, shuffle=True, random_state=0).split(train)
        for (fitting, judging), (first, second) in zip(fold.inner, inner, strict=True):
            np.testing.assert_array_equal(fitting, train[first])
            np.testing.assert_array_equal(judging, train[second])


def test_groups_stay_together_in_inner_folds_too() -> None:
    examples = many(30, groups="abcdefghij" * 3)
    assert examples.groups is not None
    for fold in make_folds(examples, SETTINGS):
        for train, test in ((fold.train, fold.test), *fold.inner):
            assert not set(examples.groups[train]) & set(examples.groups[test])
        assert {row for pair in fold.inner for part in pair for row in part} == set(fold.train)


def test_groups_that_share_a_sequence_are_one() -> None:
    rows = rows_of(("MKA", "1"), ("MKA", "2"), ("MKC", "3"), ("MKD", "4"), groups="abbc")
    assert made(rows).groups.tolist() == [0, 0, 1]  # type: ignore[union-attr]


def test_parts_of_a_table() -> None:
    examples = many(40, parts=("train",) * 20 + ("val",) * 10 + ("test",) * 10)
    (fold,) = make_folds(examples, SETTINGS)
    assert (len(fold.train), len(fold.test)) == (20, 10)
    ((fitting, judging),) = fold.inner
    np.testing.assert_array_equal(fitting, fold.train)
    np.testing.assert_array_equal(judging, np.arange(20, 30))


def test_a_sequence_in_two_parts_is_tested_and_not_learnt_from() -> None:
    rows = rows_of(
        ("MKA", "1"), ("MKA", "9"), ("MKC", "3"), ("MKC", "4"), ("MKD", "5"),
        parts=("train", "test", "val", "train", "train"),
    )  # fmt: skip
    found = made(rows)
    assert found.sequences == ("MKA", "MKC", "MKD")
    assert found.parts.tolist() == ["test", "val", "train"]  # type: ignore[union-attr]
    np.testing.assert_array_equal(found.targets, [9.0, 3.0, 5.0])
    assert [one.reason for one in found.left_out] == [
        "its sequence is in the test set too",
        "its sequence is in the val set too",
    ]


def test_too_few_are_a_sentence() -> None:
    kinds = ("rare",) * 3 + ("usual",) * 20
    rare = made(rows_of(*(("MK" + "A" * n, kind) for n, kind in enumerate(kinds))))
    with pytest.raises(InputError, match=r"class 'rare' of score has too few different sequences \(3\) for 5 folds"):
        make_folds(rare, SETTINGS)
    few, grouped = many(8), dataclasses.replace(SETTINGS, group="family")
    with pytest.raises(InputError, match="8 different sequences to learn from are too few for 5 folds"):
        make_folds(few, SETTINGS)
    families = many(30, groups="abc" * 10)
    with pytest.raises(InputError, match="--group family gives 3 groups with different sequences, fewer than the 5"):
        make_folds(families, grouped)


WILD_TYPE = "MKTAYIAKQR"


def test_a_name_becomes_a_sequence() -> None:
    assert variant(WILD_TYPE, "K2G") == "MGTAYIAKQR"
    assert variant(WILD_TYPE, "R10A:K2G") == variant(WILD_TYPE, "K2G:R10A") == "MGTAYIAKQA"
    assert variant(WILD_TYPE, "WT") == WILD_TYPE
    assert positions_of(WILD_TYPE, ["MGTAYIAKQA", WILD_TYPE]) == [(1, 9), ()]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("A2G", "A2G does not fit the wild type, which has K there"),
        ("K11G", "K11G names position 11 of a wild type of 10 residues"),
        ("K0G", "K0G names position 0"),
        ("K2G:K2A", "substitutes one position twice"),
    ],
)
def test_a_wild_type_that_does_not_fit_is_an_error(name: str, says: str) -> None:
    with pytest.raises(MisfitError, match=says):
        variant(WILD_TYPE, name)


def test_what_is_no_substitution_is_left_out() -> None:
    with pytest.raises(RejectedSequenceError, match="'del5' is no substitution such as A42G"):
        variant(WILD_TYPE, "del5")


@pytest.mark.parametrize("scheme", ["modulo", "contiguous"])
def test_by_position_nothing_that_is_tested_is_substituted_in_what_is_learnt_from(scheme: str) -> None:
    positions = [(p,) for p in range(10) for _ in range(3)] + [(0, 5), (0, 1), (2, 9), ()]
    chosen = np.arange(len(positions))
    folds = position_folds(positions, chosen, 5, scheme)
    assert len(folds) == 5
    for train, test in folds:
        fitted = {p for row in train for p in positions[row]}
        tested = {p for row in test for p in positions[row]}
        assert not fitted & tested
        assert len(positions) - 1 in train, "the wild type is always learnt from"
    tested_once = np.concatenate([test for _, test in folds])
    assert len(set(tested_once)) == len(tested_once)
    of_fold = {"modulo": {0, 5}, "contiguous": {0, 1}}[scheme]
    assert {p for row in folds[0][1] for p in positions[row]} == of_fold

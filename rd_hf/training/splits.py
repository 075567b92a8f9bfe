"""Which examples are fitted on and which judge: one split that the table names, or cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

from rd_hf.data.records import InputError
from rd_hf.training.data import Examples
from rd_hf.training.rows import TEST, TRAIN, VALIDATION
from rd_hf.training.settings import TrainingSettings
from rd_hf.training.variants import position_folds, positions_of


class Fold(NamedTuple):
    """Numbers of examples, int64, disjoint.

    Attributes:
        train: that are fitted on.
        test: that judge, and play no other part.
        inner: pairs of what is fitted on and what judges, to choose a strength by; all of ``train``, but for the
            validation set of a table's own split, which is fitted on nowhere.
    """

    train: np.ndarray
    test: np.ndarray
    inner: tuple[tuple[np.ndarray, np.ndarray], ...]


def make_folds(examples: Examples, settings: TrainingSettings) -> list[Fold]:
    """The folds of a training: one where the table names its parts, else those of a cross-validation.

    Classes are spread evenly over folds, and groups are kept together, in inner folds too.

    Raises:
        InputError: fewer examples, groups, or members of a class than folds need.
    """
    if examples.parts is not None:
        train, validation, test = (np.flatnonzero(examples.parts == part) for part in (TRAIN, VALIDATION, TEST))
        inner = ((train, validation),) if len(validation) else inner_folds(examples, train, settings)
        _check_classes(examples, train, settings)
        return [Fold(train, test, inner)]
    every = np.arange(len(examples.sequences))
    _check_enough(examples, every, settings.folds, "--cv-folds", settings)
    folds: list[Fold] = []
    found = _split(examples, every, settings.folds, settings.seed, settings.scheme)
    if len(found) < 2:
        raise InputError(
            f"{settings.input}: variants are substituted at too few positions for --scheme {settings.scheme}: give "
            "more, or --scheme random"
        )
    for train, test in found:
        _check_classes(examples, train, settings)
        folds.append(Fold(train, test, inner_folds(examples, train, settings)))
    return folds


def inner_folds(
    examples: Examples, train: np.ndarray, settings: TrainingSettings
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Folds of training examples, by which strengths are chosen."""
    count = settings.inner_folds
    if examples.task == "classification":
        # Of a rare class there may be fewer members left than inner folds: two are enough to judge by.
        count = max(2, min(count, int(np.bincount(examples.targets[train]).min())))
    if examples.groups is not None:
        count = max(2, min(count, len(np.unique(examples.groups[train]))))
    _check_enough(examples, train, count, "--inner-folds", settings)
    found = tuple(_split(examples, train, count, settings.seed, settings.scheme))
    # R^2 of one number is none.
    found = tuple((fitting, judging) for fitting, judging in found if len(judging) > 1)
    if len(found) < 2:
        raise InputError(
            f"{settings.input}: variants to learn from are substituted at too few positions to choose a strength by "
            f"--scheme {settings.scheme}: give more, or --scheme random"
        )
    return found


def _split(
    examples: Examples, chosen: np.ndarray, count: int, seed: int, scheme: str
) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """So many folds of the chosen examples."""
    if scheme != "random":
        return position_folds(positions_of(examples.wild_type, examples.sequences), chosen, count, scheme)
    stratified = examples.task == "classification"
    targets = examples.targets[chosen] if stratified else None
    groups = None if examples.groups is None else examples.groups[chosen]
    if groups is None:
        kind = (StratifiedKFold if stratified else KFold)(count, shuffle=True, random_state=seed)
    elif stratified:
        kind = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    else:
        # Groups of equal size are taken in the order of their numbers, so that these are drawn.
        groups = np.random.default_rng(seed).permutation(groups.max() + 1)[groups]
        kind = GroupKFold(count)
    return [(chosen[train], chosen[test]) for train, test in kind.split(chosen, targets, groups)]


def _check_enough(examples: Examples, chosen: np.ndarray, count: int, flag: str, settings: TrainingSettings) -> None:
    """Raise where there are fewer groups, members of a class, or examples, than so many folds need."""
    source = settings.input
    if examples.groups is not None and (groups := len(np.unique(examples.groups[chosen]))) < count:
        raise InputError(
            f"{source}: --group {settings.group} gives {groups} groups with different sequences, fewer than the "
            f"{count} folds: lower {flag}, or leave --group out"
        )
    if examples.task == "classification":
        members = np.bincount(examples.targets[chosen], minlength=len(examples.classes))
        rarest = int(members.argmin())
        if members[rarest] < count:
            raise InputError(
                f"{source}: class {examples.classes[rarest]!r} of {settings.target} has too few different sequences "
                f"({members[rarest]}) for {count} folds: give more of it, empty its cells, or lower {flag}"
            )
    elif len(chosen) < 2 * count:
        raise InputError(
            f"{source}: {len(chosen)} different sequences to learn from are too few for {count} folds: give more, or "
            f"lower {flag}"
        )


def _check_classes(examples: Examples, train: np.ndarray, settings: TrainingSettings) -> None:
    """Raise where what is fitted on lacks a class, of which nothing could be learnt."""
    if not examples.classes or examples.task == "multi_label":  # of a label, its share is learnt at least
        return
    learnt = examples.targets[examples.rows_of(train)]
    absent = np.flatnonzero(np.bincount(learnt, minlength=len(examples.classes)) == 0)
    if len(absent):
        raise InputError(
            f"{settings.input}: class {examples.classes[absent[0]]!r} of {settings.target} has nothing to learn "
            "from where it is tested: empty its cells, or split the rows otherwise"
        )

"""Every level judged on the same folds, and the choice of the one that is enough.

Judged are predictions of examples that had no part in fitting. A score is the mean over folds of the score within each;
its interval resamples what is independent: examples, or groups where there are any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from scipy.stats import rankdata
from sklearn import metrics

from rd_hf.evaluation.statistics import agreement
from rd_hf.training.data import Examples
from rd_hf.training.features import Features
from rd_hf.training.probes import Linear, fit, probabilities
from rd_hf.training.splits import Fold

RESAMPLES = 200
CONFIDENCE = 0.95
# Shares of the training examples of each fold, for the learning curve.
SHARES = (0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class LevelResult:
    """One level.

    Attributes:
        level, width, flop: its name, the width of its embedding, and FLOP for a residue.
        folds: score of each fold.
        draws: scores of resamples of the test examples, the same ones for every level.
        outputs: (n, outputs) float64 of the probes that had not seen an example; NaN where it was tested nowhere.
    """

    level: str
    width: int
    flop: int
    folds: np.ndarray
    draws: np.ndarray
    outputs: np.ndarray = field(repr=False)

    @property
    def score(self) -> float:
        """Mean over folds."""
        return _mean(self.folds)

    @property
    def interval(self) -> tuple[float, float]:
        """Percentiles of the resamples."""
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(self.draws, (tail, 1 - tail))
        return float(low), float(high)

    @property
    def error(self) -> float:
        """Standard error of the score: over folds, or of one fold over resamples."""
        return standard_error(self.folds, self.draws)

    def below(self, best: LevelResult) -> tuple[float, float]:
        """How far its score is below another level's on the same folds, and the standard error of that."""
        apart = best.folds - self.folds
        return _mean(apart), standard_error(apart, best.draws - self.draws)


def standard_error(folds: np.ndarray, draws: np.ndarray) -> float:
    """Of a mean over folds; of one fold the deviation of its resamples. NaN are left out."""
    known = folds[~np.isnan(folds)]
    if len(known) > 1:
        return float(known.std(ddof=1) / np.sqrt(len(known)))
    return float(np.nanstd(draws, ddof=1))


def _mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN where nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def best_of(results: Sequence[LevelResult]) -> LevelResult:
    """The level with the largest score; of equal ones the smallest."""
    return max(results, key=lambda result: result.score)


def choose(results: Sequence[LevelResult], rule: str) -> LevelResult:
    """The level that is enough, of levels in growing order.

    Args:
        rule: "paired", the smallest whose difference to the best is within one standard error of that difference;
            "breiman", the smallest whose score is within one standard error of the best's (Breiman et al. 1984);
            "best".
    """
    best = best_of(results)
    for result in results:
        difference, error = result.below(best)
        if result is best or (rule == "paired" and difference <= error) or (
            rule == "breiman" and difference <= best.error
        ):  # fmt: skip
            return result
    raise AssertionError("the best is one of them")


def judge_levels(
    features: Features, widths: Mapping[str, int], flop: Mapping[str, int], examples: Examples, folds: Sequence[Fold],
    score: str, seed: int, on_fit: Callable[[], object] = lambda: None,
) -> list[LevelResult]:  # fmt: skip
    """Judge every level on the same folds.

    Args:
        features: of the largest level.
        widths: of the levels, smallest first.
        flop: for a residue, of each level.
        examples: what the features are of.
        folds: as :func:`rd_hf.training.splits.make_folds` gives them.
        score: key of :data:`SCORERS`.
        seed: of the resamples.
        on_fit: called after each probe.
    """
    resamples = list(_resamples(examples, folds, seed))
    found = []
    for level, width in widths.items():
        outputs = out_of_fold(features.cut(width), examples, folds, on_fit=on_fit)
        judge = partial(_score_of_examples, score, examples, outputs)
        values = np.array([judge(fold.test) for fold in folds])
        draws = np.array([_mean(np.array([judge(drawn) for drawn in draw])) for draw in resamples])
        found.append(LevelResult(level, width, flop[level], values, draws, outputs))
    return found


def _score_of_examples(score: str, examples: Examples, outputs: np.ndarray, chosen: np.ndarray) -> float:
    """Score of some examples, of residues of all that are known together."""
    rows = examples.rows_of(chosen)
    return score_of(score, examples.targets[rows], outputs[rows])


def out_of_fold(
    features: Features, examples: Examples, folds: Sequence[Fold], on_fit: Callable[[], object] = lambda: None
) -> np.ndarray:
    """What probes that did not see an example predict of it: (n, outputs) float64."""
    outputs = np.full((len(features), max(1, len(examples.classes))), np.nan)
    for fold in folds:
        probe = fit_examples(features, examples, fold.train, fold.inner)
        tested = examples.rows_of(fold.test)
        outputs[tested] = probe(features, tested)
        on_fit()
    return outputs


def fit_examples(
    features: Features, examples: Examples, train: np.ndarray, inner: Sequence[tuple[np.ndarray, np.ndarray]]
) -> Linear:
    """:func:`rd_hf.training.probes.fit` on the rows of examples."""
    rows = examples.rows_of
    pairs = [(rows(fitting), rows(judging)) for fitting, judging in inner]
    return fit(features, examples.targets, len(examples.classes), rows(train), pairs)


def _resamples(examples: Examples, folds: Sequence[Fold], seed: int) -> Iterator[list[np.ndarray]]:
    """Draws of the test examples of every fold; groups are drawn whole."""
    generator = np.random.default_rng(seed)
    clusters = np.arange(len(examples.sequences)) if examples.groups is None else examples.groups
    members = []
    for fold in folds:
        order = np.argsort(clusters[fold.test], kind="stable")
        starts = np.flatnonzero(np.diff(clusters[fold.test][order], prepend=-1))
        members.append(np.split(fold.test[order], starts[1:]))
    for _ in range(RESAMPLES):
        yield [np.concatenate([own[i] for i in generator.integers(0, len(own), len(own))]) for own in members]


def learning_curve(
    features: Features, examples: Examples, folds: Sequence[Fold], score: str, seed: int,
    inner: Callable[[np.ndarray], Sequence[tuple[np.ndarray, np.ndarray]]],
) -> list[tuple[int, np.ndarray]]:  # fmt: skip
    """Scores on the same test examples of probes that saw a share of the training examples.

    Args:
        features: of the level.
        inner: makes inner folds of training examples; one that raises ValueError finds them too few, and their share
            is left out.

    Returns:
        Mean number of training examples and scores of the folds, for each of :data:`SHARES` that is possible.
    """
    found = []
    orders = [np.random.default_rng(seed).permutation(fold.train) for fold in folds]
    for share in SHARES:
        try:
            cut = []
            for fold, order in zip(folds, orders, strict=True):
                train = np.sort(order[: max(1, round(share * len(order)))])
                splits = fold.inner if share == 1.0 else inner(train)
                cut.append(Fold(train, fold.test, tuple(splits)))
        except ValueError:
            continue
        outputs = out_of_fold(features, examples, cut)
        scores = np.array([_score_of_examples(score, examples, outputs, fold.test) for fold in cut])
        found.append((round(float(np.mean([len(fold.train) for fold in cut]))), scores))
    return found


def score_of(score: str, truth: np.ndarray, outputs: np.ndarray) -> float:
    """One of :data:`SCORERS`, of (n,) targets and (n, outputs) outputs; NaN where it means nothing."""
    return SCORERS[score](truth, outputs)


def _auroc(truth: np.ndarray, logits: np.ndarray) -> float:
    """Area under the ROC curve, of each class against the rest and averaged; of two classes that of the second.

    Of several labels, targets of shape (n, labels), the mean over labels; those that all or none of the examples have
    are left out.
    """
    if truth.ndim == 1:
        truth, logits = truth[:, None] == np.arange(logits.shape[1]), probabilities(logits)
        if logits.shape[1] == 2:
            truth, logits = truth[:, 1:], logits[:, 1:]
    having = truth.sum(axis=0)
    lacking = len(truth) - having
    present = (having > 0) & (lacking > 0)
    if not present.any():
        return np.nan
    # Mann and Whitney's statistic, of all columns at once, which resamples ask for thousands of times.
    ranks = (rankdata(logits, axis=0) * truth).sum(axis=0) - having * (having + 1) / 2
    return float((ranks[present] / (having * lacking)[present]).mean())


def _macro_f1(truth: np.ndarray, logits: np.ndarray) -> float:
    """F1 of each class, or of each label (predicted where its probability is above one half), averaged."""
    predicted = logits.argmax(axis=1) if truth.ndim == 1 else logits > 0
    return float(metrics.f1_score(truth, predicted, average="macro", zero_division=0))


def _agreement(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda truth, outputs: agreement(truth, outputs[:, 0], (name,))[name]


SCORERS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    **{name: _agreement(name) for name in ("spearman", "pearson", "r2")},
    "accuracy": lambda truth, logits: float((logits.argmax(axis=1) == truth).mean()),
    "balanced_accuracy": lambda truth, logits: float(
        metrics.recall_score(truth, logits.argmax(axis=1), labels=np.unique(truth), average="macro", zero_division=0)
    ),
    "macro_f1": _macro_f1,
    "auroc": _auroc,
}

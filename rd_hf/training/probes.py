"""Linear probes with strengths chosen inside of the training folds: ridge for numbers, logistic regression for classes.

Of variants of one protein ridge also takes the substitutions themselves, beside the embedding (augmented, Hsu et al.
2022).

All are fitted on standardised embeddings, whose means and deviations are those of the rows that are fitted on, and all
end as one :class:`Linear` map, which is what a checkpoint's head computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import splu
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.logistic import MOST_ITERATIONS, JudgedFits, choose_strength, label_columns
from rd_hf.evaluation.options import STRENGTHS
from rd_hf.evaluation.probe import SYMMETRIC, Split, strength_scores
from rd_hf.training.features import Features

# Of ridge on substitutions, which are not standardised: one that is seen once has a variance of 1 / n. The last leaves
# hardly anything of them.
SUBSTITUTION_STRENGTHS = (0.1, 0.3162277660168379, 1.0, 3.1622776601683795, 10.0, 31.622776601683793, 100.0, 1e6)


@dataclass(frozen=True)
class Linear:
    """((x - mean) / scale) W^T + b, and a number for each substitution.

    Attributes:
        mean, scale: (width,) float64 of the embedding.
        weight, bias: W, (outputs, width), and b, (outputs,), float64. Outputs are the number, or a logit a class.
        strength: that was chosen; scikit-learn's ``alpha`` of ridge, ``C`` of logistic regression.
        substitutions: (columns,) float64 of :class:`rd_hf.training.features.Features`, for one output; or None.
        averaged: pairs of ``alpha``, of the embedding and of the substitutions, whose fits this is the mean of.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    substitutions: np.ndarray | None = None
    averaged: tuple[tuple[float, float], ...] = ()

    def __call__(self, features: Features, rows: np.ndarray) -> np.ndarray:
        """(rows, outputs) float64, of so many rows of the features."""
        found = ((features.embedding[rows] - self.mean) / self.scale) @ self.weight.T + self.bias
        if self.substitutions is not None:
            found += (features.substitutions[rows] @ self.substitutions)[:, None]
        return found


def fit(features: Features, targets: np.ndarray, classes: int, train: np.ndarray, inner: Sequence[Split]) -> Linear:
    """Choose a strength on inner folds, then fit on all training rows.

    Args:
        features: of n rows.
        targets: (n,), numbers or positions of classes; or (n, labels) of 0 and 1.
        classes: or labels, how many there are; 0 for numbers.
        train: numbers of rows.
        inner: pairs of numbers of rows: fitted on, and judging.
    """
    if classes:
        return _fit_classes(features.embedding, targets, train, inner)
    if features.substitutions is not None:
        return _fit_blocks(features, targets, train, inner)
    return _fit_numbers(features.embedding, targets, train, inner)


def _fit_numbers(features: np.ndarray, targets: np.ndarray, train: np.ndarray, inner: Sequence[Split]) -> Linear:
    """Ridge, its strength by mean R^2."""
    strength = STRENGTHS[int(np.argmax(strength_scores(features, targets, inner, STRENGTHS)))]
    scaler = StandardScaler().fit(features[train])
    model = Ridge(alpha=strength).fit(scaler.transform(features[train]), targets[train])
    return Linear(scaler.mean_, scaler.scale_, model.coef_[None], np.atleast_1d(model.intercept_), strength)


def _fit_blocks(features: Features, targets: np.ndarray, train: np.ndarray, inner: Sequence[Split]) -> Linear:
    """Ridge on two blocks, each with a strength of its own; the mean of all fits that are as good as the best.

    Two strengths are a strength and a weight between the blocks: neither is given more say for having more columns.
    Few examples do not tell the best pair from its neighbours, and which one it is changes from draw to draw. So all
    whose mean R^2 is within one standard error of the largest, over the inner folds (Breiman et al. 1984), are fitted
    and averaged: their mean is a linear map too. Of one fold, a table's validation set, there is no such error, and the
    best pair is taken alone.
    """
    scores = np.zeros((len(inner), len(SUBSTITUTION_STRENGTHS), len(STRENGTHS)))
    for fold, (fitting, judging) in enumerate(inner):
        truth = np.broadcast_to(targets[judging][:, None], (len(judging), len(STRENGTHS)))
        standard, paths = _block_paths(features, targets, fitting, SUBSTITUTION_STRENGTHS)
        dense, substituted = standard.transform(features.embedding[judging]), features.substitutions[judging]
        for place, (intercepts, weights, columns) in enumerate(paths):
            predicted = intercepts + dense @ weights + substituted @ columns
            scores[fold, place] = r2_score(truth, predicted, multioutput="raw_values")
    best, close = _as_good_as_the_best(scores)
    places = np.flatnonzero(close.any(axis=1))
    shares = close / close.sum()
    scaler, paths = _block_paths(features, targets, train, [SUBSTITUTION_STRENGTHS[place] for place in places])
    means = [
        (intercepts @ shares[place], weights @ shares[place], columns @ shares[place])
        for place, (intercepts, weights, columns) in zip(places, paths, strict=True)
    ]
    bias, weight, substituted = (np.sum(parts, axis=0) for parts in zip(*means, strict=True))
    averaged = tuple((STRENGTHS[second], SUBSTITUTION_STRENGTHS[first]) for first, second in np.argwhere(close))
    return Linear(
        scaler.mean, scaler.scale, weight[None], np.atleast_1d(bias), STRENGTHS[best[1]], substituted, averaged
    )


def _as_good_as_the_best(scores: np.ndarray) -> tuple[tuple[int, int], np.ndarray]:
    """The pair with the largest mean of (folds, pairs, pairs) scores, and which means are within its standard error."""
    means = scores.mean(axis=0)
    first, second = np.unravel_index(np.argmax(means), means.shape)
    error = scores[:, first, second].std(ddof=1) / np.sqrt(len(scores)) if len(scores) > 1 else 0.0
    return (int(first), int(second)), means >= means[first, second] - error


class _Scaler(NamedTuple):
    """Means and deviations of columns; of no column where there is none, which scikit-learn's refuses."""

    mean: np.ndarray
    scale: np.ndarray

    def transform(self, features: np.ndarray) -> np.ndarray:
        """(n, width) standardised."""
        return (features - self.mean) / self.scale


def _block_paths(
    features: Features, targets: np.ndarray, rows: np.ndarray, penalties: Sequence[float]
) -> tuple[_Scaler, Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
    """Coefficients of ridge on the standardised embedding and the substitutions, for each pair of strengths.

    With Z = [1, embedding] and O the substitutions, the coefficients c of O follow from those of Z,
    c = A^-1 O^T (y - Z t) with A = O^T O + b I, which is sparse. What is left for t is S = Z^T Z - Z^T O A^-1 O^T Z, as
    wide as the embedding; after the intercept, which is not penalised, one eigendecomposition of it serves every
    strength of the embedding.

    Returns:
        The scaler, and for each of ``penalties`` (b) intercepts (strengths,), weights (width, strengths) and
        coefficients of substitutions (columns, strengths).
    """
    own = features.embedding[rows]
    fitted = StandardScaler().fit(own) if own.shape[1] else None
    scaler = _Scaler(fitted.mean_, fitted.scale_) if fitted else _Scaler(np.zeros(0), np.ones(0))
    dense, back = scaler.transform(own), None
    if dense.shape[1] > len(rows):
        # Turned, what is wider than it has rows is as wide as these; a penalty is the same in any turn.
        u, lengths, back = linalg.svd(dense, full_matrices=False)
        dense = u * lengths
    z = np.column_stack((np.ones(len(rows)), dense))
    sparse_part, y = features.substitutions[rows], targets[rows]
    right = sparse_part.T @ np.column_stack((z, y))
    gram = (sparse_part.T @ sparse_part).tocsc()
    identity = sparse.eye_array(gram.shape[0], format="csc")

    def paths() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for penalty in penalties:
            solved = splu(gram + penalty * identity, **SYMMETRIC).solve(right)
            s = z.T @ z - right[:, :-1].T @ solved[:, :-1]
            r = z.T @ y - right[:, :-1].T @ solved[:, -1]
            along = s[0, 1:] / s[0, 0]
            inside = s[1:, 1:] - np.outer(s[1:, 0], along)
            # LAPACK takes no matrix of nothing.
            values, vectors = linalg.eigh(inside) if len(along) else (along, inside)
            turned = vectors.T @ (r[1:] - along * r[0])
            weights = vectors @ (turned[:, None] / (np.maximum(values, 0.0)[:, None] + np.asarray(STRENGTHS)))
            intercepts = r[0] / s[0, 0] - along @ weights
            columns = solved[:, -1:] - solved[:, :-1] @ np.vstack((intercepts, weights))
            yield intercepts, weights if back is None else back.T @ weights, columns

    return scaler, paths()


def _fit_classes(features: np.ndarray, targets: np.ndarray, train: np.ndarray, inner: Sequence[Split]) -> Linear:
    """Multinomial logistic regression, of several labels of each against the rest; one strength, by mean log loss."""
    classes = np.unique(targets[targets >= 0])  # of residues -1 is not known
    splits = [
        JudgedFits(features[fitting], targets[fitting], features[judging], targets[judging], classes)
        for fitting, judging in inner
    ]
    strength = choose_strength(splits)
    columns = label_columns(targets[train])
    if len(inner) == 1 and np.array_equal(inner[0][0], train):
        # A table's own split: what was judged is what is asked for.
        scaler, models = splits[0].scaler, splits[0].kept
    else:
        scaler, models = (
            StandardScaler().fit(features[train]),
            [LogisticRegression(C=strength, max_iter=MOST_ITERATIONS) for _ in columns],
        )
        standard = scaler.transform(features[train])
        for model, column in zip(models, columns, strict=True):
            if column.min() != column.max():
                model.fit(standard, column)
    fitted = [_coefficients(*pair, features.shape[1]) for pair in zip(models, columns, strict=True)]
    weight, bias = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
    if len(weight) == 1 and targets.ndim == 1:
        # Of two classes there is one logit, which softmax takes as the difference of two.
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return Linear(scaler.mean_, scaler.scale_, weight, bias, strength)


def _coefficients(model: LogisticRegression, targets: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts; of a label that all rows have, or none, its log odds with half a row added to each."""
    if targets.min() == targets.max():
        having = targets.sum()
        return np.zeros((1, width)), np.log([(having + 0.5) / (len(targets) - having + 0.5)])
    return model.coef_, model.intercept_


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of (n, classes) logits, float64."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)

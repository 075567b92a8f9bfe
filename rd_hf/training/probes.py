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
from sklearn.metrics import log_loss, r2_score
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.options import INVERSE_STRENGTHS, RISES, STRENGTHS
from rd_hf.evaluation.probe import SYMMETRIC, Split, strength_scores
from rd_hf.training.features import Features

# Of ridge on substitutions, which are not standardised: one that is seen once has a variance of 1 / n. The last leaves
# hardly anything of them.
SUBSTITUTION_STRENGTHS = (0.1, 0.3162277660168379, 1.0, 3.1622776601683795, 10.0, 31.622776601683793, 100.0, 1e6)
_ITERATIONS = 500


@dataclass(frozen=True)
class Linear:
    """((x - mean) / scale) W^T + b, and a number for each substitution.

    Attributes:
        mean, scale: (width,) float64 of the embedding.
        weight, bias: W, (outputs, width), and b, (outputs,), float64. Outputs are the number, or a logit a class.
        strength: that was chosen; scikit-learn's ``alpha`` of ridge, ``C`` of logistic regression.
        substitutions: (columns,) float64 of :class:`rd_hf.training.features.Features`, for one output; or None.
        substitution_strength: ``alpha`` of these, chosen together with the other; or None.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    strength: float
    substitutions: np.ndarray | None = None
    substitution_strength: float | None = None

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
    """Ridge on two blocks, each with a strength of its own; the pair by mean R^2.

    Two strengths are a strength and a weight between the blocks: neither is given more say for having more columns.
    """
    scores = np.zeros((len(SUBSTITUTION_STRENGTHS), len(STRENGTHS)))
    for fitting, judging in inner:
        truth = np.broadcast_to(targets[judging][:, None], (len(judging), len(STRENGTHS)))
        standard, paths = _block_paths(features, targets, fitting, SUBSTITUTION_STRENGTHS)
        dense, substituted = standard.transform(features.embedding[judging]), features.substitutions[judging]
        for place, (intercepts, weights, columns) in enumerate(paths):
            predicted = intercepts + dense @ weights + substituted @ columns
            scores[place] += r2_score(truth, predicted, multioutput="raw_values") / len(inner)
    first, second = np.unravel_index(np.argmax(scores), scores.shape)
    place, best = int(first), int(second)
    chosen = SUBSTITUTION_STRENGTHS[place]
    scaler, paths = _block_paths(features, targets, train, (chosen,))
    ((intercepts, weights, columns),) = paths
    return Linear(
        scaler.mean, scaler.scale, weights[:, best][None], intercepts[best : best + 1], STRENGTHS[best],
        columns[:, best], chosen,
    )  # fmt: skip


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
    paths = [_LogisticPath(features, targets, *split) for split in inner]
    losses: list[float] = []
    for strength in INVERSE_STRENGTHS:
        losses.append(float(np.mean([path.loss(strength) for path in paths])))
        best = int(np.argmin(losses))
        if len(losses) - 1 - best >= RISES:
            break
    strength = INVERSE_STRENGTHS[best]
    scaler = StandardScaler().fit(features[train])
    standard = scaler.transform(features[train])
    fitted = [
        _logistic(standard, column, LogisticRegression(C=strength, max_iter=_ITERATIONS))
        for column in _columns(targets[train])
    ]
    weight, bias = (np.concatenate(parts) for parts in zip(*fitted, strict=True))
    if len(weight) == 1 and targets.ndim == 1:
        # Of two classes there is one logit, which softmax takes as the difference of two.
        weight, bias = np.concatenate((-weight, weight)) / 2, np.concatenate((-bias, bias)) / 2
    return Linear(scaler.mean_, scaler.scale_, weight, bias, strength)


def _columns(targets: np.ndarray) -> np.ndarray:
    """Of classes the targets, as the one column; of several labels each label's."""
    return np.atleast_2d(targets.T)


def _logistic(features: np.ndarray, targets: np.ndarray, model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts; of a label that all rows have, or none, its log odds with half a row added to each."""
    if targets.min() == targets.max():
        having = targets.sum()
        return np.zeros((1, features.shape[1])), np.log([(having + 0.5) / (len(targets) - having + 0.5)])
    model.fit(features, targets)
    return model.coef_, model.intercept_


class _LogisticPath:
    """Fits on the rows of one inner fold, from strong to weak, and judges by the others."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, fitting: np.ndarray, validation: np.ndarray) -> None:
        scaler = StandardScaler().fit(features[fitting])
        self._fitted = scaler.transform(features[fitting]), targets[fitting]
        self._judged = scaler.transform(features[validation]), targets[validation]
        self._classes = np.unique(targets[targets >= 0])  # of residues -1 is not known
        count = len(_columns(targets))
        self._models = [LogisticRegression(warm_start=True, max_iter=_ITERATIONS) for _ in range(count)]

    def loss(self, strength: float) -> float:
        """Log loss of the rows that judge; of several labels the mean over those that some rows have and some lack."""
        (features, targets), (judging, truth) = self._fitted, self._judged
        losses = []
        for model, fitted, judged in zip(self._models, _columns(targets), _columns(truth), strict=True):
            if fitted.min() == fitted.max():
                continue  # the same at every strength
            model.set_params(C=strength).fit(features, fitted)
            probabilities = np.zeros((len(judged), len(self._classes)))
            probabilities[:, np.searchsorted(self._classes, model.classes_)] = model.predict_proba(judging)
            probabilities /= probabilities.sum(axis=1, keepdims=True)  # those of float32 add up to one in float32 only
            losses.append(log_loss(judged, probabilities, labels=self._classes))
        return float(np.mean(losses)) if losses else 0.0


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Softmax of (n, classes) logits, float64."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)

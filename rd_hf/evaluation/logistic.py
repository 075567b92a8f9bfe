"""Logistic regression whose strength is chosen on rows that judge, for residues and for trained heads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.options import INVERSE_STRENGTHS, RISES

# L-BFGS ends where no derivative of the mean loss is above this. At scikit-learn's 1e-4 an answer depends on where it
# starts: on metal sites, one residue in 70, a start at zero and one at the last strength's answer differed by .0013 in
# the area under the precision-recall curve, and chose other strengths; at 1e-6 by .0002 at most.
TOLERANCE = 1e-6
MOST_ITERATIONS = 2000


def logistic(strength: float, warm_start: bool = False) -> LogisticRegression:
    """A model of an inverse strength, scikit-learn's ``C``, that is fitted until its answer is settled."""
    return LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MOST_ITERATIONS, warm_start=warm_start)


class JudgedFits:
    """Fits on the rows of one split, from strong to weak, each from the last; the rows that judge give their loss.

    Args:
        fitting, judging: (rows, width) features, standardised here by those that are fitted on.
        fitting_targets, judging_targets: (rows,) classes; or (rows, labels) of 0 and 1, each against the rest.
        classes: (classes,) of all rows, sorted: rows that are fitted on may lack some.
    """

    def __init__(
        self,
        fitting: np.ndarray,
        fitting_targets: np.ndarray,
        judging: np.ndarray,
        judging_targets: np.ndarray,
        classes: np.ndarray,
    ) -> None:
        scaler = StandardScaler().fit(fitting)
        self._fitting, self._judging, self._classes = (
            standardised(scaler, fitting),
            standardised(scaler, judging),
            classes,
        )
        self._columns = [
            (logistic(1.0, warm_start=True), fitted, judged)
            for fitted, judged in zip(label_columns(fitting_targets), label_columns(judging_targets), strict=True)
            if fitted.min() != fitted.max()  # else the same at every strength
        ]

    def loss(self, strength: float) -> float:
        """Log loss of the rows that judge; of several labels the mean over those that some rows have and some lack."""
        losses = []
        for model, fitted, judged in self._columns:
            model.set_params(C=strength).fit(self._fitting, fitted)
            probabilities = np.zeros((len(judged), len(self._classes)))
            probabilities[:, np.searchsorted(self._classes, model.classes_)] = model.predict_proba(self._judging)
            probabilities /= probabilities.sum(axis=1, keepdims=True)  # those of float32 add up to one in float32 only
            losses.append(log_loss(judged, probabilities, labels=self._classes))
        return float(np.mean(losses)) if losses else 0.0


def standardised(scaler: StandardScaler, features: np.ndarray) -> np.ndarray:
    """(rows, width) float64: near the answer a step gains less than float32 can tell of a loss, and L-BFGS gives up."""
    return scaler.transform(features.astype(np.float64))


def label_columns(targets: np.ndarray) -> np.ndarray:
    """Of classes the targets, as the one column; of several labels each label's: (columns, rows)."""
    return np.atleast_2d(targets.T)


def choose_strength(splits: Sequence[JudgedFits], strengths: Sequence[float] = INVERSE_STRENGTHS) -> float:
    """The inverse strength with the lowest mean loss over splits; the path ends once it has risen :data:`RISES` times.

    Args:
        splits: whose losses are averaged.
        strengths: inverse ones, from small (much shrinkage) to large.
    """
    losses: list[float] = []
    best = 0
    for strength in strengths:
        losses.append(float(np.mean([split.loss(strength) for split in splits])))
        best = int(np.argmin(losses))
        if len(losses) - 1 - best >= RISES:
            break
    return strengths[best]

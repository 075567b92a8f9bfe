"""Logistic regression whose strength is chosen on rows that judge: of residues, and of trained heads.

Both ask the same fits, so that a head answers as the evaluation does.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.options import INVERSE_STRENGTHS, RISES

MOST_ITERATIONS = 500  # of L-BFGS, for each strength


class JudgedFits:
    """Fits on the rows of one split, from strong to weak, each from the last; the rows that judge give their loss.

    Args:
        fitting, judging: (rows, width) features, standardised here by those that are fitted on.
        fitting_targets, judging_targets: (rows,) classes; or (rows, labels) of 0 and 1, each against the rest.
        classes: (classes,) of all rows, sorted: rows that are fitted on may lack some.

    Attributes:
        scaler: of the features.
        kept: the fits with the lowest loss so far, one for each label, or the one of all classes.
    """

    def __init__(
        self,
        fitting: np.ndarray,
        fitting_targets: np.ndarray,
        judging: np.ndarray,
        judging_targets: np.ndarray,
        classes: np.ndarray,
    ) -> None:
        self.scaler = StandardScaler().fit(fitting)
        self._fitting, self._judging = self.scaler.transform(fitting), self.scaler.transform(judging)
        self._fitted, self._judged = label_columns(fitting_targets), label_columns(judging_targets)
        self._classes = classes
        self._models = [LogisticRegression(warm_start=True, max_iter=MOST_ITERATIONS) for _ in self._fitted]
        self.kept: list[LogisticRegression] = []

    def loss(self, strength: float) -> float:
        """Log loss of the rows that judge; of several labels the mean over those that some rows have and some lack."""
        losses = []
        for model, fitted, judged in zip(self._models, self._fitted, self._judged, strict=True):
            if fitted.min() == fitted.max():
                continue  # the same at every strength
            model.set_params(C=strength).fit(self._fitting, fitted)
            probabilities = np.zeros((len(judged), len(self._classes)))
            probabilities[:, np.searchsorted(self._classes, model.classes_)] = model.predict_proba(self._judging)
            probabilities /= probabilities.sum(axis=1, keepdims=True)  # those of float32 add up to one in float32 only
            losses.append(log_loss(judged, probabilities, labels=self._classes))
        return float(np.mean(losses)) if losses else 0.0

    def keep(self) -> None:
        """Keep the fits of the last strength."""
        self.kept = copy.deepcopy(self._models)


def label_columns(targets: np.ndarray) -> np.ndarray:
    """Of classes the targets, as the one column; of several labels each label's: (columns, rows)."""
    return np.atleast_2d(targets.T)


def choose_strength(splits: Sequence[JudgedFits], strengths: Sequence[float] = INVERSE_STRENGTHS) -> float:
    """The inverse strength with the lowest mean loss over splits, which keep their fits of it.

    The path ends once the loss has not fallen for :data:`rd_hf.evaluation.options.RISES` strengths.

    Args:
        splits: whose losses are averaged.
        strengths: scikit-learn's ``C``, from small (much shrinkage) to large.
    """
    losses: list[float] = []
    best = 0
    for strength in strengths:
        losses.append(float(np.mean([split.loss(strength) for split in splits])))
        if losses[-1] < losses[best] or len(losses) == 1:
            best = len(losses) - 1
            for split in splits:
                split.keep()
        elif len(losses) - 1 - best == RISES:
            break
    return strengths[best]

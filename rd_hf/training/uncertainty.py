"""How far a prediction may be off: intervals around numbers, and probabilities that mean what they say.

Both come from predictions of examples that the probe had not seen. An interval is the prediction plus and minus the
quantile of absolute residuals that split conformal prediction takes (Vovk et al. 2005; Lei et al. 2018): of n residuals
the one of rank ceil((n + 1) coverage). Logits are divided by one temperature (Guo et al. 2017), which changes no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar

from rd_hf.training.probes import probabilities

# Temperatures that are looked at, as powers of e.
_RANGE = (-3.0, 3.0)
_BINS = 10


def half_width(truth: np.ndarray, predicted: np.ndarray, coverage: float) -> float:
    """Of an interval that covers so large a share of new numbers; infinite where there are too few residuals for it.

    Args:
        truth, predicted: (n,), of examples that had no part in fitting.
        coverage: from 0 to 1.
    """
    rank = math.ceil((len(truth) + 1) * coverage)
    return float(np.sort(np.abs(truth - predicted))[rank - 1]) if rank <= len(truth) else math.inf


def covered(truth: np.ndarray, predicted: np.ndarray, width: float) -> np.ndarray:
    """Which numbers lie within their interval: (n,) bool."""
    found: np.ndarray = np.abs(truth - predicted) <= width
    return found


def temperature(truth: np.ndarray, logits: np.ndarray) -> float:
    """What logits, (n, classes), are to be divided by for the smallest log loss of the classes, (n,)."""
    rows = np.arange(len(truth))

    def loss(power: float) -> float:
        return float(-np.log(np.maximum(probabilities(logits / math.exp(power))[rows, truth], 1e-300)).mean())

    return math.exp(float(minimize_scalar(loss, bounds=_RANGE, method="bounded").x))


def calibration_error(truth: np.ndarray, logits: np.ndarray) -> float:
    """Expected calibration error of the class that is predicted, over ten bins of its probability (Guo et al. 2017)."""
    chances = probabilities(logits)
    named, surest = chances.argmax(axis=1), chances.max(axis=1)
    bins = np.minimum((surest * _BINS).astype(int), _BINS - 1)
    apart = [
        abs(float((named[bins == b] == truth[bins == b]).mean() - surest[bins == b].mean())) * float((bins == b).mean())
        for b in np.unique(bins)
    ]
    return float(sum(apart))


def across(
    folds: Sequence[np.ndarray],
    fitted: Callable[[np.ndarray], float],
    applied: Callable[[np.ndarray, float], np.ndarray],
) -> list[np.ndarray]:
    """For each fold of rows what comes of a number that was fitted on the rows of all others.

    Args:
        folds: numbers of rows.
        fitted: the number, of rows.
        applied: what it makes of rows.
    """
    found = []
    for place, rows in enumerate(folds):
        others = np.concatenate([other for position, other in enumerate(folds) if position != place])
        found.append(applied(rows, fitted(others)))
    return found

"""How far a prediction may be off: intervals around numbers, and probabilities that mean what they say.

Both come from predictions of examples that the probe had not seen. An interval is the prediction plus and minus the
quantile of absolute residuals that split conformal prediction takes (Vovk et al. 2005; Lei et al. 2018): of n residuals
the one of rank ceil((n + 1) coverage). Logits are divided by one temperature (Guo et al. 2017), which changes no class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar

from rd_hf.training.data import Examples
from rd_hf.training.probes import probabilities
from rd_hf.training.splits import Fold

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


def temperature(truth: np.ndarray, logits: np.ndarray) -> float:
    """What logits, (n, classes), are to be divided by for the smallest log loss of the classes, (n,).

    Of several labels the targets are (n, labels), and every label of every example is one of two classes.
    """
    truth, logits = one_of_several(truth, logits)
    rows = np.arange(len(truth))

    def loss(power: float) -> float:
        return float(-np.log(np.maximum(probabilities(logits / math.exp(power))[rows, truth], 1e-300)).mean())

    return math.exp(float(minimize_scalar(loss, bounds=_RANGE, method="bounded").x))


def calibration_error(truth: np.ndarray, logits: np.ndarray) -> float:
    """Expected calibration error of the class that is predicted, over ten bins of its probability (Guo et al. 2017).

    Of several labels as of :func:`temperature`.
    """
    truth, logits = one_of_several(truth, logits)
    chances = probabilities(logits)
    named, surest = chances.argmax(axis=1), chances.max(axis=1)
    bins = np.minimum((surest * _BINS).astype(int), _BINS - 1)
    apart = [
        abs(float((named[bins == b] == truth[bins == b]).mean() - surest[bins == b].mean())) * float((bins == b).mean())
        for b in np.unique(bins)
    ]
    return float(sum(apart))


def one_of_several(truth: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Targets and logits of classes; of several labels, whose softmax is then each label's sigmoid."""
    if truth.ndim == 1:
        return truth, logits
    half = logits.ravel() / 2
    return truth.ravel(), np.stack((-half, half), axis=1)


@dataclass(frozen=True)
class Certainty:
    """What is known of how far a level's predictions are off; what is of the other task is None.

    Attributes:
        outputs: (n, outputs) float64 out of fold, logits divided by a temperature that their fold had no part in.
        half_width: of intervals around numbers.
        widths: (n,) half widths that the fold of each example had no part in; NaN where it was tested nowhere.
        measured: share of numbers within these.
        temperature: that logits are divided by.
        before, after: calibration error of the probabilities without and with one.
    """

    outputs: np.ndarray = field(repr=False)
    half_width: float | None = None
    widths: np.ndarray | None = field(default=None, repr=False)
    measured: float | None = None
    temperature: float = 1.0
    before: float | None = None
    after: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Figures for ``training.json``."""
        if self.half_width is not None:
            width = self.half_width if math.isfinite(self.half_width) else None
            return {"interval_half_width": width, "interval_measured": self.measured}
        errors = {"calibration_error": self.after, "calibration_error_before": self.before}
        return {"temperature": self.temperature, **errors}


def certainty_of(
    examples: Examples, folds: Sequence[Fold], outputs: np.ndarray, coverage: float,
    inside: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> Certainty:  # fmt: skip
    """Learn intervals or a temperature from what was predicted out of fold, and measure what they are worth.

    In cross-validation all folds teach what is kept, and each is measured by what the others teach. A split of the
    table's own is measured on its test set, and taught by the rest.

    Args:
        outputs: (n, outputs), out of fold.
        coverage: of intervals.
        inside: gives rows of the training and validation set of a single split, and outputs of probes that had not
            seen these.
    """
    truth = examples.targets
    if len(folds) > 1:
        tested = [examples.rows_of(fold.test) for fold in folds]
        teachers = [np.concatenate([o for p, o in enumerate(tested) if p != place]) for place in range(len(tested))]
        taught = [(truth[rows], outputs[rows]) for rows in teachers]
        every = np.concatenate(tested)
        everything = truth[every], outputs[every]
    else:
        tested = [examples.rows_of(folds[0].test)]
        rows, own = inside()
        everything = truth[rows], own
        taught = [everything]
    measured = np.concatenate(tested)
    if examples.classes:
        kept, found = temperature(*everything), np.array(outputs)
        for rows, given in zip(tested, taught, strict=True):
            found[rows] /= temperature(*given)
        before, after = (calibration_error(truth[measured], values[measured]) for values in (outputs, found))
        return Certainty(found, temperature=kept, before=before, after=after)
    widths = np.full(len(truth), np.nan)
    for rows, (known, predicted) in zip(tested, taught, strict=True):
        widths[rows] = half_width(known, predicted[:, 0], coverage)
    share = float((np.abs(truth - outputs[:, 0]) <= widths)[measured].mean())
    return Certainty(outputs, half_width(everything[0], everything[1][:, 0], coverage), widths, share)

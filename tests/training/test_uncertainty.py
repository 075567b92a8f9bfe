"""Intervals that cover what they say, and probabilities that mean what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import softmax

from rd_hf.training.data import Examples
from rd_hf.training.splits import Fold
from rd_hf.training.uncertainty import calibration_error, certainty_of, half_width, temperature


def examples(targets: np.ndarray, classes: tuple[str, ...] = ()) -> Examples:
    return Examples(tuple(f"M{n}" for n in range(len(targets))), targets, classes, (), np.arange(len(targets)))


def folds_of(count: int, of: int = 5) -> list[Fold]:
    every = np.arange(count)
    return [Fold(np.setdiff1d(every, test), test, ()) for test in np.array_split(every, of)]


def nothing() -> tuple[np.ndarray, np.ndarray]:
    raise AssertionError("cross-validation asks for no more")


def test_the_half_width_is_the_residual_of_its_rank() -> None:
    truth = np.arange(1.0, 10.0)
    # Of residuals 1 to 9, rank ceil(10 x 0.8) = 8, and ceil(10 x 0.85) = 9; more than 9 of them nobody knows.
    assert half_width(truth, np.zeros(9), 0.8) == 8.0
    assert half_width(truth, np.zeros(9), 0.85) == 9.0
    assert half_width(truth, np.zeros(9), 0.95) == math.inf


@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_intervals_cover_what_had_no_part_in_them(coverage: float) -> None:
    generator = np.random.default_rng(0)
    truth = generator.standard_t(3, 2000)
    found = certainty_of(examples(truth), folds_of(2000), np.zeros((2000, 1)), coverage, nothing)
    fresh = generator.standard_t(3, 20000)
    assert found.half_width is not None
    # The share of 2,000 has a standard deviation of 0.011 at most; this is four of them.
    assert np.mean(np.abs(fresh) <= found.half_width) == pytest.approx(coverage, abs=0.045)
    assert found.measured == pytest.approx(coverage, abs=0.045)


def test_each_fold_is_measured_by_the_others() -> None:
    """Residuals of the first fold are a hundred times as large: its own would cover them."""
    truth = np.concatenate((np.full(20, 100.0), np.linspace(0.5, 1, 80)))
    found = certainty_of(examples(truth), folds_of(100), np.zeros((100, 1)), 0.8, nothing)
    assert found.widths is not None
    assert found.widths[:20].max() <= 1.0
    assert found.measured == pytest.approx(0.8)


def test_a_split_is_taught_by_what_is_not_its_test_set() -> None:
    truth = np.concatenate((np.linspace(0.01, 1, 50), np.full(50, 0.5)))
    fold = Fold(np.arange(50), np.arange(50, 100), ())
    found = certainty_of(examples(truth), [fold], np.zeros((100, 1)), 0.9, lambda: (np.arange(50), np.zeros((50, 1))))
    assert found.half_width == pytest.approx(half_width(truth[:50], np.zeros(50), 0.9))
    assert found.measured == 1.0


def test_a_temperature_takes_back_too_much_confidence() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(0, 1.5, (4000, 3))
    truth = np.array([generator.choice(3, p=p) for p in softmax(logits, axis=1)])
    # Logits four times too large: a temperature of 4 mends it, up to the noise of 4,000 draws.
    assert temperature(truth, 4 * logits) == pytest.approx(4.0, rel=0.1)
    found = certainty_of(examples(truth, ("a", "b", "c")), folds_of(4000), 4 * logits, 0.9, nothing)
    assert found.before is not None
    assert found.after is not None
    assert found.before > 0.15
    assert found.after < 0.03
    np.testing.assert_array_equal(found.outputs.argmax(axis=1), logits.argmax(axis=1))


def test_the_calibration_error_is_that_of_its_bins() -> None:
    # Two bins: 0.6 sure and right in half of the cases, 0.9 sure and always right; each is half of all.
    logits = np.log(np.array([[0.6, 0.4]] * 2 + [[0.9, 0.1]] * 2))
    assert calibration_error(np.array([0, 1, 0, 0]), logits) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)

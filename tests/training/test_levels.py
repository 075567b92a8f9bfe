"""Which level is enough, by each rule; intervals and learning curves."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from rd_hf.training.levels import LevelResult, choose, score_of, standard_error
from rd_hf.training.probes import probabilities


def result(level: str, *folds: float, draws: tuple[float, ...] = (0.0, 0.1)) -> LevelResult:
    return LevelResult(level, 1, 1, np.array(folds), np.array(draws), np.zeros((1, 1)))


def test_the_paired_rule_looks_at_differences_on_the_same_folds() -> None:
    # Folds differ a lot, levels always by the same: a difference that is certain, within the error of the score.
    small, large = result("S", 0.2, 0.5, 0.8), result("L", 0.25, 0.55, 0.85)
    assert choose([small, large], "paired").level == "L"
    assert choose([small, large], "breiman").level == "S"
    assert choose([small, large], "best").level == "L"


def test_a_difference_within_its_error_is_none() -> None:
    # Differences 0.1, -0.05, 0.01: mean 0.02, standard error 0.0436 (their deviation 0.0755 over the root of 3).
    small, large = result("S", 0.5, 0.6, 0.5), result("L", 0.6, 0.55, 0.51)
    assert large.folds.mean() > small.folds.mean()
    assert choose([small, large], "paired").level == "S"
    assert choose([small, large], "best").level == "L"


def test_a_smaller_level_that_is_better_is_the_best() -> None:
    assert choose([result("S", 0.6, 0.6), result("L", 0.5, 0.5)], "paired").level == "S"


def test_the_error_of_one_fold_is_that_of_its_resamples() -> None:
    draws = np.array([0.1, 0.2, 0.4])
    assert standard_error(np.array([0.2]), draws) == pytest.approx(draws.std(ddof=1))
    assert standard_error(np.array([0.2, 0.4]), draws) == pytest.approx(0.1)
    small = result("S", 0.50, draws=(0.50, 0.52, 0.47))
    large = result("L", 0.51, draws=(0.52, 0.51, 0.49))
    # Differences of the draws are 0.02, -0.01, 0.02, whose deviation is 0.017: 0.01 is within it.
    assert choose([small, large], "paired").level == "S"


def test_scores_are_those_of_scipy_and_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth, outputs = generator.normal(size=40), generator.normal(size=(40, 1))
    assert score_of("spearman", truth, outputs) == pytest.approx(spearmanr(truth, outputs[:, 0]).statistic)
    kinds, logits = generator.integers(0, 3, 60), generator.normal(size=(60, 3))
    named, chances = logits.argmax(axis=1), probabilities(logits)
    assert score_of("accuracy", kinds, logits) == pytest.approx(np.mean(kinds == named))
    assert score_of("balanced_accuracy", kinds, logits) == pytest.approx(balanced_accuracy_score(kinds, named))
    assert score_of("macro_f1", kinds, logits) == pytest.approx(f1_score(kinds, named, average="macro"))
    assert score_of("auroc", kinds, logits) == pytest.approx(roc_auc_score(kinds, chances, multi_class="ovr"))
    two, pair = kinds % 2, logits[:, :2]
    assert score_of("auroc", two, pair) == pytest.approx(roc_auc_score(two, probabilities(pair)[:, 1]))

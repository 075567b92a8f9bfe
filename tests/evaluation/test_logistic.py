"""Logistic probes of residues: the evaluation's and the training's are the same."""

from __future__ import annotations

import numpy as np

from rd_hf.evaluation.logistic import choose_strength
from rd_hf.evaluation.options import INVERSE_STRENGTHS, RISES, ResidueOptions
from rd_hf.evaluation.residues import logistic_probe
from rd_hf.training.features import Features
from rd_hf.training.probes import fit, probabilities

SIZES = {"train": 1500, "validation": 500, "test": 500}


def rare_class() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Correlated float32 features of each set, and a class that about one residue in thirty has, as metal sites are."""
    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((40, 40)) * np.geomspace(1, 0.02, 40)
    weights = generator.standard_normal(40)
    features, labels = {}, {}
    for name, size in SIZES.items():
        states = generator.standard_normal((size, 40)) @ mixing.T
        signal = states @ weights / (states @ weights).std() + generator.standard_normal(size)
        features[name], labels[name] = states.astype(np.float32), (signal > 2.6).astype(np.int64)
    return features, labels


def test_a_trained_head_answers_as_the_evaluation_does() -> None:
    features, labels = rare_class()
    predicted, strength = logistic_probe(features, labels, 2, ResidueOptions())
    together, targets = np.concatenate(list(features.values())), np.concatenate(list(labels.values()))
    train, judging, test = np.split(np.arange(len(targets)), np.cumsum(list(SIZES.values()))[:2])
    found = fit(Features(together), targets, 2, train, [(train, judging)])
    assert found.strength == strength
    # One fit; the head computes its float32 numbers in float64.
    np.testing.assert_allclose(probabilities(found(Features(together), test)), predicted["test"], rtol=0, atol=1e-6)


def test_the_path_ends_where_losses_rise() -> None:
    class Losses:
        def __init__(self, losses: list[float]) -> None:
            self.losses, self.asked, self.kept = losses, 0, 0

        def loss(self, strength: float) -> float:
            self.asked += 1
            return self.losses[INVERSE_STRENGTHS.index(strength)]

        def keep(self) -> None:
            self.kept = self.asked

    rising = Losses([5, 3, 4, 5, 0, 0, 0, 0])
    level = Losses([1] * len(INVERSE_STRENGTHS))
    assert choose_strength([rising, level]) == INVERSE_STRENGTHS[1]  # type: ignore[list-item]
    assert rising.asked == level.asked == 2 + RISES
    assert rising.kept == level.kept == 2

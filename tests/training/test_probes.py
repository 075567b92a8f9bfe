"""Probes against scikit-learn's own pipelines, which are asked the same question in another way."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.assays import substitutions
from rd_hf.evaluation.options import INVERSE_STRENGTHS, STRENGTHS
from rd_hf.training.features import Features
from rd_hf.training.probes import SUBSTITUTION_STRENGTHS, fit, probabilities
from rd_hf.training.variants import positions_of


def data(classes: int = 0, count: int = 120, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(classes)
    features = generator.normal(3, 2, (count, width))
    signal = features[:, : max(1, classes)] + generator.normal(0, 2, (count, max(1, classes)))
    return features, (signal.argmax(axis=1) if classes else signal[:, 0])


def test_numbers_are_those_of_a_grid_search() -> None:
    features, targets = data()
    train, test = np.arange(90), np.arange(90, 120)
    inner = list(KFold(5, shuffle=True, random_state=0).split(train))
    grid = {"ridge__alpha": list(STRENGTHS)}
    expected = GridSearchCV(make_pipeline(StandardScaler(), Ridge()), grid, cv=inner, scoring="r2")
    expected.fit(features[train], targets[train])
    found = fit(Features(features), targets, 0, train, inner)
    assert found.strength == expected.best_params_["ridge__alpha"]
    # Both solve in float64.
    np.testing.assert_allclose(
        found(Features(features), test)[:, 0], expected.predict(features[test]), rtol=0, atol=1e-8
    )


@pytest.mark.parametrize("classes", [2, 4])
def test_classes_are_those_of_a_grid_search(classes: int) -> None:
    features, targets = data(classes)
    train, test = np.arange(90), np.arange(90, 120)
    inner = list(StratifiedKFold(3, shuffle=True, random_state=0).split(train, targets[train]))
    grid = {"logisticregression__C": list(INVERSE_STRENGTHS)}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))
    expected = GridSearchCV(model, grid, cv=inner, scoring="neg_log_loss").fit(features[train], targets[train])
    found = fit(Features(features), targets, classes, train, inner)
    assert found.strength == expected.best_params_["logisticregression__C"]
    # L-BFGS stops where its gradient is below 1e-4.
    np.testing.assert_allclose(
        probabilities(found(Features(features), test)), expected.predict_proba(features[test]), rtol=0, atol=1e-3
    )


def scan(count: int = 60, width: int = 5) -> tuple[Features, np.ndarray]:
    """Variants with one or two substitutions of a protein of twelve residues, and scores that both blocks explain."""
    generator = np.random.default_rng(0)
    wild_type, sequences = "MKTAYIAKQRQI", []
    for number in range(count):
        letters = list(wild_type)
        for place in generator.choice(12, size=1 + number % 2, replace=False):
            letters[place] = generator.choice([letter for letter in "ACDEFG" if letter != wild_type[place]])
        sequences.append("".join(letters))
    substituted, columns = substitutions(sequences, positions_of(wild_type, sequences), wild_type)
    features = Features(generator.normal(1, 3, (count, width)), substituted, columns)
    effects = generator.normal(size=len(columns))
    return features, features.embedding[:, 0] / 3 + substituted @ effects + generator.normal(0, 0.3, count)


def filled(features: Features, rows: np.ndarray, others: np.ndarray, strengths: tuple[float, float]) -> np.ndarray:
    """Both blocks in one matrix, each divided by the root of its strength: ridge of strength 1 on it is the same."""
    scaler = StandardScaler().fit(features.embedding[rows]) if features.embedding.shape[1] else None
    dense = scaler.transform(features.embedding[others]) if scaler else features.embedding[others]
    return np.hstack((dense / strengths[0] ** 0.5, features.substitutions[others].toarray() / strengths[1] ** 0.5))


@pytest.mark.parametrize("width", [5, 0, 70])
def test_two_blocks_are_ridge_on_both_at_once(width: int) -> None:
    """By scikit-learn on filled-in features: the mean over all pairs of strengths that are as good as the best."""
    features, targets = scan(width=max(width, 5))
    features = features.cut(width)
    train, test = np.arange(45), np.arange(45, 60)
    inner = list(KFold(3, shuffle=True, random_state=0).split(train))

    def inner_scores(pair: tuple[float, float]) -> np.ndarray:
        parts = []
        for fitting, judging in inner:
            model = Ridge(alpha=1.0, solver="svd").fit(filled(features, fitting, fitting, pair), targets[fitting])
            parts.append(model.score(filled(features, fitting, judging, pair), targets[judging]))
        return np.array(parts)

    found = fit(features, targets, 0, train, inner)
    scores = {
        pair: inner_scores(pair) for pair in product(STRENGTHS if width else STRENGTHS[:1], SUBSTITUTION_STRENGTHS)
    }
    best = max(scores, key=lambda pair: scores[pair].mean())
    least = scores[best].mean() - scores[best].std(ddof=1) / 3**0.5
    good = {pair for pair, own in scores.items() if own.mean() >= least}
    assert len(good) > 1
    assert {pair for pair in found.averaged if width or pair[0] == STRENGTHS[0]} == good
    expected = []
    for pair in good:
        ridge = Ridge(alpha=1.0, solver="svd").fit(filled(features, train, train, pair), targets[train])
        expected.append(ridge.predict(filled(features, train, test, pair)))
    # Both in float64; the smallest strengths leave a matrix whose condition is about a million.
    np.testing.assert_allclose(found(features, test)[:, 0], np.mean(expected, axis=0), rtol=0, atol=1e-7)


def test_what_judges_is_not_fitted_on() -> None:
    """The strength, means and weights depend on training rows alone."""
    features, targets = data()
    train = np.arange(90)
    inner = list(KFold(5).split(train))
    before = fit(Features(features), targets, 0, train, inner)
    spoiled, others = features.copy(), targets.copy()
    spoiled[90:], others[90:] = 1e6, -1e6
    after = fit(Features(spoiled), others, 0, train, inner)
    assert before.strength == after.strength
    np.testing.assert_array_equal(before.weight, after.weight)
    np.testing.assert_array_equal(before.mean, after.mean)

"""The closed-form probe against scikit-learn's own pipeline, and that nothing leaks into it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.assays import Assay, Fold, folds, one_hot, read_assay
from rd_hf.evaluation.dms import Contender, Unit, evaluate_unit
from rd_hf.evaluation.embeddings import PooledStates, embed_assay
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.options import ProbeOptions
from rd_hf.evaluation.probe import nested_ridge, ridge_predictions

OPTIONS = ProbeOptions()


def grid_search(features: np.ndarray, scores: np.ndarray, fold: Fold, options: ProbeOptions) -> GridSearchCV:
    """The same question asked of scikit-learn alone."""
    pipeline = Pipeline([("scale", StandardScaler()), ("ridge", Ridge(solver="svd"))])
    inner = KFold(options.inner_folds, shuffle=True, random_state=options.seed)
    search = GridSearchCV(pipeline, {"ridge__alpha": list(options.strengths)}, cv=inner, scoring="r2")
    return search.fit(features[fold.train], scores[fold.train])


def assert_agrees(features: np.ndarray, scores: np.ndarray, fold: Fold, options: ProbeOptions = OPTIONS) -> None:
    found = nested_ridge(features, scores, fold.train, fold.test, options)
    expected = grid_search(features, scores, fold, options)
    assert found.strength == expected.best_params_["ridge__alpha"]
    np.testing.assert_allclose(found.inner_scores, expected.cv_results_["mean_test_score"], rtol=0, atol=1e-6)
    # The acceptance of the issue; both work in float64, where they agree to about 1e-10.
    np.testing.assert_allclose(found.predictions, expected.predict(features[fold.test]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [24, 96, 126])
def test_agrees_with_grid_search_on_the_carried_assay(assay: Assay, pooled: PooledStates, size: int) -> None:
    # 144 columns: the smaller matrix is X X^T at every size here, and X^T X below.
    order = np.random.default_rng(0).permutation(len(assay.scores))
    fold = Fold("low_n", 0, 0, order[:size], order[size:])
    assert_agrees(pooled.mean.astype(np.float64), assay.scores, fold)
    assert_agrees(pooled.site.astype(np.float64)[:, :16], assay.scores, fold)


@pytest.mark.parametrize("name", ["ARGR_ECOLI_Tsuboyama_2023_1AOY", "NRAM_I33A0_Jiang_2016", "CCDB_ECOLI_Adkar_2012"])
def test_agrees_with_grid_search_on_three_assays(shared_data, tiny_family: Family, tmp_path, name: str) -> None:
    whole = read_assay(shared_data / "dms" / f"{name}.csv")
    states = embed_assay(tiny_family, whole, tmp_path)
    assert_agrees(states.mean.astype(np.float64), whole.scores, folds(whole, "random", 1)[0])


def test_sparse_one_hot_agrees_with_grid_search_on_filled_features(assay: Assay) -> None:
    fold = folds(assay, "random", 1)[0]
    features = one_hot(assay)
    assert features.shape[1] > len(fold.train)
    found = nested_ridge(features, assay.scores, fold.train, fold.test, OPTIONS)
    expected = grid_search(features.toarray(), assay.scores, fold, OPTIONS)
    np.testing.assert_allclose(found.inner_scores, expected.cv_results_["mean_test_score"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(found.predictions, expected.predict(features.toarray()[fold.test]), rtol=0, atol=1e-6)


def test_constant_columns_do_not_matter() -> None:
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((40, 5)), generator.standard_normal(40)
    widened = np.hstack((x, np.full((40, 2), 0.1)))  # 0.1 has no exact binary form: its variance must not be noise
    before = ridge_predictions(x[:30], y[:30], x[30:], (1.0,))
    after = ridge_predictions(widened[:30], y[:30], widened[30:], (1.0,))
    # Rounding of one float64 solve.
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-10)


def test_neither_scaler_nor_strength_sees_the_test_fold(assay: Assay, pooled: PooledStates) -> None:
    # Whatever stands in the test rows, features and scores alike, a prediction depends on its own row alone.
    fold = folds(assay, "random", 1)[0]
    features = pooled.mean.astype(np.float64)
    before = nested_ridge(features, assay.scores, fold.train, fold.test, OPTIONS)
    watched, others = fold.test[0], fold.test[1:]
    spoiled, scores = features.copy(), assay.scores.copy()
    spoiled[others] = 1e6
    scores[fold.test] = -1e6
    after = nested_ridge(spoiled, scores, fold.train, fold.test, OPTIONS)
    assert after.strength == before.strength
    np.testing.assert_array_equal(after.inner_scores, before.inner_scores)
    # One row of a matrix product may be summed in another order.
    np.testing.assert_allclose(after.predictions[0], before.predictions[0], rtol=1e-12)
    assert watched == fold.test[0]


def test_shuffled_scores_are_not_predicted(assay: Assay, pooled: PooledStates) -> None:
    unit = Unit(
        contender=Contender("tiny", 1.0, "mean", "raw", "L2", labels="shuffled"),
        assay=assay,
        features=pooled.mean.astype(np.float64),
        feature_digest="",
        representation=None,
        folds=folds(assay, "random", 20),
        probe=OPTIONS,
    )
    rows = evaluate_unit(unit)
    # 100 folds of 31 variants: the mean's deviation is 1 / sqrt(30 x 100) = 0.02, and repeats share variants.
    assert abs(rows["spearman"].mean()) < 0.05


def test_shuffled_scores_are_not_predicted_on_real_assays(shared_data, tmp_path) -> None:
    means = []
    for name in ("ARGR_ECOLI_Tsuboyama_2023_1AOY", "DN7A_SACS2_Tsuboyama_2023_1JIC", "ILF3_HUMAN_Tsuboyama_2023_2L33"):
        whole = read_assay(shared_data / "dms" / f"{name}.csv")
        unit = Unit(
            contender=Contender("", 1.0, "", "one_hot", "", labels="shuffled"),
            assay=whole,
            features=one_hot(whole),
            feature_digest="",
            representation=None,
            folds=folds(whole, "random", 2),
            probe=OPTIONS,
        )
        means.append(evaluate_unit(unit)["spearman"].mean())
    assert abs(np.mean(means)) < 0.05


def test_too_few_variants_are_refused(assay: Assay, pooled: PooledStates) -> None:
    with pytest.raises(ValueError, match="9 training variants are too few"):
        nested_ridge(pooled.mean, assay.scores, np.arange(9), np.arange(9, 20), OPTIONS)
    with pytest.raises(ValueError, match="positive"):
        ProbeOptions(strengths=(0.0, 1.0))

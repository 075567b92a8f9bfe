"""Ridge regression with nested cross-validation, in closed form for all strengths at once.

For standardised training features X (n, p) and centred scores y, ridge of strength a has the coefficients
(Hoerl and Kennard 1970)

    b(a) = (X^T X + a I)^-1 X^T y = Q (L + a I)^-1 Q^T X^T y        with X^T X = Q L Q^T
         = X^T U (L + a I)^-1 U^T y                                 with X X^T = U L U^T

so that one eigendecomposition, of the smaller of the two matrices, serves every strength. Sparse features with more
columns than rows (one-hot) have a sparse X^T X but for the mean, and are solved so. The result is that of
scikit-learn's ``GridSearchCV(Pipeline(StandardScaler, Ridge))``; tests hold them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import splu
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from rd_hf.evaluation.options import ProbeOptions

# np.ndarray or scipy.sparse.csr_array, (n, p); scipy carries no annotations.
Features: TypeAlias = Any
# Rows that are fitted on, and rows that judge.
Split: TypeAlias = tuple[np.ndarray, np.ndarray]


# How splu factors what is symmetric and positive definite: a symmetric ordering and no pivoting keep it sparse.
SYMMETRIC: dict[str, Any] = {
    "permc_spec": "MMD_AT_PLUS_A",
    "diag_pivot_thresh": 0.0,
    "options": {"SymmetricMode": True},
}


class ProbeResult(NamedTuple):
    """What a probe predicts of the test rows, (n_test,) float64, and how its strength was chosen."""

    predictions: np.ndarray
    strength: float
    inner_scores: np.ndarray  # mean inner R^2 of each candidate


def ridge_predictions(
    features: Features, scores: np.ndarray, test_features: Features, strengths: tuple[float, ...]
) -> np.ndarray:
    """Fit on (features, scores) and predict, for every strength.

    The scaler's means and deviations are those of ``features`` alone. Features are (n, p) and (m, p) float64, dense or
    CSR, scores (n,), and what is predicted is (m, strengths).
    """
    mean = scores.mean()
    y = scores - mean
    rows, columns = features.shape
    penalties = np.asarray(strengths)
    if sparse.issparse(features):
        if columns > rows:
            return mean + _sparse_ridge(features, y, test_features, penalties)
        features, test_features = features.toarray(), test_features.toarray()
    scaler = StandardScaler()
    x = scaler.fit_transform(features)
    test = scaler.transform(test_features)
    wide = columns > rows
    values, vectors = linalg.eigh(x @ x.T if wide else x.T @ x, check_finite=False, overwrite_a=True)
    projected = vectors.T @ (y if wide else x.T @ y)
    solved = vectors @ (projected[:, None] / (np.maximum(values, 0.0)[:, None] + penalties))
    return mean + test @ (x.T @ solved if wide else solved)


def _sparse_ridge(
    features: sparse.csr_array, y: np.ndarray, test_features: sparse.csr_array, penalties: np.ndarray
) -> np.ndarray:
    """Ridge on standardised sparse features, without filling them in; (m, a), the mean score not yet added.

    With B the features, m their means and S their deviations, X^T X + a I = M - n u u^T, where
    M = S^-1 B^T B S^-1 + a I is sparse and u = S^-1 m; Sherman and Morrison's (1950) formula inverts it from one
    sparse factorisation.
    """
    rows = features.shape[0]
    means = np.asarray(features.mean(axis=0))
    variances = np.asarray(features.multiply(features).mean(axis=0)) - means**2
    # Entries are of order 1, so this is rounding; columns without variance take no part, as in StandardScaler.
    varies = variances > 1e-12
    scale = sparse.diags_array(1.0 / np.sqrt(variances[varies]))
    x, test = features[:, varies] @ scale, test_features[:, varies] @ scale
    u = means[varies] / np.sqrt(variances[varies])
    gram, projected = (x.T @ x).tocsc(), x.T @ y  # y sums to zero, so that the means drop out of X^T y
    identity = sparse.eye_array(gram.shape[0], format="csc")
    predictions = np.empty((test.shape[0], len(penalties)))
    for column, penalty in enumerate(penalties):
        solved, along = splu(gram + penalty * identity, **SYMMETRIC).solve(np.stack((projected, u), axis=1)).T
        coefficients = solved + along * (rows * (u @ solved) / (1.0 - rows * (u @ along)))
        predictions[:, column] = test @ coefficients - u @ coefficients
    return predictions


def nested_ridge(
    features: Features, scores: np.ndarray, train: np.ndarray, test: np.ndarray, options: ProbeOptions
) -> ProbeResult:
    """Choose the strength inside the training rows, refit on all of them, predict the test rows.

    Features and scores are those of the whole assay, train and test numbers of rows: nothing of the test rows but their
    features is used, and these only to predict. R^2 needs two rows for each inner fold.
    """
    if len(train) < 2 * options.inner_folds:
        raise ValueError(f"{len(train)} training variants are too few for {options.inner_folds} inner folds")
    x, y = features[train], scores[train]
    inner = list(KFold(options.inner_folds, shuffle=True, random_state=options.seed).split(y))
    inner_scores = strength_scores(x, y, inner, options.strengths)
    best = options.strengths[int(np.argmax(inner_scores))]
    return ProbeResult(ridge_predictions(x, y, features[test], (best,))[:, 0], best, inner_scores)


def strength_scores(
    features: Features, scores: np.ndarray, inner: Sequence[Split], strengths: tuple[float, ...]
) -> np.ndarray:
    """Mean R^2 of each strength over inner folds: (strengths,) float64.

    Features are (n, p), scores (n,); a fold is the numbers of the rows that are fitted on, and of those that judge.
    """
    found = np.zeros(len(strengths))
    for fitting, validation in inner:
        predictions = ridge_predictions(features[fitting], scores[fitting], features[validation], strengths)
        truth = np.broadcast_to(scores[validation][:, None], predictions.shape)
        found += r2_score(truth, predictions, multioutput="raw_values") / len(inner)
    return found

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

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from scipy import linalg, sparse
from scipy.sparse.linalg import splu
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

# np.ndarray or scipy.sparse.csr_array, (n, p); scipy carries no annotations.
Features: TypeAlias = Any

# Standardised features: the eigenvalues of X^T X sum to n p, from 24 x 64 up to 5,000 x 5,000 here, so that these
# reach from hardly any shrinkage to nearly the mean.
STRENGTHS = tuple(float(strength) for strength in np.logspace(-2, 6, 17))


@dataclass(frozen=True)
class ProbeOptions:
    """How the strength is chosen.

    Attributes:
        strengths: candidates, scikit-learn's ``alpha``.
        inner_folds: folds of the training set on which they are compared, by mean R^2.
        seed: of the inner folds.
    """

    strengths: tuple[float, ...] = STRENGTHS
    inner_folds: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"ridge strengths must be positive, got {self.strengths}")
        if self.inner_folds < 2:
            raise ValueError(f"choosing a strength needs two inner folds, got {self.inner_folds}")


@dataclass(frozen=True)
class ProbeResult:
    """A fitted probe's answer.

    Attributes:
        predictions: of the test rows, (n_test,) float64.
        strength: the one chosen.
        inner_scores: mean inner R^2 of each candidate.
    """

    predictions: np.ndarray
    strength: float
    inner_scores: np.ndarray = field(repr=False)


def ridge_predictions(
    features: Features, scores: np.ndarray, test_features: Features, strengths: tuple[float, ...]
) -> np.ndarray:
    """Fit on (features, scores) and predict, for every strength.

    The scaler's means and deviations are those of ``features`` alone.

    Args:
        features: (n, p) float64, dense or CSR.
        scores: (n,) float64.
        test_features: (m, p) float64, likewise.
        strengths: a of them.

    Returns:
        (m, a) float64.
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
    if columns <= rows:
        values, vectors = linalg.eigh(x.T @ x, check_finite=False, overwrite_a=True)
        projected = vectors.T @ (x.T @ y)
        coefficients = vectors @ (projected[:, None] / (np.maximum(values, 0.0)[:, None] + penalties))
        return mean + test @ coefficients
    values, vectors = linalg.eigh(x @ x.T, check_finite=False, overwrite_a=True)
    weights = vectors @ ((vectors.T @ y)[:, None] / (np.maximum(values, 0.0)[:, None] + penalties))
    return mean + test @ (x.T @ weights)


def _sparse_ridge(
    features: sparse.csr_array, y: np.ndarray, test_features: sparse.csr_array, penalties: np.ndarray
) -> np.ndarray:
    """Ridge on standardised sparse features, without filling them in.

    With B the features, m their means and S their deviations, X^T X + a I = M - n u u^T, where
    M = S^-1 B^T B S^-1 + a I is sparse and u = S^-1 m; Sherman and Morrison's (1950) formula inverts it from one
    sparse factorisation.

    Returns:
        (m, a) float64, the mean score not yet added.
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
        # Symmetric and positive definite: a symmetric ordering and no pivoting keep the factors sparse.
        factor = splu(
            gram + penalty * identity,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
        solved, along = factor.solve(np.stack((projected, u), axis=1)).T
        coefficients = solved + along * (rows * (u @ solved) / (1.0 - rows * (u @ along)))
        predictions[:, column] = test @ coefficients - u @ coefficients
    return predictions


def nested_ridge(
    features: Features, scores: np.ndarray, train: np.ndarray, test: np.ndarray, options: ProbeOptions
) -> ProbeResult:
    """Choose the strength inside the training rows, refit on all of them, predict the test rows.

    Args:
        features: (n, p) float64, dense or CSR, of the whole assay.
        scores: (n,) float64.
        train, test: row numbers; nothing of the test rows but their features is used, and these only to predict.

    Raises:
        ValueError: fewer training rows than inner folds times two, on which R^2 is not defined.
    """
    if len(train) < 2 * options.inner_folds:
        raise ValueError(f"{len(train)} training variants are too few for {options.inner_folds} inner folds")
    x, y = features[train], scores[train]
    inner = KFold(options.inner_folds, shuffle=True, random_state=options.seed)
    inner_scores = np.zeros(len(options.strengths))
    for fitting, validation in inner.split(y):
        predictions = ridge_predictions(x[fitting], y[fitting], x[validation], options.strengths)
        truth = np.broadcast_to(y[validation][:, None], predictions.shape)
        inner_scores += r2_score(truth, predictions, multioutput="raw_values") / options.inner_folds
    best = options.strengths[int(np.argmax(inner_scores))]
    return ProbeResult(ridge_predictions(x, y, features[test], (best,))[:, 0], best, inner_scores)

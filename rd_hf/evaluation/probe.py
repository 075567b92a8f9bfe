"""Ridge regression with nested cross-validation, in closed form for all strengths at once.

For standardised training features X (n, p) and centred scores y, ridge of strength a has the coefficients
(Hoerl and Kennard 1970)

    b(a) = (X^T X + a I)^-1 X^T y = Q (L + a I)^-1 Q^T X^T y        with X^T X = Q L Q^T
         = X^T U (L + a I)^-1 U^T y                                 with X X^T = U L U^T

so that one eigendecomposition, of the smaller of the two matrices, serves every strength. The result is that of
scikit-learn's ``GridSearchCV(Pipeline(StandardScaler, Ridge))``; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import linalg
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

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
    features: np.ndarray, scores: np.ndarray, test_features: np.ndarray, strengths: tuple[float, ...]
) -> np.ndarray:
    """Fit on (features, scores) and predict, for every strength.

    The scaler's means and deviations are those of ``features`` alone.

    Args:
        features: (n, p) float64.
        scores: (n,) float64.
        test_features: (m, p) float64.
        strengths: a of them.

    Returns:
        (m, a) float64.
    """
    scaler = StandardScaler()
    x = scaler.fit_transform(features)
    test = scaler.transform(test_features)
    mean = scores.mean()
    y = scores - mean
    rows, columns = x.shape
    penalties = np.asarray(strengths)[None, :]
    if columns <= rows:
        values, vectors = linalg.eigh(x.T @ x, check_finite=False, overwrite_a=True)
        projected = vectors.T @ (x.T @ y)
        coefficients = vectors @ (projected[:, None] / (np.maximum(values, 0.0)[:, None] + penalties))
        return mean + test @ coefficients
    values, vectors = linalg.eigh(x @ x.T, check_finite=False, overwrite_a=True)
    weights = vectors @ ((vectors.T @ y)[:, None] / (np.maximum(values, 0.0)[:, None] + penalties))
    return mean + test @ (x.T @ weights)


def nested_ridge(
    features: np.ndarray, scores: np.ndarray, train: np.ndarray, test: np.ndarray, options: ProbeOptions
) -> ProbeResult:
    """Choose the strength inside the training rows, refit on all of them, predict the test rows.

    Args:
        features: (n, p) float64, of the whole assay.
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
    for fitting, validation in inner.split(x):
        predictions = ridge_predictions(x[fitting], y[fitting], x[validation], options.strengths)
        truth = np.broadcast_to(y[validation][:, None], predictions.shape)
        inner_scores += r2_score(truth, predictions, multioutput="raw_values") / options.inner_folds
    best = options.strengths[int(np.argmax(inner_scores))]
    return ProbeResult(ridge_predictions(x, y, features[test], (best,))[:, 0], best, inner_scores)

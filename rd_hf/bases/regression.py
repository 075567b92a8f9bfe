"""Regression of a larger level's states on a smaller level's embedding, from covariances alone.

All three kinds share one form. With the eigendecomposition C = U diag(lambda) U^T of the covariance of the
embedding e (p features) and the cross-covariance G of e and h, the coefficients are

    W = U f(lambda) U^T G

and the kind is the filter f: 1/lambda on the components above the noise edge (principal component regression),
1/lambda on all that are numerically there (OLS), 1/(lambda + alpha/(n-1)) (ridge).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

RegressionKind = Literal["pcr", "ols", "ridge"]


@dataclass(frozen=True)
class ComponentSelection:
    """Which principal components of the embedding carry signal: the ``selected`` leading ones."""

    selected: int
    sigma_squared: float  # noise variance sigma^2
    edge: float  # Johnstone / Marchenko-Pastur edge sigma^2 (1 + sqrt(p/n))^2


@dataclass(frozen=True)
class Regression:
    """Fitted coefficients, and the components that were used: for OLS those numerically there, for ridge all."""

    coefficients: torch.Tensor  # W, (p, k) float64
    eigenvalues: torch.Tensor  # of the embedding's covariance, (p,) float64, descending
    vectors: torch.Tensor  # its eigenvectors, (p, p) float64, one a column
    selection: ComponentSelection


def descending_eigh(matrix: torch.Tensor, leading: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvalues of a symmetric matrix, the largest first, and as many leading eigenvectors (all by default)."""
    values, vectors = torch.linalg.eigh(matrix)
    first = 0 if leading is None else len(matrix) - leading
    return values.flip(0), fix_signs(vectors[:, first:].flip(1))


def fix_signs(vectors: torch.Tensor) -> torch.Tensor:
    """Make the entry of largest magnitude of every column positive, so that two fits agree in sign."""
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return vectors * torch.where(largest < 0, -1.0, 1.0).to(vectors)


def noise_edge(eigenvalues: torch.Tensor, residues: int) -> tuple[float, float]:
    """Noise variance sigma^2 and its edge sigma^2 (1 + sqrt(p/n))^2 (Johnstone 2001; Marchenko and Pastur 1967).

    sigma^2 is the median of the eigenvalues, (p,) descending, whose ratio to the mean eigenvalue lies below
    (1 + sqrt(p/n))^2; if there are none, the median of the smallest quarter.
    """
    features = len(eigenvalues)
    unit_edge = (1.0 + (features / residues) ** 0.5) ** 2
    noise = eigenvalues[eigenvalues / eigenvalues.mean() < unit_edge]
    if len(noise) == 0:
        noise = eigenvalues[-max(1, features // 4) :]
    # quantile, not median(): torch's median takes the lower of two middle values, numpy's their mean.
    sigma_squared = float(torch.quantile(noise, 0.5))
    return sigma_squared, sigma_squared * unit_edge


def select_components(eigenvalues: torch.Tensor, residues: int, variance_floor: float = 0.95) -> ComponentSelection:
    """Select components whose eigenvalue exceeds the noise edge; if none does, those with 95 % of the variance."""
    sigma_squared, edge = noise_edge(eigenvalues, residues)
    selected = int((eigenvalues > edge).sum())
    if selected == 0:
        share = torch.cumsum(eigenvalues, 0) / eigenvalues.sum()
        selected = min(len(eigenvalues), int((share < variance_floor).sum()) + 1)
    return ComponentSelection(selected, sigma_squared, edge)


def components_there(eigenvalues: torch.Tensor) -> torch.Tensor:
    """Which eigenvalues, (p,), are directions of the data, and not rounding of a float64 scatter: (p,) bool."""
    return eigenvalues > eigenvalues.max() * len(eigenvalues) * torch.finfo(torch.float64).eps


def least_squares(eigenvalues: torch.Tensor, vectors: torch.Tensor, cross_covariance: torch.Tensor) -> torch.Tensor:
    """C^+ G: ordinary least squares, (p, k), given the eigendecomposition of C and G, (p, k), in any order."""
    there = components_there(eigenvalues)
    used = vectors[:, there]
    return used @ ((used.T @ cross_covariance) / eigenvalues[there][:, None])


def regress(
    covariance: torch.Tensor,
    cross_covariance: torch.Tensor,
    residues: int,
    kind: RegressionKind = "pcr",
    ridge_alpha: float = 1.0,
) -> Regression:
    """Coefficients W of h on e, by their covariances C, (p, p), and G, (p, k), scatter / (n - 1), float64.

    The ridge's penalty is on the scale of sums of squares over residues, as in scikit-learn's ``Ridge``.

    Raises:
        ValueError: unknown kind, or an embedding without variance.
    """
    eigenvalues, vectors = descending_eigh(covariance)
    eigenvalues = eigenvalues.clamp_min(0.0)
    if eigenvalues[0] <= 0:
        raise ValueError("the smaller level's embedding is constant over all residues: nothing to regress on")
    used_by = {"ols": int(components_there(eigenvalues).sum()), "ridge": len(eigenvalues)}
    if kind == "pcr":
        selection = select_components(eigenvalues, residues)
    elif kind in used_by:
        selection = ComponentSelection(used_by[kind], *noise_edge(eigenvalues, residues))
    else:
        raise ValueError(f"unknown regression {kind!r}: choose pcr, ols or ridge")
    used, values = vectors[:, : selection.selected], eigenvalues[: selection.selected]
    penalty = ridge_alpha / (residues - 1) if kind == "ridge" else 0.0
    coefficients = used @ ((used.T @ cross_covariance) / (values + penalty)[:, None])
    return Regression(coefficients, eigenvalues, vectors, selection)

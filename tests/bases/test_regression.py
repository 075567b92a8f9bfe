"""Regressions from covariances, against scikit-learn on the data itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression, Ridge

from rd_hf.bases.regression import RegressionKind, noise_edge, regress, select_components


@pytest.fixture(scope="module")
def data() -> tuple[np.ndarray, np.ndarray]:
    """Strong low-rank signal in 20 features plus noise, and responses that depend on the signal."""
    rng = np.random.default_rng(0)
    signal = rng.standard_normal((2000, 4)) * [8, 5, 3, 2]
    x = signal @ rng.standard_normal((4, 20)) + 0.3 * rng.standard_normal((2000, 20)) + 3
    y = signal @ rng.standard_normal((4, 7)) + 0.5 * rng.standard_normal((2000, 7)) - 1
    return x, y


def covariances(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, int]:
    xc, yc, n = x - x.mean(0), y - y.mean(0), len(x)
    return torch.from_numpy(xc.T @ xc / (n - 1)), torch.from_numpy(xc.T @ yc / (n - 1)), n


def test_ols_is_scikit_learns(data: tuple[np.ndarray, np.ndarray]) -> None:
    fitted = regress(*covariances(*data), kind="ols")
    reference = LinearRegression().fit(*data).coef_.T
    # Normal equations square the condition number (here 3e3) of a float64 problem.
    np.testing.assert_allclose(fitted.coefficients, reference, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("alpha", [0.1, 1.0, 1000.0])
def test_ridge_is_scikit_learns(data: tuple[np.ndarray, np.ndarray], alpha: float) -> None:
    fitted = regress(*covariances(*data), kind="ridge", ridge_alpha=alpha)
    np.testing.assert_allclose(fitted.coefficients, Ridge(alpha).fit(*data).coef_.T, rtol=1e-8, atol=1e-9)


def test_pcr_regresses_on_the_components_above_the_edge(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    fitted = regress(*covariances(x, y), kind="pcr")
    assert fitted.selection.selected == 4
    pca = PCA(4).fit(x)
    reference = pca.components_.T @ LinearRegression().fit(pca.transform(x), y).coef_.T
    np.testing.assert_allclose(fitted.coefficients, reference, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(fitted.eigenvalues[:4], pca.explained_variance_, rtol=1e-10)


@pytest.mark.parametrize("kind", ["pcr", "ols"])
def test_a_feature_that_repeats_another_does_not_blow_up(kind: RegressionKind) -> None:
    """Exactly collinear features leave one direction without variance; no weight may go there."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((500, 5))
    x = np.concatenate((x, x[:, :1]), axis=1)
    y = x[:, :1] * 2
    coefficients = regress(*covariances(x, y), kind=kind).coefficients
    assert float(coefficients.abs().max()) < 3
    assert float((coefficients[0] - coefficients[5]).abs().max()) < 1e-9
    if kind == "ols":
        np.testing.assert_allclose((x - x.mean(0)) @ coefficients.numpy(), y - y.mean(0), atol=1e-9)


def test_constant_features_do_no_harm(data: tuple[np.ndarray, np.ndarray]) -> None:
    x, y = data
    padded = np.concatenate((x, np.full((len(x), 2), 7.0)), axis=1)
    plain, more = regress(*covariances(x, y), kind="ols"), regress(*covariances(padded, y), kind="ols")
    np.testing.assert_allclose(more.coefficients[:20], plain.coefficients, rtol=1e-8, atol=1e-9)
    assert float(more.coefficients[20:].abs().max()) < 1e-9


def test_the_edge_is_johnstones() -> None:
    """For pure noise the edge sits at sigma^2 (1 + sqrt(p/n))^2 and (nearly) nothing passes it."""
    rng = np.random.default_rng(2)
    n, p, sigma = 4000, 200, 1.7
    noise = sigma * rng.standard_normal((n, p))
    eigenvalues = torch.from_numpy(np.linalg.eigvalsh(np.cov(noise, rowvar=False))[::-1].copy())
    sigma_squared, edge = noise_edge(eigenvalues, n)
    # The median of the Marchenko-Pastur law lies a little below sigma^2 at p/n = 0.05.
    assert sigma_squared == pytest.approx(sigma**2, rel=0.05)
    assert edge == pytest.approx(sigma_squared * (1 + np.sqrt(p / n)) ** 2)
    assert int((eigenvalues > edge).sum()) <= p // 20


def test_sigma_is_the_median_of_the_small_eigenvalues() -> None:
    eigenvalues = torch.tensor([50.0, 30.0, 1.2, 1.0, 0.8, 0.6], dtype=torch.float64)
    sigma_squared, _ = noise_edge(eigenvalues, residues=10_000)
    # Mean 13.93: the four small ones lie below 1.05 times it; numpy's median of them is 0.9.
    assert sigma_squared == pytest.approx(np.median([1.2, 1.0, 0.8, 0.6]))


def test_without_a_component_above_the_edge_95_percent_of_the_variance_is_kept() -> None:
    flat = torch.ones(20, dtype=torch.float64)
    selection = select_components(flat, residues=100)
    assert float(flat.max()) <= selection.edge
    assert selection.selected == 19


def test_an_unknown_kind_is_refused(data: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="choose pcr, ols or ridge"):
        regress(*covariances(*data), kind="lasso")  # type: ignore[arg-type]


def test_an_embedding_without_variance_is_refused() -> None:
    with pytest.raises(ValueError, match="constant"):
        regress(torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64), 10)

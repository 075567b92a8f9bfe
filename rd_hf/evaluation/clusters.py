"""Means over queries whose clusters are the units of inference: intervals resample clusters, tests flip their signs.

Queries of one superfamily look for the same domains, so that a table of 5,062 of them says no more than its 617
superfamilies do.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from rd_hf.evaluation.statistics import RESAMPLES


@lru_cache(maxsize=4)
def _draws(clusters: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample: (resamples, clusters) float64."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=RESAMPLES).astype(np.float64)


@lru_cache(maxsize=4)
def _signs(clusters: int, seed: int) -> np.ndarray:
    """(resamples, clusters) float64 of -1 and 1."""
    generator = np.random.default_rng(seed)
    return (2 * generator.integers(0, 2, size=(RESAMPLES, clusters)) - 1).astype(np.float64)


def _sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values of each cluster, (clusters, ...), and their number."""
    _, index = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, sizes


def intervals(
    values: np.ndarray, clusters: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of means over queries, clusters resampled (Davison and Hinkley 1997, 3.8).

    Args:
        values: (q, figures) one row a query.
        clusters: (q,) cluster of each.

    Returns:
        Lower and upper ends, (figures,) each; NaN for fewer than two clusters.
    """
    sums, sizes = _sums(values, clusters)
    if len(sizes) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return nothing, nothing
    draws = _draws(len(sizes), seed)
    means = (draws @ sums) / (draws @ sizes)[:, None]
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail), axis=0)
    return low, high


def interval(values: np.ndarray, clusters: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """One of :func:`intervals`, of values (q,)."""
    low, high = intervals(values[:, None], clusters, confidence, seed)
    return float(low[0]), float(high[0])


def compare(first: np.ndarray, second: np.ndarray, clusters: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Two contenders on the same queries.

    Args:
        first, second: (q,) figures.
        clusters: (q,) cluster of each query.

    Returns:
        clusters, difference of means over queries with interval (difference, difference_low, difference_high), wins
        (share of clusters where the first's mean is better, ties counting half) and p, of the test that flips the sign
        of each cluster's difference at random (Fisher's randomisation; two-sided; NaN for fewer than two clusters).
    """
    difference = first - second
    sums, sizes = _sums(difference, clusters)
    low, high = interval(difference, clusters, seed=seed)
    observed = abs(sums.sum())
    # A share of equality is rounding: sums in another order.
    extreme = np.abs(_signs(len(sums), seed) @ sums) >= observed - 1e-9 * max(observed, 1.0)
    return {
        "clusters": len(sums),
        "difference": float(sums.sum() / sizes.sum()),
        "difference_low": low,
        "difference_high": high,
        "wins": float(((np.sign(sums) + 1) / 2).mean()),
        "p": float((1 + extreme.sum()) / (1 + len(extreme))) if len(sums) > 1 else float("nan"),
    }

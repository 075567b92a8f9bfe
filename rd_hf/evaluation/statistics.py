"""Means, win rates and tests over assays, or over clusters of queries, from the tidy table alone.

The unit of inference is the assay: folds and seeds are averaged away first, intervals resample assays, tests pair
contenders on the same assays. Assays of one protein family are not independent, so the intervals are, if
anything, too narrow. In retrieval it is the cluster: queries of one superfamily look for the same domains, so that a
table of 5,062 of them says no more than its 617 superfamilies do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, false_discovery_control, pearsonr, spearmanr, wilcoxon
from sklearn.metrics import r2_score

from rd_hf.evaluation.assays import LOW_N
from rd_hf.evaluation.tables import CONTENDER

CONDITION = ["split", "size", "mutations"]
RESAMPLES = 9999


def assay_scores(results: pd.DataFrame, figure: str = "spearman") -> pd.DataFrame:
    """One row for each contender, condition and assay, from the rows of :func:`rd_hf.evaluation.dms.evaluate_unit`.

    Size is the number of training variants in the low-n split, else 0; the score is the mean over folds, then over
    repeats, and spread the standard deviation of the repeats' means, NaN for one repeat.
    """
    table = results.assign(size=results["n_train"].where(results["split"] == LOW_N, 0))
    keys = [*CONTENDER, *CONDITION, "assay", "width"]
    repeats = table.groupby([*keys, "repeat"], sort=False)[figure].mean().reset_index()
    return repeats.groupby(keys, sort=False)[figure].agg(score="mean", spread="std").reset_index()


def interval(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979) of (n,) values; NaN are left out, and two are needed."""
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    how: dict[str, Any] = {"n_resamples": RESAMPLES, "confidence_level": confidence, "method": "percentile"}
    found = bootstrap((values,), np.mean, random_state=np.random.default_rng(seed), **how).confidence_interval
    return float(found.low), float(found.high)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over assays with its interval, for every contender and condition.

    Width is the median over assays, and spread the mean over assays of the spread over repeats.
    """
    groups = scores.groupby([*CONTENDER, *CONDITION], sort=False)
    table = groups["score"].agg(assays="count", mean="mean", median="median")
    table["width"], table["spread"] = groups["width"].median().astype(int), groups["spread"].mean()
    table[["low", "high"]] = [interval(group["score"].to_numpy()) for _, group in groups]
    return table.reset_index()


def wide(scores: pd.DataFrame) -> pd.DataFrame:
    """Assays in rows, contenders in columns (a MultiIndex), for one condition.

    Assays that a contender lacks are dropped, so that all are compared on the same ones.
    """
    if len(scores[CONDITION].drop_duplicates()) > 1:
        raise ValueError("scores of several splits, sizes or numbers of mutations cannot be compared in one table")
    return scores.pivot(index="assay", columns=CONTENDER, values="score").dropna()


def agreement(
    truth: np.ndarray, predictions: np.ndarray, figures: Sequence[str] = ("spearman", "pearson", "r2")
) -> dict[str, float]:
    """Spearman, Pearson and R^2 of (n,) predictions; all NaN where the truth is constant, for it cannot be ranked.

    A constant prediction ranks nothing and scores 0: left out, it would flatter the contender that gave up.
    """
    if np.all(truth == truth[0]):
        return dict.fromkeys(figures, np.nan)
    constant = np.ptp(predictions) <= 1e-12 * max(1.0, float(np.abs(predictions).max()))
    known = {
        "spearman": lambda: 0.0 if constant else float(spearmanr(truth, predictions).statistic),
        "pearson": lambda: 0.0 if constant else float(pearsonr(truth, predictions).statistic),
        "r2": lambda: float(r2_score(truth, predictions)),
    }
    return {figure: known[figure]() for figure in figures}


def win_rate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where the first is better, 0 where worse, 1/2 at a tie: (n,) float64."""
    return (np.sign(first - second) + 1) / 2


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Two contenders on the same assays, (n,) scores each.

    Difference of means and wins of the first, with intervals, and p, of Wilcoxon's signed-rank test (two-sided; NaN for
    fewer than two assays, of which it says nothing).
    """
    difference = first - second
    found: dict[str, float] = {"assays": len(difference)}
    for name, values in (("difference", difference), ("wins", win_rate(first, second))):
        low, high = interval(values)
        mean = float(values.mean()) if len(values) else float("nan")
        found |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    if len(difference) < 2:
        return found | {"p": float("nan")}
    return found | {"p": float(wilcoxon(difference).pvalue) if np.any(difference != 0) else 1.0}


def with_q(pairs: pd.DataFrame) -> pd.DataFrame:
    """Compared pairs with q beside p: Benjamini and Hochberg's (1995) false discovery rate over all; NaN where p is."""
    if pairs.empty:
        return pairs
    known = pairs["p"].dropna()
    rates = false_discovery_control(known) if len(known) else known
    return pairs.assign(q=pd.Series(rates, known.index))


def few(assays: int) -> str:
    """What so few assays cannot tell, in a sentence; empty where there are enough."""
    if assays < 2:
        return (
            "There is one assay: what differs between contenders may be this assay's own, and there are no intervals, "
            "no p and no shares of assays. The spread over seeds is of this assay's folds."
        )
    least = 2.0 ** (1 - assays)
    if least < 0.05:
        return ""
    return (
        f"There are {assays} assays: intervals of so few are too narrow, and the smallest p that Wilcoxon's test can "
        f"give is {least:.2g}."
    )


def ladder(table: pd.DataFrame, levels: Sequence[str], representation: str, **fixed: object) -> pd.DataFrame:
    """Scores of one kind at growing levels: assays in rows, levels in columns.

    The first level of every kind is the raw smallest backbone: there is nothing yet to nest or concatenate. The table
    is that of :func:`wide`; ``fixed`` are model, depth and pooling.
    """
    columns = {}
    for number, level in enumerate(levels):
        key = {**fixed, "representation": representation if number else "raw", "level": level, "labels": "true"}
        name = tuple(key[part] for part in CONTENDER)
        if name in table.columns:
            columns[level] = table[name]
    return pd.DataFrame(columns)


def monotonicity(scores: pd.DataFrame) -> np.ndarray:
    """1 for assays on which every larger level is at least as good as the one before it, else 0: (n,) float64."""
    steps = [scores[after] >= scores[before] for before, after in itertools.pairwise(scores.columns)]
    return np.logical_and.reduce(steps).astype(np.float64) if steps else np.ones(len(scores))


@lru_cache(maxsize=4)
def _draws(clusters: int, seed: int) -> np.ndarray:
    """How often each cluster is drawn in each resample: (resamples, clusters) float64."""
    chances = np.full(clusters, 1 / clusters)
    return np.random.default_rng(seed).multinomial(clusters, chances, size=RESAMPLES).astype(np.float64)


@lru_cache(maxsize=4)
def _signs(clusters: int, seed: int) -> np.ndarray:
    """(resamples, clusters) float64 of -1 and 1."""
    return (2 * np.random.default_rng(seed).integers(0, 2, size=(RESAMPLES, clusters)) - 1).astype(np.float64)


def _sums(values: np.ndarray, clusters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum of the values of each cluster, (clusters, ...), and their number."""
    _, index = np.unique(clusters, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    sums = np.zeros((len(sizes), *values.shape[1:]))
    np.add.at(sums, index, values)
    return sums, sizes


def cluster_intervals(
    values: np.ndarray, clusters: np.ndarray, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap intervals of means over queries, clusters resampled (Davison and Hinkley 1997, 3.8).

    Values are (q,) or (q, figures), one row per query; lower and upper ends are () or (figures,) each, NaN for fewer
    than two clusters.
    """
    sums, sizes = _sums(values, clusters)
    if len(sizes) < 2:
        nothing = np.full(values.shape[1:], np.nan)
        return nothing, nothing
    draws = _draws(len(sizes), seed)
    means = ((draws @ sums).T / (draws @ sizes)).T
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, (tail, 1 - tail), axis=0)
    return low, high


def compare_queries(first: np.ndarray, second: np.ndarray, clusters: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Two contenders on the same queries, (q,) figures each, of which each belongs to a cluster.

    Difference of means over queries with its interval, wins (share of clusters where the first's mean is better, ties
    counting half) and p, of the test that flips the sign of each cluster's difference at random (Fisher's
    randomisation; two-sided; NaN for fewer than two clusters).
    """
    difference = first - second
    sums, sizes = _sums(difference, clusters)
    low, high = cluster_intervals(difference, clusters, seed=seed)
    observed = abs(sums.sum())
    # A share of equality is rounding: sums in another order.
    extreme = np.abs(_signs(len(sums), seed) @ sums) >= observed - 1e-9 * max(observed, 1.0)
    return {
        "clusters": len(sums),
        "difference": float(sums.sum() / sizes.sum()),
        "difference_low": float(low),
        "difference_high": float(high),
        "wins": float(((np.sign(sums) + 1) / 2).mean()),
        "p": float((1 + extreme.sum()) / (1 + len(extreme))) if len(sums) > 1 else float("nan"),
    }

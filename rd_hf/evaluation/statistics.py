"""Means, win rates and tests over assays, from the tidy table alone.

The unit of inference is the assay: folds and seeds are averaged away first, intervals resample assays, tests pair
contenders on the same assays. Assays of one protein family are not independent, so the intervals are, if
anything, too narrow.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import bootstrap, false_discovery_control, wilcoxon

CONTENDER = ["model", "depth", "pooling", "representation", "level", "labels"]
CONDITION = ["split", "size", "mutations"]
RESAMPLES = 9999


def assay_scores(results: pd.DataFrame, figure: str = "spearman") -> pd.DataFrame:
    """One row a contender, condition and assay.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.runs.evaluate_unit`.
        figure: column to average.

    Returns:
        Columns: contender, split, size (training variants in the low-n scheme, else 0), mutations, assay, width,
        score (mean over folds, then over repeats) and spread (standard deviation of the repeats' means, NaN for
        one repeat).
    """
    table = results.assign(size=results["n_train"].where(results["split"] == "low_n", 0))
    keys = [*CONTENDER, *CONDITION, "assay", "width"]
    repeats = table.groupby([*keys, "repeat"], sort=False)[figure].mean().reset_index()
    grouped = repeats.groupby(keys, sort=False)[figure]
    return grouped.agg(score="mean", spread="std").reset_index()


def interval(values: np.ndarray, confidence: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean (Efron 1979).

    Args:
        values: (n,) one an assay; NaN are left out.

    Returns:
        Both ends; NaN twice for fewer than two values.
    """
    values = values[~np.isnan(values)]
    if len(values) < 2:
        return float("nan"), float("nan")
    result = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summary(scores: pd.DataFrame) -> pd.DataFrame:
    """Mean over assays with its interval, for every contender and condition.

    Returns:
        Columns: contender, condition, width (median over assays), assays, mean, low, high, median, spread (mean
        over assays of the spread over repeats).
    """
    rows = []
    for key, group in scores.groupby([*CONTENDER, *CONDITION], sort=False):
        values = group["score"].to_numpy()
        low, high = interval(values)
        rows.append(
            {
                **dict(zip([*CONTENDER, *CONDITION], key, strict=True)),
                "width": int(group["width"].median()),
                "assays": int((~np.isnan(values)).sum()),
                "mean": group["score"].mean(),
                "low": low,
                "high": high,
                "median": group["score"].median(),
                "spread": group["spread"].mean(),
            }
        )
    return pd.DataFrame(rows)


def wide(scores: pd.DataFrame) -> pd.DataFrame:
    """Assays in rows, contenders in columns (a MultiIndex), for one condition.

    Assays that a contender lacks are dropped, so that all are compared on the same ones.

    Raises:
        ValueError: ``scores`` mix conditions.
    """
    if len(scores[CONDITION].drop_duplicates()) > 1:
        raise ValueError("scores of several splits, sizes or numbers of mutations cannot be compared in one table")
    return scores.pivot(index="assay", columns=CONTENDER, values="score").dropna()


def win_rate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where the first is better, 0 where worse, 1/2 at a tie: (n,) float64."""
    return (np.sign(first - second) + 1) / 2


def compare(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Two contenders on the same assays.

    Args:
        first, second: (n,) scores.

    Returns:
        assays, difference of means with interval (difference, difference_low, difference_high), wins of the first
        with interval (wins, wins_low, wins_high) and p, of Wilcoxon's signed-rank test (two-sided; NaN for fewer than
        two assays, of which it says nothing).
    """
    difference, wins = first - second, win_rate(first, second)
    low, high = interval(difference)
    wins_low, wins_high = interval(wins)
    p = float(wilcoxon(difference).pvalue) if np.any(difference != 0) else 1.0
    if len(difference) < 2:
        p = float("nan")
    return {
        "assays": len(difference),
        "difference": float(difference.mean()) if len(difference) else float("nan"),
        "difference_low": low,
        "difference_high": high,
        "wins": float(wins.mean()) if len(wins) else float("nan"),
        "wins_low": wins_low,
        "wins_high": wins_high,
        "p": p,
    }


def adjusted(p_values: Sequence[float]) -> np.ndarray:
    """Benjamini and Hochberg's (1995) false discovery rate; NaN where p is."""
    found = np.asarray(p_values, dtype=np.float64)
    known = ~np.isnan(found)
    if known.any():
        found[known] = false_discovery_control(found[known])
    return found


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

    The first level of every kind is the raw smallest backbone: there is nothing yet to nest or concatenate.

    Args:
        table: from :func:`wide`.
        levels: smallest first.
        representation: kind.
        fixed: model, depth and pooling.
    """
    columns = {}
    for number, level in enumerate(levels):
        kind = "raw" if number == 0 else representation
        key = {**fixed, "representation": kind, "level": level, "labels": "true"}
        name = tuple(key[part] for part in CONTENDER)
        if name in table.columns:
            columns[level] = table[name]
    return pd.DataFrame(columns)


def monotonicity(scores: pd.DataFrame) -> np.ndarray:
    """1 for assays on which every larger level is at least as good as the one before it, else 0: (n,) float64.

    Args:
        scores: from :func:`ladder`.
    """
    steps = [scores[after] >= scores[before] for before, after in itertools.pairwise(scores.columns)]
    return np.logical_and.reduce(steps).astype(np.float64) if steps else np.ones(len(scores))

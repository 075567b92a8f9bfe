"""Means, intervals, win rates and monotonicity, against counting by hand and scipy."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rd_hf.evaluation import statistics


def results(table: dict[str, dict[str, float]]) -> pd.DataFrame:
    """Tidy rows: {"raw.S": {"assay": score}}; two folds about the score, two repeats 0.02 apart."""
    rows = []
    for name, scores in table.items():
        kind, _, level = name.partition(".")
        for assay, score in scores.items():
            for repeat in range(2):
                for fold, shift in enumerate((-0.1, 0.1)):
                    rows.append(
                        {
                            "model": "m",
                            "depth": 1.0,
                            "pooling": "mean",
                            "representation": kind,
                            "level": level,
                            "labels": "true",
                            "assay": assay,
                            "width": 8,
                            "split": "random",
                            "repeat": repeat,
                            "fold": fold,
                            "mutations": "all",
                            "n_train": 100,
                            "n_test": 10,
                            "spearman": score + shift + 0.02 * repeat - 0.01,
                        }
                    )
    return pd.DataFrame(rows)


TABLE = {
    "raw.S": {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.2},
    "raw.L": {"a": 0.2, "b": 0.4, "c": 0.3, "d": 0.6},
    "rd.L": {"a": 0.3, "b": 0.6, "c": 0.2, "d": 0.6},
}


def test_a_score_is_the_mean_over_folds_then_repeats_and_its_spread_that_of_the_repeats() -> None:
    scores = statistics.assay_scores(results(TABLE)).set_index(["representation", "level", "assay"])
    for name, by_assay in TABLE.items():
        kind, _, level = name.partition(".")
        for assay, expected in by_assay.items():
            assert scores.loc[(kind, level, assay), "score"] == pytest.approx(expected)
            assert scores.loc[(kind, level, assay), "spread"] == pytest.approx(np.std([0, 0.02], ddof=1))


def test_folds_that_cannot_be_ranked_are_left_out_of_the_mean() -> None:
    table = results({"raw.S": {"a": 0.5}})
    table.loc[0, "spearman"] = np.nan
    assert statistics.assay_scores(table)["score"].notna().all()


def test_comparison_counts_wins_and_agrees_with_scipy() -> None:
    table = statistics.wide(statistics.assay_scores(results(TABLE)))
    first = table["m", 1.0, "mean", "rd", "L", "true"].to_numpy()
    second = table["m", 1.0, "mean", "raw", "L", "true"].to_numpy()
    found = statistics.compare(first, second)
    assert found["wins"] == pytest.approx((1 + 1 + 0 + 0.5) / 4)  # better, better, worse, tie
    assert found["difference"] == pytest.approx((0.1 + 0.2 - 0.1 + 0.0) / 4)
    assert found["p"] == stats.wilcoxon(first, second).pvalue
    assert statistics.compare(first, first)["p"] == 1.0


def test_of_one_assay_or_none_nothing_is_inferred() -> None:
    for count in (0, 1):
        found = statistics.compare(np.full(count, 0.5), np.full(count, 0.25))
        assert all(np.isnan(found[name]) for name in ("p", "difference_low", "wins_high"))
    assert statistics.compare(np.array([0.5, 0.7]), np.array([0.4, 0.4]))["p"] == 0.5
    for given, expected in (([np.nan, 0.01, 0.04], [np.nan, 0.02, 0.04]), ([np.nan], [np.nan]), ([], [])):
        found = statistics.with_q(pd.DataFrame({"p": given}, dtype=float))
        np.testing.assert_array_equal(found.get("q", []), expected)
    assert "one assay" in statistics.few(1)
    assert "smallest p that Wilcoxon's test can give is 0.5." in statistics.few(2)
    assert statistics.few(5)
    assert not statistics.few(6)


def test_bootstrap_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = statistics.interval(generator.normal(1.0, 2.0, size=60), seed=seed)
        hits += low <= 1.0 <= high
    # 95 % of 200, less three deviations of a binomial (3.1 each) and what a percentile interval of 60 loses.
    assert hits >= 178


def test_monotone_assays_are_those_on_which_every_step_is_no_loss() -> None:
    table = statistics.wide(statistics.assay_scores(results(TABLE)))
    fixed = {"model": "m", "depth": 1.0, "pooling": "mean"}
    raw = statistics.ladder(table, ["S", "L"], "raw", **fixed)
    assert dict(zip(raw.index, statistics.monotonicity(raw), strict=True)) == {"a": 1, "b": 0, "c": 1, "d": 1}
    # The first level of every kind is the raw smallest backbone.
    nested = statistics.ladder(table, ["S", "L"], "rd", **fixed)
    assert dict(zip(nested.index, statistics.monotonicity(nested), strict=True)) == {"a": 1, "b": 1, "c": 0, "d": 1}


def test_contenders_are_compared_on_the_assays_that_all_have() -> None:
    incomplete = {**TABLE, "rd.L": {"a": 0.3, "b": 0.6}}
    table = statistics.wide(statistics.assay_scores(results(incomplete)))
    assert table.index.tolist() == ["a", "b"]


def test_conditions_are_not_mixed() -> None:
    table = results(TABLE)
    other = table.assign(split="modulo")
    with pytest.raises(ValueError, match="cannot be compared"):
        statistics.wide(statistics.assay_scores(pd.concat([table, other])))

"""Figures of a run. Colours are Okabe and Ito's, and every line has a marker of its own, for readers who see
colours differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rd_hf.evaluation import residues, statistics
from rd_hf.evaluation.report import LADDERS
from rd_hf.evaluation.representations import KINDS
from rd_hf.evaluation.statistics import CONTENDER
from rd_hf.evaluation.tables import short_name

STYLES = {
    "raw": ("#000000", "o", "-"),
    "rd": ("#D55E00", "s", "-"),
    "one_pass": ("#56B4E9", "*", "-"),
    "pca": ("#0072B2", "^", "-"),
    "concat": ("#009E73", "D", "--"),
    "rd_all": ("#CC79A7", "v", "--"),
    "random": ("#999999", "x", ":"),
    "one_hot": ("#E69F00", "P", ":"),
}


def _ladders(scores: pd.DataFrame, levels: Sequence[str], group: Mapping[str, object]) -> dict[str, pd.DataFrame]:
    table = statistics.wide(scores)
    found = {kind: statistics.ladder(table, levels, kind, **group) for kind in (*LADDERS, "random")}
    return {kind: steps for kind, steps in found.items() if steps.shape[1] == len(levels)}


def _one_hot(scores: pd.DataFrame) -> float:
    values = scores.loc[scores["representation"] == "one_hot", "score"]
    return float(values.mean()) if len(values) else float("nan")


def _lines(axis: Axes, values: Mapping[str, pd.DataFrame], levels: Sequence[str]) -> None:
    """One line a kind, shifted a little so that intervals do not hide each other."""
    for number, (kind, steps) in enumerate(values.items()):
        colour, marker, line = STYLES[kind]
        x = np.arange(len(levels)) + 0.06 * (number - (len(values) - 1) / 2)
        means = steps.mean().to_numpy()
        ends = np.array([statistics.interval(steps[level].to_numpy()) for level in steps.columns]).T
        axis.errorbar(
            x, means, np.abs(ends - means), label=KINDS[kind], color=colour, marker=marker, linestyle=line, capsize=2
        )
    axis.set_xticks(range(len(levels)), levels)
    axis.set_xlabel("level of the family")
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def score_figure(scores: pd.DataFrame, levels: Sequence[str], group: Mapping[str, object]) -> Figure:
    """Mean Spearman against level, and its paired difference to the raw backbone of that level.

    Args:
        scores: one condition of :func:`rd_hf.evaluation.statistics.assay_scores`, true labels.
        levels: smallest first.
        group: model, depth and pooling to show.
    """
    ladders = _ladders(scores, levels, group)
    assays = len(next(iter(ladders.values()))) if ladders else 0
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, ladders, levels)
    if not np.isnan(_one_hot(scores)):
        left.axhline(_one_hot(scores), color=STYLES["one_hot"][0], linestyle=":", label=KINDS["one_hot"])
    left.set_ylabel("Spearman, mean over assays")
    left.set_title(f"{group['model']}: {assays} assays, 95 % intervals over assays", fontsize="medium")
    if "raw" in ladders:
        raw = ladders["raw"]
        _lines(right, {kind: steps - raw for kind, steps in ladders.items() if kind != "raw"}, levels)
        right.axhline(0.0, color=STYLES["raw"][0], linewidth=0.8, label=KINDS["raw"])
        right.set_ylabel("difference of Spearman to the raw backbone")
        right.set_title("paired on the same assays", fontsize="medium")
    # Below both: lines reach into every corner, and which ones depends on the assays.
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize="small"
    )
    return figure


def win_figure(scores: pd.DataFrame) -> Figure:
    """Share of assays on which the contender of a row beats that of a column; ties count half."""
    table = statistics.wide(scores[scores["labels"] == "true"])
    several = {key: table.columns.to_frame()[key].replace("", np.nan).nunique() > 1 for key in CONTENDER[:3]}
    names = [short_name(dict(zip(CONTENDER, key, strict=True)), several) for key in table.columns]
    order = np.argsort([CONTENDER_ORDER.get(str(key[3]), 0) for key in table.columns], kind="stable")
    values = table.to_numpy()[:, order]
    names = [names[position] for position in order]
    shares = np.array(
        [[statistics.win_rate(first, second).mean() for second in values.T] for first in values.T], dtype=float
    )
    np.fill_diagonal(shares, np.nan)
    side = 2.2 + 0.52 * len(names)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(100 * shares, cmap="PuOr", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            dark = abs(share - 0.5) > 0.3
            text = f"{100 * share:.0f}"
            axis.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"Row beats column, % of {len(table)} assays", fontsize="medium")
    figure.colorbar(image, ax=axis, label="wins of the row (%)", shrink=0.7)
    return figure


CONTENDER_ORDER = {kind: number for number, kind in enumerate(KINDS)}


def low_n_figure(scores: pd.DataFrame, level: str, group: Mapping[str, object]) -> Figure:
    """Mean Spearman against the number of training variants, at one level.

    Args:
        scores: rows of the low-n scheme, true labels.
        level: which to show.
        group: model, depth and pooling to show.
    """
    own = np.logical_and.reduce([scores[key] == value for key, value in group.items()]) & (scores["level"] == level)
    chosen = scores[own | (scores["representation"] == "one_hot")]
    table = chosen.pivot(index=["representation", "assay"], columns="size", values="score").dropna()
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    kinds = [kind for kind in KINDS if kind in table.index.get_level_values(0)]
    for number, kind in enumerate(kinds):
        colour, marker, line = STYLES[kind]
        values = table.loc[kind]
        means = values.mean().to_numpy()
        ends = np.array([statistics.interval(values[size].to_numpy()) for size in values.columns]).T
        x = np.array(values.columns, dtype=float) * 1.025 ** (number - (len(kinds) - 1) / 2)
        axis.errorbar(
            x, means, np.abs(ends - means), label=KINDS[kind], color=colour, marker=marker, linestyle=line, capsize=2
        )
    axis.set_xscale("log")
    axis.set_xticks([float(size) for size in table.columns], [str(size) for size in table.columns])
    axis.minorticks_off()
    axis.set_xlabel("training variants")
    axis.set_ylabel("Spearman on the rest, mean over assays")
    assays = table.index.get_level_values(1).nunique()
    axis.set_title(f"Few training variants, level {level}: {assays} assays", fontsize="medium")
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axis.legend(frameon=False, fontsize="small")
    return figure


def residue_figure(results: pd.DataFrame, model: str, depth: float, levels: Sequence[str]) -> Figure:
    """Area under the precision-recall curve against level, one panel a task and test set.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.residues.evaluate_contender`.
        model, depth: which family to show.
        levels: smallest first.
    """
    table = residues.summarise(results)
    table = table[table["figure"] == "AUPR"]
    panels = list(table.groupby(["task", "set"], sort=False))
    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    for axis, ((task, part), group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = group[(group["model"] == model) & (group["depth"] == depth)]
        kinds = [kind for kind in (*LADDERS, "random") if (own["representation"] == kind).any()]
        for position, kind in enumerate(kinds):
            chosen = own[
                (own["representation"] == kind) | ((own["representation"] == "raw") & (own["level"] == levels[0]))
            ]
            chosen = chosen.set_index("level").loc[[level for level in levels if level in set(chosen["level"])]]
            colour, marker, line = STYLES[kind]
            x = np.array([levels.index(level) for level in chosen.index]) + 0.06 * (position - (len(kinds) - 1) / 2)
            errors = np.abs(chosen[["low", "high"]].to_numpy().T - chosen["value"].to_numpy())
            axis.errorbar(
                x, chosen["value"], errors, label=KINDS[kind], color=colour, marker=marker, linestyle=line, capsize=2
            )
        baseline = group.loc[group["representation"] == "one_hot", "value"]
        if len(baseline):
            axis.axhline(baseline.iloc[0], color=STYLES["one_hot"][0], linestyle=":", label="one-hot, 15 residues")
        axis.set_xticks(range(len(levels)), levels)
        axis.set_xlabel("level of the family")
        axis.set_ylabel("area under precision-recall curve")
        axis.set_title(f"{task}\n{part} set, {group['chains'].iloc[0]} chains", fontsize="medium")
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure

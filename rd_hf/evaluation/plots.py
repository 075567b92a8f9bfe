"""Figures of a run. Colours are Okabe and Ito's, and every line has a marker of its own, for readers who see
colours differently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rd_hf.evaluation import statistics
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.report import LADDERS
from rd_hf.evaluation.tables import several_of, short_name

STYLES = {
    "raw": ("#000000", "o", "-"),
    "rd": ("#D55E00", "s", "-"),
    "one_pass": ("#56B4E9", "*", "-"),
    "pca": ("#0072B2", "^", "-"),
    "pca_chain": ("#56B4E9", "<", "--"),
    "concat": ("#009E73", "D", "--"),
    "rd_all": ("#CC79A7", "v", "--"),
    "random": ("#999999", "x", ":"),
    "one_hot": ("#E69F00", "P", ":"),
}


def draw_line(axis: Axes, kind: str, x: Any, points: pd.DataFrame) -> None:
    """One contender's line, of points with the columns value, low and high."""
    colour, marker, line = STYLES[kind]
    values, errors = points["value"], np.abs(points[["low", "high"]].to_numpy().T - points["value"].to_numpy())
    axis.errorbar(x, values, errors, label=KINDS[kind], color=colour, marker=marker, linestyle=line, capsize=2)


def draw_levels(
    axis: Axes, lines: Mapping[str, pd.DataFrame], levels: Sequence[str], step: float = 0.06, room: int | None = None
) -> None:
    """A line for each kind of contender, its points by level, shifted so that intervals do not hide each other."""
    for number, (kind, points) in enumerate(lines.items()):
        x = np.array([levels.index(level) for level in points.index]) + aside(number, room or len(lines), step)
        draw_line(axis, kind, x, points)
    axis.set_xticks(range(len(levels)), levels)
    finish_axis(axis, "level of the family")


def finish_axis(axis: Axes, label: str) -> None:
    """Label the axis below, and draw lines to read figures by."""
    axis.set_xlabel(label)
    axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)


def legend_below(figure: Figure, axis: Axes, columns: int, **style: Any) -> None:
    """A legend below all panels: lines reach into every corner, and which ones depends on the data."""
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=columns, frameon=False, **style)


def aside(number: int, count: int, step: float) -> float:
    """How far one of several lines is shifted."""
    return step * (number - (count - 1) / 2)


def _points(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each column with its interval."""
    ends = [statistics.interval(table[column].to_numpy()) for column in table.columns]
    return pd.DataFrame(ends, table.columns, ["low", "high"]).assign(value=table.mean())


def score_figure(scores: pd.DataFrame, levels: Sequence[str], group: Mapping[str, object]) -> Figure:
    """Mean Spearman against level, and its paired difference to the raw backbone of that level.

    Scores are those of one condition; the group is the model, depth and pooling to show.
    """
    table = statistics.wide(scores)
    found = {kind: statistics.ladder(table, levels, kind, **group) for kind in (*LADDERS, "random")}
    ladders = {kind: steps for kind, steps in found.items() if steps.shape[1] == len(levels)}
    assays = len(next(iter(ladders.values()))) if ladders else 0
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_levels(left, {kind: _points(steps) for kind, steps in ladders.items()}, levels)
    one_hot = scores.loc[scores["representation"] == "one_hot", "score"].mean()
    if not np.isnan(one_hot):
        left.axhline(one_hot, color=STYLES["one_hot"][0], linestyle=":", label=KINDS["one_hot"])
    left.set_ylabel("Spearman, mean over assays")
    left.set_title(f"{group['model']}: {assays} assays, 95 % intervals over assays", fontsize="medium")
    if "raw" in ladders:
        raw = ladders["raw"]
        apart = {kind: _points(steps - raw) for kind, steps in ladders.items() if kind != "raw"}
        draw_levels(right, apart, levels)
        right.axhline(0.0, color=STYLES["raw"][0], linewidth=0.8, label=KINDS["raw"])
        right.set_ylabel("difference of Spearman to the raw backbone")
        right.set_title("paired on the same assays", fontsize="medium")
    legend_below(figure, left, 4, fontsize="small")
    return figure


def win_figure(scores: pd.DataFrame) -> Figure:
    """Share of assays on which the contender of a row beats that of a column; ties count half."""
    table = statistics.wide(scores[scores["labels"] == "true"])
    order = list(KINDS)
    keys = sorted(table.columns, key=lambda key: order.index(key[3]) if key[3] in order else 0)
    several = several_of(scores)
    names = [short_name(key, several) for key in keys]
    columns = table[keys].to_numpy().T
    shares = np.array([[statistics.win_rate(first, second).mean() for second in columns] for first in columns])
    np.fill_diagonal(shares, np.nan)
    side = 2.2 + 0.52 * len(names)
    figure = Figure(figsize=(side + 1.2, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(100 * shares, cmap="PuOr", vmin=0, vmax=100)
    for (row, column), share in np.ndenumerate(shares):
        if not np.isnan(share):
            colour = "white" if abs(share - 0.5) > 0.3 else "black"
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(names)), names)
    axis.set_title(f"Row beats column, % of {len(table)} assays", fontsize="medium")
    figure.colorbar(image, ax=axis, label="wins of the row (%)", shrink=0.7)
    return figure


def low_n_figure(scores: pd.DataFrame, level: str, group: Mapping[str, object]) -> Figure:
    """Mean Spearman against the number of training variants, at one level, from the scores of the low-n split."""
    own = np.logical_and.reduce([scores[key] == value for key, value in group.items()]) & (scores["level"] == level)
    chosen = scores[own | (scores["representation"] == "one_hot")]
    table = chosen.pivot(index=["representation", "assay"], columns="size", values="score").dropna()
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    kinds = [kind for kind in KINDS if kind in table.index.get_level_values(0)]
    for number, kind in enumerate(kinds):
        values = table.loc[kind]
        x = np.array(values.columns, dtype=float) * 1.025 ** aside(number, len(kinds), 1)
        draw_line(axis, kind, x, _points(values))
    axis.set_xscale("log")
    axis.set_xticks([float(size) for size in table.columns], [str(size) for size in table.columns])
    axis.minorticks_off()
    axis.set_ylabel("Spearman on the rest, mean over assays")
    assays = table.index.get_level_values(1).nunique()
    axis.set_title(f"Few training variants, level {level}: {assays} assays", fontsize="medium")
    finish_axis(axis, "training variants")
    axis.legend(frameon=False, fontsize="small")
    return figure


def residue_figure(table: pd.DataFrame, model: str, depth: float, levels: Sequence[str]) -> Figure:
    """Area under the precision-recall curve against level, one panel for each task and test set, of one family.

    The table is that of :func:`rd_hf.evaluation.residues.summarise`.
    """
    panels = list(table[table["figure"] == "AUPR"].groupby(["task", "set"], sort=False))
    figure = Figure(figsize=(4.6 * len(panels), 4.4), layout="constrained")
    for axis, ((task, part), group) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        own = group[(group["model"] == model) & (group["depth"] == depth)]
        smallest = (own["representation"] == "raw") & (own["level"] == levels[0])
        lines = {}
        for kind in (*LADDERS, "random"):
            if (own["representation"] == kind).any():
                chosen = own[(own["representation"] == kind) | smallest].set_index("level")
                lines[kind] = chosen.loc[[level for level in levels if level in chosen.index]]
        draw_levels(axis, lines, levels)
        baseline = group.loc[group["representation"] == "one_hot", "value"]
        if len(baseline):
            axis.axhline(baseline.iloc[0], color=STYLES["one_hot"][0], linestyle=":", label="one-hot, 15 residues")
        axis.set_ylabel("area under precision-recall curve")
        axis.set_title(f"{task}\n{part} set, {group['chains'].iloc[0]} chains", fontsize="medium")
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure

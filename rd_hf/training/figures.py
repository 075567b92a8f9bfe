"""Three pictures of a training: score against cost, predicted against measured (or confused), the learning curve."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rd_hf.training.data import Examples
from rd_hf.training.levels import LevelResult, standard_error

# Okabe and Ito's, for readers who see colours differently.
_BLUE, _RED, _GREY = "#0072B2", "#D55E00", "#999999"


def _axis(size: tuple[float, float]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    axis = figure.subplots()
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.set_axisbelow(True)
    return figure, axis


def levels_figure(results: Sequence[LevelResult], chosen: str, score: str) -> Figure:
    """Score of each level, with its interval, against FLOP a residue; the chosen one stands out."""
    figure, axis = _axis((5, 3.6))
    axis.plot([result.flop for result in results], [result.score for result in results], color=_GREY, zorder=1)
    for result in results:
        low, high = result.interval
        colour = _RED if result.level == chosen else _BLUE
        axis.plot([result.flop] * 2, [low, high], color=colour)
        axis.plot(result.flop, result.score, color=colour, marker="s" if result.level == chosen else "o")
        axis.annotate(result.level, (result.flop, result.score), xytext=(6, 4), textcoords="offset points")
    axis.set_xscale("log")
    axis.margins(x=0.15)
    axis.set_xticks([result.flop for result in results], [f"{result.flop / 1e6:.3g}" for result in results])
    axis.minorticks_off()
    axis.set_xlabel("million FLOP per residue")
    axis.set_ylabel(f"{score}, out of fold")
    axis.set_title(f"chosen: {chosen}")
    return figure


def predictions_figure(examples: Examples, outputs: np.ndarray, target: str) -> Figure:
    """Predicted against measured numbers; of classes how often each is predicted, by the true one.

    Of several labels how many sequences have each, how many are predicted to, and how many of these have it.
    """
    tested = ~np.isnan(outputs[:, 0])
    truth, outputs = examples.targets[tested], outputs[tested]
    if not examples.classes:
        figure, axis = _axis((4.4, 4.2))
        axis.scatter(truth, outputs[:, 0], s=6, alpha=0.5, color=_BLUE, linewidths=0)
        ends = [min(truth.min(), outputs.min()), max(truth.max(), outputs.max())]
        axis.plot(ends, ends, color=_GREY, linestyle="--")
        axis.set_xlabel(f"measured {target}")
        axis.set_ylabel("predicted, out of fold")
        return figure
    count = len(examples.classes)
    if truth.ndim == 2:
        figure, axis = _axis((4.4, 1.4 + 0.25 * count))
        for numbers, colour, name in (
            (truth, _GREY, "have it"),
            (outputs > 0, _BLUE, "predicted"),
            ((outputs > 0) & (truth > 0), _RED, "both"),
        ):
            axis.plot(numbers.sum(axis=0), range(count), color=colour, marker="o", linestyle="", label=name)
        axis.set_yticks(range(count), examples.classes)
        axis.invert_yaxis()
        axis.set_xlabel("sequences, out of fold")
        axis.legend()
        return figure
    confusion = np.zeros((count, count))
    np.add.at(confusion, (truth, outputs.argmax(axis=1)), 1)
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(2.4 + 0.5 * count, 2 + 0.5 * count), layout="constrained")
    axis = figure.subplots()
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row in range(count):
        for column in range(count):
            shade = "white" if shares[row, column] > 0.5 else "black"
            axis.text(column, row, f"{int(confusion[row, column])}", ha="center", va="center", color=shade)
    axis.set_xticks(range(count), examples.classes, rotation=90)
    axis.set_yticks(range(count), examples.classes)
    axis.set_xlabel("predicted, out of fold")
    axis.set_ylabel(target)
    return figure


def curve_figure(curve: Sequence[tuple[int, np.ndarray]], score: str) -> Figure:
    """Score against the number of training sequences, with standard errors over folds."""
    figure, axis = _axis((5, 3.6))
    counts = [count for count, _ in curve]
    errors = [standard_error(scores, scores) if len(scores) > 1 else 0.0 for _, scores in curve]
    axis.errorbar(counts, [float(np.nanmean(s)) for _, s in curve], errors, color=_BLUE, marker="o", capsize=2)
    axis.set_xscale("log")
    axis.set_xticks(counts, [f"{count:,}" for count in counts])
    axis.minorticks_off()
    axis.set_xlabel("sequences that are learnt from")
    axis.set_ylabel(f"{score}, out of fold")
    return figure

"""One picture of a fit: spectra with the noise edge, and what each level explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rd_hf.bases.chain import FitReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_fit(reports: Sequence[FitReport]) -> Figure:
    """Draw the spectrum of each e_(i-1) with its Johnstone edge, and R^2 and kept residual variance per level.

    The figure belongs to no window; save it with ``figure.savefig(path)``.
    """
    from matplotlib.figure import Figure

    steps = list(reports[1:])
    figure = Figure(figsize=(4.2 * (len(steps) + 1), 3.8), layout="constrained")
    axes = figure.subplots(1, len(steps) + 1, squeeze=False)[0]
    for axis, previous, report in zip(axes, reports, steps, strict=False):
        # A final layer norm leaves one direction without variance; its zero would take the whole axis.
        shown = [value for value in report.eigenvalues if value > 1e-9 * report.eigenvalues[0]]
        axis.semilogy(range(1, len(shown) + 1), shown, color="#0072B2", label="eigenvalue")
        axis.axhline(report.edge or 0.0, color="#D55E00", linestyle="--", label="noise edge")
        axis.axvline((report.selected_components or 0) + 0.5, color="#999999", linewidth=0.8)
        axis.set_title(
            f"{previous.level} → {report.level}: {report.selected_components} of {report.components} components"
        )
        axis.set_xlabel(f"component of the {previous.level} embedding")
        axis.set_ylabel("variance")
        axis.legend(frameon=False)
    summary, width = axes[-1], 0.2
    held = [step.heldout for step in steps]
    bars = {
        "R², fitting": [step.training.r2 if step.training else 0.0 for step in steps],
        "R², held out": [one.r2 if one else 0.0 for one in held],
        "residual kept, held out": [one.residual_variance_kept if one else 0.0 for one in held],
        "reconstructed, held out": [1 - one.reconstruction_error if one else 0.0 for one in held],
    }
    colours = ("#56B4E9", "#0072B2", "#E69F00", "#009E73")
    for offset, ((label, values), colour) in enumerate(zip(bars.items(), colours, strict=True)):
        places = [index + (offset - 1.5) * width for index in range(len(steps))]
        summary.bar(places, values, width, label=label, color=colour)
    summary.set_xticks(range(len(steps)), [step.level for step in steps])
    summary.set_ylim(min(0.0, *(min(values) for values in bars.values())), 1.0)
    summary.set_xlabel("level")
    summary.set_ylabel("share of variance")
    summary.set_title("explained at each level")
    figure.legend(*summary.get_legend_handles_labels(), frameon=False, loc="outside lower right", ncols=len(bars))
    return figure

"""Score against width: what each way of choosing dimensions is worth at any number of them.

Nested embeddings are cut after their first N dimensions, which is what ``truncate_dim`` and ``--width`` do; principal
components and random projections of the full concatenation likewise; raw backbones come in their own widths alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation import statistics
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.homology import Domains, Relation
from rd_hf.evaluation.homology_runs import Ranked, evaluate_rows
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.plots import aside, draw_line, finish_axis, legend_below
from rd_hf.evaluation.representations import Representation, principal_map
from rd_hf.evaluation.tables import markdown_table, number
from rd_hf.evaluation.treatments import Candidate, candidates, treat, unweighted
from studies.options import WidthOptions

LINES = ("raw", "rd", "rd_all", "pca", "random")
NESTED = ("rd", "rd_all")


@dataclass(frozen=True)
class Line:
    """One way of choosing dimensions.

    Attributes:
        kind: of :data:`LINES`.
        whole: as wide as it gets; for raw backbones, each of them.
        widths: at which it is judged.
    """

    kind: str
    whole: Candidate
    widths: tuple[int, ...]

    def cut(self, width: int) -> Representation:
        """Its first dimensions."""
        how = self.whole.how
        return Representation(self.kind, how.level, how.matrix[:, :width].copy(), how.offset[:width].copy())

    def rows(self, states: np.ndarray, width: int, treatment: str, known: dict[str, JointMoments]) -> torch.Tensor:
        """Embeddings of this width under a treatment, (n, width) float64.

        Nested embeddings are treated block by block and then cut, as the product does it; whatever is one block is cut
        and then treated, without weights.
        """
        if len(self.whole.blocks) > 1:
            treated = treat(treatment, torch.from_numpy(self.whole.how(states)), self.whole, known)
        else:
            cut = Candidate(self.cut(width), (width,))
            treated = treat(unweighted(treatment), torch.from_numpy(cut.how(states)), cut, known)
        assert treated is not None, "both moments are known"
        return treated[0][:, :width]


def random_map(name: str, widths: Sequence[int], levels: int, width: int, seed: int = 0) -> Representation:
    """A Gaussian projection of the concatenation of the first ``levels`` backbones; its columns are drawn in order, so
    that a narrower one is the start of a wider one."""
    end = sum(widths[:levels])
    matrix = np.zeros((sum(widths), width))
    matrix[:end] = np.random.default_rng(seed).standard_normal((width, end)).T / np.sqrt(width)
    return Representation("random", name, matrix, np.zeros(width))


def width_lines(family: Family, moments: JointMoments, options: WidthOptions) -> list[Line]:
    """Every line of the figure.

    Args:
        family: of two levels or more.
        moments: of the fitting sequences.
        options: the seed of the random projection, and the widths at which to cut; by default where the levels end,
            and at a half and a quarter of the first.
    """
    found = candidates(family, moments, options)
    name, levels, total = family.names[-1], len(family.names), sum(family.widths)
    wholes = {kind: [own for own in found if own.how.kind == kind][-1] for kind in NESTED}
    widths = list(options.widths)
    if not widths:
        ends = {int(end) for own in wholes.values() for end in np.cumsum(own.blocks)}
        first = family.widths[0]
        widths = sorted({max(first // 4, 1), max(first // 2, 1), *family.widths, *ends})
    for how in (
        principal_map(name, moments, levels, total),
        random_map(name, family.widths, levels, total, options.seed),
    ):
        wholes[how.kind] = Candidate(how, (total,))
    lines = [Line("raw", own, (own.how.width,)) for own in found if own.how.kind == "raw"]
    for kind, whole in wholes.items():
        lines.append(Line(kind, whole, tuple(width for width in sorted(set(widths)) if width <= whole.how.width)))
    return lines


def retrieval_scores(
    lines: Sequence[Line],
    states: np.ndarray,
    model: str,
    domains: Domains,
    wanted: Relation,
    folder: Path,
    known: dict[str, JointMoments],
    treatments: Sequence[str] = ("plain", "whitened + weights"),
) -> pd.DataFrame:
    """hit@10 of every line at every width.

    Args:
        lines: from :func:`width_lines`.
        states: mean states of the domains, (n, K).
        model: label of the family.
        wanted: what is looked for.
        folder: where rankings are kept.
        known: moments of the domains and of the fit's residues, see :func:`rd_hf.evaluation.treatments.treat`.
        treatments: a panel each.

    Returns:
        Columns: panel, representation, width, score, low, high (95 % over clusters).
    """
    jobs = [(line, width, treatment) for treatment in treatments for line in lines for width in line.widths]
    found = []
    for line, width, treatment in tqdm(jobs, desc="retrieval", unit="embedding", disable=None):
        rows = line.rows(states, width, treatment, known)
        contender = Ranked(model, line.kind, line.whole.how.level, treatment, width)
        table = evaluate_rows(rows, contender, domains, [wanted], folder)
        values = table["hit10"].to_numpy(np.float64)
        low, high = statistics.cluster_intervals(values, table["cluster"].to_numpy())
        panel = f"{wanted.name} hit@10, {treatment}"
        found.append((panel, line.kind, width, values.mean(), low, high))
    return pd.DataFrame(found, columns=["panel", "representation", "width", "score", "low", "high"])


def probe_scores(results: pd.DataFrame) -> pd.DataFrame:
    """Mean Spearman of every line at every width, for every split and number of training variants.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.dms.evaluate_unit`.

    Returns:
        As :func:`retrieval_scores`, intervals over assays.
    """
    scores = statistics.assay_scores(results)
    found = []
    for (split, size), group in scores[scores["mutations"] == "all"].groupby(["split", "size"], sort=False):
        panel = f"DMS, {size} training variants" if size else f"DMS, {split} folds"
        # Assays that a small panel lacks are left out of it everywhere.
        for (kind, width), own in group.groupby(["representation", "width"], sort=False):
            values = own["score"].to_numpy()
            low, high = statistics.interval(values)
            found.append((panel, kind, width, np.nanmean(values), low, high))
    return pd.DataFrame(found, columns=["panel", "representation", "width", "score", "low", "high"])


def width_figure(scores: pd.DataFrame, title: str) -> Figure:
    """One panel a question, one line a representation.

    Args:
        scores: from :func:`retrieval_scores` and :func:`probe_scores`.
        title: what is shown.
    """
    panels = list(scores["panel"].unique())
    figure = Figure(figsize=(4.4 * len(panels), 4.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        _panel(axis, scores[scores["panel"] == panel])
        axis.set_title(panel, fontsize="medium")
    axes[0].set_ylabel("mean score, 95 % interval")
    figure.suptitle(title, fontsize="medium")
    legend_below(figure, axes[0], len(LINES))
    return figure


def _panel(axis: Axes, scores: pd.DataFrame) -> None:
    for place, kind in enumerate(LINES):
        own = scores[scores["representation"] == kind].sort_values("width")
        if len(own):
            x = own["width"].to_numpy() * 1.015 ** aside(place, len(LINES), 1)
            draw_line(axis, kind, x, own.rename(columns={"score": "value"}))
    axis.set_xscale("log")
    ticks = sorted(scores["width"].unique())
    shown = [tick for before, tick in zip([0, *ticks], ticks, strict=False) if tick > 1.25 * before]
    axis.set_xticks(shown, [str(tick) for tick in shown])
    axis.minorticks_off()
    finish_axis(axis, "dimensions")


def width_table(scores: pd.DataFrame) -> str:
    """One table a panel: widths in rows, representations in columns."""
    parts = []
    for panel, group in scores.groupby("panel", sort=False):
        wide = group.pivot(index="width", columns="representation", values="score").sort_index()
        kinds = [kind for kind in LINES if kind in wide.columns]
        rows = [[str(width), *(number(wide.loc[width, kind]) for kind in kinds)] for width in wide.index]
        parts += [f"## {panel}", markdown_table(["dimensions", *(KINDS[kind] for kind in kinds)], rows)]
    return "\n\n".join(parts)

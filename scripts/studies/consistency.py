"""Do the leading dimensions of two levels span the same functions of a residue? Principal angles, from moments.

Two embeddings z A and z B of the same residues span the same space where each is a linear function of the other. The
cosines of the principal angles between the spaces (Björck and Golub 1973) are the canonical correlations (Hotelling
1936) of the two embeddings.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.linalg import subspace_angles

from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import descending_eigh
from rd_hf.evaluation.plots import STYLES, finish_axis, legend_below
from rd_hf.evaluation.representations import Representation, principal_map, starts_of
from rd_hf.evaluation.tables import number, table_of

KINDS = {
    "rd": "reverse-distilled: first dimensions",
    "pca": "concatenation: leading components",
    "raw": "backbone's own state: leading components",
}
COLUMNS = ["representation", "smaller", "larger", "dimensions", "degrees", "shared"]


def root_of(scatter: np.ndarray) -> np.ndarray:
    """R with R^T R the scatter of z: the inner product of R A and R B is that of z A and z B over residues."""
    values, vectors = np.linalg.eigh(scatter)
    root: np.ndarray = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    return root


def leading(kind: str, level: int, moments: JointMoments, chain: Sequence[Representation]) -> np.ndarray:
    """Map of z to a level's dimensions, the leading ones first, (K, k_i); levels count from 0."""
    width, names = moments.widths[level], [str(number) for number in range(len(moments.widths))]
    starts = starts_of(moments.widths)
    if kind == "rd":
        return np.eye(starts[-1])[:, :width] if level == 0 else np.asarray(chain[level - 1].matrix)
    if kind == "pca":
        return np.asarray(principal_map(names[level], moments, level + 1, width).matrix)
    matrix = np.zeros((starts[-1], width))
    _, vectors = descending_eigh(moments.scatter_between(level, level).cpu())
    matrix[starts[level] : starts[level + 1]] = vectors.numpy()
    return matrix


def angle_rows(
    names: Sequence[str], moments: JointMoments, chain: Sequence[Representation], dimensions: Sequence[int]
) -> pd.DataFrame:
    """Angles between each two neighbouring levels' first dimensions; the columns are :data:`COLUMNS`.

    One row per angle; ``shared`` is the squared cosine: the share of that direction that both levels have.
    """
    root = root_of(moments.scatter().cpu().numpy())
    rows = []
    for level, (smaller, larger) in enumerate(pairwise(names)):
        for kind in KINDS:
            maps = [leading(kind, which, moments, chain) for which in (level, level + 1)]
            for count in sorted({count for count in dimensions if count < moments.widths[level]}):
                angles = np.degrees(np.sort(subspace_angles(*(root @ one[:, :count] for one in maps))))
                shares = np.cos(np.radians(angles)) ** 2
                rows += [(kind, smaller, larger, count, *pair) for pair in zip(angles, shares, strict=True)]
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Largest angle, and mean share, for each kind, pair of levels and number of dimensions."""
    grouped = rows.groupby(COLUMNS[:4], sort=False)
    return grouped.agg(largest=("degrees", "max"), shared=("shared", "mean")).reset_index()


def angles_table(rows: pd.DataFrame) -> str:
    """The summary as a pipe table."""
    columns = {
        "what is compared": lambda row: KINDS[row["representation"]],
        "levels": lambda row: f"{row['smaller']}, {row['larger']}",
        "dimensions": lambda row: str(row["dimensions"]),
        "largest angle (degrees)": lambda row: number(row["largest"], ".1f"),
        "mean share in common": lambda row: number(row["shared"]),
    }
    return table_of(summary(rows), columns)


def angles_figure(rows: pd.DataFrame) -> Figure:
    """Principal angles in order, for each pair of levels, at the largest number of dimensions that was asked for."""
    pairs = list(rows.groupby(["smaller", "larger"], sort=False))
    figure = Figure(figsize=(4.2 * len(pairs), 3.6), layout="constrained")
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    for axis, ((smaller, larger), of_pair) in zip(axes, pairs, strict=True):
        most = of_pair["dimensions"].max()
        for kind, words in KINDS.items():
            colour, marker, line = STYLES[kind]
            found = of_pair.loc[(of_pair["representation"] == kind) & (of_pair["dimensions"] == most), "degrees"]
            axis.plot(range(1, len(found) + 1), found, marker, color=colour, linestyle=line, markersize=3, label=words)
        axis.set(title=f"{smaller} and {larger}, {most} dimensions", ylabel="degrees", ylim=(-3, 93))
        finish_axis(axis, "principal angle")
    legend_below(figure, axes[0], 3, fontsize=8)
    return figure

"""Two dimensions for each level, rotated so that a protein stays where it was as far as it can.

Each level is projected by itself. A projection is known up to a rotation and a reflection only, so each is then
aligned with that of the level before by orthogonal Procrustes (Schönemann 1966, Psychometrika 31:1), and scaled to
a root mean square of one, so that all levels fill the same frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.maps.proteins import Proteins
from rd_hf.maps.settings import METHODS

# Rows whose products are formed together.
_CHUNK = 4096
# umap-learn's own defaults, stated so that a release that changes them changes no map.
_UMAP = {"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine"}


@dataclass(frozen=True, slots=True)
class Projection:
    """One level in two dimensions."""

    level: str
    width: int
    points: np.ndarray  # (n, 2) float64, centred, root mean square distance to the centre one, no units
    explained: float | None  # share of the level's variance that the two dimensions hold (PCA)


def principal_components(values: np.ndarray) -> tuple[np.ndarray, float]:
    """The first two principal components of (n, width) values, n >= 2.

    Returns:
        (n, 2) float64 scores of the centred values, each axis' largest loading positive; and the share of the
        variance that they hold (0 where there is none).
    """
    from scipy.linalg import eigh

    count, width = values.shape
    mean = values.mean(axis=0, dtype=np.float64)
    starts = range(0, count, _CHUNK)
    covariance = np.zeros((width, width))
    for start in starts:
        centred = values[start : start + _CHUNK] - mean
        covariance += centred.T @ centred
    total = float(np.trace(covariance))
    first = max(0, width - 2)
    variances, axes = eigh(covariance, subset_by_index=[first, width - 1])
    axes = axes[:, ::-1] * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])[::-1]
    points = np.zeros((count, 2))
    for start in starts:
        points[start : start + _CHUNK, : axes.shape[1]] = (values[start : start + _CHUNK] - mean) @ axes
    return points, float(np.clip(variances, 0, None).sum()) / total if total > 0 else 0.0


def align(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``points`` @ R, with R the rotation or reflection that brings them nearest to ``reference``, (n, 2) centred."""
    left, _, right = np.linalg.svd(points.T @ reference)
    return np.asarray(points @ (left @ right))


def project(
    proteins: Proteins, method: str = "pca", seed: int = 0, on_level: Callable[[], object] = lambda: None
) -> list[Projection]:
    """Project every level of the proteins to two dimensions, smallest first, aligned with the one before.

    The method is ``pca``, or ``umap`` (McInnes et al. 2018; cosine; each level starts from the one before), which alone
    takes the seed; ``on_level`` is called after each level.

    Raises:
        InputError: UMAP is asked for and not installed.
        ValueError: an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    found: list[Projection] = []
    for level, width in proteins.levels.items():
        values = proteins.at(level)
        explained = None
        if method == "umap":
            points = _umap(values, found[-1].points if found else None, seed)
        else:
            points, explained = principal_components(values)
        points = points - points.mean(axis=0)
        size = float(np.sqrt((points**2).sum(axis=1).mean()))
        points = points / size if size > 0 else points
        if found:
            points = align(points, found[-1].points)
        found.append(Projection(level, width, points, explained))
        on_level()
    return found


def _umap(values: np.ndarray, start: np.ndarray | None, seed: int) -> np.ndarray:
    """UMAP of one level, from the level before or from its own spectral start."""
    try:
        from umap import UMAP
    except ImportError as error:
        raise InputError('--method umap needs umap-learn: pip install "rd_hf[umap]", or use --method pca') from error
    settings = {**_UMAP, "n_neighbors": min(15, len(values) - 1)}
    # UMAP scatters its points over about ten units; a start of another size would have to grow first.
    begin = "spectral" if start is None else np.asarray(5 * start, dtype=np.float32)
    # With a seed UMAP runs on one thread, whatever the number of jobs; naming one spares a warning.
    return np.asarray(UMAP(init=begin, random_state=seed, n_jobs=1, **settings).fit_transform(values), dtype=np.float64)

"""Reverse distillation written a second time: numpy, float64, singular value decompositions of the data itself.

Shares no code and no route with rd_hf.bases (which never sees the data, only its moments).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class ReferenceStep:
    """One step: coefficients, directions, residual block and how many components passed the edge."""

    coefficients: np.ndarray
    directions: np.ndarray
    block: np.ndarray
    selected: int


def reference_chain(levels: list[np.ndarray], keep: list[int]) -> list[ReferenceStep]:
    """Algorithm 3 on the accumulated embedding, with principal component regression."""
    embedding = levels[0].astype(np.float64)
    steps = []
    for raw, directions in zip(levels[1:], keep, strict=True):
        n, p = embedding.shape
        larger = raw.astype(np.float64)
        e, h = embedding - embedding.mean(0), larger - larger.mean(0)
        _, singular, vt = np.linalg.svd(e, full_matrices=False)
        eigenvalues = singular**2 / (n - 1)
        unit = (1 + np.sqrt(p / n)) ** 2
        small = eigenvalues[eigenvalues < unit * eigenvalues.mean()]
        sigma2 = np.median(small) if len(small) else np.median(eigenvalues[-max(1, p // 4) :])
        q = int((eigenvalues > sigma2 * unit).sum())
        if q == 0:
            q = int(np.searchsorted(np.cumsum(eigenvalues) / eigenvalues.sum(), 0.95)) + 1
        scores = e @ vt[:q].T
        w = vt[:q].T @ np.linalg.lstsq(scores, h, rcond=None)[0]
        residual = h - e @ w
        v = np.linalg.svd(residual, full_matrices=False)[2][:directions].T
        v = v * np.sign(v[np.abs(v).argmax(0), np.arange(directions)])
        block = residual @ v
        steps.append(ReferenceStep(w, v, block, q))
        embedding = np.concatenate((embedding, block), axis=1)
    return steps

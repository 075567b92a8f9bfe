"""The closed-form fit of the whole ESM-2 family, and how exact it is where problems are ill-conditioned.

**Solve.** K = 10,400 from 8M to 15B, synthetic moments (power-law spectra, a noise variance of its own for every
channel, so that no eigenvalues coincide and none come free). The floor in float64: eigenvectors of one symmetric
matrix per level (480 ... 5,120 wide) and of the embeddings before them (320 ... 2,560), 9 n^3 operations each at the
most, half of them memory-bound: 1.6 x 10^12 in all, four fifths for 15B alone; products that need the embeddings'
and states' covariances 0.7 x 10^12. At 80 GFLOP/s on two cores that is 29 s. Bytes: the moments are 8 K^2 = 865 MB;
the largest eigenproblem holds 5,120^2 doubles (210 MB) five times. Nothing else of the size of S is formed.

**Accuracy.** Small problems, the chain from moments against singular value decompositions of the very data in
float64: the error of the predicted states relative to their deviations, and how much less of the residual the
directions capture. Moments square the condition number; what that costs shows in the nearly collinear case.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import Ratio, answer_of
from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import select_components

WORKER = Path(__file__).with_name("peak_worker.py")
RESIDUES, SMALL, LARGE = 6000, 48, 96
CASES = ("well conditioned", "means 100 x deviation", "nearly collinear levels", "constant channels")


def run(rounds: int) -> list[Ratio]:
    """Seconds and peak memory of the solve, once however many rounds others have; errors of every case."""
    # Half a minute against a target of its own, and no ratio: once.
    figures = worker("solve")
    ratios = [
        Ratio(
            "solve for 8M to 15B, K = 10,400: seconds",
            figures["seconds"],
            40.0,
            at_least=False,
            detail="once",
        ),
        Ratio(
            "its peak memory, GB",
            figures["peak_mb"] / 1024,
            3.0,
            at_least=False,
            detail="of the process, moments (0.87 GB) included",
        ),
    ]
    for product_dtype in (torch.float64, torch.float32):
        for case in CASES:
            prediction, captured = accuracy(case, product_dtype)
            ratios.append(
                Ratio(
                    f"error of predictions, {case}, {str(product_dtype).removeprefix('torch.')} products",
                    prediction,
                    # Predictions are used in float32: what is below its 24 bits times a few dozen terms is nothing.
                    1e-5,
                    at_least=False,
                    detail=f"captured residual variance {captured - 1:+.1e} of the reference's",
                )
            )
    return ratios


def worker(*arguments: str) -> dict[str, float]:
    """What a task of peak_worker.py printed, from a process of its own."""
    figures: dict[str, float] = answer_of([sys.executable, str(WORKER), *arguments])
    return figures


def problem(case: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """States of two levels, (residues, 48) and (residues, 96), rounded to float32 as backbones give them."""
    rng = np.random.default_rng(seed)
    first = rng.standard_normal((RESIDUES, SMALL)) @ np.linalg.qr(rng.standard_normal((SMALL, SMALL)))[0]
    first *= 1 / np.sqrt(1 + np.arange(SMALL))
    mixing = rng.standard_normal((SMALL, LARGE)) / SMALL**0.5
    noise = 1e-4 if case == "nearly collinear levels" else 0.1
    second = first @ mixing + noise * rng.standard_normal((RESIDUES, LARGE)) / np.sqrt(1 + np.arange(LARGE))
    if case == "means 100 x deviation":
        first[:, ::7] += 100 * first[:, ::7].std(axis=0)
        second[:, ::7] -= 100 * second[:, ::7].std(axis=0)
    if case == "constant channels":
        first[:, 3], second[:, 5] = 1.5, -0.25
    return first.astype(np.float32).astype(np.float64), second.astype(np.float32).astype(np.float64)


def accuracy(case: str, product_dtype: torch.dtype) -> tuple[float, float]:
    """Largest root-mean-square error of a predicted channel in units of that channel's deviation, and the captured
    residual variance as a multiple of the reference's."""
    first, second = problem(case)
    moments = JointMoments((SMALL, LARGE), product_dtype=product_dtype)
    for start in range(0, RESIDUES, 500):
        moments.update([torch.from_numpy(part[start : start + 500]).float() for part in (first, second)])
    ((basis,), _) = fit_chain(moments, ("small", "large"), (LARGE - SMALL,))
    e, h = first - first.mean(axis=0), second - second.mean(axis=0)
    u, s, _ = np.linalg.svd(e, full_matrices=False)
    used = select_components(torch.from_numpy(s**2 / (RESIDUES - 1)), RESIDUES).selected
    expected = u[:, :used] @ (u[:, :used].T @ h)
    found = (
        (first - basis.prefix_mean.numpy()) @ basis.regression.numpy()
        + basis.backbone_mean.numpy()
        - second.mean(axis=0)
    )
    deviation = h.std(axis=0)
    varies = deviation > 1e-9
    error = float(np.max(np.sqrt(np.mean((found - expected) ** 2, axis=0))[varies] / deviation[varies]))
    residual = h - expected
    best = np.linalg.svd(residual, full_matrices=False)[2][: LARGE - SMALL].T
    captured = float(np.sum((residual @ basis.directions.numpy()) ** 2) / np.sum((residual @ best) ** 2))
    return error, captured

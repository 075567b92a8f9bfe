"""Fitting one step (320 -> 480) on stored embeddings, beside the first publication's code.

The floor. With p = 320, k = 480 and n residues, one triangle of the scatter needs (p + k)^2 / 2 n multiply-adds: 0.19
TFLOP at n = 300,000, read from 4 (p + k) n bytes = 0.96 GB, each once. Two cores that multiply float64 matrices at 45
GFLOP/s each would need 2.1 s; tiles on the diagonal, reading, converting to float64 and centring make up the rest. What
follows (two eigendecompositions, 320 and 480 wide) does not depend on n. The alternative takes a full SVD of the
(n, p) matrix, keeps U (n p numbers), predicts and stores n k residuals and then runs a PCA over them.

Each fit runs in a process of its own, so that its peak memory is its own; ours reads the file in blocks, the other
code takes arrays. Peaks are those of the whole process, imports included.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import published
from benchmarks.common import Ratio, answer_of

WIDTHS = (320, 480)
RESIDUES = 300_000
WORKER = Path(__file__).with_name("fit_worker.py")


def write_embeddings(path: Path, residues: int, seed: int = 0) -> None:
    """Rows [h_1, h_2], float32: power-law spectra, h_2 mostly a function of h_1, a few channels far off zero."""
    rng = np.random.default_rng(seed)
    small, large = WIDTHS
    spectrum = 1.0 / np.sqrt(1.0 + np.arange(small))
    mixing = np.linalg.qr(rng.standard_normal((small, small)))[0] * spectrum
    regression = rng.standard_normal((small, large)) / np.sqrt(small)
    fresh = rng.standard_normal((160, large)) * 0.3 / np.sqrt(1.0 + np.arange(160))[:, None]
    means = np.zeros(small + large)
    means[[62, small + 46]] = 5.0, 5.8
    with path.open("wb") as file:
        for start in range(0, residues, 10_000):
            rows = min(10_000, residues - start)
            first = rng.standard_normal((rows, small)) @ mixing.T
            second = np.tanh(first @ regression) + rng.standard_normal((rows, 160)) @ fresh
            second += 0.02 * rng.standard_normal((rows, large))
            (np.concatenate((first, second), axis=1) + means).astype(np.float32).tofile(file)


def fit(who: str, path: Path, residues: int) -> dict[str, float]:
    """Seconds, peak MB and captured residual variance of one fit in a fresh process."""
    figures: dict[str, float] = answer_of([sys.executable, str(WORKER), who, str(path), str(residues)])
    return figures


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    if not published.available():
        raise RuntimeError(f"the comparison needs reverse_distillation: {published.INSTALL}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "embeddings.f32"
        write_embeddings(path, RESIDUES)
        figures: dict[str, list[dict[str, float]]] = {"ours": [], "incremental": [], "fbpca": []}
        for number in range(rounds):
            for who, seen in figures.items():
                # Half a minute each, and seven times as long as ours: no further round moves that ratio.
                if number == 0 or who == "ours":
                    seen.append(fit(who, path, RESIDUES))
        small = fit("ours", path, RESIDUES // 10)
    seconds = {who: statistics.median(f["seconds"] for f in seen) for who, seen in figures.items()}
    peaks = {who: statistics.median(f["peak_mb"] for f in seen) for who, seen in figures.items()}
    captured = {who: seen[0]["captured"] for who, seen in figures.items()}
    ratios = []
    for who in ("incremental", "fbpca"):
        ratios.append(
            Ratio(
                f"fit, 300,000 residues: reference ({who} PCA) / ours, seconds",
                seconds[who] / seconds["ours"],
                6.0 if who == "incremental" else None,
                detail=f"{seconds[who]:.1f} s / {seconds['ours']:.1f} s",
            )
        )
        ratios.append(
            Ratio(
                f"captured residual variance: ours / reference ({who} PCA)",
                captured["ours"] / captured[who],
                # Both leave rounding of float32 products in the last digits of the share.
                1.0 - 1e-5,
                detail=f"{captured['ours']:.6f} / {captured[who]:.6f} of the residual variance",
            )
        )
    ratios.append(
        Ratio(
            "peak memory: ours at 300,000 / at 30,000 residues",
            peaks["ours"] / small["peak_mb"],
            # Allocator noise; a copy of the data would make it ten.
            1.1,
            at_least=False,
            detail=f"{peaks['ours']:.0f} MB / {small['peak_mb']:.0f} MB; reference {peaks['incremental']:.0f} MB",
        )
    )
    return ratios

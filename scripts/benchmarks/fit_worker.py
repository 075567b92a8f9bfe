"""One fit in a process of its own: prints seconds, peak memory and captured residual variance as JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

SMALL, LARGE = 320, 480


def blocks(path: Path, residues: int, rows: int = 16_384) -> Iterator[np.ndarray]:
    """Rows of the file, a block at a time."""
    with path.open("rb") as file:
        for start in range(0, residues, rows):
            count = min(rows, residues - start)
            yield np.fromfile(file, dtype=np.float32, count=count * (SMALL + LARGE)).reshape(count, SMALL + LARGE)


def ours(path: Path, residues: int) -> tuple[float, float, np.ndarray, np.ndarray, np.ndarray]:
    """Moments block by block, then the chain."""
    from benchmarks.resident import resident_mb
    from rd_hf.bases.chain import fit_chain
    from rd_hf.bases.moments import JointMoments

    started = time.perf_counter()
    moments = JointMoments((SMALL, LARGE))
    for block in blocks(path, residues):
        rows = torch.from_numpy(block)
        moments.update((rows[:, :SMALL], rows[:, SMALL:]))
    ((basis,), _) = fit_chain(moments, ("8M", "35M"), (LARGE - SMALL,))
    seconds, peak = time.perf_counter() - started, resident_mb("VmHWM")
    bias = basis.backbone_mean - basis.prefix_mean @ basis.regression
    return seconds, peak, basis.regression.numpy(), bias.numpy(), basis.directions.numpy()


def reference(path: Path, residues: int, pca: str) -> tuple[float, float, np.ndarray, np.ndarray, np.ndarray]:
    """The first publication's scaler on arrays in memory."""
    from loguru import logger
    from reverse_distillation.scaler.rd import rdScaler

    from benchmarks.resident import resident_mb

    logger.remove()
    data = np.concatenate(list(blocks(path, residues)))
    small, large = np.ascontiguousarray(data[:, :SMALL]), np.ascontiguousarray(data[:, SMALL:])
    del data
    started = time.perf_counter()
    scaler = rdScaler("8M", "35M", regressor_type="pcr", pca_type=pca)
    scaler.fit(small, large, show_r2=False)
    seconds, peak = time.perf_counter() - started, resident_mb("VmHWM")
    regressor = scaler.regressor
    used = regressor.input_components_[:, : regressor.n_significant_pcs_]
    weights = used @ regressor.regressor.coef_.T
    bias = regressor.output_mean_ - regressor.input_mean_ @ weights
    return seconds, peak, weights, bias, scaler.pca.components_.T


def captured(path: Path, residues: int, weights: np.ndarray, bias: np.ndarray, directions: np.ndarray) -> float:
    """Share of the fit's own residual variance inside its directions, in float64."""
    inside = total = 0.0
    for block in blocks(path, residues):
        rows = block.astype(np.float64)
        residual = rows[:, SMALL:] - bias - rows[:, :SMALL] @ weights
        inside += float(((residual @ directions) ** 2).sum())
        total += float((residual**2).sum())
    return inside / total


def main() -> None:
    who, path, residues = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    fitted = ours(path, residues) if who == "ours" else reference(path, residues, who)
    seconds, peak, weights, bias, directions = fitted
    share = captured(path, residues, weights.astype(np.float64), bias.astype(np.float64), directions.astype(np.float64))
    print(json.dumps({"seconds": seconds, "peak_mb": peak, "captured": share}))


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "scripts")]
    main()

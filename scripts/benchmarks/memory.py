"""Peak memory: the stack beside its widest backbone, and one backbone at a time beside all of them.

8M + 35M + 150M at ESM-2's widths, random weights, float32, each figure from a process of its own. The floor of a
forward pass: all weights (4 x 189 million bytes) and the activations of the widest backbone, most of them in its
feed-forward (4 width x 4 bytes a token, twice). The nested embedding adds 4 x (480 + 640) bytes a token; a smaller
level's state is gone when the next backbone runs.

One backbone at a time, the weights come down to those of the largest, at the price of reading each from disk for
every window of batches and of holding all states of the window: 4 K bytes a residue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.common import ESM2_SIZES, Ratio, random_family
from benchmarks.solve import worker


def run(rounds: int) -> list[Ratio]:
    """Peaks as ratios; memory repeats itself, so one round is enough."""
    stack, widest = worker("forward", "stack"), worker("forward", "widest")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        random_family(ESM2_SIZES).save_pretrained(path)
        weights = {name: size / 2**20 for name, size in _backbone_bytes(path).items()}
        resident, sequential = worker("fit", "resident", str(path)), worker("fit", "sequential", str(path))
    if resident["trace"] != sequential["trace"]:
        raise RuntimeError(f"one at a time gave other moments: {sequential['trace']} instead of {resident['trace']}")
    return [
        Ratio(
            "peak of a forward pass: stack / (all weights + widest backbone's activations)",
            stack["peak_mb"] / widest["peak_mb"],
            1.1,
            at_least=False,
            detail=f"{stack['peak_mb']:,.0f} MB / {widest['peak_mb']:,.0f} MB, 4,096 tokens",
        ),
        Ratio(
            "peak of a fit pass: one backbone at a time / all resident",
            sequential["peak_mb"] / resident["peak_mb"],
            None,
            at_least=False,
            detail=f"{sequential['peak_mb']:,.0f} MB / {resident['peak_mb']:,.0f} MB, equal moments; the largest "
            f"backbone is {max(weights.values()):,.0f} MB of {sum(weights.values()):,.0f} MB",
        ),
        Ratio(
            "its seconds, loading for each window included: one at a time / all resident",
            sequential["seconds"] / resident["seconds"],
            None,
            at_least=False,
            detail=f"{sequential['seconds']:.1f} s / {resident['seconds']:.1f} s",
        ),
    ]


def _backbone_bytes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("model.backbone-*.safetensors")}

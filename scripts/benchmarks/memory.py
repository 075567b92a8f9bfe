"""Peak memory: the stack beside its widest backbone, and one backbone at a time beside all of them.

8M + 35M + 150M at ESM-2's widths, random weights, float32, each figure from a process of its own. The floor of a
forward pass: all weights (4 x 189 million bytes) and the activations of the widest backbone, most of them in its
feed-forward (4 width x 4 bytes per token, twice). The nested embedding adds 4 x (480 + 640) bytes per token; a smaller
level's state is gone when the next backbone runs.

Two figures of it. What the tensors beside the weights come to is what this package's code decides, and the same at
every run. What is resident holds more (presumably what the allocator keeps of freed pieces and what products take for
themselves): either side alone moves by some 3 % from run to run, with one arena or many, one thread or two. Pairs of
runs on one machine gave ratios from 1.07 to 1.11, other machines 0.93 and 1.12: it has no target.

One backbone at a time, the weights come down to those of the largest, at the price of reading each from disk for
every group of batches and of holding all states of the group: 4 K bytes per residue.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.common import ESM2_SIZES, Ratio, random_family
from benchmarks.solve import worker


def run(rounds: int) -> list[Ratio]:
    """Peaks as ratios: those of forward passes over two processes each that take turns, those of a fit from one."""
    pairs = [(worker("forward", "stack"), worker("forward", "widest")) for _ in range(min(rounds, 2))]
    live = {(stack["live_mb"], widest["live_mb"]) for stack, widest in pairs}
    if len(live) != 1:
        raise RuntimeError(f"the tensors of equal forward passes came to different sizes: {sorted(live)}")
    ((stack_live, widest_live),) = live
    stacks, widests = ([pair[side]["peak_mb"] for pair in pairs] for side in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        random_family(ESM2_SIZES).save_pretrained(path)
        weights = {name: size / 2**20 for name, size in _backbone_bytes(path).items()}
        resident, sequential = worker("fit", "resident", str(path)), worker("fit", "sequential", str(path))
    if resident["trace"] != sequential["trace"]:
        raise RuntimeError(f"one at a time gave other moments: {sequential['trace']} instead of {resident['trace']}")
    return [
        Ratio(
            "tensors that a forward pass makes, at their peak: stack / widest backbone alone",
            stack_live / widest_live,
            1.1,
            at_least=False,
            detail=f"{stack_live:,.1f} MB / {widest_live:,.1f} MB beside the weights, 4,096 tokens, equal in all "
            f"{len(pairs)} runs",
        ),
        Ratio(
            "resident at the peak of a forward pass: stack / (all weights + widest backbone's activations)",
            statistics.median(stacks) / statistics.median(widests),
            None,
            at_least=False,
            detail=f"medians of {_spread(stacks)} / {_spread(widests)}",
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
            "its seconds, loading for each group of batches included: one at a time / all resident",
            sequential["seconds"] / resident["seconds"],
            None,
            at_least=False,
            detail=f"{sequential['seconds']:.1f} s / {resident['seconds']:.1f} s",
        ),
    ]


def _spread(megabytes: list[float]) -> str:
    return f"{statistics.median(megabytes):,.0f} MB ({min(megabytes):,.0f} to {max(megabytes):,.0f})"


def _backbone_bytes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("model.backbone-*.safetensors")}

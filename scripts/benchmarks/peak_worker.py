"""One task in a process of its own: prints its seconds and its peak resident memory as JSON.

python scripts/benchmarks/peak_worker.py solve
python scripts/benchmarks/peak_worker.py forward stack|widest
python scripts/benchmarks/peak_worker.py fit resident|sequential MODEL
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

# Not from rd_hf.families: its imports would count as memory of the solve.
FAMILY = {"8M": 320, "35M": 480, "150M": 640, "650M": 1280, "3B": 2560, "15B": 5120}


def solve() -> dict[str, float]:
    """The chain for the whole family from synthetic moments."""
    import torch

    from benchmarks.resident import resident_mb
    from rd_hf.bases.chain import fit_chain
    from rd_hf.bases.moments import JointMoments

    torch.manual_seed(0)
    widths = list(FAMILY.values())
    count, total, factors = 1_000_000, sum(widths), 600
    # z = L f + noise: power laws of the shared factors and of each channel's own variance.
    loadings = torch.randn(total, factors, dtype=torch.float64) / torch.arange(1, factors + 1).sqrt()
    own = 0.05 * (0.1 + torch.rand(total, dtype=torch.float64)) ** 2
    products = (loadings @ loadings.T).mul_(count)
    products.diagonal().add_(count * own)
    zero = torch.zeros(total, dtype=torch.float64)
    moments = JointMoments.from_state(
        {
            "count": torch.tensor(count),
            "widths": torch.tensor(widths),
            "shift": zero,
            "sum": zero.clone(),
            "products": products,
        }
    )
    del loadings, products
    started = time.perf_counter()
    bases, reports = fit_chain(moments, list(FAMILY), [after - before for before, after in pairwise(widths)])
    seconds = time.perf_counter() - started
    last = reports[-1].training
    assert last is not None
    assert bases[-1].directions.shape == (5120, 2560)
    assert 0 < last.reconstruction_error < 1 - last.r2
    return {"seconds": seconds, "peak_mb": resident_mb("VmHWM")}


def forward(what: str) -> dict[str, float]:
    """Peak beyond what was resident before any model was built, of one batch through the stack or its widest.

    ``live_mb`` is what the tensors that such a pass makes come to at their peak.
    """
    import torch

    from benchmarks.common import ESM2_SIZES, full_batches, random_family
    from benchmarks.live import LiveTensors
    from benchmarks.resident import reset_peak, resident_mb

    ((ids, mask),) = full_batches(4096, 1)
    base = resident_mb("VmRSS")
    model = random_family(ESM2_SIZES)
    call: Callable[..., object] = model if what == "stack" else model.backbones[-1]
    with torch.inference_mode():
        # Once to allocate what stays, once to look.
        call(ids[:1, :16], attention_mask=mask[:1, :16])
        reset_peak()
        started = time.perf_counter()
        call(ids, attention_mask=mask)
        figures = {"seconds": time.perf_counter() - started, "peak_mb": resident_mb("VmHWM") - base}
        with LiveTensors([*model.parameters(), *model.buffers(), ids, mask]) as live:
            call(ids, attention_mask=mask)
    return {**figures, "live_mb": live.peak / 2**20}


def fit(how: str, source: str) -> dict[str, float]:
    """The states of two groups of batches, with all backbones in memory or one at a time."""
    import torch

    from benchmarks.common import carried_proteins
    from benchmarks.resident import reset_peak, resident_mb
    from rd_hf.bases.moments import JointMoments
    from rd_hf.data.batching import token_budget_batches
    from rd_hf.fitting import backbone_states
    from rd_hf.model.modeling_rd_esm import RDEsmModel

    proteins = [protein for protein in carried_proteins() if len(protein) <= 200][:24]
    batches = [[proteins[p] for p in batch] for batch in token_budget_batches([len(p) for p in proteins], 1024)]
    base = resident_mb("VmRSS")
    reset_peak()
    started = time.perf_counter()
    model = RDEsmModel.from_pretrained(source, sequential=how == "sequential")
    if how == "resident":
        # As copies, not as pages of the file that count only while they are read.
        model = model.to(torch.float32)
        for weight in model.parameters():
            weight.data = weight.data.clone()
    moments = JointMoments(model.config.backbone_widths)
    size = len(batches) if how == "sequential" else 1
    for start in range(0, len(batches), size):
        for states in backbone_states(model, batches[start : start + size]):
            moments.update(states)
    return {
        "seconds": time.perf_counter() - started,
        "peak_mb": resident_mb("VmHWM") - base,
        "trace": float(moments.scatter().trace()),
    }


def main() -> None:
    task, *arguments = sys.argv[1:]
    tasks: dict[str, Callable[..., dict[str, float]]] = {"solve": solve, "forward": forward, "fit": fit}
    print(json.dumps(tasks[task](*arguments)))


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "scripts")]
    main()

"""Packed rows beside padded batches, on a GPU: residues per second and share of the chip's own matrix products.

650M and 3B at ESM-2's widths (random weights, bfloat16), a seeded sample of real proteins. ``plain`` is the bare
``EsmModel`` as transformers computes it over the same padded batches, ``padded`` and ``packed`` are a family of that
one level, the latter with ``torch.nn.attention.varlen``. Model operations are 24 x layers x width^2 a token and
4 x layers x width for each token it attends to, residues, cls and eos only: what padding computes counts for nothing.
They are set against the rate of one large bfloat16 matrix product, measured in the same run.

Needs CUDA: elsewhere packed rows are computed sequence by sequence, for their results and not for speed
(tests/model/test_layers_packed.py compares them), and this prints so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import Ratio, alternating, carried_proteins, medians, twins
from rd_hf.data.batching import SPECIAL_TOKENS, collate, pack, token_budget_batches
from rd_hf.families import ESM2
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel

Batch = dict[str, Any]
SIZES = {member.name: (member.width, member.layers, member.heads) for member in ESM2 if member.name in ("650M", "3B")}
TOKENS = 32_768


def run(rounds: int) -> list[Ratio]:
    """Rates and ratios; nothing without a GPU."""
    if not torch.cuda.is_available():
        print(
            "packed: no GPU here, so nothing to measure; packed rows are checked by tests/model/test_layers_packed.py"
        )
        return []
    peak = _matmul_flops()
    ratios = [Ratio("bfloat16 matrix product, TFLOP/s", peak / 1e12, None, detail="8,192 x 8,192 x 8,192")]
    proteins = carried_proteins()[:512]
    for name, size in SIZES.items():
        ratios += compare(name, size, proteins, peak, rounds)
    return ratios


def compare(
    name: str, size: tuple[int, int, int], proteins: Sequence[str], peak: float, rounds: int, device: str = "cuda"
) -> list[Ratio]:
    """Packed, padded and plain at one size; ``peak`` in operations per second."""
    width, layers, _ = size
    plain, model = twins({name: size}, device, torch.bfloat16)
    # Attention is looked up by this name at every call: one set of weights serves both.
    names = {"padded": "sdpa", "packed": PACKED_ATTENTION}
    plan = token_budget_batches([len(protein) for protein in proteins], TOKENS)
    groups = [[proteins[place] for place in batch] for batch in plan]
    padded, packed = _padded(groups, device), _packed(groups, device)

    @torch.inference_mode()
    def through(call: Callable[..., object], batches: Sequence[Batch], attention: str) -> None:
        model.set_attn_implementation(names[attention])
        for batch in batches:
            call(**batch)
        if device == "cuda":
            torch.cuda.synchronize()

    _assert_equal(model, padded[-1], packed[-1])
    candidates = {
        "plain": lambda: through(plain.backbones[0], padded, "padded"),
        "padded": lambda: through(model, padded, "padded"),
        "packed": lambda: through(model, packed, "packed"),
    }
    for candidate in candidates.values():
        candidate()
    seconds = medians(alternating(candidates, rounds))
    tokens = [len(protein) + SPECIAL_TOKENS for protein in proteins]
    operations = sum(24 * layers * width**2 * n + 4 * layers * width * n**2 for n in tokens)
    residues = sum(map(len, proteins))
    shown = {
        who: f"{residues / value:,.0f} residues/s, {operations / value / peak:.0%} of the matrix product's rate"
        for who, value in seconds.items()
    }
    return [
        Ratio(f"{name}: padded / packed", seconds["padded"] / seconds["packed"], 1.0, detail=shown["packed"]),
        Ratio(f"{name}: plain EsmModel / padded", seconds["plain"] / seconds["padded"], 0.97, detail=shown["padded"]),
        Ratio(f"{name}: plain EsmModel / packed", seconds["plain"] / seconds["packed"], None, detail=shown["plain"]),
    ]


def _padded(groups: Sequence[Sequence[str]], device: str) -> list[Batch]:
    collated = [collate(group) for group in groups]
    return [{"input_ids": ids.to(device), "attention_mask": mask.to(device)} for ids, mask in collated]


def _packed(groups: Sequence[Sequence[str]], device: str) -> list[Batch]:
    """The same sequences, each group in a row of its own."""
    return [
        {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in pack(group).items()}
        for group in groups
    ]


@torch.inference_mode()
def _assert_equal(model: RDEsmModel, padded: Batch, packed: Batch) -> None:
    """Every real token alike in both, to what bfloat16 leaves of a few dozen layers."""
    model.set_attn_implementation("sdpa")
    a = model(**padded).last_hidden_state[padded["attention_mask"].bool()].float()
    model.set_attn_implementation(PACKED_ATTENTION)
    b = model(**packed).last_hidden_state[0].float()
    error = float((a - b).norm() / a.norm())
    if error > 0.03:
        raise RuntimeError(f"packed and padded states differ by {error:.1%}")


def _matmul_flops(size: int = 8192) -> float:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        a @ b
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return 2 * size**3 / min(seconds[5:])

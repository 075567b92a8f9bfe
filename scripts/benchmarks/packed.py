"""Packed rows beside padded batches, on a GPU: residues per second and share of the chip's own matrix products.

650M and 3B at ESM-2's widths (random weights, bfloat16), a seeded sample of real proteins. ``plain`` is the bare
``EsmModel`` as transformers computes it over the same padded batches, ``padded`` and ``packed`` are a family of that
one level, the latter with ``torch.nn.attention.varlen``; the same ``compiled``, layer by layer, and ``flash``: with
flash attention, where that is installed. Model operations are 24 x layers x width^2 a token and
4 x layers x width for each token it attends to, residues, cls and eos only: what padding computes counts for nothing.
They are set against the rate of one large bfloat16 matrix product, measured in the same run.

Needs CUDA: elsewhere packed rows are computed sequence by sequence, for their results and not for speed
(tests/model/test_layers_packed.py compares them), and this prints so.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from functools import partial
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
# Share of the matrix product's rate that packed rows are to reach; the goal at 650M is 0.70.
TARGETS = {"650M": 0.60, "3B": 0.65}


def run(rounds: int) -> list[Ratio]:
    """Rates and ratios; nothing without a GPU."""
    if not torch.cuda.is_available():
        print(
            "packed: no GPU here, so nothing to measure; packed rows are checked by tests/model/test_layers_packed.py"
        )
        return []
    peak = product_rate()
    ratios = [Ratio("bfloat16 matrix product, TFLOP/s", peak / 1e12, None, detail="8,192 x 8,192 x 8,192")]
    proteins = carried_proteins()[:512]
    for name, size in SIZES.items():
        ratios += compare(name, size, proteins, peak, rounds)
    return ratios


def compare(
    name: str,
    size: tuple[int, int, int],
    proteins: Sequence[str],
    peak: float,
    rounds: int,
    device: str = "cuda",
    contenders: Sequence[str] = ("plain", "padded", "packed"),
) -> list[Ratio]:
    """Contenders at one size, the last of them beside each; ``peak`` in operations per second.

    Of a compiled one the first pass, in which its graphs are made, is timed by itself.
    """
    width, layers, _ = size
    plain, fused = twins({name: size}, device, torch.bfloat16)
    models: dict[str, Any] = {"plain": plain.backbones[0], "flash": plain.backbones[0]}
    if any("compiled" in one for one in contenders):
        compiled = copy.deepcopy(fused)
        compiled.compile_layers()
        models |= dict.fromkeys(("compiled padded", "compiled packed"), compiled)
    plan = token_budget_batches([len(protein) for protein in proteins], TOKENS)
    groups = [[proteins[place] for place in batch] for batch in plan]
    batches = {"padded": _padded(groups, device), "packed": _packed(groups, device)}

    @torch.inference_mode()
    def through(contender: str) -> None:
        model = models.get(contender, fused)
        # Attention is looked up by this name at every call: one set of weights serves several.
        (plain if contender in ("plain", "flash") else model).set_attn_implementation(attention_of(contender))
        for batch in batches["packed" if "packed" in contender else "padded"]:
            model(**batch)
        wait(device)

    first = {}
    for contender in contenders:
        started = time.perf_counter()
        through(contender)
        first[contender] = time.perf_counter() - started
    for contender in contenders:
        if contender not in ("plain", "flash"):
            _assert_equal(plain, models.get(contender, fused), contender, batches)
    seconds = medians(alternating({one: partial(through, one) for one in contenders}, rounds))
    residues = sum(map(len, proteins))
    tokens = [len(protein) + SPECIAL_TOKENS for protein in proteins]
    operations = sum(24 * layers * width**2 * n + 4 * layers * width * n**2 for n in tokens)
    ratios = []
    for one, value in seconds.items():
        detail = f"{residues / value:,.0f} residues/s"
        if "compiled" in one:
            detail += f"; first pass {first[one]:.1f} s"
            usual = seconds.get(one.removeprefix("compiled "), value)
            if usual > value:
                detail += f", made up for after {first[one] / (usual - value) * residues:,.0f} residues"
        share = operations / value / peak
        target = TARGETS.get(name) if "packed" in one else None
        ratios.append(Ratio(f"{name}, {one}: share of the matrix product's rate", share, target, detail=detail))
    *others, last = contenders
    return ratios + [Ratio(f"{name}: {one} / {last}", seconds[one] / seconds[last], None) for one in others]


def attention_of(contender: str) -> str:
    """By what a contender attends."""
    if "flash" in contender:
        return "flash_attention_2"
    return PACKED_ATTENTION if "packed" in contender else "sdpa"


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
def _assert_equal(plain: RDEsmModel, model: RDEsmModel, contender: str, batches: dict[str, list[Batch]]) -> None:
    """Every real token alike in the last batch, to what bfloat16 leaves of a few dozen layers."""
    padded, mask = batches["padded"][-1], batches["padded"][-1]["attention_mask"].bool()
    plain.set_attn_implementation("sdpa")
    model.set_attn_implementation(attention_of(contender))
    a = plain(**padded).last_hidden_state[mask].float()
    if "packed" in contender:
        b = model(**batches["packed"][-1]).last_hidden_state[0].float()
    else:
        b = model(**padded).last_hidden_state[mask].float()
    error = float((a - b).norm() / a.norm())
    if error > 0.03:
        raise RuntimeError(f"states of {contender} differ from transformers' by {error:.1%}")


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def product_rate(device: str = "cuda", size: int = 8192) -> float:
    """Operations per second of a bfloat16 matrix product, at its best."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(20):
        wait(device)
        started = time.perf_counter()
        a @ b
        wait(device)
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds[5:])

"""Compiled layers beside fused ones and transformers' own, and whole models under ``torch.compile``.

Layers: the same weights at 8M + 35M, float32, padded and in packed rows (which a graph on a CPU computes under one mask
over the row, where the fused model takes one product a sequence: packed rows pay on a GPU only). In a graph the
library's own operations are compiled, fused layers step aside. Whole models: see :mod:`benchmarks.forward`.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from typing import Any

import torch

from benchmarks.common import Ratio, alternating, full_groups, milliseconds, paired, twins
from benchmarks.forward import BATCH_TOKENS, COMPILED_SIZES, TOLERANCE, compiler_missing, run_compiled
from rd_hf.data.batching import collate, pack
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION


def run(rounds: int) -> list[Ratio]:
    """What of it this machine can compile, and a sentence why not where it cannot."""
    return [*_layers(rounds), *run_compiled(rounds)]


@torch.inference_mode()
def _layers(rounds: int) -> list[Ratio]:
    if (why := compiler_missing()) is not None:
        print(f"no comparison of compiled layers: {why}", flush=True)
        return []
    exact, fused = twins(COMPILED_SIZES)
    compiled = copy.deepcopy(fused)
    compiled.compile_layers()
    (group,) = full_groups(BATCH_TOKENS, 1)
    padded = dict(zip(("input_ids", "attention_mask"), collate(group), strict=True))
    models: dict[str, Any] = {"transformers": exact, "fused": fused, "compiled": compiled}
    ratios = []
    for name, attention, given in (("padded", "sdpa", padded), ("packed", PACKED_ATTENTION, pack(group))):
        states, first = {}, {}
        for who, model in models.items():
            model.set_attn_implementation(attention)
            started = time.perf_counter()
            states[who] = model(**given).last_hidden_state
            first[who] = time.perf_counter() - started
        kept = padded["attention_mask"].bool() if name == "padded" else ...
        torch.testing.assert_close(states["compiled"][kept], states["fused"][kept], atol=TOLERANCE, rtol=TOLERANCE)
        calls = {who: partial(model, **given) for who, model in models.items()}
        seconds = alternating(calls, 4 * rounds)
        detail = ", ".join(f"{who} {milliseconds(values)}" for who, values in seconds.items())
        detail += f"; graphs took {first['compiled']:.0f} s"
        for who in ("transformers", "fused"):
            value = paired(seconds[who], seconds["compiled"])
            ratios.append(Ratio(f"{who} / compiled layers, {name}, float32", value, None, detail=detail))
    return ratios

"""What nesting adds to the forward passes of the backbones, and the published model beside ours.

The floor. A token costs a backbone 24 x layers x width^2 floating-point operations plus attention: 377 million at
8M + 35M + 150M, 81 million at 8M + 35M. A step of the chain with prefix p, backbone k and d directions adds
2 p k + 2 k d: 1.3 million for both steps (0.3 %), 0.46 million for the first (0.6 %). What it must move a token is
the state in (k numbers), the means taken off, the product taken off (k) and the new embedding out (p + d): about
4 k float32 numbers, 18 kB per token for both steps or 9 MB per batch of 512, which memory at 10 GB/s hands over in
1 ms of the batch's second. The three per cent that are allowed are therefore ten times the arithmetic.

Compared on the same batches (real proteins, seeded), taking turns batch by batch in alternating order; what counts
is the median of the ratios of neighbours, since single times drift by more than what is looked for. On a shared
machine a single ratio is still off by 4 % or so, hence small batches and many pairs; the quartiles say what to make
of the median, and clocks around the backbones inside of one forward pass say the same without that noise:

* ``RDEsmModel`` against its own backbones called one after the other, float32 and bfloat16, at the largest level and
  at ``level="35M"`` against the first two backbones;
* the first publication's ``reverse_distillation`` 0.1.0 (fair-esm's modules, its own scalers and forward pass) with
  equal weights, float32, both uncompiled; answers are compared before anything is timed;
* the same at 8M + 35M with ``torch.compile(dynamic=True)``, ours as a whole, theirs where its ``from_pretrained``
  puts it, on one batch (compiling takes longer than all else here). A C++ compiler is needed.
"""

from __future__ import annotations

import functools
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks import published
from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_batches, milliseconds, paired, random_family
from rd_hf.embedding.engine import CPU_BATCH_TOKENS
from rd_hf.model.modeling_rd_esm import RDEsmModel

Batch = tuple[torch.Tensor, torch.Tensor]

BATCH_TOKENS = 512
BATCHES = 2
# Pairs a round and batch. A smaller level takes a fifth of the time, and its repeats are as many more.
REPEATS = 3
SMALL_LEVEL, SMALL_REPEATS = "35M", 6
COMPILED_SIZES = {name: ESM2_SIZES[name] for name in ("8M", "35M")}
# Float32 sums in another order, through up to thirty layers, on values of order one.
TOLERANCE = 1e-3


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    batches = full_batches(BATCH_TOKENS, BATCHES)
    largest = list(ESM2_SIZES)[-1]
    ratios = []
    with torch.inference_mode():
        model = random_family(ESM2_SIZES)
        for dtype in ("float32", "bfloat16"):
            model.to(getattr(torch, dtype))
            for level, repeats, what in (
                (largest, REPEATS, "RDEsmModel / its three backbones"),
                (SMALL_LEVEL, SMALL_REPEATS, f'level="{SMALL_LEVEL}" / its two backbones'),
            ):
                ratios.append(_overhead(model, batches, rounds * repeats, level, f"{what}, {dtype}"))
            if dtype == "float32" and published.available():
                ratios.append(_published_ratio(model, rounds))
        del model
    if not published.available():
        print(f"no comparison with the published model, which is not installed: {published.INSTALL}", flush=True)
    return ratios


def backbones_alone(model: RDEsmModel, batch: Batch, levels: int) -> list[torch.Tensor]:
    """Final states of the first backbones, called bare: (rows, length, k_i) each."""
    input_ids, attention_mask = batch
    return [
        backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        for backbone in model.backbones[:levels]
    ]


def check_equal(model: RDEsmModel, twin: torch.nn.Module, batch: Batch) -> float:
    """Largest difference between the two models at residues of any level.

    Raises:
        RuntimeError: it is beyond rounding.
    """
    input_ids, attention_mask = batch
    output = model(input_ids, attention_mask=attention_mask)
    theirs = twin(input_ids)["representations"]
    # Above the special tokens, below <mask>: what the published model transforms.
    residues = (input_ids > 3) & (input_ids < 32)
    difference = max(
        float((output.nested(level)[residues] - theirs[level][residues]).abs().max())
        for level in model.config.level_names[1:]
    )
    if not difference < TOLERANCE:
        raise RuntimeError(f"the published model and ours differ by {difference:.2g} at a residue")
    return difference


def share_outside(model: RDEsmModel, batch: Batch, level: str) -> float:
    """Share of one forward pass that is spent outside of its backbones, by clocks around each of them."""
    inside: list[float] = []
    handles = []
    for backbone in model.backbones:
        handles.append(backbone.register_forward_pre_hook(lambda *_: inside.append(-time.perf_counter())))
        handles.append(backbone.register_forward_hook(lambda *_: inside.append(time.perf_counter())))
    try:
        started = time.perf_counter()
        model(batch[0], attention_mask=batch[1], level=level)
        whole = time.perf_counter() - started
    finally:
        for handle in handles:
            handle.remove()
    return 1 - sum(inside) / whole


def _overhead(model: RDEsmModel, batches: Sequence[Batch], repeats: int, level: str, name: str) -> Ratio:
    """A level against the backbones it runs."""
    levels = model.config.level_index(level) + 1
    seconds = _pairs(
        {
            "backbones": lambda batch: backbones_alone(model, batch, levels),
            "ours": lambda batch: model(batch[0], attention_mask=batch[1], level=level),
        },
        batches,
        repeats,
    )
    ours, alone = seconds["ours"], seconds["backbones"]
    low, _, high = statistics.quantiles(
        (above / below for above, below in zip(ours, alone, strict=True)), n=4, method="inclusive"
    )
    outside = statistics.median(share_outside(model, batch, level) for batch in batches)
    detail = f"{milliseconds(ours)} against {milliseconds(alone)} per batch of up to {BATCH_TOKENS:,} tokens; "
    detail += f"{len(ours)} pairs, "
    detail += f"quartiles {low:.3f} and {high:.3f}; by clocks inside, {100 * outside:.1f} % is outside of the backbones"
    return Ratio(name, paired(ours, alone), 1.03, at_least=False, detail=detail)


def _published_ratio(model: RDEsmModel, rounds: int) -> Ratio:
    """The published model against ours, neither compiled, on a batch as an embedding job on a CPU makes them."""
    batches = full_batches(CPU_BATCH_TOKENS, 1)
    twin = published.published_model(model)
    check_equal(model, twin, batches[0])
    seconds = _pairs(
        {"published": lambda batch: twin(batch[0]), "ours": lambda batch: model(batch[0], attention_mask=batch[1])},
        batches,
        # Twice as long: a further pair moves nothing.
        min(rounds, 2),
    )
    return Ratio(
        "published model / RDEsmModel, float32, uncompiled", paired(seconds["published"], seconds["ours"]), 1.1,
        detail=f"{milliseconds(seconds['published'])} against {milliseconds(seconds['ours'])} per batch of up to "
        f"{CPU_BATCH_TOKENS:,}"
        f" tokens; {len(seconds['ours'])} pairs",
    )  # fmt: skip


def _pairs(
    candidates: Mapping[str, Callable[[Batch], object]], batches: Sequence[Batch], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each candidate on each batch in turn, after one pass that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for batch in batches:
        bound = {name: functools.partial(candidate, batch) for name, candidate in candidates.items()}
        for call in bound.values():
            call()
        for name, values in alternating(bound, repeats).items():
            seconds[name] += values
    return seconds


def compiler_missing() -> str | None:
    """A sentence where ``torch.compile`` has no compiler for a CPU."""
    if os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++"):
        return None
    return "there is no C++ compiler (g++ or clang++), which torch.compile needs on a CPU"


def run_compiled(rounds: int) -> list[Ratio]:
    """Both models under torch.compile, or nothing and a sentence saying why."""
    why = compiler_missing() if published.available() else "the published model is not installed"
    if why is None:
        try:
            return [_compiled_ratio(full_batches(BATCH_TOKENS, BATCHES), rounds)]
        # Whatever a compiler may raise: the figure is left out then, the others stand.
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            why = f"compiling failed with {type(error).__name__}: {reason[0]}"
    print(f"no comparison of compiled models: {why}", flush=True)
    return []


@torch.inference_mode()
def _compiled_ratio(batches: Sequence[Batch], rounds: int) -> Ratio:
    torch.compiler.reset()
    batch = batches[0]
    model = random_family(COMPILED_SIZES)
    twin = published.published_model(model, compiled=True)
    compiled: Any = torch.compile(model, dynamic=True)
    calls: dict[str, Callable[[Batch], Any]] = {
        "published": lambda batch: twin(batch[0]),
        "ours": lambda batch: compiled(batch[0], attention_mask=batch[1]),
        "not compiled": lambda batch: model(batch[0], attention_mask=batch[1]),
    }
    first = {}
    for name, call in calls.items():
        started = time.perf_counter()
        call(batch)
        first[name] = time.perf_counter() - started
    torch.testing.assert_close(
        calls["ours"](batch).last_hidden_state,
        calls["not compiled"](batch).last_hidden_state,
        atol=TOLERANCE,
        rtol=TOLERANCE,
    )
    check_equal(model, twin, batch)
    seconds = _pairs(calls, [batch], rounds * SMALL_REPEATS)
    detail = f"{milliseconds(seconds['published'])} against {milliseconds(seconds['ours'])} per batch at 8M + 35M; "
    detail += "not compiled ours"
    detail += f" takes {milliseconds(seconds['not compiled'])}; first calls took {first['published']:.0f} s against"
    detail += f" {first['ours']:.0f} s"
    return Ratio(
        "published model / RDEsmModel, float32, compiled", paired(seconds["published"], seconds["ours"]), 1.0,
        detail=detail,
    )  # fmt: skip

"""What nesting adds to the forward passes of the backbones, and the published model beside ours.

The floor. A token costs a backbone 24 x layers x width^2 floating-point operations plus attention: 377 million at
8M + 35M + 150M, 81 million at 8M + 35M. A step of the chain with prefix p, backbone k and d directions adds
2 p k + 2 k d: 1.3 million for both steps (0.3 %), 0.46 million for the first (0.6 %). What it must move a token is
the state in (k numbers), the means taken off, the product taken off (k) and the new embedding out (p + d): about
4 k float32 numbers, 18 kB a token for both steps or 19 MB a batch of 1,024, which memory at 10 GB/s hands over in
2 ms of the batch's 3 s. The three per cent that are allowed are therefore ten times the arithmetic.

Compared on the same batches (real proteins, seeded), taking turns batch by batch in alternating order; what counts
is the median of the ratios of neighbours, which holds where single times drift by more than what is looked for:

* ``RDEsmModel`` against its own backbones called one after the other, float32 and bfloat16, at the largest level and
  at ``level="35M"`` against the first two backbones;
* the first publication's ``reverse_distillation`` 0.1.0 (fair-esm's modules, its own scalers and forward pass) with
  equal weights, float32, both uncompiled; answers are compared before anything is timed;
* the same at 8M + 35M with ``torch.compile(dynamic=True)``, ours as a whole, theirs where its ``from_pretrained``
  puts it. A C++ compiler is needed.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import published
from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_batches, paired, random_family
from rd_hf.modeling_rd_esm import RDEsmModel

Batch = tuple[torch.Tensor, torch.Tensor]

BATCH_TOKENS = 1024
BATCHES = 2
# A smaller level takes a fifth of the time, and its repeats are as many more.
SMALL_LEVEL, SMALL_REPEATS = "35M", 4
COMPILED_SIZES = {name: ESM2_SIZES[name] for name in ("8M", "35M")}
# Float32 sums in another order, through up to thirty layers, on values of order one.
TOLERANCE = 1e-3


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    batches = full_batches(BATCH_TOKENS, BATCHES)
    with torch.inference_mode():
        model = random_family(ESM2_SIZES)
        ratios = []
        twin = None
        if published.available():
            twin = published.published_model(model)
            check_equal(model, twin, batches[0])
        else:
            print(f"no comparison with the published model, which is not installed: {published.INSTALL}", flush=True)
        ratios += _whole(model, twin, batches, rounds, "float32")
        ratios.append(_small(model, batches, rounds, "float32"))
        del twin
        model.to(torch.bfloat16)
        ratios += _whole(model, None, batches, rounds, "bfloat16")
        ratios.append(_small(model, batches, rounds, "bfloat16"))
        del model
    return [*ratios, *_compiled(batches, rounds)]


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


def _whole(
    model: RDEsmModel, twin: torch.nn.Module | None, batches: Sequence[Batch], rounds: int, dtype: str
) -> list[Ratio]:
    """All levels against their backbones, and against the published model."""
    levels = model.config.level_names
    seconds: dict[str, list[float]] = {}
    for batch in batches:
        candidates: dict[str, Any] = {
            "backbones": lambda batch=batch: backbones_alone(model, batch, len(levels)),
            "ours": lambda batch=batch: model(batch[0], attention_mask=batch[1]),
        }
        if twin is not None:
            candidates["published"] = lambda batch=batch: twin(batch[0])
        candidates["ours"]()
        for name, values in alternating(candidates, rounds).items():
            seconds.setdefault(name, []).extend(values)
    ratios = [_overhead(model, batches, seconds, levels[-1], f"RDEsmModel / its three backbones, {dtype}")]
    if twin is not None:
        ratios.append(
            Ratio(
                "published model / RDEsmModel, float32, uncompiled",
                paired(seconds["published"], seconds["ours"]),
                1.1,
                detail=f"{_told(seconds['published'])} against {_told(seconds['ours'])} a batch",
            )
        )
    return ratios


def _small(model: RDEsmModel, batches: Sequence[Batch], rounds: int, dtype: str) -> Ratio:
    """The second level against the first two backbones."""
    seconds: dict[str, list[float]] = {}
    for batch in batches:
        candidates = {
            "backbones": lambda batch=batch: backbones_alone(model, batch, 2),
            "ours": lambda batch=batch: model(batch[0], attention_mask=batch[1], level=SMALL_LEVEL),
        }
        candidates["ours"]()
        for name, values in alternating(candidates, rounds * SMALL_REPEATS).items():
            seconds.setdefault(name, []).extend(values)
    return _overhead(model, batches, seconds, SMALL_LEVEL, f'level="{SMALL_LEVEL}" / its two backbones, {dtype}')


def _overhead(
    model: RDEsmModel, batches: Sequence[Batch], seconds: dict[str, list[float]], level: str, name: str
) -> Ratio:
    ratio = paired(seconds["ours"], seconds["backbones"])
    outside = statistics.median(share_outside(model, batch, level) for batch in batches)
    detail = f"{_told(seconds['ours'])} against {_told(seconds['backbones'])} a batch of up to {BATCH_TOKENS:,} tokens"
    detail += f", {len(seconds['ours'])} pairs; by clocks inside, {100 * outside:.1f} % is outside of the backbones"
    return Ratio(name, ratio, 1.03, at_least=False, detail=detail)


def _compiled(batches: Sequence[Batch], rounds: int) -> list[Ratio]:
    """Both models under torch.compile, or nothing and a sentence saying why."""
    why = None
    if not published.available():
        why = "the published model is not installed"
    elif not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        why = "there is no C++ compiler (g++ or clang++), which torch.compile needs on a CPU"
    if why is None:
        try:
            return [_compiled_ratio(batches, rounds)]
        # Whatever a compiler may raise: the figure is left out then, the others stand.
        except Exception as error:
            reason = str(error).strip().splitlines() or [""]
            why = f"compiling failed with {type(error).__name__}: {reason[0]}"
    print(f"no comparison of compiled models: {why}", flush=True)
    return []


@torch.inference_mode()
def _compiled_ratio(batches: Sequence[Batch], rounds: int) -> Ratio:
    torch.compiler.reset()
    model = random_family(COMPILED_SIZES)
    twin = published.published_model(model, compiled=True)
    ours: Any = torch.compile(model, dynamic=True)
    compiling = {}
    for name, call in (("ours", lambda b: ours(b[0], attention_mask=b[1])), ("published", lambda b: twin(b[0]))):
        started = time.perf_counter()
        for batch in batches:
            call(batch)
        compiling[name] = time.perf_counter() - started
    eager = model(batches[0][0], attention_mask=batches[0][1]).last_hidden_state
    compiled = ours(batches[0][0], attention_mask=batches[0][1]).last_hidden_state
    torch.testing.assert_close(compiled, eager, atol=TOLERANCE, rtol=TOLERANCE)
    check_equal(model, twin, batches[0])
    seconds: dict[str, list[float]] = {}
    for batch in batches:
        candidates = {
            "published": lambda batch=batch: twin(batch[0]),
            "ours": lambda batch=batch: ours(batch[0], attention_mask=batch[1]),
            "ours, not compiled": lambda batch=batch: model(batch[0], attention_mask=batch[1]),
        }
        for name, values in alternating(candidates, rounds * SMALL_REPEATS).items():
            seconds.setdefault(name, []).extend(values)
    detail = f"{_told(seconds['published'])} against {_told(seconds['ours'])} a batch at 8M + 35M; not compiled ours"
    detail += f" takes {_told(seconds['ours, not compiled'])}; first calls took {compiling['published']:.0f} s against"
    detail += f" {compiling['ours']:.0f} s"
    return Ratio(
        "published model / RDEsmModel, float32, compiled", paired(seconds["published"], seconds["ours"]), 1.0,
        detail=detail,
    )  # fmt: skip


def _told(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):,.0f} ms"

"""How far the model, a fit pass and an embedding job are from the matrix products that they cannot do without.

The limit. A token costs a layer of width k 24 k^2 floating-point operations in its six products (query, key, value and
output k -> k; k -> 4k; 4k -> k). The machine's peak at a width is what the faster of torch's two libraries (MKL behind
``linear``, oneDNN) reaches at those shapes with the rows of a batch, measured here, in turn with what is compared
with it; the limit of a path is the time that its products take at that peak. Attention is no product of weights, and
counts as the rest: 4 k operations per token and neighbour, a fiftieth of the products at 150M and 300 residues.

Paths are taken twice, as they are and with ``exact_activation=True``, which is transformers' own forward pass: the
ratio is what fused layers save. Times alternate on the same batches, and what counts is the median of the ratios of
neighbours. What eats the rest is what torch's profiler says of one pass at each width, by kind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_batches, full_groups, milliseconds, paired, twins
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.fitting.fit import backbone_states
from rd_hf.model.modeling_rd_esm import RDEsmModel

# Half of what a job gives a CPU at once: the same shares in half of the time.
BATCH_TOKENS = 1024
# From this level on embedding is to be at this share of the limit.
GOAL_FROM, GOAL = "35M", 0.6
SAVED = 0.85
WITHIN = 1e-5
# What the kernels of a pass are counted as; the rest is the last.
KINDS = {
    "products": ("addmm", "mm", "linear", "_linear_pointwise"),
    "attention": ("scaled_dot_product", "_flash_attention", "softmax", "bmm"),
    "norms": ("layer_norm",),
    "activations and sums": ("gelu", "erf", "add", "mul", "div", "sub"),
    "copies and the rest": (),
}


def run(rounds: int) -> list[Ratio]:
    """See the module's docstring."""
    exact, fused = twins(ESM2_SIZES)
    groups = full_groups(BATCH_TOKENS, 1)
    batches = full_batches(BATCH_TOKENS, 1)
    ratios = _saved(fused, exact, batches, groups, rounds)
    ratios += [ratio for level in ESM2_SIZES for ratio in _at_level(fused, level, batches, groups, rounds)]
    for level, index in zip(ESM2_SIZES, range(len(fused.backbones)), strict=True):
        for name, model in (("fused", fused), ("transformers", exact)):
            shares = eaten(model.backbones[index], batches[0])
            shown = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in shares.items())
            ratios.append(Ratio(f"{level}: share of products, {name}", shares["products"], None, detail=shown))
    return ratios


def difference(fused: RDEsmModel, exact: RDEsmModel, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Largest difference of a final state at a token.

    Raises:
        RuntimeError: it is beyond rounding.
    """
    input_ids, mask = batch
    outputs = [model(input_ids, attention_mask=mask, output_backbone_states=True) for model in (fused, exact)]
    states = zip(*(output.backbone_states for output in outputs), strict=True)
    found = max(float((ours - theirs)[mask.bool()].abs().max()) for ours, theirs in states)
    if not found <= WITHIN:
        raise RuntimeError(f"fused backbones differ from transformers' own by {found:.2g}")
    return found


@torch.inference_mode()
def _saved(
    fused: RDEsmModel, exact: RDEsmModel, batches: Any, groups: Sequence[Sequence[str]], rounds: int
) -> list[Ratio]:
    """Time of each path over that with transformers' own forward pass."""
    within = difference(fused, exact, batches[0])
    ratios = []
    for what, path in _paths(batches, groups).items():
        calls = {"fused": partial(path, fused), "exact": partial(path, exact)}
        for call in calls.values():
            # Not counted: memory is asked for, kernels are made.
            call()
        # Seconds each: single pairs are off by a tenth.
        seconds = alternating(calls, rounds + 1)
        ratios.append(
            Ratio(
                f"{what}: fused / transformers, {' + '.join(fused.config.level_names)}, float32",
                paired(seconds["fused"], seconds["exact"]), SAVED, at_least=False,
                detail=f"{milliseconds(seconds['fused'])} against {milliseconds(seconds['exact'])} per batch of up to "
                f"{BATCH_TOKENS:,} tokens; within {within:.1g} of transformers' states",
            )
        )  # fmt: skip
    return ratios


def _paths(batches: Any, groups: Sequence[Sequence[str]]) -> dict[str, Callable[..., object]]:
    """What is timed, over one batch: called with a model and, where not the largest, a level."""
    ids, mask = batches[0]

    def embed(model: RDEsmModel, level: str | None = None) -> object:
        engine = Engine(model, level or model.config.level_names[-1], EmbeddingOptions(batch_tokens=BATCH_TOKENS))
        return engine.embed([Request(sequence) for sequence in groups[0]])

    return {
        "model": lambda model, level=None: model(ids, attention_mask=mask, level=level),
        "fit pass": lambda model, level=None: backbone_states(model, [groups[0]]),
        "embed": embed,
    }


@torch.inference_mode()
def _at_level(fused: RDEsmModel, level: str, batches: Any, groups: Sequence[Sequence[str]], rounds: int) -> list[Ratio]:
    """The share of the time of a path up to a level that its products take at the machine's peak."""
    rows = batches[0][0].numel()
    names = list(ESM2_SIZES)
    wanted = names[: names.index(level) + 1]
    paths = _paths(batches, groups)
    if level != names[-1]:
        # A fit runs the whole family; and a job is the model and what it adds.
        del paths["fit pass"], paths["model"]
    seconds: dict[str, list[float]] = {name: [] for name in ("limit", *paths)}
    for _ in range(rounds):
        peaks = {name: peak(ESM2_SIZES[name][0], rows) for name in wanted}
        seconds["limit"].append(sum(products(name, rows) / peaks[name] for name in wanted))
        for name, path in paths.items():
            started = time.perf_counter()
            path(fused, level)
            seconds[name].append(time.perf_counter() - started)
    shown = ", ".join(f"{ESM2_SIZES[name][0]} wide {peaks[name] / 1e9:.0f} GFLOP/s" for name in wanted)
    goal = GOAL if names.index(level) >= names.index(GOAL_FROM) else None
    return [
        Ratio(
            f"{name} at {level}: limit / time",
            paired(seconds["limit"], seconds[name]),
            goal if name == "embed" else None,
            detail=f"{milliseconds(seconds['limit'])} of {milliseconds(seconds[name])} for {rows:,} tokens; "
            f"peak {shown}",
        )
        for name in paths
    ]


def products(level: str, rows: int) -> float:
    """Floating-point operations of a backbone's products of weights over so many tokens."""
    width, layers, _ = ESM2_SIZES[level]
    return 24.0 * layers * width**2 * rows


def peak(width: int, rows: int) -> float:
    """Floating-point operations per second that this machine reaches in the products of a layer."""
    took = 0.0
    # Query, key, value and output; in; out.
    for times, columns, inner in ((4, width, width), (1, 4 * width, width), (1, width, 4 * width)):
        states, weight, bias = torch.randn(rows, inner), torch.randn(columns, inner), torch.randn(columns)
        took += times * min(_best(call, states, weight, bias) for call in _libraries())
    return 24.0 * width**2 * rows / took


def _best(call: Callable[..., object], *operands: torch.Tensor) -> float:
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        call(*operands)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _libraries() -> list[Callable[..., object]]:
    """A product with its bias by each library that torch has for it."""
    calls: list[Callable[..., object]] = [linear]
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        calls.append(lambda x, w, b: torch.ops.mkldnn._linear_pointwise(x, w, b, "none", [], ""))
    return calls


@torch.inference_mode()
def eaten(backbone: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, float]:
    """Share of the processor's time of one pass that each kind of kernel takes."""
    ids, mask = batch
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        backbone(input_ids=ids, attention_mask=mask)
    spent = seconds_by_kind(profiled)
    total = sum(spent.values())
    return {kind: value / total for kind, value in spent.items()}


def seconds_by_kind(profiled: profile) -> dict[str, float]:
    """Seconds of the processor that each kind of kernel took."""
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return spent


def kind_of(kernel: str) -> str:
    """What a kernel of the profiler is counted as."""
    # A trailing line marks the variant that works in place.
    name = kernel.rpartition("::")[2].rstrip("_")
    for kind, words in KINDS.items():
        # Attention's own name holds a product's.
        if any(name == word or (len(word) > 3 and word in name) for word in words):
            return kind
    return list(KINDS)[-1]

"""Levels side by side instead of one after another: does the stack then cost less than its sum?

On a GPU small backbones leave most of the chip idle, and concurrent streams could hide them behind the largest. On a
CPU every product already uses all cores; the alternative is to give each level threads of its own. The most that
can be won is the share of the smaller backbones, 22 % of the operations at 8M + 35M + 150M, 8 % at ... + 650M; with
two cores the largest alone on one of them takes longer than all on both, unless threads wait for each other much.

Both orders are checked for equality before either is timed. What measures better is what RDEsmModel does: on a CPU
one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from benchmarks.common import ESM2_SIZES, Ratio, alternating, full_batches, medians, paired, random_family
from rd_hf.model.modeling_rd_esm import RDEsmModel

# Products of one thread are summed in another order than those of two: tens of units in the last place.
TOLERANCE = 1e-4


def run(rounds: int) -> list[Ratio]:
    """One after another / side by side, for small and large batches."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_family(ESM2_SIZES).to(device)
    side_by_side = _streams if device == "cuda" else _threads
    ratios = []
    for tokens in (256, 2048):
        ((ids, mask),) = full_batches(max(tokens, 1024), 1)
        rows = max(1, tokens // ids.shape[1])
        ids, mask = ids[:rows, :tokens].to(device), mask[:rows, :tokens].to(device)
        expected = _one_after_another(model, ids, mask)
        for found, state in zip(side_by_side(model, ids, mask), expected, strict=True):
            torch.testing.assert_close(found, state, atol=TOLERANCE, rtol=TOLERANCE)
        seconds = alternating(
            {
                "serial": lambda: _timed(_one_after_another, model, ids, mask),  # noqa: B023
                "side by side": lambda: _timed(side_by_side, model, ids, mask),  # noqa: B023
            },
            min(rounds, 2),
        )
        middle = medians(seconds)
        ratios.append(
            Ratio(
                f"levels one after another / side by side, {ids.numel():,} tokens, {device}",
                paired(seconds["serial"], seconds["side by side"]),
                None,
                detail=f"{middle['serial'] * 1e3:,.0f} ms / {middle['side by side'] * 1e3:,.0f} ms",
            )
        )
    return ratios


def _timed(call: Callable[..., object], *arguments: object) -> None:
    call(*arguments)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@torch.inference_mode()
def _one_after_another(model: RDEsmModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    return [backbone(ids, attention_mask=mask).last_hidden_state for backbone in model.backbones]


def _threads(model: RDEsmModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """The largest backbone on one half of the threads, the others on the other half."""
    whole = torch.get_num_threads()

    @torch.inference_mode()
    def work(places: list[int]) -> list[torch.Tensor]:
        # OpenMP keeps the number of threads of a parallel region for each thread that starts one.
        torch.set_num_threads(max(1, whole // 2))
        return [model.backbones[place](ids, attention_mask=mask).last_hidden_state for place in places]

    last = len(model.backbones) - 1
    with ThreadPoolExecutor(2) as pool:
        large = pool.submit(work, [last])
        small = pool.submit(work, list(range(last)))
        states = [*small.result(), *large.result()]
    torch.set_num_threads(whole)
    return states


@torch.inference_mode()
def _streams(model: RDEsmModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Every backbone on a CUDA stream of its own; the current stream waits for all."""
    current = torch.cuda.current_stream()
    states = []
    streams = [torch.cuda.Stream() for _ in model.backbones]
    # The largest first: it is the one that the others are to hide behind.
    for backbone, stream in reversed(list(zip(model.backbones, streams, strict=True))):
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            states.append(backbone(ids, attention_mask=mask).last_hidden_state)
    for state, stream in zip(states, reversed(streams), strict=True):
        current.wait_stream(stream)
        state.record_stream(current)
    return states[::-1]

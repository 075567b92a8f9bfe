"""The published model and ours under ``torch.compile``; see :mod:`benchmarks.forward`."""

from __future__ import annotations

from benchmarks.common import Ratio
from benchmarks.forward import run_compiled


def run(rounds: int) -> list[Ratio]:
    """Nothing, and a sentence why, where one of the two cannot be compiled."""
    return run_compiled(rounds)

"""What every benchmark shares: interleaved rounds, medians, and a table of ratios beside their targets."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ratio:
    """One measured figure beside what was aimed for.

    Attributes:
        name: what is compared with what.
        value: the ratio (or figure) measured.
        target: what it should be, or None where there is no aim.
        at_least: True where larger is better.
        detail: the medians behind it, in words.
    """

    name: str
    value: float
    target: float | None
    at_least: bool = True
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without one."""
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def interleaved(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; all take turns, so that a busy moment hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            started = time.perf_counter()
            candidate()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median of each candidate's rounds."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions: what a figure is worth without them is nothing."""
    model, flags = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text().splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        model, flags = fields.get("model name", model), fields.get("flags", "")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "bfloat16": "AMX" if "amx_bf16" in flags else "AVX-512 BF16" if "avx512_bf16" in flags else "emulated",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "numpy")},
    }


def table(ratios: list[Ratio]) -> str:
    """Markdown table of ratios, targets and the medians behind them."""
    lines = ["| what | measured | target | met | detail |", "|---|---|---|---|---|"]
    for ratio in ratios:
        sign = "≥" if ratio.at_least else "≤"
        target = "" if ratio.target is None else f"{sign} {ratio.target:g}"
        met = {None: "", True: "yes", False: "**no**"}[ratio.met]
        lines.append(f"| {ratio.name} | {ratio.value:.3g} | {target} | {met} | {ratio.detail} |")
    return "\n".join(lines)

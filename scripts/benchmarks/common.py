"""What every benchmark shares: interleaved rounds, medians, a table of ratios beside their targets, and what is
measured on: random families and the carried proteins."""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from rd_hf.data.batching import SPECIAL_TOKENS, collate, token_budget_batches
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import clean_sequence
from rd_hf.families import ESM2, Member, esm2_backbone
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel

REPOSITORY = Path(__file__).resolve().parents[2]
CARRIED = REPOSITORY / "rd_hf" / "data" / "examples" / "proteins_1000.fasta.gz"
LONGEST = 1022
# Width, layers and heads of ESM-2's smaller members.
ESM2_SIZES = {member.name: (member.width, member.layers, member.heads) for member in ESM2[:3]}


@dataclass(frozen=True)
class Ratio:
    """One measured figure beside what was aimed for.

    Attributes:
        name: what is compared with what.
        value: the ratio (or figure) measured.
        target: what it should be, or None where there is none.
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


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, in words."""
    return f"{1e3 * statistics.median(seconds):,.0f} ms"


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Median of the ratios of times that were taken one right after the other.

    What slows a machine for seconds hits both of a pair alike, so this decides differences of a few per cent that
    the ratio of two medians cannot.
    """
    return statistics.median(above / below for above, below in zip(numerators, denominators, strict=True))


def alternating(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """As :func:`interleaved`, every second round in reverse order, so that no candidate always comes after the same."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        order = list(candidates) if number % 2 == 0 else list(candidates)[::-1]
        for name, values in interleaved({name: candidates[name] for name in order}, 1).items():
            seconds[name] += values
    return seconds


def random_family(sizes: Mapping[str, tuple[int, int, int]], seed: int = 0, device: str = "cpu") -> RDEsmModel:
    """Backbones of the widths, layers and heads given, random weights and bases, float32, in eval mode.

    The same numbers at every call with the same seed and the same kind of device (drawn there: of billions, a CPU
    takes minutes).
    """
    torch.manual_seed(seed)
    levels = [{"name": name, "backbone": esm2_backbone(Member(name, "", *size))} for name, size in sizes.items()]
    with torch.device(device):
        model = RDEsmModel(RDEsmConfig(levels=levels)).eval()
    with torch.no_grad():
        for buffer in model.projections.buffers():
            buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    return model


def twins(
    sizes: Mapping[str, tuple[int, int, int]], device: str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[RDEsmModel, RDEsmModel]:
    """The same weights computed as transformers does, and fused."""
    fused = random_family(sizes, device=device).to(dtype)
    config = type(fused.config)(levels=fused.config.levels, exact_activation=True)
    with torch.device(device):
        exact = RDEsmModel(config).eval()
    # The same tensors: what it was made with is let go.
    exact.load_state_dict(fused.state_dict(), assign=True)
    return exact, fused


def carried_proteins(seed: int = 0) -> list[str]:
    """The 1,000 proteins that the repository carries, cleaned, cut to 1,022 residues, in an order drawn by seed."""
    sequences = [clean_sequence(record.sequence)[:LONGEST] for record in read_fasta(CARRIED)]
    random.Random(seed).shuffle(sequences)
    return sequences


def full_groups(tokens: int, count: int, seed: int = 0) -> list[list[str]]:
    """Sequences of ``count`` batches, drawn by seed from those that an embedding job over the carried proteins would
    make under a budget of ``tokens``, that fill four fifths of it and have some padding (as nearly all do that have
    several rows)."""
    sequences = carried_proteins(seed)
    plan = token_budget_batches([len(sequence) for sequence in sequences], tokens)
    full = []
    for batch in plan:
        rows = [len(sequences[position]) + SPECIAL_TOKENS for position in batch]
        if 0.8 * tokens <= sum(rows) < len(rows) * max(rows) <= tokens:
            full.append([sequences[position] for position in batch])
    return random.Random(seed).sample(full, count)


def full_batches(tokens: int, count: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Token ids and masks of :func:`full_groups`: (rows, length) int64 each."""
    return [collate(group) for group in full_groups(tokens, count, seed)]


def output_of(command: Sequence[str], **environment: str) -> str:
    """Standard output of a command that must succeed, run with these variables added to the environment.

    Raises:
        RuntimeError: it failed; the message is its error output.
    """
    return _done(command, environment).stdout


def errors_of(command: Sequence[str], **environment: str) -> str:
    """Standard error, as :func:`output_of`."""
    return _done(command, environment).stderr


def _done(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)[:200]} failed:\n{done.stderr[-4000:]}")
    return done


def answer_of(command: Sequence[str], **environment: str) -> Any:
    """What a worker printed last, from JSON; see :func:`output_of`."""
    return json.loads(output_of(command, **environment).splitlines()[-1])


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions: what a figure is worth without them is nothing."""
    model, flags = platform.processor(), ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        pairs = (line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines())
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


def write_tables(readme: Path, tables: Mapping[str, str]) -> None:
    """Put each table between ``<!-- benchmark: NAME -->`` and ``<!-- end -->`` of a README.

    Raises:
        ValueError: the README has no such place; nothing is written then.
    """
    text = readme.read_text(encoding="utf-8")
    for name, content in tables.items():
        before, found, rest = text.partition(f"<!-- benchmark: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if not found or not end:
            raise ValueError(f"{readme} has no lines '<!-- benchmark: {name} -->' and '<!-- end -->' around a table")
        text = f"{before}{found}{content}\n{end}{after}"
    readme.write_text(text, encoding="utf-8")

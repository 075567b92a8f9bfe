"""What a fit will need, worked out before anything is fetched: bytes, memory, FLOP, hours.

Everything follows from the config and the lengths of the sequences but for two numbers that are measured here: what
the process takes before it holds a model, and how many FLOP per second a transformer layer reaches on this machine.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import EsmConfig, EsmModel, PreTrainedModel

from rd_hf.data.batching import SPECIAL_TOKENS, token_budget_batches
from rd_hf.data.fasta import read_fasta
from rd_hf.families import FAMILIES, Member, esm2_backbone
from rd_hf.files import byte_size
from rd_hf.hub.describe import backbone_cost
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import family_of
from rd_hf.model.files_rd_esm import find_weights
from rd_hf.model.layers_rd_esm import encoder_class
from rd_hf.model.modeling_rd_esm import RDEsmModel

FLOAT32 = 4
FLOAT64 = 8
# Widths of what is alive at once in a layer's feed-forward half, in units of the hidden width: the state and its
# normed copy, the widened state (4) and the activation's temporaries (8), which are written out in the library.
LIVE_WIDTHS = 15
# Matrices of K x K in float64 beside the moments while the chain is solved: its working copies of two sets of
# moments, a residual, its eigenvectors and the solver's own.
SOLVE_MATRICES = 3


@dataclass(frozen=True)
class Plan:
    """Needs of one fit; sizes in bytes.

    Attributes:
        download: weights that are not in the cache yet.
        weights: all weight files together.
        disk: what will lie on disk in the end, cache included, beyond what is there.
        work: the part of it that lies in the folder of the work: bases, and the fit's state.
        resident, sequential: peak memory with all backbones held, and with one at a time (--group-tokens).
        sequences, tokens: what runs through every backbone, padding included.
        flop, flops: of the whole fit; per second, as measured.
        memory_free, disk_free: of this machine; the disk is that of the cache.
        work_free: of the disk of the folder of the work, where that is another one; None where it is the same.
    """

    download: int
    weights: int
    disk: int
    resident: int
    sequential: int
    sequences: int
    tokens: int
    flop: float
    flops: float
    memory_free: int
    disk_free: int
    work: int = 0
    work_free: int | None = None

    def trouble(self, sequential: bool, memory: int | None = None) -> str | None:
        """Return why a fit does not fit into memory or onto the disk, and what makes it; None if it does.

        It holds one backbone at a time if ``sequential``; ``memory`` are bytes to plan for, in place of what is free
        here.
        """
        free = self.memory_free if memory is None else memory
        cache = self.disk if self.work_free is None else self.download
        for needed, there, what, mend in (
            (cache, self.disk_free, "of disk", "set HF_HOME (where downloads go) to a larger disk"),
            (self.work, self.work_free, "of disk for its work", "choose an --output on a larger disk"),
        ):
            if there is not None and needed > there:
                return f"this needs {byte_size(needed)} {what} and {byte_size(there)} are free: {mend}"
        if (self.sequential if sequential else self.resident) <= free:
            return None
        if not sequential and self.sequential <= free:
            return (
                f"all backbones together need {byte_size(self.resident)} of memory and {byte_size(free)} are free: add "
                f"--group-tokens 32768, which holds one backbone at a time ({byte_size(self.sequential)})"
            )
        return (
            f"even one backbone at a time needs {byte_size(self.sequential)} of memory and {byte_size(free)} are free: "
            f"choose a smaller --config, fewer --batch-tokens and --group-tokens, or a larger machine"
        )

    def sentence(self) -> str:
        """Download, memory and time, in a few words."""
        return (
            f"{byte_size(self.download)} to download, {byte_size(self.resident)} of memory, on the {self.sequences:,} "
            f"carried proteins about {duration(self.flop / self.flops)} on this machine's CPUs"
        )

    def __str__(self) -> str:
        return "\n".join(
            (
                f"download   {byte_size(self.download)} of {byte_size(self.weights)} of weights",
                f"disk       {byte_size(self.disk)} more ({byte_size(self.disk_free)} free)",
                f"memory     {byte_size(self.resident)} at the peak with all backbones held",
                f"           {byte_size(self.sequential)} with one at a time (--group-tokens); "
                f"{byte_size(self.memory_free)} are free",
                f"work       {self.sequences:,} sequences, {self.tokens:,} tokens with padding: {self.flop:.3g} FLOP",
                f"time       {duration(self.flop / self.flops)} at the {self.flops / 1e9:,.0f} GFLOP/s measured here",
            )
        )


def duration(seconds: float) -> str:
    """In hours, minutes or seconds."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.0f} minutes" if seconds >= 100 else f"{seconds:.0f} seconds"


def encoder_on_meta(backbone: dict[str, Any], level: str) -> PreTrainedModel:
    """Build the encoder of a level's ``backbone`` with all of its layers, without memory for its weights."""
    family = family_of(backbone)
    config = family.config(backbone, level)
    with torch.device("meta"):
        return encoder_class(config)(config, **family.arguments)


def stored_bytes(entry: dict[str, Any]) -> int:
    """Size of a level's weight files: as published, and else of an encoder with its head in float32."""
    backbone = entry["backbone"]
    family, k = FAMILIES[family_of(backbone).model_type], backbone["hidden_size"]
    for member in family.members:
        if (member.repo_id, member.width, member.layers) == (entry["repo_id"], k, backbone["num_hidden_layers"]):
            return member.download
    weights = {name: weight.numel() for name, weight in encoder_on_meta(backbone, entry["name"]).named_parameters()}
    head = k * k + 3 * k + backbone["vocab_size"] * (k + 1)
    unread = family.stores_positions and not any("position_embeddings" in name for name in weights)
    return FLOAT32 * (sum(weights.values()) + head + (backbone["max_position_embeddings"] * k if unread else 0))


def is_here(entry: dict[str, Any]) -> bool:
    """Whether a level's weights are in the cache, or in a folder."""
    try:
        find_weights(entry["repo_id"], entry["revision"], local_files_only=True)
    except (OSError, ValueError):
        return False
    return True


def peak_memory(
    config: RDEsmConfig, weights: Sequence[int], batch_tokens: int, group_tokens: int | None, base: int
) -> int:
    """Peak of a float32 fit on a CPU: while the backbones run, or of the solution after that.

    ``weights`` are bytes of each backbone, ``base`` what the process takes without a model, ``batch_tokens`` those of
    the largest batch; ``group_tokens`` of a group of batches is None if all backbones are held.
    """
    widths = config.backbone_widths
    total = sum(widths)
    moments = 2 * FLOAT64 * total**2
    activations = FLOAT32 * LIVE_WIDTHS * batch_tokens * max(widths)
    # The fit's record of which weights it was started with sums each matrix in float64.
    digest = FLOAT64 * max(e["backbone"]["hidden_size"] * e["backbone"]["intermediate_size"] for e in config.levels)
    states = FLOAT32 * total * (batch_tokens if group_tokens is None else group_tokens)
    solve = SOLVE_MATRICES * FLOAT64 * total**2
    if group_tokens is None:
        return base + sum(weights) + moments + max(activations + states, digest, solve)
    return base + max(max(weights) + max(activations + states + moments, digest), moments + states, moments + solve)


def bases_bytes(config: RDEsmConfig) -> int:
    """Size of the bases."""
    with torch.device("meta"):
        return sum(buffer.nbytes for buffer in RDEsmModel(config, build_backbones=False).projections.buffers())


def measured_flops(width: int = 640, tokens: int = 1024, seconds: float = 1.0) -> float:
    """FLOP per second of a transformer layer as the library runs it, on this machine with torch's threads."""
    model = EsmModel(EsmConfig(**esm2_backbone(Member("", "", width, 1, 20))), add_pooling_layer=False).eval()
    length = 256
    ids = torch.full((tokens // length, length), 5)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        model(ids, attention_mask=mask)
        started = time.perf_counter()
        rounds = 0
        while time.perf_counter() - started < seconds:
            model(ids, attention_mask=mask)
            rounds += 1
    # The two products of attention come on top of the linear maps.
    return rounds * tokens * (backbone_cost(model, 1)[1] + 4 * width * length) / (time.perf_counter() - started)


def memory_in_use() -> int:
    """Resident memory of this process, in bytes; a guess if the kernel does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    except OSError:
        return 500_000_000
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_of_imports() -> int:
    """Memory of a process that has imported all that a fit uses, and used it once; in bytes."""
    import contextlib

    import accelerate  # noqa: F401
    import transformers.models.esm.modeling_esm  # noqa: F401

    with contextlib.suppress(ImportError):
        import matplotlib.pyplot  # noqa: F401
    measured_flops(width=320, tokens=256, seconds=0.1)
    return memory_in_use()


def free_memory(root: Path = Path("/")) -> int:
    """Memory that a new process could take, in bytes: of the machine, or of the container if that may take less."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="utf-8").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(free, *_left_in_groups(root), free)


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the control groups of this process (a container's, a batch job's) leave of their limits."""
    base = root / "sys/fs/cgroup"
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in own:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            top, limit, used = base, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            top, limit, used = base / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        # Within a container the path may be that of the machine outside: its own group then lies at the top.
        for group in {top, *(top / parent for parent in Path(path.lstrip("/")).parents), top / path.lstrip("/")}:
            try:
                most = int((group / limit).read_text(encoding="utf-8"))
                taken = int((group / used).read_text(encoding="utf-8"))
                kept = (group / "memory.stat").read_text(encoding="utf-8").split()
            except (OSError, ValueError):  # no such group, or no limit ("max")
                continue
            # Files in memory give way.
            yield most - taken + int(kept[kept.index("inactive_file") + 1] if "inactive_file" in kept else 0)


def carried_plan(config: RDEsmConfig) -> Plan:
    """Return the needs of fitting ``config`` on the proteins that the package carries, measured in little time.

    Batches are those of the default options but for the split, which moves a few sequences.
    """
    longest = 1022
    lengths = [min(len(record.sequence), longest) for record in read_fasta("example")]
    budget = 4096
    batches = [(len(rows), SPECIAL_TOKENS + lengths[rows[0]]) for rows in token_budget_batches(lengths, budget)]
    flops = measured_flops(tokens=512, seconds=0.2)
    return make_plan(config, batches, budget, 8 * budget, memory_in_use(), flops)


def make_plan(
    config: RDEsmConfig,
    batches: Sequence[tuple[int, int]],
    batch_tokens: int,
    group_tokens: int,
    base: int,
    flops: float | None = None,
    work: Path = Path(),
) -> Plan:
    """Return the needs of fitting ``config`` on batches of (sequences, longest length with cls and eos).

    ``batch_tokens`` and ``group_tokens`` are budgets of a batch, and of a group of batches with one backbone at a time;
    ``base`` is the memory of the process without a model; ``flops``, per second, are measured here by default; ``work``
    is the folder of the work, which need not be there yet.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    tokens = sum(rows * length for rows, length in batches)
    largest = max((rows * length for rows, length in batches), default=0)
    length = sum(rows * length**2 for rows, length in batches) / max(tokens, 1)
    total = sum(config.backbone_widths)
    weights, download, held = 0, 0, []
    # One triangle of the moments, and the eigendecompositions of the chain.
    flop = float(total) ** 2 * tokens + 25.0 * sum(float(k) ** 3 for k in config.backbone_widths)
    for index in range(len(config.backbone_groups)):
        entry, depth = config.backbone_entry(index), config.backbone_depth(index)
        parameters, linear = backbone_cost(encoder_on_meta(entry["backbone"], entry["name"]), depth)
        held.append(FLOAT32 * parameters)
        # The two products of attention come on top of the linear maps.
        flop += tokens * (linear + 4.0 * depth * entry["backbone"]["hidden_size"] * length)
        size = stored_bytes(entry)
        weights += size
        download += 0 if is_here(entry) else size
    cache, work = (
        next(path for path in (folder, *folder.parents) if path.is_dir())
        for folder in (Path(HF_HUB_CACHE).absolute(), work.absolute())
    )
    written = bases_bytes(config) + 2 * FLOAT64 * total**2
    return Plan(
        download=download,
        weights=weights,
        disk=download + written,
        resident=peak_memory(config, held, min(largest, batch_tokens) or largest, None, base),
        sequential=peak_memory(config, held, largest, max(largest, min(group_tokens, tokens)), base),
        sequences=sum(rows for rows, _ in batches),
        tokens=tokens,
        flop=flop,
        flops=measured_flops() if flops is None else flops,
        memory_free=free_memory(),
        disk_free=shutil.disk_usage(cache).free,
        work=written,
        work_free=None if work.stat().st_dev == cache.stat().st_dev else shutil.disk_usage(work).free,
    )

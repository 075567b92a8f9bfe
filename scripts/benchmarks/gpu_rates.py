"""What scripts/gpu_check.sh times: kernels by kind, moments, a compiled model, jobs from the command line.

Everything at 650M's width with random weights, or at a toy's where only the way is tried (``small``).
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import packed
from benchmarks.common import REPOSITORY, carried_proteins, random_family, twins
from benchmarks.limit import kind_of
from rd_hf.bases import moments
from rd_hf.data.batching import collate, pack
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.layouts import packing_pays
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.fitting.fit import backbone_states
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel

TOY = (64, 2, 4)
# Of a suite on a machine with a GPU (torch 2.11) 32 cases of one test once failed, and which test was not noted: those
# with about as many cases or more, and those whose device is left open or said not to be there.
SUSPECTS = (
    "tests/test_devices.py",
    "tests/embedding/test_dtypes.py",
    "tests/embedding/test_one_default.py",
    "tests/embedding/test_layouts.py",
    "tests/embedding/test_input.py",
    "tests/embedding/test_reader.py",
    "tests/commands/test_mistakes.py",
    "tests/commands/test_outputs.py",
    "tests/commands/test_numbers.py",
    "tests/data/test_streams.py",
    "tests/data/test_values.py",
    "tests/hub/test_tokenizer.py",
    "tests/model/test_configuration_rd_esm.py",
    "tests/model/test_fused_for_others.py",
    "tests/model/test_fused_rotary.py",
    "tests/test_scripts.py::test_imports_run_one_way",
)
# Widths of the levels up to 650M, as a fit of that family joins them.
JOINED = [320, 480, 640, 1280]


def size_of(name: str, small: bool) -> tuple[int, int, int]:
    """Width, layers and heads."""
    return TOY if small else packed.SIZES[name]


def seconds(device: str, call: Callable[[], object], rounds: int = 3) -> float:
    """Median of some calls, after one that is not counted."""
    found = []
    for _ in range(rounds + 1):
        packed.wait(device)
        started = time.perf_counter()
        call()
        packed.wait(device)
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


@torch.inference_mode()
def kernels(device: str, small: bool) -> dict[str, Any]:
    """Where the time of one pass goes at 650M, bfloat16: transformers' own, and fused or compiled in padded rows and
    packed ones."""
    plain, fused = twins({"650M": size_of("650M", small)}, device, torch.bfloat16)
    proteins = carried_proteins()[: 8 if small else 96]
    ids, mask = (tensor.to(device) for tensor in collate(sorted(proteins, key=len)))
    rows = {name: value.to(device) if torch.is_tensor(value) else value for name, value in pack(proteins).items()}
    found: dict[str, Any] = {}
    padded = {"input_ids": ids, "attention_mask": mask}
    for name, model, given in (
        ("transformers", plain, padded),
        ("fused, padded", fused, padded),
        ("fused, packed", fused, rows),
        # From here on: compiling replaces what is fused.
        ("compiled, padded", fused, padded),
        ("compiled, packed", fused, rows),
    ):
        if name.startswith("compiled"):
            model.compile_layers()
        model.set_attn_implementation(PACKED_ATTENTION if given is rows else "sdpa")
        model(**given)
        found[name] = _shares(device, model, given)
    return found


def _shares(device: str, model: RDEsmModel, given: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of the device by kind of kernel, and the calls that take most."""
    on_gpu = torch.device(device).type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        model(**given)
        packed.wait(device)
    kinds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in profiled.key_averages():
        # Kernels are listed once more by themselves.
        if str(event.device_type).endswith("CPU"):
            spent = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e3
            kinds[kind_of(event.key)] += spent
            calls[event.key] += spent
    return {"ms": dict(kinds), "most": dict(calls.most_common(8))}


@torch.inference_mode()
def joint_moments(device: str, small: bool) -> dict[str, Any]:
    """Residues per second that enter the moments of a family up to 650M, by dtype and width of a product's tile."""
    widths = [16, 24] if small else JOINED
    states = [torch.randn(4096 if small else 32768, width, device=device).to(torch.bfloat16) for width in widths]
    found = {}
    kind, columns = torch.device(device).type, moments.TILE_COLUMNS
    usual = columns[kind]
    try:
        for dtype in (torch.float64, torch.float32):
            for tile in (usual // 4, usual, sum(widths)):
                columns[kind] = tile
                joint = moments.JointMoments(widths, device=device, product_dtype=dtype)
                took = seconds(device, lambda joint=joint: joint.update(states))  # type: ignore[misc]
                found[f"{str(dtype)[6:]}, {tile} columns: residues/s"] = len(states[0]) / took
    finally:
        columns[kind] = usual
    return found


@torch.inference_mode()
def engines(device: str, dtype: str, small: bool) -> dict[str, Any]:
    """Residues per second of what a job does to its sequences and of what a fit does; bytes that a token takes."""
    model = random_family({"650M": size_of("650M", small)}, device=device).to(getattr(torch, dtype))
    proteins = carried_proteins()[: 16 if small else 600]
    engine = Engine(model, "650M", EmbeddingOptions(dtype=dtype))
    groups = [proteins[start : start + 32] for start in range(0, len(proteins), 32)]
    joint = moments.JointMoments(model.config.backbone_widths, device=device)

    def fit() -> None:
        for group in groups:
            joint.update(backbone_states(model, [group])[0])

    residues = sum(map(len, proteins))
    requests = [Request(protein) for protein in proteins]
    calls = {"embed": lambda: engine.embed(requests), "fit": fit}
    found: dict[str, Any] = {"tokens per batch": engine.tokens}
    if packing_pays(model):
        expected = torch.from_numpy(np.stack(engine.embed(requests)))
        model.set_attn_implementation(PACKED_ATTENTION)
        packing = Engine(model, "650M", EmbeddingOptions(dtype=dtype))
        difference = torch.from_numpy(np.stack(packing.embed(requests))) - expected
        found["packed / padded embeddings, difference"] = float(difference.norm() / expected.norm())
        calls["embed, packed"] = lambda: packing.embed(requests)
    for name, call in calls.items():
        if torch.device(device).type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        found[f"{name}: residues/s"] = residues / seconds(device, call, 2)
        if torch.device(device).type == "cuda":
            found[f"{name}: peak MB beyond the weights"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return found


@torch.inference_mode()
def compiled_equal(device: str, dtype: str, small: bool, proteins: Sequence[str], within: float) -> dict[str, Any]:
    """Compiled layers beside the same not compiled, padded and packed; what graphs took to be made.

    Raises:
        AssertionError: they differ by more than ``within`` of the norm.
    """
    size = TOY if small else (480, 12, 20)
    plain, model = (random_family({"35M": size}, device=device).to(getattr(torch, dtype)) for _ in range(2))
    model.compile_layers()
    ids, mask = (tensor.to(device) for tensor in collate(proteins))
    row = {name: one.to(device) if torch.is_tensor(one) else one for name, one in pack(proteins).items()}
    found: dict[str, Any] = {}
    for name, attention, given in (
        ("padded", "sdpa", {"input_ids": ids, "attention_mask": mask}),
        ("packed", PACKED_ATTENTION, row),
    ):
        started = time.perf_counter()
        for one in (plain, model):
            one.set_attn_implementation(attention)
        states = [one(**given).last_hidden_state for one in (plain, model)]
        a, b = ((one[mask.bool()] if name == "padded" else one[0]).float().cpu() for one in states)
        found[f"{name}: first pass, seconds"] = time.perf_counter() - started
        found[f"{name}: digest"] = hashlib.sha256(b.numpy().tobytes()).hexdigest()
        error = found[f"{name}: error"] = float((a - b).norm() / a.norm())
        assert error <= within, f"compiled, {name}: {error:.2g} of the norm off, more than {within:g}"
    return found


def compiled_again(device: str, small: bool, scratch: Path) -> dict[str, Any]:
    """Compiled layers made anew by another process, without what the first left on disk: the same bits.

    Raises:
        AssertionError: they are others, so that what a job writes would depend on which process wrote it.
    """
    digests = []
    for number in range(2):
        answer = scratch / f"compiled-{number}.json"
        run = [sys.executable, "-m", "benchmarks.gpu_check", "--device", device, "--json", str(answer)]
        run += ["--only", "equal: compiled layers, bfloat16", *(["--small"] if small else [])]
        own = {
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / f"inductor-{number}"),
            "TRITON_CACHE_DIR": str(scratch / f"t{number}"),
        }
        subprocess.run(run, env={**os.environ, **own}, capture_output=True, check=True)
        (step,) = json.loads(answer.read_text(encoding="utf-8"))["steps"].values()
        digests.append({name: value for name, value in step.items() if name.endswith("digest")})
    assert digests[0] == digests[1], f"two processes compiled otherwise: {digests}"
    return digests[0]


def what_runs(device: str, small: bool) -> dict[str, Any]:
    """What is installed, and by which calls the layers attend, for each dtype and layout; printed as a table."""
    found: dict[str, Any] = {name: _version(name) for name in ("flash-attn", "kernels", "triton")}
    print(", ".join(f"{name} {version or 'not installed'}" for name, version in found.items()))
    ids, mask = (tensor.to(device) for tensor in collate(["MKTAYIAKQR", "MKT"]))
    row = {name: one.to(device) if torch.is_tensor(one) else one for name, one in pack(["MKTAYIAKQR", "MKT"]).items()}
    for dtype in ("float32", "bfloat16", "float16"):
        model = random_family({"650M": size_of("650M", True)}, device=device).to(getattr(torch, dtype))
        for attention in ("sdpa", PACKED_ATTENTION, *(["flash_attention_2"] if found["flash-attn"] else [])):
            model.set_attn_implementation(attention)
            given = {"input_ids": ids, "attention_mask": mask} if attention == "sdpa" else row
            layout = "padded" if attention == "sdpa" else "packed"
            try:
                calls = _attention_calls(device, model, given)
            except (RuntimeError, ValueError) as error:
                calls = f"refused: {str(error).splitlines()[0][:100]}"
            found[f"{dtype}, {layout}, {attention}"] = calls
            print(f"  {dtype:9} {layout:7} {attention:18} layers {'fused':6} {calls}")
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@torch.inference_mode()
def _attention_calls(device: str, model: RDEsmModel, given: dict[str, Any]) -> str:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        model(**given)
        packed.wait(device)
    names = {event.key for event in profiled.key_averages()}
    # The innermost of calls within calls.
    known = ("_scaled_dot_product_", "_flash_attention_forward", "varlen_attn", "_efficient_attention", "flash_attn")
    return ", ".join(sorted(name for name in names if any(word in name for word in known))) or "products and a softmax"


def suspects() -> dict[str, Any]:
    """Tests that count on no GPU being there, or have as many cases as once failed on a machine with one.

    Raises:
        AssertionError: some fail; with their names.
    """
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--maxfail=40", "-rf", *SUSPECTS]
    run += ["-n", "8"] if find_spec("xdist") else []
    done = subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))]
    assert done.returncode == 0, "\n".join(failed[:60] or lines[-20:])
    return {"said": lines[-1]}


def command(arguments: Sequence[str], hidden: bool = False) -> str:
    """What ``rd-hf`` says on standard error; ``hidden``: no GPU for it.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})}
    run = [sys.executable, "-m", "rd_hf", *arguments]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rd-hf {arguments[0]} failed: {done.stderr[-2000:]}")
    return done.stdout + done.stderr


def whole_job(device: str, small: bool, scratch: Path) -> dict[str, Any]:
    """`rd-hf embed` at 650M from start to end, what it chose and where its time went."""
    folder = scratch / "one-level"
    random_family({"650M": size_of("650M", small)}, device=device).cpu().save_pretrained(folder, backbones=True)
    fasta = scratch / "whole.fasta"
    proteins = carried_proteins()[: 16 if small else 1000]
    # A few seconds for a GPU, and none of them twice.
    turned = [protein[turn:] + protein[:turn] for turn in range(1 if small else 4) for protein in proteins]
    fasta.write_text("".join(f">{place}\n{protein}\n" for place, protein in enumerate(turned)), encoding="utf-8")
    found: dict[str, Any] = {"residues": sum(map(len, turned))}
    short = ["--long", "truncate", "--max-length", "60"] if small else []
    for name, more in {"as it is": [], "padded": ["--attn-implementation", "sdpa"]}.items():
        started = time.perf_counter()
        inputs = ["embed", "--model", str(folder), "--input", str(fasta), "--output", str(scratch / name)]
        said = command([*inputs, "--device", device, *short, *more])
        found[name] = {"seconds": time.perf_counter() - started, "said": said[-1500:]}
    return found

"""Whole jobs on a GPU, for scripts/gpu_check.sh: how near they come to what the model alone does, and two on one card.

A job is set against the forward passes of its own batches, with nothing else to do; its device's waiting is what the
job itself says (``--verbose``). Two processes on one device, and two workers of Ray on it, must write what one writes:
parts byte for byte, bases to the rounding of their sums, within the memory that batches are planned by.

As a module, ``python -m benchmarks.gpu_jobs FILE COMMAND ...`` runs ``rd-hf COMMAND ...`` and writes to FILE-<rank>
what memory it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from benchmarks.common import REPOSITORY, Ratio, carried_proteins, random_family
from benchmarks.gpu_rates import TOY, seconds, size_of
from rd_hf.bases.moments import TILE_COLUMNS, JointMoments
from rd_hf.embedding.engine import bytes_per_token, default_batch_tokens
from rd_hf.embedding.job import run_job
from rd_hf.embedding.layouts import layout_of, packing_pays
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.embedding.transfer import all_moved
from rd_hf.families import ESM2
from rd_hf.fitting import FitOptions, FitSettings, draw_sample, fit_bases, run_fit
from rd_hf.fitting.fit import backbone_states, batch_inputs
from rd_hf.fitting.sample import plan_batches
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel

# What a job should reach of the model's rate; moments' share of a fit, and the device's waiting, at most.
NEAR, MOMENTS, WAITING = 0.90, 0.03, 0.05
FAMILY = REPOSITORY / "hub_configs" / "rd-esm2-mini"
# Tokens of a batch that one process and two of them are given alike.
TOKENS = 4096
# Of a process beyond weights, batches and sums: what libraries take for themselves (CUDA's products 32 to 64 MB).
OVERHEAD = 256 << 20
# Bases of one process and of two: the same states, whose float64 sums are added in another order.
BASES = 1e-6


def steps() -> dict[str, Callable[[Any], dict[str, Any]]]:
    """Each takes the bench of ``gpu_check``, of which device, size and a folder to write to are asked."""
    return {
        "job: embed at 650M": lambda bench: embed(bench.device, bench.small, bench.scratch),
        "job: fit up to 650M": lambda bench: fit(bench.device, bench.small, bench.scratch),
        "job: two processes on one device": lambda bench: two(bench.device, bench.small, bench.scratch),
        "job: two workers of Ray on one device": lambda bench: on_ray(bench),
    }


def _shown(ratios: Sequence[Ratio], **more: Any) -> dict[str, Any]:
    return {**more, "ratios": [asdict(ratio) | {"met": ratio.met} for ratio in ratios]}


def _dtype(device: str) -> str:
    return "bfloat16" if torch.device(device).type == "cuda" else "float32"


def _proteins(path: Path, small: bool) -> list[str]:
    """A few seconds of a GPU's work as FASTA, none of them twice."""
    proteins = [protein[: 60 if small else None] for protein in carried_proteins()[: 40 if small else 1000]]
    turned = [protein[turn:] + protein[:turn] for turn in range(1 if small else 4) for protein in proteins]
    path.write_text("".join(f">{place}\n{protein}\n" for place, protein in enumerate(turned)), encoding="utf-8")
    return turned


def embed(device: str, small: bool, scratch: Path) -> dict[str, Any]:
    """`rd-hf embed` at 650M, its model loaded before, beside forward passes of batches that lie on the device."""
    folder, fasta = scratch / "job-650M", scratch / "job.fasta"
    random_family({"650M": size_of("650M", small)}, device=device).cpu().save_pretrained(folder, backbones=True)
    proteins = _proteins(fasta, small)
    options = EmbeddingOptions(dtype=_dtype(device), batch_tokens=512 if small else None)
    first = fasta.with_name("first.fasta")
    first.write_text("".join(fasta.read_text(encoding="utf-8").splitlines(keepends=True)[:64]), encoding="utf-8")
    asked = JobSettings(str(folder), (str(first),), str(scratch / "job-first"), options, device=device)
    # Loads the model, which this process keeps.
    run_job(asked, show_progress=False)
    started = time.perf_counter()
    job = run_job(replace(asked, inputs=(str(fasta),), output=str(scratch / "job-all")), show_progress=False)
    took = time.perf_counter() - started
    model = _loaded(asked)
    tokens = options.batch_tokens or default_batch_tokens(model)
    alone, peak = _model_alone(model, proteins, tokens, device)
    residues = sum(map(len, proteins))
    detail = f"{residues / took:,.0f} / {residues / alone:,.0f} residues/s; batches of {tokens:,} tokens"
    ratios = [
        Ratio("embed: job / model alone, residues/s", alone / took, NEAR, detail=detail),
        Ratio("embed: share of the time that the device waits", job.waiting or 0.0, WAITING, at_least=False),
    ]
    if peak is not None:
        planned = tokens * bytes_per_token(model) + OVERHEAD
        words = f"{peak / 2**20:,.0f} / {planned / 2**20:,.0f} MB"
        ratios.append(Ratio("embed: memory of a batch / planned", peak / planned, 1.0, at_least=False, detail=words))
    return _shown(ratios, layout=type(layout_of(model)).__name__, seconds_of_stages=job.seconds)


def _loaded(asked: JobSettings) -> RDEsmModel:
    """The model of a job that this process has run: loaded once."""
    from rd_hf.embedding.checkpoint import resolve
    from rd_hf.embedding.engine import load_engine

    return load_engine(resolve(asked.model), asked.options, str(asked.device)).model


@torch.inference_mode()
def _model_alone(model: RDEsmModel, proteins: Sequence[str], tokens: int, device: str) -> tuple[float, int | None]:
    """Seconds of the forward passes of a job's batches, and on CUDA the most bytes that they take at once."""
    layout = layout_of(model)
    plan = layout.plan([len(protein) for protein in proteins], tokens)
    batches = [
        all_moved(layout.arguments([proteins[place] for place in batch]), model.device) | {"long_input": "whole"}
        for batch in plan
    ]

    def passes() -> None:
        for batch in batches:
            model.forward_window([batch])

    if torch.device(device).type != "cuda":
        return seconds(device, passes, 1), None
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    took = seconds(device, passes, 1)
    return took, torch.cuda.max_memory_allocated() - before


def fit(device: str, small: bool, scratch: Path) -> dict[str, Any]:
    """A fit's pass over the levels up to 650M beside the same states alone; moments by width of a tile too."""
    sizes = {member.name: TOY if small else (member.width, member.layers, member.heads) for member in ESM2[:4]}
    if small:
        sizes = {name: (16 * place, 2, 4) for place, name in enumerate(sizes, start=1)}
    model = random_family(sizes, device=device).to(getattr(torch, _dtype(device)))
    if packing_pays(model):
        model.set_attn_implementation(PACKED_ATTENTION)
    fasta = scratch / "fit.fasta"
    _proteins(fasta, small)
    options = FitOptions(batch_tokens=512 if small else None)
    sample = draw_sample([str(fasta)], options)
    # The first batches of a process are slow, whoever runs them.
    backbone_states(model, [sample.sequences[:8]])
    result = fit_bases(model, sample, options, scratch / "fit-state", _accelerator(device), show_progress=False)
    tokens = result.run["batch_tokens"]
    groups = [
        [sample.sequences[place] for place in batch]
        for _, batch in plan_batches(sample, tokens, plan=layout_of(model).plan_all)
    ]
    ready = [(group, batch_inputs(model, [group])) for group in groups]

    def alone() -> None:
        for group, inputs in ready:
            backbone_states(model, [group], (), inputs)

    model_seconds, took = seconds(device, alone, 1), result.seconds["computing"] + result.seconds["waiting"]
    residues = sum(map(len, sample.sequences))
    detail = f"{residues / took:,.0f} / {residues / model_seconds:,.0f} residues/s; {result.run}"
    ratios = [
        Ratio("fit: pass / model alone, residues/s", model_seconds / took, NEAR, detail=detail),
        Ratio("fit: share of moments in the pass", result.seconds["moments"] / took, MOMENTS, at_least=False),
        Ratio(
            "fit: share of the time that the device waits", result.seconds["waiting"] / took, WAITING, at_least=False
        ),
    ]
    return _shown(ratios, tiles=_tiles(model, groups[0], model_seconds / residues, device))


@torch.inference_mode()
def _tiles(model: RDEsmModel, group: list[str], per_residue: float, device: str) -> dict[str, float]:
    """What moments take of the model's time, by dtype of the products and width of a tile."""
    (states,) = backbone_states(model, [group])
    kind, widths, found = torch.device(device).type, model.config.backbone_widths, {}
    usual = TILE_COLUMNS[kind]
    try:
        for products in (torch.float64, torch.float32):
            for columns in (usual // 4, usual, 2 * usual, sum(widths)):
                TILE_COLUMNS[kind] = columns
                joint = JointMoments(widths, device, products)
                took = seconds(device, partial(joint.update, states))
                found[f"{str(products)[6:]}, {columns} columns"] = took / len(states[0]) / per_residue
    finally:
        TILE_COLUMNS[kind] = usual
    return found


def two(device: str, small: bool, scratch: Path) -> dict[str, Any]:
    """`rd-hf fit` and `rd-hf embed` as one process and as two on one device: the same, in the memory planned."""
    fasta, peaks = _sample(scratch / "two.fasta", 40 if small else 600, small), {}
    common = ["--input", str(fasta), "--batch-tokens", str(TOKENS), "--quiet"]
    fitted = ["fit", "--config", str(FAMILY), *common]
    embedded = ["embed", "--model", str(FAMILY), *common, "--part-records", "20"]
    for name, command in (("fit", fitted), ("embed", embedded)):
        peaks[name] = _launched([*command, "--output", str(scratch / f"{name}-2")], device, 2)
    _alone(fasta, device, scratch)
    one, other = (_bases(scratch / f"fit-{processes}") for processes in (1, 2))
    error = max(float((one[name] - other[name]).norm() / one[name].norm()) for name in one)
    assert error <= BASES, f"bases of two processes are {error:.2g} of their norm off"
    _assert_same_files(scratch / "embed-1", scratch / "embed-2")
    found: dict[str, Any] = {"error of bases": error, "MB at the peak of each process": peaks}
    if torch.device(device).type == "cuda":
        model = RDEsmModel.from_pretrained(FAMILY)
        weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        sums = 8 * 5 * 2 * sum(model.config.backbone_widths) ** 2
        planned = (weights + TOKENS * bytes_per_token(model) + sums + OVERHEAD) >> 20
        worst = max(peak for own in peaks.values() for peak in own)
        assert worst <= planned, f"{worst:,} MB where {planned:,} were planned"
        found["MB planned"] = planned
    return found


def _alone(fasta: Path, device: str, scratch: Path) -> None:
    """The same in this process, with as many threads as each of two has: on a CPU sums depend on them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        _accelerator(device)
        options = FitOptions(batch_tokens=TOKENS)
        run_fit(FitSettings((str(fasta),), scratch / "fit-1", config=str(FAMILY), options=options), show_progress=False)
        asked = EmbeddingOptions(batch_tokens=TOKENS)
        job = JobSettings(str(FAMILY), (str(fasta),), str(scratch / "embed-1"), asked, device=device, part_records=20)
        run_job(job, show_progress=False)
    finally:
        torch.set_num_threads(threads)


def _accelerator(device: str) -> Accelerator:
    """That of this process, and of what it calls."""
    return Accelerator(cpu=torch.device(device).type == "cpu")


def _sample(path: Path, count: int, small: bool) -> Path:
    texts = (f">{place}\n{own[: 60 if small else None]}\n" for place, own in enumerate(carried_proteins()[:count]))
    path.write_text("".join(texts), encoding="utf-8")
    return path


def on_ray(bench: Any) -> dict[str, Any]:
    """`rd-hf embed --engine ray` with two workers on one GPU: the files of one process.

    On a CPU tests/embedding/test_ray.py holds them against each other.
    """
    bench.needs_cuda()
    if find_spec("ray") is None:
        return {"note": "ray is not installed: nothing was run"}
    fasta = _sample(bench.scratch / "ray.fasta", 400, bench.small)
    words = ["embed", "--model", str(FAMILY), "--input", str(fasta), "--batch-tokens", str(TOKENS), "--quiet"]
    shared = ["--engine", "ray", "--workers", "2", "--gpus-per-worker", "0.5"]
    for name, more in (("local", []), ("ray", shared)):
        output = str(bench.scratch / f"on-{name}")
        _launched([*words, *more, "--part-records", "10", "--output", output], bench.device, 1)
    _assert_same_files(bench.scratch / "on-local", bench.scratch / "on-ray")
    return {"parts": 40}


def _launched(words: Sequence[str], device: str, processes: int) -> list[int]:
    """Run a command as one process or several of this machine; MB at the peak of each.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torch.device(device).type == "cpu":
        environment |= {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
    place = Path(f"{words[-1]}-memory")
    run = [*launcher, "-m", "benchmarks.gpu_jobs", str(place), *words]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rd-hf {words[0]}, {processes} processes: {done.stderr[-2000:]}")
    return [json.loads(Path(f"{place}-{rank}").read_bytes()) for rank in range(processes)]


def _bases(folder: Path) -> Mapping[str, torch.Tensor]:
    files = [load_file(path) for path in folder.glob("*.safetensors")]
    return {name: one for own in files for name, one in own.items() if name.startswith("projections.")}


def _assert_same_files(one: Path, other: Path) -> None:
    """Parts of two folders are the same, byte for byte."""
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.parquet")}
        for folder in (one, other)
    ]
    assert digests[0] == digests[1], f"{one.name} and {other.name} hold other bytes"
    assert digests[0], f"{one.name} holds nothing"


def main(place: str, words: Sequence[str]) -> int:
    """Run a command, and write down how much memory it took at most, in MB."""
    from rd_hf.__main__ import main as rd_hf

    status = rd_hf(list(words))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() >> 20
    Path(f"{place}-{os.environ.get('RANK', '0')}").write_text(json.dumps(peak), encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))

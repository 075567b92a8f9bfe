"""What scripts/gpu_check.sh runs: equality of every path on a GPU, then rates, within a time and into one JSON.

What is wanted first comes first: what is installed and by which calls layers attend; checks on 8M + 35M, since a rate
of a wrong path is worth nothing; rates at 650M and 3B (random weights, bfloat16), fused, compiled and packed, beside
plain ``EsmModel``, the card's own matrix product and the share of it that is aimed for; then the rest. Each
step's outcome is written as soon as it is there: ``ok`` or ``failed`` with what it found, ``skipped`` where it needs
what is not here, by name, and ``not reached`` once the time is up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from transformers.utils import is_flash_attn_2_available

from benchmarks import gpu_jobs, gpu_rates, levels, packed
from benchmarks.common import REPOSITORY, Ratio, carried_proteins, machine, random_family, twins
from rd_hf.data.batching import collate, pack
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel

CHECKED = {"8M": (320, 6, 20), "35M": (480, 12, 20)}
SMALL = {"8M": (32, 2, 4), "35M": (48, 2, 4)}
# Of the reference, float32 on the CPU, by norm: what a dtype leaves after a dozen layers. (TF32 is off.)
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.06, "float16": 0.01}
PROTEINS = 8


class NeedsError(RuntimeError):
    """A path that needs what is not here."""


@dataclass
class Bench:
    """What the steps share: one family with its answers, and where it is run."""

    device: str
    small: bool
    scratch: Path
    sizes: Mapping[str, tuple[int, int, int]] = field(init=False)
    peak: float = 0.0

    def __post_init__(self) -> None:
        self.sizes = SMALL if self.small else CHECKED
        self.proteins = [protein[: 60 if self.small else 400] for protein in carried_proteins()[:PROTEINS]]
        self.ids, self.mask = collate(self.proteins)
        self.family = random_family(self.sizes)
        self.reference = self.states(self.family)

    @torch.inference_mode()
    def states(self, model: RDEsmModel) -> torch.Tensor:
        """Embeddings of all tokens, (tokens, width) float32 on the CPU."""
        place = model.device
        output = model(self.ids.to(place), attention_mask=self.mask.to(place)).last_hidden_state
        return output.float().cpu()[self.mask.bool()]

    def fresh(self, dtype: str = "float32") -> RDEsmModel:
        """The family on the device."""
        return random_family(self.sizes).to(self.device, getattr(torch, dtype))

    def error(self, found: torch.Tensor, dtype: str) -> dict[str, float]:
        """Relative to the reference, by norm.

        Raises:
            AssertionError: beyond what the dtype leaves.
        """
        error = float((found - self.reference).norm() / self.reference.norm())
        assert error <= TOLERANCE[dtype], f"{error:.2g} of the reference's norm, more than {TOLERANCE[dtype]:g}"
        return {"error": error}

    def needs_cuda(self) -> None:
        if torch.device(self.device).type != "cuda":
            raise NeedsError(f"needs CUDA, and this is {self.device}")


@torch.inference_mode()
def padded(bench: Bench, dtype: str) -> dict[str, Any]:
    """A padded batch: near the reference, every level nested bit for bit."""
    model = bench.fresh(dtype)
    ids, mask = bench.ids.to(bench.device), bench.mask.to(bench.device)
    whole = model(ids, attention_mask=mask)
    for level, width in model.config.nested_dims.items():
        alone = model(ids, attention_mask=mask, level=level).last_hidden_state
        assert torch.equal(whole.last_hidden_state[..., :width], alone), f"{level} is not nested"
    return bench.error(whole.last_hidden_state.float().cpu()[bench.mask.bool()], dtype)


@torch.inference_mode()
def packed_row(bench: Bench, dtype: str) -> dict[str, Any]:
    """Sequences in one row: `torch.nn.attention.varlen` in 16 bits on CUDA, one product a sequence elsewhere."""
    if dtype != "float32":
        bench.needs_cuda()
    model = bench.fresh(dtype)
    model.set_attn_implementation(PACKED_ATTENTION)
    row = pack(bench.proteins)
    row = {key: value.to(bench.device) if torch.is_tensor(value) else value for key, value in row.items()}
    found = bench.error(model(**row).last_hidden_state[0].float().cpu(), dtype)
    # That a row of sequences which see each other would be found: one bound too few.
    ends = row["cu_seq_lens_q"]
    row |= {"cu_seq_lens_q": ends[[0, *range(2, len(ends))]], "max_length_q": None, "max_length_k": None}
    row["cu_seq_lens_k"] = row["cu_seq_lens_q"]
    mixed = model(**row).last_hidden_state[0].float().cpu()
    error = float((mixed - bench.reference).norm() / bench.reference.norm())
    assert error > 2 * max(found["error"], TOLERANCE[dtype] / 10), f"mixed sequences are only {error:.2g} off: no check"
    return found | {"error if mixed": error}


def streams(bench: Bench) -> dict[str, Any]:
    """Every level on a CUDA stream of its own: the same bits as one after another."""
    bench.needs_cuda()
    model = bench.fresh()
    ids, mask = bench.ids.to(bench.device), bench.mask.to(bench.device)
    for one, other in zip(levels._streams(model, ids, mask), levels._one_after_another(model, ids, mask), strict=True):
        assert torch.equal(one, other), "levels side by side differ from levels one after another"
    return {}


def loaded(bench: Bench, **how: Any) -> dict[str, Any]:
    """A checkpoint, loaded in one of the ways that place backbones."""
    folder = bench.scratch / "family"
    if not folder.exists():
        bench.family.save_pretrained(folder, backbones=True)
    model = RDEsmModel.from_pretrained(folder, **how)
    return bench.error(bench.states(model if "device_map" in how else model.to(bench.device)), "float32")


@torch.inference_mode()
def fused_layers(bench: Bench) -> dict[str, Any]:
    """The same weights on the device with fused layers and without: within float32's rounding of a dozen layers."""
    exact, fused = twins(bench.sizes, bench.device)
    one, other = bench.states(exact), bench.states(fused)
    error = float((one - other).norm() / one.norm())
    assert error <= 1e-5, f"fused layers are {error:.2g} of the norm off"
    return {"error": error, "largest": float((one - other).abs().max())}


def commands(bench: Bench) -> dict[str, Any]:
    """`rd-hf fit` and `rd-hf embed` on this device and where no GPU is seen: embeddings alike to float32's rounding."""
    bench.needs_cuda()
    fasta = bench.scratch / "sample.fasta"
    proteins = carried_proteins()[:200]
    fasta.write_text("".join(f">{place}\n{protein}\n" for place, protein in enumerate(proteins)), encoding="utf-8")
    vectors = []
    for name, hidden in (("here", False), ("cpu", True)):
        model, output = bench.scratch / f"fitted-{name}", bench.scratch / f"embedded-{name}"
        family = str(REPOSITORY / "hub_configs" / "rd-esm2-mini")
        gpu_rates.command(["fit", "--backbones", family, "--input", str(fasta), "--output", str(model)], hidden)
        gpu_rates.command(["embed", "--model", str(model), "--input", str(fasta), "--output", str(output)], hidden)
        rows = pq.read_table(output)
        vectors.append(torch.tensor(rows.column("embedding").to_pylist()))
    error = float((vectors[0] - vectors[1]).norm() / vectors[1].norm())
    # Directions are found in float64 from states that differ by rounding.
    assert error <= 1e-3, f"embeddings differ by {error:.2g} of their norm"
    return {"error": error}


def compiled_again(bench: Bench) -> dict[str, Any]:
    """Two processes, each with compilers' files of its own. (Where Triton tunes by the clock, they would differ.)"""
    bench.needs_cuda()
    return gpu_rates.compiled_again(bench.device, bench.small, bench.scratch)


def compiled_layers(bench: Bench, dtype: str) -> dict[str, Any]:
    """Beside the same not compiled; float32 on a CPU is what tests compare (tests/model/test_compiled.py)."""
    if dtype == "float32":
        bench.needs_cuda()
    return gpu_rates.compiled_equal(bench.device, dtype, bench.small, bench.proteins, TOLERANCE[dtype])


def suspected_tests(bench: Bench) -> dict[str, Any]:
    """Tests that have not seen a GPU."""
    bench.needs_cuda()
    return gpu_rates.suspects()


def matrix_product(bench: Bench) -> dict[str, Any]:
    """The rate that the others are set against."""
    bench.peak = packed.product_rate(bench.device, 512 if bench.small else 8192)
    return {"TFLOP/s": bench.peak / 1e12}


def rates(bench: Bench, name: str, *contenders: str) -> dict[str, Any]:
    """Contenders of :func:`benchmarks.packed.compare` at one size; the targets are those of its packed rows."""
    if any("flash" in one for one in contenders) and not is_flash_attn_2_available():
        raise NeedsError("needs the package flash-attn, which is not installed")
    proteins = carried_proteins()[: 16 if bench.small else 512 if name == "650M" else 128]
    if not bench.peak:
        matrix_product(bench)
    size = gpu_rates.size_of(name, bench.small)
    ratios = packed.compare(name, size, proteins, bench.peak, 1 if bench.small else 3, bench.device, contenders)
    return {"ratios": [asdict(ratio) | {"met": ratio.met} for ratio in ratios]}


def side_by_side(bench: Bench) -> dict[str, Any]:
    """Levels one after another or on streams."""
    bench.needs_cuda()
    ratios: list[Ratio] = levels.run(3)
    return {"ratios": [asdict(ratio) for ratio in ratios]}


def steps() -> dict[str, Callable[[Bench], dict[str, Any]]]:
    """All of them, in the order of what one wants to know first."""
    found: dict[str, Callable[[Bench], dict[str, Any]]] = {}
    found["what runs"] = lambda bench: gpu_rates.what_runs(bench.device, bench.small)
    for dtype in TOLERANCE:
        found[f"equal: padded, {dtype}"] = partial(padded, dtype=dtype)
        found[f"equal: packed, {dtype}"] = partial(packed_row, dtype=dtype)
    found["equal: fused layers and transformers' own"] = fused_layers
    found["equal: compiled layers, bfloat16"] = partial(compiled_layers, dtype="bfloat16")
    found["rate: matrix product"] = matrix_product
    found["rate: 650M, forward and packed"] = lambda bench: rates(bench, "650M", "plain", "padded", "packed")
    found["rate: 650M, compiled, packed"] = lambda bench: rates(bench, "650M", "packed", "compiled packed")
    found["rate: 3B, bfloat16, packed"] = lambda bench: rates(bench, "3B", "packed", "compiled packed")
    found["rate: 650M, compiled, padded"] = lambda bench: rates(bench, "650M", "padded", "compiled padded")
    found["rate: 650M, kernels"] = lambda bench: gpu_rates.kernels(bench.device, bench.small)
    found["equal: levels on streams"] = streams
    found["rate: levels on streams"] = side_by_side
    found["rate: 650M, flash attention"] = lambda bench: rates(bench, "650M", "flash", "packed", "flash packed")
    found["equal: compiled layers, made by two processes"] = compiled_again
    found["tests: those that may count on no GPU"] = suspected_tests
    found["equal: compiled layers, float32"] = partial(compiled_layers, dtype="float32")
    found["equal: fit and embed commands"] = commands
    for name, how in (
        ("loaded on the CPU and moved", {}),
        ("device_map auto", {"device_map": "auto"}),
        ("sequential", {"sequential": True}),
    ):
        found[f"equal: {name}"] = partial(loaded, **how)
    for dtype in ("bfloat16", "float32"):
        found[f"rate: embed and fit at 650M, {dtype}"] = partial(_engines, dtype=dtype)
    found["rate: embed command at 650M"] = lambda bench: gpu_rates.whole_job(bench.device, bench.small, bench.scratch)
    found["rate: moments up to 650M"] = lambda bench: gpu_rates.joint_moments(bench.device, bench.small)
    found |= gpu_jobs.steps()
    return found


def _engines(bench: Bench, dtype: str) -> dict[str, Any]:
    return gpu_rates.engines(bench.device, dtype, bench.small)


def main(arguments: list[str] | None = None) -> int:
    """Run all that there is time for; 1 if a step failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--small", action="store_true", help="tiny models: that the script runs through")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where to (default gpu_check.json)")
    parser.add_argument("--only", metavar="WORDS", help="only steps whose name has one of these, with commas between")
    parser.add_argument("--seconds", type=float, default=540, help="begin no step after so many (default 540)")
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no GPU here: --device cpu --small shows that the script runs through")
    started = time.perf_counter()
    wanted = steps()
    if args.only:
        words = args.only.split(",")
        wanted = {name: step for name, step in wanted.items() if any(word in name for word in words)}
        if not wanted:
            parser.error(f"no step has {' or '.join(words)} in its name; there are: {', '.join(steps())}")
    results: dict[str, dict[str, Any]] = {name: {"outcome": "not reached"} for name in wanted}
    about = {"machine": machine(), "device": args.device, "small": args.small}
    with tempfile.TemporaryDirectory() as scratch:
        _write(args.json, about, results)
        bench = Bench(args.device, args.small, Path(scratch))
        for name, step in wanted.items():
            if time.perf_counter() - started > args.seconds:
                break
            begun = time.perf_counter()
            results[name] = _outcome(step, bench)
            results[name]["seconds"] = round(time.perf_counter() - begun, 2)
            _write(args.json, about, results)
            print(f"{results[name]['outcome']:12} {results[name]['seconds']:7.1f} s  {name}", flush=True)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
    print(f"written to {args.json}")
    return int(any(result["outcome"] == "failed" for result in results.values()))


def _outcome(step: Callable[[Bench], dict[str, Any]], bench: Bench) -> dict[str, Any]:
    try:
        return {"outcome": "ok", **step(bench)}
    except NeedsError as error:
        return {"outcome": "skipped", "why": str(error)}
    # Whatever fails is what one wants to know of, and the other steps still stand.
    except Exception as error:
        return {"outcome": "failed", "why": f"{type(error).__name__}: {error}"}


def _write(path: Path, about: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    """The whole of it, at once: a run that is killed leaves what it had."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps({**about, "steps": results}, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())

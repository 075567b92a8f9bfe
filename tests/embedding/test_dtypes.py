"""The dtype of a job: of the hardware's choosing, kept once chosen, and never slower without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
from rd_hf.embedding import dtypes as dtypes_module
from rd_hf.embedding import manifest as manifest_module
from rd_hf.embedding.dtypes import choose_dtype, hardware_dtype, slowdown, warn_of
from rd_hf.embedding.embedder import Embedder

FASTA = ">a\nMKTAYIAKQR\n>b\nMAGWLLK\n"


def measured(monkeypatch: pytest.MonkeyPatch, factor: float, hardware: str | None = "bfloat16") -> None:
    monkeypatch.setattr(dtypes_module, "slowdown", lambda *_: factor)
    monkeypatch.setattr(dtypes_module, "hardware_dtype", lambda _: hardware)


@pytest.mark.parametrize(
    ("factor", "hardware", "width", "expected"),
    [
        (0.5, "bfloat16", 640, "bfloat16"),
        (0.5, "float16", 640, "float16"),
        (0.5, None, 640, "float32"),  # emulated, however it was measured
        (0.9, "bfloat16", 640, "float32"),  # not worth its rounding
        (0.5, "bfloat16", 192, "float32"),  # too narrow to matter
    ],
)
def test_narrow_only_in_hardware_and_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, factor: float, hardware: str | None, width: int, expected: str
) -> None:
    measured(monkeypatch, factor, hardware)
    dtype, said = choose_dtype("cpu", width)
    assert dtype == expected
    assert (said is not None) == (expected != "float32")
    if said is not None:
        assert "2.0 times as fast as float32" in said


@pytest.mark.parametrize(
    ("flags", "expected"),
    [({"avx512_bf16"}, "bfloat16"), ({"amx_bf16"}, "bfloat16"), ({"avx512_f", "amx_int8"}, None), (set(), None)],
)
def test_a_cpu_says_what_it_has(monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str | None) -> None:
    monkeypatch.setattr(dtypes_module, "_cpu_flags", lambda: flags)
    assert hardware_dtype("cpu") == expected


@pytest.mark.parametrize(("capability", "expected"), [((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), None)])
def test_a_gpu_by_its_generation(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert hardware_dtype("cuda:0") == expected


def test_slower_is_said_with_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 12.34)
    said = warn_of("bfloat16", "cpu", 640)
    assert said is not None
    assert "bfloat16 takes 12.3 times as long as float32" in said
    assert warn_of("float32", "cpu", 640) is None
    measured(monkeypatch, 0.6)
    assert warn_of("bfloat16", "cpu", 640) is None


def test_what_is_measured_is_the_dtype() -> None:
    # float64 products are half as fast on every processor there is; a quarter of that is left for noise.
    assert slowdown("float64", "cpu", 640) > 1.2


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


def run(model: Path, fasta: Path, output: Path, dtype: str) -> tuple[str, list[str]]:
    """The dtype that the manifest has, and what was said."""
    said: list[str] = []
    settings = JobSettings(str(model), (str(fasta),), str(output), EmbeddingOptions(dtype=dtype), device="cpu")
    run_job(settings, report=said.append, show_progress=False)
    return json.loads((output / "_manifest.json").read_text())["job"]["dtype"], said


def test_a_job_keeps_the_dtype_it_began_with(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_module, "choose_dtype", lambda *_: ("bfloat16", "computing in bfloat16"))
    assert run(tiny_checkpoint, fasta, tmp_path / "out", "auto") == ("bfloat16", ["computing in bfloat16"])
    # Taken up where the hardware is another, or busy: neither is asked again.
    monkeypatch.setattr(manifest_module, "choose_dtype", lambda *_: ("float32", None))
    assert run(tiny_checkpoint, fasta, tmp_path / "out", "auto") == ("bfloat16", [])
    assert run(tiny_checkpoint, fasta, tmp_path / "other", "auto") == ("float32", [])
    # And it is the same job as one that names it.
    assert run(tiny_checkpoint, fasta, tmp_path / "other", "float32") == ("float32", [])


def test_a_job_says_once_that_what_was_asked_for_is_slow(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(monkeypatch, 12.34)
    dtype, said = run(tiny_checkpoint, fasta, tmp_path / "out", "bfloat16")
    assert dtype == "bfloat16"
    assert len(said) == 1
    assert "12.3 times as long" in said[0]


def test_an_embedder_settles_it_when_it_is_made(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(monkeypatch, 0.5)
    monkeypatch.setattr(dtypes_module, "_NARROWEST", 1)
    assert Embedder(tiny_checkpoint, device="cpu", dtype="auto").options.dtype == "bfloat16"
    assert Embedder(tiny_checkpoint, device="cpu").options.dtype == "float32"

"""Whether layers are compiled: decided by the device and the input, noted in the manifest, and kept."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rd_hf import FitOptions, FitSettings, run_fit
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder, EmbeddingOptions, JobSettings, compiling, run_job
from rd_hf.embedding.checkpoint import load_model
from rd_hf.embedding.folder import JobError
from rd_hf.model import layers_rd_esm
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Graphs are made and run as they are, which is quick: one number for each."""
    made: list[int] = []

    def keep(graph: Any, inputs: list[Any]) -> Any:
        made.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(layers_rd_esm.torch, "compile", functools.partial(torch.compile, backend=keep))
    load_model.cache_clear()
    return made


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every input is large, and every device one with a compiler."""

    def on(choice: str, *_: Any) -> tuple[str, str | None]:
        return ("on", "layers are compiled first") if choice == "auto" else (choice, None)

    monkeypatch.setattr("rd_hf.embedding.manifest.decided", on)
    monkeypatch.setattr("rd_hf.fitting.job.decided", on)


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    draw = np.random.default_rng(0)
    letters = ["".join(draw.choice(list("ACDEFGHIKLMNPQRSTVWY"), size)) for size in range(20, 80)]
    path.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(letters)))
    return path


def embed(model: Path, fasta: Path, output: Path, said: list[str] | None = None, **options: Any) -> dict[str, Any]:
    settings = JobSettings(
        str(model), (str(fasta),), str(output), EmbeddingOptions(**options), device="cpu", part_records=20
    )
    run_job(settings, report=(said if said is not None else []).append)
    return dict(json.loads((output / "_manifest.json").read_text())["job"])


def vectors(output: Path) -> np.ndarray:
    return np.stack(pq.read_table(output).column("embedding").to_pylist())


def test_it_follows_from_the_device_the_compiler_and_the_size(monkeypatch: pytest.MonkeyPatch) -> None:
    enough = compiling.ENOUGH // 1280**2
    monkeypatch.setattr(compiling, "find_spec", lambda name: name)
    assert compiling.decided("auto", "cpu", 10**12, 1280) == ("off", None)
    assert compiling.decided("auto", "cuda:1", enough - 1, 1280) == ("off", None)
    assert compiling.decided("auto", "cuda:1", None, 1280) == ("off", None), "a stream that nobody has counted"
    choice, said = compiling.decided("auto", "cuda:1", enough, 1280)
    assert choice == "on"
    assert said is not None
    assert "about 100,000,000 residues 1,280 wide on cuda:1" in said
    # Half as wide takes a quarter of the time, and as long to compile.
    assert compiling.decided("auto", "cuda", 3 * enough, 640)[0] == "off"
    assert [compiling.decided(choice, "cpu", None, 8) for choice in ("on", "off")] == [("on", None), ("off", None)]
    monkeypatch.setattr(compiling, "find_spec", lambda name: None)
    assert compiling.decided("auto", "cuda", 10**12, 1280) == ("off", None)
    with pytest.raises(InputError, match="--compile on needs Triton for device cuda, and there is none here"):
        compiling.check_compiler("cuda")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(InputError, match=r"needs a C\+\+ compiler \(g\+\+ or clang\+\+\) for device cpu"):
        compiling.check_compiler("cpu")


def test_a_cpu_is_left_as_it_was(tiny_checkpoint: Path, fasta: Path, tmp_path: Path, traced: list[int]) -> None:
    said: list[str] = []
    assert "compile" not in embed(tiny_checkpoint, fasta, tmp_path / "plain", said, compile="auto")
    assert not said
    assert not traced


def test_a_large_job_compiles_and_is_gone_on_with_so(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, traced: list[int], large: None
) -> None:
    said: list[str] = []
    assert "compile" not in embed(tiny_checkpoint, fasta, tmp_path / "plain"), "nobody asked for it"
    assert not traced
    assert embed(tiny_checkpoint, fasta, tmp_path / "large", said, compile="auto")["compile"] == "on"
    assert said == ["layers are compiled first"]
    assert traced
    # Several rounding errors fewer, of numbers of order one.
    np.testing.assert_allclose(vectors(tmp_path / "large"), vectors(tmp_path / "plain"), atol=2e-5, rtol=2e-5)
    whole = vectors(tmp_path / "large")
    for folder, kept in (("large", "on"), ("plain", "off")):
        # A part is lost, and nothing is said of it when the job is given again.
        (part, *_) = sorted((tmp_path / folder).glob("embeddings-*.parquet"))
        part.unlink()
        assert embed(tiny_checkpoint, fasta, tmp_path / folder).get("compile", "off") == kept
        other = "off" if kept == "on" else "on"
        with pytest.raises(JobError, match=f"compile was '{kept}' and is now '{other}'"):
            embed(tiny_checkpoint, fasta, tmp_path / folder, compile=other)
    assert np.array_equal(vectors(tmp_path / "large"), whole)


def test_an_embedder_compiles_where_it_is_asked_to(tiny_checkpoint: Path, traced: list[int], large: None) -> None:
    plain = Embedder(tiny_checkpoint, device="cpu").encode(["MKTAYIAKQR", "MAGW"])
    assert not traced, "nothing says how much it will be given"
    compiled = Embedder(tiny_checkpoint, device="cpu", compile="on").encode(["MKTAYIAKQR", "MAGW"])
    assert traced
    np.testing.assert_allclose(compiled, plain, atol=2e-5, rtol=2e-5)


def test_a_fit_compiles_and_is_not_mixed(
    fasta: Path, tmp_path: Path, traced: list[int], large: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model([16, 24], layers=1).save_pretrained(tmp_path / "family")

    def fit(name: str, **more: Any) -> list[str]:
        said: list[str] = []
        asked = FitSettings(
            (str(fasta),), tmp_path / name, config=str(tmp_path / "family"), options=FitOptions(), **more
        )
        run_fit(asked, report=said.append, show_progress=False)
        return said

    assert fit("plain") == []
    assert not traced
    assert fit("compiled", compile="auto") == ["layers are compiled first"]
    assert traced
    one, other = (RDEsmModel.from_pretrained(tmp_path / name) for name in ("plain", "compiled"))
    for name, basis in one.projections.named_buffers():
        # States within rounding; directions are found in float64, up to what their gaps make of it.
        torch.testing.assert_close(other.projections.get_buffer(name), basis, atol=1e-3, rtol=1e-3)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for name, begun, kept in (("first", "on", True), ("second", "off", False)):
        with monkeypatch.context() as patched:
            patched.setattr("rd_hf.fitting.job.save_checkpoint", killed)
            with pytest.raises(KeyboardInterrupt):
                fit(name, compile=begun)
        with pytest.raises(ValueError, match="was of other compile"):
            fit(name, compile="off" if kept else "on")
        torch.compiler.reset()
        assert fit(name) == [], "as it was begun, which nobody has to be told"

"""The dtype of a job: float32 unless another is named, kept by the folder, and what the hardware makes of it said."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from rd_hf.commands import embed as embed_command
from rd_hf.commands import fit as fit_command
from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
from rd_hf.embedding import dtypes as dtypes_module
from rd_hf.embedding.dtypes import hardware_dtype, hint_of, warn_of
from rd_hf.embedding.embedder import Embedder
from rd_hf.embedding.options import DTYPE
from tests.conftest import REPOSITORY
from tests.embedding.conftest import Outcome

FASTA = ">a\nMKTAYIAKQR\n>b\nMAGWLLK\n"
Embed = Callable[..., Outcome]


def test_nothing_that_a_clock_says_decides_what_is_computed() -> None:
    """Clocks tell seconds to users, and no module of the room that decides how a protein is embedded has one."""
    clocks = {"worker.py", "progress.py", "job.py", "waiting.py"}
    for path in sorted((REPOSITORY / "rd_hf" / "embedding").glob("*.py")):
        imported = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert not imported & {"time", "timeit"} or path.name in clocks, path


def test_every_default_is_the_one() -> None:
    from rd_hf.evaluation.families import Family

    assert DTYPE == "float32"
    assert EmbeddingOptions().dtype == DTYPE
    assert JobSettings("m", ("i",), "o").options.dtype == DTYPE
    # None: what the folder that is gone on with has, else the one.
    assert embed_command.build_parser().get_default("dtype") is None
    assert fit_command.build_parser().get_default("dtype") == DTYPE
    for load in (Family.load, Family.chain):
        assert getattr(torch, DTYPE) in (load.__defaults__ or ())


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"avx512_bf16"}, "bfloat16"),
        ({"amx_bf16"}, "bfloat16"),
        ({"bf16", "asimdhp"}, "bfloat16"),
        ({"avx512_f", "amx_int8"}, None),
        (set(), None),
    ],
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
    said = hint_of(DTYPE, "cuda:0", 1280)
    assert (said is None) == (expected is None)
    assert expected is None or f"--dtype {expected} is faster on this device" in str(said)


def test_what_would_be_faster_is_said_where_it_is_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes_module, "_cpu_flags", lambda: {"avx512_bf16"})
    assert "appended columns off by a few per cent" in str(hint_of(DTYPE, "cpu", 320))
    assert hint_of(DTYPE, "cpu", 192) is None, "too narrow to gain"
    assert hint_of("bfloat16", "cpu", 640) is None, "it was chosen"
    assert hint_of(DTYPE, "mps", 640) is None, "not known"
    monkeypatch.setattr(dtypes_module, "_cpu_flags", set)
    assert hint_of(DTYPE, "cpu", 640) is None


def test_what_is_emulated_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dtypes_module, "_cpu_flags", set)
    for narrow in ("bfloat16", "float16"):
        assert "takes 5 to 20 times as long as float32" in str(warn_of(narrow, "cpu"))
        assert warn_of(narrow, "mps") is None, "not known"
    assert warn_of(DTYPE, "cpu") is None
    monkeypatch.setattr(dtypes_module, "_cpu_flags", lambda: {"amx_bf16"})
    assert warn_of("bfloat16", "cpu") is None
    assert warn_of("float16", "cpu") is not None


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "in.fasta"
    path.write_text(FASTA)
    return path


@pytest.fixture
def begun(embed: Embed, tiny_checkpoint: Path, fasta: Path, tmp_path: Path) -> Path:
    """A folder in bfloat16, at the smallest level, as version 0.2 made them by default; its one part is lost."""
    arguments = ("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--level", "L0")
    assert embed(*arguments, "--dtype", "bfloat16").status == 0
    return tmp_path / "out"


def dtype_in(folder: Path) -> str:
    """As the manifest and the files have it."""
    named = json.loads((folder / "_manifest.json").read_text())["job"]["dtype"]
    about = pq.read_schema(folder / "embeddings-000000.parquet").metadata[b"rd_hf"]
    assert json.loads(about)["dtype"] == named
    return str(named)


def test_a_job_says_once_that_what_was_asked_for_is_emulated(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes_module, "_cpu_flags", set)
    said: list[str] = []
    options = EmbeddingOptions(dtype="bfloat16")
    settings = JobSettings(str(tiny_checkpoint), (str(fasta),), str(tmp_path / "out"), options, device="cpu")
    run_job(settings, report=said.append, show_progress=False)
    assert len(said) == 1
    assert "has no instructions for bfloat16" in said[0]


def test_a_folder_is_gone_on_with_in_its_own_dtype(
    embed: Embed, begun: Path, tiny_checkpoint: Path, fasta: Path
) -> None:
    before = (begun / "embeddings-000000.parquet").read_bytes()
    again = ("--model", tiny_checkpoint, "--input", fasta, "--output", begun, "--level", "L0")
    for more in ((), ("--dtype", "auto")):
        (begun / "embeddings-000000.parquet").unlink()
        outcome = embed(*again, *more)
        assert outcome.status == 0, outcome.stderr
        assert f"going on in bfloat16, as {begun} was begun" in outcome.stderr
        assert (begun / "embeddings-000000.parquet").read_bytes() == before
    outcome = embed(*again, "--dtype", "float32")
    assert outcome.status == 1
    assert "dtype was 'bfloat16' and is now 'float32'" in outcome.stderr


def test_a_folder_is_extended_in_its_own_dtype(
    embed: Embed, begun: Path, tiny_checkpoint: Path, fasta: Path, tmp_path: Path
) -> None:
    """As exact as a job of that dtype from scratch: the bases compute in float32 either way."""
    outcome = embed("--extend", begun, "--level", "L2", "--output", tmp_path / "wide")
    assert outcome.status == 0, outcome.stderr
    assert dtype_in(tmp_path / "wide") == "bfloat16"
    fresh = ("--model", tiny_checkpoint, "--input", fasta, "--dtype", "bfloat16", "--output", tmp_path / "fresh")
    assert embed(*fresh).status == 0
    one, other = (
        torch.tensor(pq.read_table(tmp_path / name / "embeddings-000000.parquet")["embedding"].to_pylist())
        for name in ("wide", "fresh")
    )
    assert torch.equal(one[:, :32], other[:, :32])
    # The embedding that a job keeps is rounded to bfloat16 once more: 2^-9 of numbers around 1.
    torch.testing.assert_close(one, other, rtol=0, atol=2**-7)
    outcome = embed("--extend", begun, "--level", "L2", "--dtype", "float32", "--output", tmp_path / "exact")
    assert outcome.status == 1
    assert "was made with dtype 'bfloat16', not 'float32': leave --dtype away, or embed from scratch" in outcome.stderr


def test_auto_still_stands_for_the_default_and_says_so(
    embed: Embed, tiny_checkpoint: Path, fasta: Path, tmp_path: Path
) -> None:
    sentence = "dtype 'auto' means float32 now"
    outcome = embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--dtype", "auto")
    assert outcome.status == 0, outcome.stderr
    assert outcome.stderr.count(sentence) == 1
    assert dtype_in(tmp_path / "out") == DTYPE
    with pytest.warns(FutureWarning, match=sentence):
        assert Embedder(tiny_checkpoint, device="cpu", dtype="auto").options.dtype == DTYPE

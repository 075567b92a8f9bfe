"""One default dtype for every entry point: what one says of a protein, the others say too, at every level."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.embedding import dtypes
from rd_hf.embedding.embedder import Embedder
from rd_hf.hub import save_checkpoint
from tests.conftest import TWO_PROCESSES, environment, random_model
from tests.embedding.conftest import Outcome, random_fasta, read

WIDTHS = {"narrow": 64, "wide": 320}
FLAGS: dict[str, set[str]] = {"bfloat16 in hardware": {"avx512_bf16", "amx_bf16"}, "emulated": set()}
# Of numbers around 1: who batches otherwise adds up otherwise, in float32 (2^-24 a sum, through two layers).
BATCHING = 2e-6


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(random_model(list(WIDTHS.values()), list(WIDTHS), layers=1), folder, backbones=True)
    return folder


@pytest.fixture(scope="module")
def fasta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_fasta(tmp_path_factory.mktemp("input") / "in.fasta", 24)


@pytest.fixture(scope="module")
def sequences(fasta: Path) -> list[str]:
    """What of the file can be embedded."""
    found = []
    for record in read_fasta(fasta):
        try:
            found.append(clean_sequence(record.sequence))
        except RejectedSequenceError:
            continue
    return found


def rows(folder: Path) -> np.ndarray:
    return np.stack(read(folder)["embedding"].to_numpy())


@pytest.mark.parametrize("flags", FLAGS)
def test_every_entry_point_and_level_agrees_whatever_the_processor_has(
    embed: Callable[..., Outcome],
    model: Path,
    fasta: Path,
    sequences: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
) -> None:
    """Bit for bit where batches are the same ones, to the rounding of float32 where they are not."""
    monkeypatch.setattr(dtypes, "_cpu_flags", lambda: FLAGS[flags])
    found: dict[str, dict[str, np.ndarray]] = {}
    for level in WIDTHS:
        job = ("--model", model, "--input", fasta, "--level", level, "--device", "cpu")
        outcome = embed(*job, "--output", tmp_path / level)
        assert outcome.status == 0, outcome.stderr
        hint = "computing in float32, the default everywhere: --dtype bfloat16 is faster"
        assert (hint in outcome.stderr) == (level == "wide" and bool(FLAGS[flags]))
        embedder = Embedder(model, level=level, device="cpu")
        mapped = Dataset.from_dict({"sequence": sequences}).map(embedder, batched=True)
        found[level] = {
            "embed": rows(tmp_path / level),
            "Embedder": np.stack(embedder.embed(sequences)["embedding"]),
            "datasets.map": np.array(mapped["embedding"], np.float32),
            "SentenceTransformer": encoded(model, level, sequences),
        }
    for name, wide in found["wide"].items():
        narrow = found["narrow"][name]
        assert torch.equal(torch.from_numpy(wide[:, : WIDTHS["narrow"]]), torch.from_numpy(narrow)), name
        if name != "SentenceTransformer":
            assert np.array_equal(wide, found["wide"]["embed"]), name
        np.testing.assert_allclose(wide, found["wide"]["embed"], rtol=0, atol=BATCHING, err_msg=name)


def encoded(model: Path, level: str, sequences: list[str]) -> np.ndarray:
    package = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    loaded: Any = package.SentenceTransformer(
        str(model), trust_remote_code=True, model_kwargs={"level": level}, device="cpu"
    )
    return np.asarray(loaded.encode(sequences, show_progress_bar=False))


def test_two_processes_on_a_processor_with_bfloat16_agree_with_one_without(
    embed: Callable[..., Outcome], model: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of six records, so that both work; the processor is not this one's own for either."""
    job = ["--model", str(model), "--input", str(fasta), "--device", "cpu", "--part-records", "6", "--output"]
    script = tmp_path / "elsewhere.py"
    script.write_text(
        "import sys\nfrom rd_hf.embedding import dtypes\ndtypes._cpu_flags = lambda: {'avx512_bf16'}\n"
        "from rd_hf.commands.embed import main\nsys.exit(main())\n"
    )
    done = subprocess.run(
        [*TWO_PROCESSES, str(script), *job, str(tmp_path / "two")],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--dtype bfloat16 is faster") == 1
    monkeypatch.setattr(dtypes, "_cpu_flags", set)
    assert embed(*job, tmp_path / "one", "--level", "narrow").status == 0
    assert torch.equal(
        torch.from_numpy(rows(tmp_path / "two")[:, : WIDTHS["narrow"]]), torch.from_numpy(rows(tmp_path / "one"))
    )

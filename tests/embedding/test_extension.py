"""``rd-hf embed --extend``: what a run from scratch gives, by the larger backbones alone; what cannot be is refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import EsmModel

from rd_hf.data.fasta import read_fasta
from rd_hf.embedding.checkpoint import load_model
from rd_hf.embedding.folder import OutputFolder
from rd_hf.embedding.worker import Worker
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA, random_model
from tests.embedding.conftest import Outcome, content_hashes, parts, random_fasta, read, scale_tensors

Embed = Callable[..., Outcome]
# Of a vector's largest number. The same sums are taken in another order: measured 2e-7 to 2e-6.
TOLERANCE = 1e-5


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return random_fasta(tmp_path / "proteins.fasta", 40)


@pytest.fixture
def small(embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    """Embed at the smallest level, in parts that are none of the extended folder's."""

    def run(*options: object, name: str = "small") -> Path:
        job = ("--model", tiny_checkpoint, "--input", fasta, "--level", "L0", "--part-records", 7)
        outcome = embed(*job, "--output", tmp_path / name, *options)
        assert outcome.status == 0, outcome.stderr
        return tmp_path / name

    return run


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each backbone was loaded and called, by width."""
    load_model.cache_clear()
    counts: Counter[str] = Counter()
    original, forward = RDEsmModel._load_backbone, EsmModel.forward

    def loading(self: RDEsmModel, index: int, *args: Any, **kwargs: Any) -> Any:
        counts[f"load {self.config.backbone_widths[index]}"] += 1
        return original(self, index, *args, **kwargs)

    def calling(self: EsmModel, *args: Any, **kwargs: Any) -> Any:
        counts[f"call {self.config.hidden_size}"] += 1
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(RDEsmModel, "_load_backbone", loading)
    monkeypatch.setattr(EsmModel, "forward", calling)
    return counts


def largest_difference(extended: Path, scratch: Path, column: str = "embedding") -> float:
    """Between two folders' rows, each of its own largest number."""
    ours, theirs = read(extended), read(scratch)
    for name in ("source", "record", "id", "description", "length"):
        assert ours[name].equals(theirs[name]), name
    worst = 0.0
    for a, b in zip(ours[column].to_pylist(), theirs[column].to_pylist(), strict=True):
        mine, other = np.array(a, np.float64), np.array(b, np.float64)
        assert mine.shape == other.shape
        worst = max(worst, np.abs(mine - other).max() / np.abs(other).max())
    return worst


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--pooling", "cls"),
        ("--pooling", "residue"),
        ("--pooling", "positions", "--positions", "1", "4"),
        ("--max-length", "50", "--overlap", "10"),
        ("--max-length", "50", "--overlap", "10", "--pooling", "residue"),
        ("--max-length", "50", "--overlap", "10", "--pooling", "cls"),
        ("--max-length", "50", "--overlap", "10", "--long", "truncate"),
        ("--max-length", "50", "--overlap", "10", "--long", "error"),
    ],
    ids=" ".join,
)
def test_it_is_a_run_from_scratch_by_the_larger_backbones_alone(
    embed: Embed,
    small: Callable[..., Path],
    calls: Counter[str],
    tmp_path: Path,
    tiny_checkpoint: Path,
    fasta: Path,
    options: tuple[str, ...],
) -> None:
    folder = small(*options)
    job = ("--model", tiny_checkpoint, "--input", fasta, "--part-records", 9, *options)
    assert embed(*job, "--output", tmp_path / "scratch", "--level", "L2").status == 0
    load_model.cache_clear()
    calls.clear()
    outcome = embed("--extend", folder, "--level", "L2", "--output", tmp_path / "out", "--part-records", 9)
    assert outcome.status == 0, outcome.stderr
    assert calls["load 48"] == calls["load 64"] == 1
    assert calls["call 48"] == calls["call 64"] > 0
    assert not calls["load 32"] + calls["call 32"], "the smallest backbone is neither loaded nor run"
    assert largest_difference(tmp_path / "out", tmp_path / "scratch") <= TOLERANCE
    assert [path.name for path in parts(tmp_path / "out")] == [path.name for path in parts(tmp_path / "scratch")]
    rejects = [(tmp_path / name / "_rejects.tsv").read_text() for name in ("out", "scratch")]
    assert rejects[0] == rejects[1]
    for wide, narrow in zip(read(tmp_path / "out")["embedding"], read(folder)["embedding"], strict=True):
        kept, stored = np.array(wide.as_py(), np.float32), np.array(narrow.as_py(), np.float32)
        assert np.array_equal(kept[..., : stored.shape[-1]], stored), "what was stored is kept bit for bit"


def test_with_real_backbones_and_fitted_bases(embed: Embed, mini_checkpoint: Path, tmp_path: Path) -> None:
    chosen = [record for record in read_fasta(EXAMPLE_FASTA) if len(record.sequence) < 150][:6]
    (tmp_path / "p.fasta").write_text("".join(f">{record.id}\n{record.sequence}\n" for record in chosen))
    job = ("--model", mini_checkpoint, "--input", tmp_path / "p.fasta", "--output")
    embed(*job, tmp_path / "small", "--level", "0.3M")
    embed(*job, tmp_path / "middle", "--level", "1.2M")
    embed(*job, tmp_path / "scratch")
    for start in ("small", "middle"):
        out = tmp_path / f"from-{start}"
        assert embed("--extend", tmp_path / start, "--level", "2.7M", "--output", out).status == 0
        assert largest_difference(out, tmp_path / "scratch") <= TOLERANCE


def test_step_by_step_with_several_levels_one_backbone_at_a_time(
    embed: Embed, small: Callable[..., Path], calls: Counter[str], tmp_path: Path, tiny_checkpoint: Path, fasta: Path
) -> None:
    folder = small()
    calls.clear()
    outcome = embed("--extend", folder, "--level", "L1", "--output", tmp_path / "one", "--window-tokens", 10**6)
    assert outcome.status == 0, outcome.stderr
    assert set(calls) == {"load 48", "call 48"}
    calls.clear()
    outcome = embed("--extend", tmp_path / "one", "--level", "L0", "L2", "--output", tmp_path / "two")
    assert outcome.status == 0, outcome.stderr
    assert set(calls) == {"load 64", "call 64"}
    embed("--model", tiny_checkpoint, "--input", fasta, "--level", "L0", "L2", "--output", tmp_path / "scratch")
    for column in ("embedding_L0", "embedding_L2"):
        assert largest_difference(tmp_path / "two", tmp_path / "scratch", column) <= TOLERANCE


def test_stopped_anywhere_and_started_again_it_writes_the_same(
    embed: Embed, small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ("--extend", small(), "--level", "L2", "--part-records", 5, "--output")
    embed(*job, tmp_path / "whole")
    original = OutputFolder.write_entry
    written = 0

    def interrupted(self: OutputFolder, entry: Any) -> None:
        nonlocal written
        written += 1
        if written == 4:
            raise KeyboardInterrupt  # its Parquet file is there, its journal entry is not
        original(self, entry)

    monkeypatch.setattr(OutputFolder, "write_entry", interrupted)
    assert embed(*job, tmp_path / "out").status == 130
    outcome = embed(*job, tmp_path / "out")
    assert "8 parts, 3 of them from an earlier run" in outcome.stdout, outcome.stderr
    assert content_hashes(tmp_path / "out") == content_hashes(tmp_path / "whole")
    # What was extended decides the result as much as the model does.
    other = small("--batch-tokens", 64, name="other")
    assert "holds another job" in embed("--extend", other, *job[2:], tmp_path / "out").stderr


def test_the_inputs_may_lie_elsewhere_but_must_be_the_same_records(
    embed: Embed, small: Callable[..., Path], fasta: Path, tmp_path: Path
) -> None:
    folder = small()
    text = fasta.read_text()
    moved = tmp_path / "moved.fasta"
    fasta.rename(moved)
    job = ("--extend", folder, "--level", "L1", "--input", moved, "--output")
    assert embed(*job, tmp_path / "out").status == 0
    assert set(read(tmp_path / "out")["source"].to_pylist()) == {str(moved)}
    for number, (changed, sentence) in enumerate(
        {
            text.replace(">r20\n", ">r20\nM"): "it differs from record number 15 on",
            text.replace(">r20\n", ">R20\n"): "it differs from record number 15 on",
            text[: text.index(">r35\n")]: "it ends before record number 36",
            text + ">more\nMK\n": "it differs from record number 36 on",
        }.items()
    ):
        moved.write_text(changed)
        outcome = embed(*job, tmp_path / f"changed{number}")
        assert outcome.status == 1
        assert f"the input is not what {folder} was made of: {sentence}" in outcome.stderr
        assert outcome.stderr.count("\n") == 1
    outcome = embed(*job[:-1], moved, "--output", tmp_path / "two")
    assert "was made of 1 inputs" in outcome.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pooling", "max"], "the maximum over residues does not commute"),
        (["--normalize"], "its vectors were normalised"),
        (["--output-dtype", "float16"], "it was stored in float16"),
    ],
)
def test_what_does_not_extend_is_refused_by_name(
    embed: Embed, small: Callable[..., Path], tmp_path: Path, options: list[str], sentence: str
) -> None:
    folder = small(*options)
    outcome = embed("--extend", folder, "--level", "L2", "--output", tmp_path / "out")
    assert outcome.status == 1
    assert f"{folder} cannot be extended: {sentence}" in outcome.stderr
    assert not (tmp_path / "out").exists()


def test_other_mistakes_are_one_sentence(
    embed: Embed, small: Callable[..., Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = small()

    def said(*arguments: object, extend: Path = folder) -> str:
        outcome = embed("--extend", extend, "--output", tmp_path / "out", *arguments)
        assert outcome.status == 1
        assert outcome.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return outcome.stderr

    assert "holds level L0 already, whose first 32 dimensions are level L0" in said("--level", "L0")
    assert "was made with pooling 'mean', not 'cls': leave --pooling away" in said("--level", "L2", "--pooling", "cls")
    assert "has no level 'L9'" in said("--level", "L9")
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    scale_tensors(model, ".regression", 1.5)
    assert f"{model} is another model or revision" in said("--level", "L2", "--model", model)
    assert "holds no _manifest.json" in said("--level", "L2", extend=tmp_path)
    path = parts(folder)[2]
    whole = path.read_bytes()
    path.write_bytes(whole[:-30] + b"x" + whole[-29:])
    outcome = embed("--extend", folder, "--output", tmp_path / "damaged", "--level", "L2")
    assert f"{path} is not as it was written" in outcome.stderr
    manifest = json.loads((folder / "_manifest.json").read_text())
    (folder / "_manifest.json").write_text(json.dumps({**manifest, "status": "running"}))
    assert "is not finished" in said("--level", "L2")


def test_a_record_that_was_not_embedded_then_is_not_now(
    embed: Embed, small: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Worker.compute

    def no_room(self: Worker, part: Any, places: list[int], requests: list[Any]) -> Any:
        results = original(self, part, places, requests)
        return [
            "does not fit" if part.first_record + place == 3 else r for place, r in zip(places, results, strict=True)
        ]

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "compute", no_room)
        folder = small()
    outcome = embed("--extend", folder, "--level", "L1", "--output", tmp_path / "out")
    assert "40 records: 38 written, 2 rejected" in outcome.stdout, outcome.stderr
    assert f"{folder} has no embedding of it" in (tmp_path / "out" / "_rejects.tsv").read_text()


def test_a_model_without_its_smaller_backbones_says_so(tmp_path: Path) -> None:
    random_model([32, 48, 64]).save_pretrained(tmp_path)
    ids = torch.tensor([[0, 5, 6, 2]])
    model = RDEsmModel.from_pretrained(tmp_path, above="L1")
    assert sum(parameter.numel() for parameter in model.parameters()) == sum(
        parameter.numel() for parameter in model.backbones[2].parameters()
    )
    with pytest.raises(ValueError, match="loaded with those of L2 only"):
        model(ids)
    with pytest.raises(ValueError, match="bases only"):
        model.save_pretrained(tmp_path / "copy", backbones=True)
    bases = RDEsmModel.from_pretrained(tmp_path, above="L2")
    assert not list(bases.parameters())
    with pytest.raises(ValueError, match="loaded with those of none only"):
        bases(ids)

"""Variants of one protein: trained on substitutions beside the embedding, and what the checkpoint knows of others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rd_hf.__main__ import main
from rd_hf.data.batching import collate
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification
from rd_hf.training import TrainingSettings, run_training
from rd_hf.training.save import substitution_table
from tests.training.conftest import WriteTable

Make = Callable[..., TrainingSettings]
WILD_TYPE = "MKTAYIAKQRQISFVKSHFS"


def scan(count: int = 80) -> list[dict[str, str]]:
    """Single and double variants, whose score is the sum of effects of their substitutions and noise."""
    generator = np.random.default_rng(0)
    effects = {(place, letter): generator.normal() for place in range(20) for letter in "ACDEF"}
    rows = []
    for number in range(count):
        places = generator.choice(20, size=1 + number % 2, replace=False)
        new = [generator.choice([letter for letter in "ACDEF" if letter != WILD_TYPE[place]]) for place in places]
        score = sum(effects[place, letter] for place, letter in zip(places.tolist(), new, strict=True))
        names = [f"{WILD_TYPE[place]}{place + 1}{letter}" for place, letter in zip(places.tolist(), new, strict=True)]
        rows.append({"mutant": ":".join(names), "score": f"{score + generator.normal(0, 0.1):.4f}"})
    return rows


@pytest.fixture
def wild_type(tmp_path: Path) -> Path:
    path = tmp_path / "wt.fasta"
    path.write_text(f">wt\n{WILD_TYPE}\n")
    return path


def test_the_head_of_a_level_computes_what_was_fitted_and_refuses_other_proteins(
    table: WriteTable, settings: Make, wild_type: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes, features = {}, []
    from rd_hf.training import job

    def watched(findings: object, embedder: object) -> None:
        probes.update(findings.probes)  # type: ignore[attr-defined]
        real(findings, embedder)  # type: ignore[arg-type]

    real, beside = job.save_model, job.with_substitutions
    monkeypatch.setattr(job, "save_model", watched)
    monkeypatch.setattr(job, "with_substitutions", lambda *given: features.append(beside(*given)) or features[-1])
    run_training(
        settings(table(scan()), mutant="mutant", wild_type=str(wild_type)), report=lambda _: None, show_progress=False
    )
    found = json.loads((tmp_path / "out" / "training.json").read_text())
    sequences = list(dict.fromkeys(pq.read_table(tmp_path / "out" / "out_of_fold.parquet")["sequence"].to_pylist()))
    own = {sequence: place for place, sequence in enumerate(sequences)}
    for level, probe in probes.items():
        model = RDEsmForSequenceClassification.from_pretrained(tmp_path / "out", level=level).eval()
        with torch.inference_mode():
            logits = model(*collate(sequences)).logits[:, 0].numpy()
        expected = probe(features[0].cut(len(probe.mean)), np.arange(len(own)))[:, 0]
        # The head computes in float32.
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
    assert found["substitutions"] is True
    assert "| substitutions alone |" in (tmp_path / "out" / "report.md").read_text()
    for other in (WILD_TYPE[:-1], WILD_TYPE + "A", "W" * 20):
        with pytest.raises(ValueError, match="know variants of one protein of 20 residues, and sequence 2 of"):
            model(*collate([WILD_TYPE, other]))


def test_substitutions_alone_need_no_embedding(
    table: WriteTable, settings: Make, wild_type: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rd_hf.training.job.embed", lambda *_: pytest.fail("nothing is to be embedded"))
    chosen = settings(table(scan()), mutant="mutant", wild_type=str(wild_type), features="one_hot", scheme="modulo")
    run_training(chosen, report=lambda _: None, show_progress=False)
    found = json.loads((tmp_path / "out" / "training.json").read_text())
    assert found["level"] == "L0", "all are equal, and the smallest is enough"
    assert len({level["score"] for level in found["levels"].values()}) == 1


def test_a_table_of_substitutions() -> None:
    """Of a residue that was seen, one that was not, and the wild type's own."""
    found = substitution_table("MK", [(1, "K"), (1, "A")], np.array([0.5, 2.0]))
    from rd_hf.model.pooling_rd_esm import VOCABULARY

    at = {letter: found[1, VOCABULARY.index(letter)] for letter in "KAG"}
    # K lost and A gained: 2.0 - 0.5. K lost and G, never seen: -0.5.
    assert at == {"K": 0.0, "A": 1.5, "G": -0.5}
    assert not found[0].any()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--mutant", "mutant"), "--mutant names substitutions of the sequence in --wild-type: give both, or neither"),
        (("--features", "one_hot"), "--features is of variants of one protein: give --mutant and --wild-type"),
        (("--mutant", "mutant", "--wild-type", "two.fasta"), "two.fasta holds 2 sequences: give --wild-type a file"),
        (
            ("--mutant", "mutant", "--wild-type", "other.fasta"),
            "does not fit the wild type, which has A there; check --wild-type, positions count from 1",
        ),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    words: tuple[str, ...], says: str, table: WriteTable, tiny_checkpoint: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.fasta").write_text(">a\nMKT\n>b\nMKT\n")
    (tmp_path / "other.fasta").write_text(">a\n" + "A" * 20 + "\n")
    argv = ["train", "--model", tiny_checkpoint, "--input", table(scan()), "--target", "score", "--quiet", *words]
    assert main([str(word) for word in [*argv, "--output", "out"]]) == 1
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()

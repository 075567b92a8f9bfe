"""Jobs in one pass: one backbone runs, levels nest, and the folder is never taken for one of exact embeddings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmModel

from rd_hf.commands import search
from rd_hf.data.records import InputError
from rd_hf.data.residues import encode
from rd_hf.embedding import Embedder
from rd_hf.embedding.checkpoint import load_model
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model
from tests.embedding.conftest import Outcome, random_fasta, read

Embed = Callable[..., Outcome]
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWY" * 2, "MW"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-pass")
    random_model([32, 48, 64], layers=4, readout={"layers": [0, 2]}).save_pretrained(folder)
    return folder


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    return random_fasta(tmp_path / "proteins.fasta", 20)


def test_an_embedder_returns_what_the_model_reads_out(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_model.cache_clear()
    widths: list[int] = []
    forward = EsmModel.forward

    def calling(self: EsmModel, *args: object, **kwargs: object) -> object:
        widths.append(self.config.hidden_size)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(EsmModel, "forward", calling)
    found = Embedder(checkpoint, level=["L0", "L2"], one_pass=True).embed(SEQUENCES)
    assert set(widths) == {64}
    model = RDEsmModel.from_pretrained(checkpoint, one_pass=True)
    for row, sequence in enumerate(SEQUENCES):
        with torch.inference_mode():
            states = model(torch.from_numpy(encode(sequence))[None].long()).last_hidden_state[0, 1:-1]
        # The mean of the same float32 rows, in another batch.
        np.testing.assert_allclose(found["embedding_L2"][row], states.mean(dim=0), rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(found["embedding_L0"][row], found["embedding_L2"][row][:32])
    exact = Embedder(checkpoint, level="L0").embed(SEQUENCES)["embedding"]
    assert np.abs(np.stack(exact) - np.stack(found["embedding_L0"])).max() > 0.1


def test_it_says_what_it_is_and_is_not_mixed_with_exact_ones(
    embed: Embed, checkpoint: Path, fasta: Path, tmp_path: Path
) -> None:
    job = ("--model", checkpoint, "--input", fasta, "--level", "L1")
    assert embed(*job, "--output", tmp_path / "near", "--one-pass").status == 0
    assert embed(*job, "--output", tmp_path / "exact").status == 0
    manifest = json.loads((tmp_path / "near" / "_manifest.json").read_text())
    assert manifest["model"]["one_pass"]
    assert manifest["model"]["fingerprint"].startswith("one-pass:sha256:")
    assert read(tmp_path / "near").schema.field("embedding").type.list_size == 48
    # Taken up again it is kept, with and only with the same flag.
    assert embed(*job, "--output", tmp_path / "near", "--one-pass").status == 0
    for folder, flags in (("near", ()), ("exact", ("--one-pass",))):
        outcome = embed(*job, "--output", tmp_path / folder, *flags)
        assert outcome.status == 1
        assert "holds another job" in outcome.stderr
        assert "one-pass:sha256:" in outcome.stderr


def test_search_refuses_to_compare_the_two_and_embeds_queries_as_the_database_was(
    embed: Embed, checkpoint: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("faiss")
    job = ("--model", checkpoint, "--input", fasta)
    assert embed(*job, "--output", tmp_path / "near", "--one-pass").status == 0
    assert embed(*job, "--output", tmp_path / "exact").status == 0
    arguments = ["--input", str(tmp_path / "exact"), str(tmp_path / "near")]
    assert search.main([*arguments, "--output", str(tmp_path / "hits.tsv")]) == 1
    said = capsys.readouterr().err
    assert "in one pass (one-pass:sha256:" in said
    assert "nor exact ones with those of one pass" in said
    few = tmp_path / "few.fasta"
    few.write_text("".join(fasta.read_text().splitlines(keepends=True)[:6]))
    arguments = ["--input", str(few), str(tmp_path / "near"), "--neighbours", "1"]
    assert search.main([*arguments, "--output", str(tmp_path / "hits.tsv")]) == 0
    hits = [line.split("\t") for line in (tmp_path / "hits.tsv").read_text().splitlines()]
    place = hits[0].index("similarity")
    # Each finds itself: queries were read out as the database was.
    assert len(hits) == 4
    assert min(float(hit[place]) for hit in hits[1:]) > 0.9999


def test_what_cannot_be_gets_a_sentence(
    embed: Embed, checkpoint: Path, tiny_checkpoint: Path, fasta: Path, tmp_path: Path
) -> None:
    outcome = embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "o", "--one-pass")
    assert outcome.status == 1
    assert "was fitted without a one-pass readout: fit it with rd-hf fit --one-pass" in outcome.stderr
    with pytest.raises(InputError, match="without a one-pass readout"):
        Embedder(tiny_checkpoint, one_pass=True)
    with pytest.raises(InputError, match="one pass reads out others: leave out --whiten"):
        Embedder(checkpoint, one_pass=True, whiten=True)
    job = ("--model", checkpoint, "--input", fasta, "--level", "L0", "--output", tmp_path / "near", "--one-pass")
    assert embed(*job).status == 0
    extending = ("--extend", tmp_path / "near", "--level", "L2", "--output", tmp_path / "wider")
    outcome = embed(*extending)
    assert outcome.status == 1
    assert "read out of the largest backbone in one pass" in outcome.stderr
    assert embed("--model", checkpoint, "--input", fasta, "--level", "L0", "--output", tmp_path / "small").status == 0
    outcome = embed("--extend", tmp_path / "small", "--level", "L2", "--output", tmp_path / "wider", "--one-pass")
    assert outcome.status == 1
    assert "nothing to --extend" in outcome.stderr

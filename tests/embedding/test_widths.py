"""Embeddings of any width, plain and whitened: the first dimensions of the whole, and no more is run than they need."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from rd_hf.bases.whitening import fit_whitening, moments_of_rows
from rd_hf.commands import embed as embed_command
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.fitting import install_whitening
from rd_hf.search.database import Database
from tests.conftest import random_model

DIMS = {"L0": 32, "L1": 80, "L2": 144}
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMASMTGGQQMG", "MKLLVVVGGVGSGKTTLLNHLLR" * 12]


@pytest.fixture(scope="module")
def lossless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved family of 32 / 48 / 64 that keeps all directions, with statistics to whiten by."""
    model = random_model([32, 48, 64], residual_directions=[48, 64])
    generator = np.random.default_rng(0)
    rows = torch.from_numpy(generator.standard_normal((600, 144)) @ generator.standard_normal((144, 144)))
    install_whitening(model, fit_whitening(moments_of_rows(rows, [32, 48, 64]), [0.5, 1, 2]), of="proteins")
    folder = tmp_path_factory.mktemp("lossless")
    model.save_pretrained(folder)
    return folder


def widths() -> list[int]:
    """All levels' and twenty others."""
    return sorted({*DIMS.values(), *random.Random(0).sample(range(1, 144), 20)})


@pytest.mark.parametrize("whiten", [False, True], ids=["plain", "whitened"])
@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_any_width_is_the_first_dimensions_of_the_whole(lossless: Path, whiten: bool, pooling: str) -> None:
    """Bit for bit, from runs of their own, of which the narrow ones stop at a smaller level."""
    whole = Embedder(lossless, pooling=pooling, whiten=whiten).embed(SEQUENCES)["embedding"]
    for width in widths():
        embedder = Embedder(lossless, pooling=pooling, whiten=whiten, width=width)
        found = embedder.embed(SEQUENCES)["embedding"]
        assert all(np.array_equal(one, other[:width]) for one, other in zip(found, whole, strict=True)), width
        needed = next(index for index, dims in enumerate(DIMS.values()) if dims >= width)
        engine = embedder._engine
        assert engine is not None
        assert len(engine.model.backbones) == needed + 1
        assert embedder.widths == {list(DIMS)[needed]: width}


def test_whitening_comes_before_what_is_done_to_vectors(lossless: Path) -> None:
    plain = Embedder(lossless, pooling="residue").embed(SEQUENCES)["embedding"]
    engine = Embedder(lossless, pooling="residue", whiten=True, width=50, normalize=True)
    found = engine.embed(SEQUENCES)["embedding"]
    started = engine._started(None)
    for one, other in zip(found, plain, strict=True):
        expected = started.model.whiten(torch.from_numpy(np.ascontiguousarray(other[:, :80])))[:, :50]
        expected = expected / expected.norm(dim=-1, keepdim=True)
        # The same numbers in products of other shapes.
        assert np.allclose(one, expected.numpy(), atol=1e-5)


def test_a_whitened_mean_is_the_mean_of_the_whitened(lossless: Path) -> None:
    rows = Embedder(lossless, pooling="residue", whiten=True).embed(SEQUENCES)["embedding"]
    means = Embedder(lossless, whiten=True).embed(SEQUENCES)["embedding"]
    plain = Embedder(lossless)
    later = [plain._started(None).model.whiten(torch.from_numpy(one)) for one in plain.embed(SEQUENCES)["embedding"]]
    for mean, all_rows, after in zip(means, rows, later, strict=True):
        assert np.allclose(mean, all_rows.mean(axis=0), atol=1e-5)
        assert np.allclose(mean, after.numpy(), atol=1e-4)


def test_what_contradicts_itself_is_a_sentence(lossless: Path, tiny_checkpoint: Path) -> None:
    assert Embedder(lossless, level="L1", width=80).widths == {"L1": 80}
    assert Embedder(lossless, level="L2", width=20).widths == {"L0": 20}  # the level is a bound
    with pytest.raises(InputError, match=r"width 81 is more than the 80 dimensions of level L1.*leave the level out"):
        Embedder(lossless, level="L1", width=81)
    with pytest.raises(InputError, match="width 145 is more than the 144 dimensions of level L2"):
        Embedder(lossless, width=145)
    with pytest.raises(ValueError, match="give one level or none"):
        Embedder(lossless, level=["L0", "L1"], width=10)
    with pytest.raises(ValueError, match="width must be a whole number of at least 1"):
        Embedder(lossless, width=0)
    with pytest.raises(InputError, match="there is nothing to whiten by"):
        Embedder(tiny_checkpoint, whiten=True)


@pytest.fixture
def job(lossless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """The embed command on three proteins: its status and what it said on standard error."""
    fasta = tmp_path / "in.fasta"
    fasta.write_text("".join(f">p{place}\n{sequence}\n" for place, sequence in enumerate(SEQUENCES)))

    def call(output: str, *more: object, model: Path = lossless) -> tuple[int, str]:
        words = ("--model", model, "--input", fasta, "--output", tmp_path / output, "--quiet", *more)
        status = embed_command.main([str(word) for word in words])
        return status, capsys.readouterr().err

    return call


def test_jobs_write_them_and_never_mix_them(
    job: Callable[..., tuple[int, str]], lossless: Path, tmp_path: Path
) -> None:
    assert job("plain", "--width", 100)[0] == 0
    manifest = json.loads((tmp_path / "plain" / "_manifest.json").read_text())
    assert manifest["columns"] == {"embedding": {"level": "L2", "width": 100}}
    assert (manifest["job"]["width"], "whiten" in manifest["job"]) == (100, False)
    stored = np.array(pq.read_table(next((tmp_path / "plain").glob("*.parquet")))["embedding"].to_pylist())
    assert np.array_equal(
        stored.astype(np.float32), np.stack(Embedder(lossless, width=100).embed(SEQUENCES)["embedding"])
    )
    for more in (("--width", 99), (), ("--width", 100, "--whiten")):
        status, said = job("plain", *more)
        assert status == 1
        assert "holds another job" in said
    assert job("white", "--whiten")[0] == 0
    status, said = job("white")
    assert "whiten was True and is now None" in said
    status, said = job("not", "--whiten", model=random_checkpoint(tmp_path))
    assert status == 1
    assert "there is nothing to whiten by" in said
    assert not (tmp_path / "not").exists()


def random_checkpoint(tmp_path: Path) -> Path:
    random_model([32, 48]).save_pretrained(tmp_path / "other")
    return tmp_path / "other"


def test_a_cut_folder_is_searched_at_its_width_and_not_extended(
    job: Callable[..., tuple[int, str]], lossless: Path, tmp_path: Path
) -> None:
    assert job("cut", "--width", 50)[0] == 0
    database = Database(tmp_path / "cut")
    assert database.levels == {"L0": 32, "L1": 50}
    whole = np.stack(Embedder(lossless).embed(SEQUENCES)["embedding"])
    for level, width in database.levels.items():
        (block,) = database.chunks(level)
        assert np.array_equal(block.vectors, whole[:, :width])
    for folder, reason in (("cut", "it was cut to 50 dimensions"), ("white", "its vectors were whitened")):
        if folder == "white":
            assert job("white", "--whiten", "--level", "L0")[0] == 0
        status, said = job("more", "--extend", tmp_path / folder, "--level", "L2")
        assert status == 1
        assert reason in said
    assert EmbeddingFolder(tmp_path / "cut").width_of() == (50, "L1")


def test_extending_takes_a_width_but_does_not_whiten(job: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    assert job("small", "--level", "L0")[0] == 0
    status, said = job("more", "--extend", tmp_path / "small", "--whiten")
    assert status == 1
    assert "was made with whiten False, not True" in said
    assert job("wider", "--extend", tmp_path / "small", "--width", 100)[0] == 0
    assert job("direct", "--width", 100)[0] == 0
    one, other = (
        np.array(pq.read_table(next((tmp_path / name).glob("*.parquet")))["embedding"].to_pylist())
        for name in ("wider", "direct")
    )
    assert np.array_equal(one[:, :32], other[:, :32])
    # The mean of a residual against the residual of a mean.
    assert np.allclose(one, other, atol=1e-5)

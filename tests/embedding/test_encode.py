"""Embedder.encode gives arrays, as users of sentence encoders expect; similarity compares them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from rd_hf.data.records import InputError
from rd_hf.data.sources import read_records
from rd_hf.embedding import Embedder

SEQUENCES = ["MKTAYIAKQR", "ACDEFGHIKLMNPQ", "GAVLIM", "MKTAYIAKQR"]


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint: Path) -> Embedder:
    return Embedder(tiny_checkpoint, level="L1", device="cpu")


def test_vectors_are_one_array_in_order(embedder: Embedder) -> None:
    vectors = embedder.encode(SEQUENCES)
    assert isinstance(vectors, np.ndarray)
    assert (vectors.shape, vectors.dtype) == ((4, 48), np.float32)
    np.testing.assert_array_equal(vectors, np.stack(embedder.embed(SEQUENCES)["embedding"]))


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_any_pooling_of_one_row_is_an_array(tiny_checkpoint: Path, pooling: str) -> None:
    assert np.shape(Embedder(tiny_checkpoint, pooling=pooling, device="cpu").encode(SEQUENCES)) == (4, 64)


@pytest.mark.parametrize("given", [tuple(SEQUENCES), np.array(SEQUENCES), pd.Series(SEQUENCES, index=list("dcba"))])
def test_lists_of_any_kind_are_taken(embedder: Embedder, given: Any) -> None:
    np.testing.assert_array_equal(embedder.encode(given), embedder.encode(SEQUENCES))


def test_one_sequence_gives_its_vector(embedder: Embedder) -> None:
    vector = embedder.encode("GAVLIM")
    assert np.shape(vector) == (48,)
    np.testing.assert_allclose(vector, embedder.encode(SEQUENCES)[2], atol=1e-5)  # another batch


def test_no_sequence_gives_no_row(embedder: Embedder) -> None:
    empty = embedder.encode([])
    assert (np.shape(empty), np.asarray(empty).dtype) == ((0, 48), np.float32)


def test_residues_are_a_list_of_arrays(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, pooling="residue", device="cpu")
    rows = embedder.encode(SEQUENCES)
    assert [one.shape for one in rows] == [(10, 64), (14, 64), (6, 64), (10, 64)]
    assert {one.dtype for one in rows} == {np.dtype(np.float32)}
    assert np.shape(embedder.encode("GAVLIM")) == (6, 64)


def test_positions_are_those_of_each_sequence(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, pooling="positions", device="cpu")
    whole = Embedder(tiny_checkpoint, pooling="residue", device="cpu").encode(SEQUENCES)
    rows = embedder.encode(SEQUENCES, [[1], [14, 2], [6], [3]])
    for found, all_rows, places in zip(rows, whole, [[0], [13, 1], [5], [2]], strict=True):
        np.testing.assert_array_equal(found, all_rows[places])
    np.testing.assert_allclose(embedder.encode("GAVLIM", [6, 1]), whole[2][[5, 0]], atol=1e-5)


def test_half_precision_stays_half(tiny_checkpoint: Path) -> None:
    embedder = Embedder(tiny_checkpoint, output_dtype="float16", device="cpu")
    assert np.asarray(embedder.encode(SEQUENCES)).dtype == np.float16
    assert np.asarray(embedder.encode([])).dtype == np.float16


def test_several_levels_are_no_one_array(tiny_checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"encode\(\) gives one level, and L0, L2 were asked for: take embed\(\)"):
        Embedder(tiny_checkpoint, level=["L0", "L2"], device="cpu").encode(SEQUENCES)


@pytest.mark.parametrize("on_reject", ["raise", "null"])
def test_what_cannot_be_embedded_is_a_sentence(tiny_checkpoint: Path, on_reject: str) -> None:
    """An array has no place for a null."""
    embedder = Embedder(tiny_checkpoint, on_reject=on_reject, device="cpu")
    with pytest.raises(InputError, match=r"row 2 of the batch \('MK\*T'.*stop codon"):
        embedder.encode(["MKT", "MK*T"])
    with pytest.raises(InputError, match=r"encode\(\) takes a list of sequences"):
        embedder.encode({"sequence": SEQUENCES})  # type: ignore[arg-type]


def test_a_bar_is_shown_where_it_is_asked_for(embedder: Embedder, capsys: pytest.CaptureFixture[str]) -> None:
    embedder.encode(SEQUENCES, show_progress_bar=True)
    # Of different sequences: 10 + 14 + 6 residues.
    assert "30/30" in capsys.readouterr().err
    for quiet in (None, False):
        embedder.encode(SEQUENCES, show_progress_bar=quiet)
        assert capsys.readouterr().err == "", "standard error is no terminal here"


def test_similarity_is_the_cosine_of_each_with_each(embedder: Embedder) -> None:
    vectors = np.asarray(embedder.encode(SEQUENCES))
    found = embedder.similarity(vectors, vectors[:3])
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(vectors)[:, None], torch.from_numpy(vectors)[None, :3], dim=-1
    )
    assert (found.shape, found.dtype) == ((4, 3), np.float32)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_similarity_takes_vectors_of_any_kind(embedder: Embedder, kind: Any) -> None:
    vectors = np.asarray(embedder.encode(SEQUENCES))
    np.testing.assert_allclose(embedder.similarity(kind(vectors), kind(vectors[0]))[0], 1, atol=1e-6)


def test_similarity_of_nothing_and_of_other_widths() -> None:
    assert Embedder.similarity(np.zeros(3), np.ones(3)).tolist() == [[0.0]]
    with pytest.raises(InputError, match=r"not \(1, 3\) and \(1, 4\): cut both to the same level"):
        Embedder.similarity(np.zeros(3), np.ones(4))
    with pytest.raises(InputError, match="vectors of one width"):
        Embedder.similarity(np.zeros((2, 2, 3)), np.ones(3))


def test_whitening_takes_out_what_proteins_share() -> None:
    proteins = [record.sequence[:100] for record in itertools.islice(read_records("example"), 12)]
    means = []
    for whiten in (False, True):
        embedder = Embedder("rd-esm2-mini", whiten=whiten, device="cpu")
        vectors = embedder.encode(proteins)
        means.append(embedder.similarity(vectors, vectors)[np.triu_indices(12, 1)].mean())
    assert means[1] < 0.6 * means[0]


def test_it_says_what_it_is(tiny_checkpoint: Path) -> None:
    assert repr(Embedder("rd-esm2-mini")) == "Embedder('rd-esm2-mini', level='2.7M', pooling='mean')"
    several = Embedder(tiny_checkpoint, level=["L0", "L2"], pooling="residue")
    assert repr(several) == f"Embedder({str(tiny_checkpoint)!r}, level=['L0', 'L2'], pooling='residue')"
    one_pass = Embedder("rd-esm2-mini", level="0.3M", one_pass=True)
    assert repr(one_pass) == "Embedder('rd-esm2-mini', level='0.3M', pooling='mean', one_pass=True)"
    assert repr(Embedder("rd-esm2-mini", whiten=True)).endswith(", whiten=True)")

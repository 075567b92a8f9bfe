"""Searches whiten both sides alike: as written out in numpy, nested, and never without saying so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rd_hf.bases.whitening import Whitening
from rd_hf.search import SearchSettings, run_search, whitening
from rd_hf.search.database import Database
from rd_hf.search.whitening import RowWhitening
from tests.conftest import random_model
from tests.search.conftest import (
    DIMS,
    Outcome,
    by_hand,
    embed,
    protein_like,
    random_proteins,
    read_hits,
    records_found,
)

Run = Callable[..., Outcome]
BLOCKS = ((0, 8), (8, 16), (16, 32))


def whitened_by_hand(rows: np.ndarray, by: np.ndarray, weights: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    """Each block about its mean, in axes of its covariance over shrunk deviations, times its weight."""
    parts = []
    for (start, stop), weight in zip(BLOCKS, weights, strict=True):
        statistics = by[:, start:stop].astype(np.float64)
        variances, axes = np.linalg.eigh(np.cov(statistics.T))
        # Chen et al. 2010, eq. 23.
        covariance, (count, size) = np.cov(statistics.T), statistics.shape
        trace, squares = np.trace(covariance), np.trace(covariance @ covariance)
        shrinkage = ((1 - 2 / size) * squares + trace**2) / ((count + 1 - 2 / size) * (squares - trace**2 / size))
        assert shrinkage < 0.5, "these vectors vary too evenly to tell"
        variances = (1 - shrinkage) * variances + shrinkage * variances.mean()
        parts.append(weight * (rows[:, start:stop] - statistics.mean(0)) @ axes / np.sqrt(variances))
    return np.concatenate(parts, axis=1)


@pytest.fixture
def world(folder: Callable[..., Path], tmp_path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of ``database`` (300 proteins, of the largest level) and of ``queries``, in folders of these names."""
    mixing = np.random.default_rng(2).standard_normal((32, 32)) * np.geomspace(3, 0.1, 32)
    database, queries = ((rows @ mixing).astype(np.float32) for rows in (protein_like(300), protein_like(20, seed=1)))
    database[7] = database[250]  # twins, in files of their own
    folder(database)
    folder(queries, "queries")
    return database, queries


def asked(tmp_path: Path, *more: object) -> tuple[object, ...]:
    return (
        *("--input", tmp_path / "queries", tmp_path / "database", "--neighbours", 5),
        *("--output", tmp_path / "hits.tsv", *more),
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_by_the_database_as_by_hand(
    run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path, metric: str
) -> None:
    database, queries = world
    outcome = run(*asked(tmp_path, "--whiten", "database", "--metric", metric))
    assert outcome.status == 0, outcome.stderr
    assert "whitened by 300 proteins of the database, blocks of one weight" in outcome.stdout
    one, other = whitened_by_hand(queries, database), whitened_by_hand(database, database)
    assert np.array_equal(records_found(tmp_path / "hits.tsv", 5), by_hand(one, other, 5, metric))
    plain = by_hand(queries, database, 5, metric)
    assert not np.array_equal(records_found(tmp_path / "hits.tsv", 5), plain), "nothing was whitened"


def test_it_is_the_default_by_cosine_where_there_are_enough(
    run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    outcome = run(*asked(tmp_path, "--whiten", "auto"))
    assert "whitened by 300 proteins" in outcome.stdout
    assert "whitened" not in run(*asked(tmp_path, "--whiten", "auto", "--metric", "euclidean")).stdout


def test_weights_rule(run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    database, queries = world
    outcome = run(*asked(tmp_path, "--whiten", "database", "--block-weights", 0, 0.5, 2))
    assert "blocks weighed 0, 0.5, 2" in outcome.stdout
    one, other = (whitened_by_hand(rows, database, (0, 0.5, 2)) for rows in (queries, database))
    assert np.array_equal(records_found(tmp_path / "hits.tsv", 5), by_hand(one, other, 5, "cosine"))


def test_a_shortlist_is_picked_by_the_whitened_prefix(
    run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """A funnel as long as the hits returns what the small level by itself finds, in the large level's order."""
    database, queries = world
    chosen = ("--whiten", "database", "--shortlist-level", "S", "--shortlist", 5)
    assert run(*asked(tmp_path, *chosen)).status == 0
    one, other = (whitened_by_hand(rows, database)[:, :8] for rows in (queries, database))
    found, expected = records_found(tmp_path / "hits.tsv", 5), by_hand(one, other, 5, "cosine")
    assert np.array_equal(np.sort(found), np.sort(expected))


@pytest.mark.parametrize("index", ["ivf", "hnsw", "binary"])
def test_an_index_is_of_what_is_compared(
    run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path, index: str
) -> None:
    database, queries = world
    for whiten in ("none", "database"):
        # The second search must not take the first one's index.
        assert run(*asked(tmp_path, "--whiten", whiten, "--index", index, "--shortlist", 300)).status == 0
    one, other = whitened_by_hand(queries, database), whitened_by_hand(database, database)
    # Which rows an index misses is its own affair (tests/search/test_search.py); those it finds have their true scores.
    lengths = [np.linalg.norm(side, axis=1) for side in (one, other)]
    cosine = one @ other.T / np.outer(*lengths)
    hits = read_hits(tmp_path / "hits.tsv")
    for query, record, similarity in zip(hits["query_record"], hits["record"], hits["similarity"], strict=True):
        assert float(similarity) == pytest.approx(cosine[int(query) - 1, int(record) - 1], abs=1e-5)
    assert len(list((tmp_path / "database" / ".search").glob("*.faiss"))) == 2


@pytest.mark.usefixtures("world")
def test_twins_have_one_score(run: Run, tmp_path: Path) -> None:
    arguments = ("--input", tmp_path / "database", tmp_path / "database", "--neighbours", 299)
    assert run(*arguments, "--whiten", "database", "--output", tmp_path / "hits.tsv").status == 0
    hits = read_hits(tmp_path / "hits.tsv")
    scores = {(q, r): s for q, r, s in zip(hits["query_record"], hits["record"], hits["similarity"], strict=True)}
    others = [str(number) for number in range(1, 301) if number not in (8, 251)]
    assert all(scores[q, "8"] == scores[q, "251"] for q in others)


def test_a_row_is_whitened_alike_in_any_company() -> None:
    rng = np.random.default_rng(0)
    means = tuple(torch.from_numpy(rng.standard_normal(stop - start)) for start, stop in BLOCKS)
    maps = tuple(torch.from_numpy(rng.standard_normal((stop - start, stop - start))) for start, stop in BLOCKS)
    by = RowWhitening(Whitening(means, maps, (1.0, 1.0, 1.0)), "nobody")
    rows = protein_like(500)
    whole = by(rows)
    for start, stop in ((0, 1), (3, 10), (100, 500)):
        assert np.array_equal(by(rows[start:stop]), whole[start:stop])
    for width in DIMS.values():
        assert np.array_equal(by(rows[:, :width]), whole[:, :width])


def test_statistics_are_kept_and_made_anew_where_they_are_damaged(
    run: Run, world: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []
    moments = whitening._moments

    def counted(database: Database, *more: object) -> object:
        calls.append(database.path)
        return moments(database, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(whitening, "_moments", counted)
    outputs = []
    for _ in range(2):
        assert run(*asked(tmp_path, "--whiten", "database")).status == 0
        outputs.append((tmp_path / "hits.tsv").read_bytes())
    assert len(calls) == 1
    (kept,) = (tmp_path / "database" / ".search").glob("moments-*")
    kept.write_bytes(kept.read_bytes()[:100])
    assert run(*asked(tmp_path, "--whiten", "database")).status == 0
    outputs.append((tmp_path / "hits.tsv").read_bytes())
    assert len(calls) == 2
    assert len(set(outputs)) == 1


def test_statistics_of_many_rows_are_of_a_sample_evenly_spread(
    world: tuple[np.ndarray, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database, _ = world
    monkeypatch.setattr(whitening, "ROWS", 100)
    settings = SearchSettings(
        str(tmp_path / "queries"), str(tmp_path / "database"), str(tmp_path / "hits.tsv"), k=5, whiten="database"
    )
    assert "by 100 proteins" in str(run_search(settings).whitening)
    one, other = (whitened_by_hand(rows, database[::3]) for rows in world[::-1])
    assert np.array_equal(records_found(tmp_path / "hits.tsv", 5), by_hand(one, other, 5, "cosine"))


def test_few_proteins_and_a_model_without_statistics_leave_vectors_as_they_are(
    run: Run, folder: Callable[..., Path], tmp_path: Path
) -> None:
    database = protein_like(30)
    folder(database)
    folder(database[:5], "queries")
    outcome = run(*asked(tmp_path, "--whiten", "auto"))
    assert "has 30 proteins, fewer than 4 a dimension of its widest block" in outcome.stderr
    assert np.array_equal(records_found(tmp_path / "hits.tsv", 5), by_hand(database[:5], database, 5, "cosine"))


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.repeat(protein_like(1), 300, axis=0), "has 1 different proteins among 300, fewer than 4 a dimension"),
        (np.repeat(protein_like(2), 150, axis=0), "has 2 different proteins among 300"),
        (np.tile(protein_like(60), (5, 1)), "has 60 different proteins among 300"),
        # Copies that were computed in other batches, and differ in their last digits.
        (
            np.repeat(protein_like(3), 100, axis=0) * (1 + 1e-7 * np.random.default_rng(0).integers(-2, 3, (300, 32))),
            "has 300 proteins that vary in 2 of 8 dimensions of a block alone",
        ),
        # Others, of which each is a mixture of five.
        (
            np.random.default_rng(0).random((300, 5)) @ protein_like(5),
            "has 300 proteins that vary in 5 of 16 dimensions of a block alone",
        ),
    ],
    ids=["one", "two", "sixty", "rounding", "mixtures"],
)
def test_copies_are_no_statistics(
    run: Run, folder: Callable[..., Path], tmp_path: Path, rows: np.ndarray, says: str
) -> None:
    """Of what does not vary in the database, whitening leaves nothing: not between a query and its own copy."""
    rows = rows.astype(np.float32)
    folder(rows)
    queries = np.concatenate([rows[:1], protein_like(2, seed=5)])
    folder(queries, "queries")
    outcome = run(*asked(tmp_path, "--whiten", "auto"))
    assert outcome.status == 0
    assert says in outcome.stderr
    assert "whitened" not in outcome.stdout
    similarities = np.array(read_hits(tmp_path / "hits.tsv")["similarity"], float).reshape(3, 5)
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    np.testing.assert_allclose(similarities[:, 0], (queries @ rows.T / lengths).max(axis=1), atol=1e-6)
    assert similarities[0, 0] == pytest.approx(1)
    # Asked for in so many words it is done where it can be, and said.
    outcome = run(*asked(tmp_path, "--whiten", "database"))
    assert says in outcome.stderr
    assert (outcome.status, "whitened by 300" in outcome.stdout) == ((1, False) if "has 1 " in says else (0, True))


def test_a_direction_that_no_protein_has_costs_nothing(
    run: Run, world: tuple[np.ndarray, np.ndarray], folder: Callable[..., Path], tmp_path: Path
) -> None:
    """A channel that is always 0, and the direction that a layer norm takes from a block."""
    database, _ = world
    database = database * (np.arange(32) != 3)
    database[:, 8:16] -= database[:, 8:16].mean(axis=1, keepdims=True)
    folder(database, "database")
    assert "whitened by 300 proteins" in run(*asked(tmp_path, "--whiten", "auto")).stdout


@pytest.mark.parametrize(
    ("options", "more", "sentence"),
    [
        ({"whiten": True}, ("--whiten", "database"), "holds whitened vectors"),
        ({"normalize": True}, ("--whiten", "database"), "holds normalised vectors"),
        ({}, ("--whiten", "model"), "synthetic holds nothing to whiten level L"),
        ({}, ("--whiten", "database", "--block-weights", 1), "gives 1 numbers for the 3 levels of synthetic"),
        ({}, ("--whiten", "none", "--block-weights", 1, 1, 1), "weighs whitened blocks"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(
    run: Run, folder: Callable[..., Path], tmp_path: Path, options: dict[str, object], more: tuple[object, ...],
    sentence: str,
) -> None:  # fmt: skip
    folder(protein_like(80), **options)
    folder(protein_like(5), "queries", **options)
    outcome = run(*asked(tmp_path, *more))
    assert outcome.status == 1
    assert sentence in outcome.stderr
    assert outcome.stderr.count("\n") == 1


@pytest.fixture
def whitening_checkpoint(tmp_path: Path) -> Path:
    """A family of 32 / 48 / 64 with random statistics to whiten by."""
    model = random_model([32, 48, 64], whitening={"weights": [0.25, 1.0, 0.5]})
    generator = torch.Generator().manual_seed(0)
    for block in model.whitening or ():
        block.get_buffer("mean").copy_(torch.randn(block.get_buffer("mean").shape, generator=generator))
        block.get_buffer("map").copy_(torch.randn(block.get_buffer("map").shape, generator=generator))
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_by_the_model_as_in_a_folder_of_whitened_embeddings(
    run: Run, whitening_checkpoint: Path, tmp_path: Path
) -> None:
    random_proteins(tmp_path / "all.fasta", 40)
    plain = embed(whitening_checkpoint, tmp_path / "all.fasta", tmp_path / "plain")
    done = embed(whitening_checkpoint, tmp_path / "all.fasta", tmp_path / "whitened", "--whiten")
    small = embed(whitening_checkpoint, tmp_path / "all.fasta", tmp_path / "small", "--level", "L0")
    found = []
    for place, more in ((plain, ("--whiten", "model")), (plain, ("--whiten", "auto")), (done, ("--whiten", "auto"))):
        assert run("--input", place, place, "--neighbours", 3, "--output", tmp_path / "h.tsv", *more).status == 0
        found.append(records_found(tmp_path / "h.tsv", 3))
    # The database lacks the level: it is computed, and whitened by the model.
    progressive = ("--level", "L2", "--shortlist", 39, "--whiten", "auto")
    queries = ("--input", plain, small, "--neighbours", 4)
    outcome = run(*queries, "--output", tmp_path / "h.tsv", *progressive)
    assert outcome.status == 0, outcome.stderr
    assert "whitened by the residues of the model's fit, blocks weighed 0.25, 1, 0.5" in outcome.stdout
    itself = records_found(tmp_path / "h.tsv", 4)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    # Queries are another folder here, so that each protein finds itself first (and its twin, where it has one).
    inner = slice(1, 39)  # the first and the last protein are twins
    assert np.array_equal(itself[inner, 1:], found[0][inner])

"""Shortlists by a small level or an approximate index: scored from the rows, and their recall told as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.search import approximate
from tests.search.conftest import Outcome, by_hand, protein_like, read_hits, records_found


def told(outcome: Outcome) -> tuple[int, float, float]:
    """Queries and shares of the sentence about recall."""
    assert outcome.status == 0, outcome.stderr
    match = re.search(r"on (\d+) queries .*: ([\d.]+) of the nearest, ([\d.]+) of all", outcome.stdout)
    assert match is not None
    return int(match[1]), float(match[2]), float(match[3])


def funnel_by_hand(queries: np.ndarray, rows: np.ndarray, k: int, shortlist: int, metric: str) -> np.ndarray:
    """(queries, k) records: the small level's nearest, ordered by the large one."""
    best = []
    for query, chosen in zip(queries, by_hand(queries[:, :8], rows[:, :8], shortlist, metric), strict=True):
        chosen = np.sort(chosen)
        best.append(chosen[by_hand(query[None], rows[chosen - 1], k, metric)[0] - 1])
    return np.array(best)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_funnel_is_its_two_steps_and_tells_its_recall(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, metric: str
) -> None:
    rows, queries = protein_like(200), protein_like(30, seed=1)
    outcome = run(
        *("--input", folder(queries, "queries"), folder(rows), "--metric", metric, "--neighbours", 3),
        *("--shortlist-level", "S", "--shortlist", 12, "--output", tmp_path / "hits.tsv"),
    )
    assert "shortlist: 12 candidates per query at level S (exact)" in outcome.stdout
    found = records_found(tmp_path / "hits.tsv", 3)
    np.testing.assert_array_equal(found, funnel_by_hand(queries, rows, 3, 12, metric))
    assert set(read_hits(tmp_path / "hits.tsv")["level"]) == {"L"}
    exact = by_hand(queries, rows, 3, metric)
    first = np.mean([want[0] in have for want, have in zip(exact, found, strict=True)])
    every = np.mean([record in have for want, have in zip(exact, found, strict=True) for record in want])
    assert 0 < every < 1, "a recall worth telling"
    assert told(outcome) == (30, pytest.approx(first, abs=5e-5), pytest.approx(every, abs=5e-5))


def test_the_sample_is_of_the_size_asked_for(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    database = folder(protein_like(50))
    arguments = ("--input", database, database, "--shortlist-level", "S", "--shortlist", 49)
    outcome = run(*arguments, "--recall-sample", 7, "--output", tmp_path / "hits.tsv")
    # All others are candidates: nothing can be missed, a database's own rows being out on both sides.
    assert told(outcome) == (7, 1, 1)
    outcome = run(*arguments, "--recall-sample", 0, "--output", tmp_path / "hits.tsv")
    assert outcome.status == 0
    assert "recall" not in outcome.stdout


@pytest.mark.parametrize("index", ["ivf", "hnsw", "binary"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_approximate_index_picks_and_the_rows_score(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, index: str, metric: str
) -> None:
    rows, queries = protein_like(300), protein_like(20, seed=1)
    (tmp_path / "labels.tsv").write_text("".join(f"r{record}\tx\n" for record in range(1, 301, 2)))
    arguments = [
        *("--input", folder(queries, "queries"), folder(rows), "--metric", metric, "--neighbours", 4),
        *("--index", index, "--output", tmp_path / "hits.tsv", "--shortlist", 150),
    ]
    outcome = run(*arguments)
    found = records_found(tmp_path / "hits.tsv", 4)
    exact = by_hand(queries, rows, 4, metric)
    hit = [record in have for want, have in zip(exact, found, strict=True) for record in want]
    assert told(outcome)[2] == pytest.approx(np.mean(hit), abs=5e-5)
    scores = np.array(read_hits(tmp_path / "hits.tsv")["similarity" if metric == "cosine" else "distance"], float)
    chosen = rows[found - 1]
    expected = np.linalg.norm(queries[:, None] - chosen, axis=-1)
    if metric == "cosine":
        lengths = np.linalg.norm(chosen, axis=-1) * np.linalg.norm(queries, axis=-1)[:, None]
        expected = (queries[:, None] * chosen).sum(-1) / lengths
    # Of the rows' own float32, not of an index' one byte a dimension, which is off by 1e-2.
    np.testing.assert_allclose(scores.reshape(-1, 4), expected, rtol=2e-6)
    assert run(*arguments, "--labels", tmp_path / "labels.tsv").status == 0
    assert (records_found(tmp_path / "hits.tsv", 4) % 2 == 1).all(), "only the labelled"


@pytest.mark.parametrize(
    ("words", "first", "stop"), [((), 16, 32), (("--signs", "all"), 0, 32), (("--level", "M"), 8, 16)]
)
@pytest.mark.parametrize("stored", [{}, {"layout": "blocks", "output_dtype": "int8"}], ids=["float32", "int8"])
def test_signs_of_a_block_pick_and_the_rows_score(
    run: Callable[..., Outcome],
    folder: Callable[..., Path],
    tmp_path: Path,
    words: tuple[str, ...],
    first: int,
    stop: int,
    stored: dict[str, str],
) -> None:
    """Every candidate has no more other signs than a row that is none; labels and a record's own row as elsewhere."""
    rows = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    database = folder(rows, **stored)
    signs = np.stack([row for _, row in EmbeddingFolder(database).all_rows()])[:, first:stop] > 0
    (tmp_path / "labels.tsv").write_text("".join(f"r{record}\tx\n" for record in range(1, 201, 2)))
    asked = [*("--input", database, database, "--index", "binary", "--neighbours", 12, "--shortlist", 12, *words)]
    for more, allowed in ((), np.arange(200)), (("--labels", tmp_path / "labels.tsv"), np.arange(0, 200, 2)):
        outcome = run(*asked, *more, "--output", tmp_path / "hits.tsv")
        assert 0 < told(outcome)[2] < 1
        assert ("all dimensions" in outcome.stdout) == ("all" in words)
        for number, found in enumerate(records_found(tmp_path / "hits.tsv", 12) - 1):
            others = allowed[allowed != number]
            assert set(found) <= set(others)
            differ = (signs != signs[number]).sum(axis=1)
            assert differ[found].max() <= differ[np.setdiff1d(others, found)].min()


def test_an_approximate_index_leaves_a_records_own_row_out(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    rows = protein_like(120)
    database = folder(rows)
    arguments = ("--input", database, database, "--index", "hnsw", "--neighbours", 3, "--shortlist", 60)
    outcome = run(*arguments, "--output", tmp_path / "hits.tsv")
    assert told(outcome)[1] > 0.99  # a graph of 120 nodes, half of them visited
    found = records_found(tmp_path / "hits.tsv", 3)
    assert (found != np.arange(1, 121)[:, None]).all()


def test_an_index_is_kept_and_made_anew_where_it_is_damaged(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = folder(protein_like(100))
    made: list[str] = []
    build = approximate._build
    monkeypatch.setattr(approximate, "_build", lambda *arguments: made.append(arguments[4]) or build(*arguments))
    arguments = ("--input", database, database, "--output", tmp_path / "hits.tsv", "--index")
    for index in ("ivf", "ivf", "hnsw", "binary", "binary", "ivf"):
        assert run(*arguments, index).status == 0
    assert made == ["ivf", "hnsw", "binary"]
    before = (tmp_path / "hits.tsv").read_text()
    (kept,) = (database / ".search").glob("ivf-*.faiss")
    kept.write_bytes(kept.read_bytes()[:100])
    assert run(*arguments, "ivf").status == 0
    assert made == ["ivf", "hnsw", "binary", "ivf"]
    assert (tmp_path / "hits.tsv").read_text() == before


def test_an_index_that_cannot_be_kept_is_said_and_used(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    database = folder(protein_like(40))
    (tmp_path / "file").write_text("")
    arguments = ("--input", database, database, "--output", tmp_path / "hits.tsv")
    outcome = run(*arguments, "--index", "ivf", "--cache", tmp_path / "file" / "cache")
    assert outcome.status == 0
    assert "the index cannot be kept in" in outcome.stderr
    assert (tmp_path / "hits.tsv").exists()


def test_as_many_lists_are_searched_as_the_neighbours_need(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    """One list of seven was, and most queries had fewer than k hits."""
    rows = protein_like(300)
    database = folder(rows)
    arguments = ("--input", database, database, "--index", "ivf", "--output", tmp_path / "hits.tsv")
    outcome = run(*arguments, "--neighbours", 60)
    assert "fewer than" not in outcome.stdout
    np.testing.assert_array_equal(records_found(tmp_path / "hits.tsv", 60), by_hand(rows, rows, 60, "cosine", True))
    assert told(outcome) == (100, 1, 1)


@pytest.mark.parametrize(("index", "count"), [("ivf", 1500), ("hnsw", 3000)])
def test_the_labelled_are_found_however_few_they_are(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, index: str, count: int
) -> None:
    """They are in none of the lists that are searched first, nor in that part of the graph."""
    rows, queries = protein_like(count), protein_like(20, seed=1)
    places = np.array([5, count // 2, count - 100])
    (tmp_path / "few.tsv").write_text("".join(f"r{place + 1}\tx\n" for place in places))
    outcome = run(
        *("--input", folder(queries, "queries"), folder(rows), "--index", index, "--neighbours", 3),
        *("--labels", tmp_path / "few.tsv", "--output", tmp_path / "hits.tsv"),
    )
    assert "fewer than" not in outcome.stdout
    expected = places[by_hand(queries, rows[places], 3, "cosine") - 1] + 1
    np.testing.assert_array_equal(records_found(tmp_path / "hits.tsv", 3), expected)


def test_queries_that_an_index_serves_ill_are_compared_with_every_row(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where no link of a graph leads to some of its rows: here nothing but one list is looked at."""
    monkeypatch.setattr(approximate.ApproximateIndex, "_efforts", lambda *_: iter([1]))
    rows = protein_like(300)
    database = folder(rows)
    arguments = ("--input", database, database, "--index", "ivf", "--neighbours", 60)
    run(*arguments, "--output", tmp_path / "hits.tsv")
    np.testing.assert_array_equal(records_found(tmp_path / "hits.tsv", 60), by_hand(rows, rows, 60, "cosine", True))


def test_recall_is_of_queries_that_have_a_neighbour(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The only labelled protein has none, and so nothing was missed."""
    database = folder(protein_like(40))
    (tmp_path / "one.tsv").write_text("r7\tx\n")
    arguments = ("--input", database, database, "--index", "ivf", "--neighbours", 1)
    outcome = run(*arguments, "--labels", tmp_path / "one.tsv", "--output", tmp_path / "hits.tsv")
    assert told(outcome) == (39, 1, 1)

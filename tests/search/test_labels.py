"""Label transfer: reliabilities by the published formula, of the labelled neighbours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.search.labels import transfer
from tests.search.conftest import Outcome, protein_like, read_hits

NAMES = st.lists(st.sampled_from("ABCDE"), unique=True).map(tuple)


def test_one_neighbour_gives_its_labels_half_over_half_plus_distance() -> None:
    (prediction,) = transfer([(0.5, ("GO:1",))], 1)
    assert (prediction.label, prediction.reliability, prediction.neighbours) == ("GO:1", 0.5, 1)
    assert transfer([(0.0, ("GO:1",))], 1)[0].reliability == 1


@given(st.lists(st.tuples(st.floats(0, 100), NAMES), max_size=8), st.integers(8, 10))
def test_over_k_neighbours_it_is_the_mean_of_those_that_have_the_label(
    neighbours: list[tuple[float, tuple[str, ...]]], k: int
) -> None:
    """Over those that were asked for: where fewer were found, what they say is not worth more for it."""
    predictions = {one.label: one for one in transfer(neighbours, k)}
    assert predictions.keys() == {label for _, labels in neighbours for label in labels}
    for label, prediction in predictions.items():
        # Littmann et al. 2021: RI = 1/k sum over the hits with the label of 0.5 / (0.5 + d), as a matrix product here.
        has = np.array([label in labels for _, labels in neighbours])
        expected = has @ (1 / (1 + 2 * np.array([distance for distance, _ in neighbours]))) / k
        assert prediction.reliability == pytest.approx(expected, rel=1e-12)
        assert prediction.neighbours == has.sum()
    order = [(-one.reliability, one.label) for one in transfer(neighbours, k)]
    assert order == sorted(order)


def test_labels_in_another_encoding_are_written(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "labels.tsv").write_bytes("r1\tprotéine\n".encode("latin-1"))
    database = folder(protein_like(2))
    arguments = ("--input", database, database, "--labels", tmp_path / "labels.tsv", "--neighbours", 1)
    for suffix in (".tsv", ".parquet"):
        assert run(*arguments, "--output", tmp_path / f"hits{suffix}").status == 0
    assert pq.read_table(tmp_path / "hits.parquet")["labels"].to_pylist() == [None, ["prot\\xe9ine"]]


def test_a_query_without_a_neighbour_is_named_and_has_a_row(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The one labelled protein of a database that is searched against itself."""
    (tmp_path / "labels.tsv").write_text("r2\tx\n")
    database = folder(protein_like(5))
    arguments = ("--input", database, database, "--labels", tmp_path / "labels.tsv", "--neighbours", 1)
    outcome = run(*arguments, "--output", tmp_path / "hits.tsv")
    assert "5 queries against 1 proteins: 4 hits" in outcome.stdout
    assert "fewer than 1 hits for 1 queries ('r2'), none at all for 1 ('r2')" in outcome.stdout
    hits = read_hits(tmp_path / "hits.tsv")
    assert hits["query_id"] == ["r1", "r2", "r3", "r4", "r5"]
    assert [hits[name][1] for name in ("rank", "record", "id", "similarity", "labels")] == [""] * 5
    given_labels = read_hits(tmp_path / "hits.labels.tsv")
    assert given_labels["query_id"] == hits["query_id"]
    assert [given_labels[name][1] for name in ("label", "reliability", "neighbours")] == ["", "", "0"]
    # With k of 2 each of the others has one neighbour of two.
    outcome = run(*arguments[:-1], 2, "--output", tmp_path / "hits.parquet")
    assert "fewer than 2 hits for 5 queries ('r1', 'r2', 'r3', ...), none at all for 1 ('r2')" in outcome.stdout
    assert pq.read_table(tmp_path / "hits.parquet")["rank"].to_pylist() == [1, None, 1, 1, 1]
    reliabilities = pq.read_table(tmp_path / "hits.labels.parquet")["reliability"].to_pylist()
    assert max(one for one in reliabilities if one is not None) <= 0.5


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_search_gives_each_query_the_labels_of_its_labelled_neighbours(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, metric: str
) -> None:
    rows, queries = protein_like(40), protein_like(6, seed=1)
    having = np.arange(40) % 3 != 0  # rows 1, 4, 7, ... have no label
    labels = {f"r{row + 1}": ("even" if row % 2 == 0 else "odd", f"n{row}") for row in np.flatnonzero(having)}
    lines = [f"{name}\t{';'.join(each)}\n" for name, each in labels.items()]
    (tmp_path / "labels.tsv").write_text("".join([*lines, "stranger\tx\n"]))
    outcome = run(
        *("--input", folder(queries, "queries"), folder(rows), "--metric", metric, "--neighbours", 3),
        *("--labels", tmp_path / "labels.tsv", "--output", tmp_path / "hits.parquet"),
    )
    assert outcome.status == 0
    assert "14 of 40 proteins have no label and are left out ('r1', 'r4', 'r7', ...)" in outcome.stderr
    assert "1 labelled ids are not in the database ('stranger')" in outcome.stderr

    one, other = queries.astype(np.float64), rows[having].astype(np.float64)
    distance = np.linalg.norm(one[:, None] - other[None], axis=-1)
    if metric == "cosine":
        distance = 1 - (one @ other.T) / np.outer(np.linalg.norm(one, axis=1), np.linalg.norm(other, axis=1))
    nearest = np.argsort(distance, axis=1)[:, :3]
    hits = pq.read_table(tmp_path / "hits.parquet")
    records = np.array(hits["record"]).reshape(-1, 3)
    np.testing.assert_array_equal(records, np.flatnonzero(having)[nearest] + 1)
    assert hits["labels"].to_pylist() == [list(labels[name]) for name in hits["id"].to_pylist()]

    given_labels = pq.read_table(tmp_path / "hits.labels.parquet").to_pylist()
    for query in range(6):
        expected: dict[str, float] = {}
        for row, far in zip(records[query], distance[query, nearest[query]], strict=True):
            for label in labels[f"r{row}"]:
                expected[label] = expected.get(label, 0) + 0.5 / (0.5 + far) / 3
        mine = {row["label"]: row["reliability"] for row in given_labels if row["query_record"] == query + 1}
        # Distances are written in float32.
        assert mine == pytest.approx(expected, abs=1e-6)


def test_text_files_join_labels(run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("r1\ta;b\nr2\tc\n")
    database = folder(protein_like(2))
    arguments = ("--input", database, database, "--labels", tmp_path / "labels.tsv")
    assert run(*arguments, "--neighbours", 1, "--output", tmp_path / "hits.tsv").status == 0
    assert read_hits(tmp_path / "hits.tsv")["labels"] == ["c", "a;b"]
    assert read_hits(tmp_path / "hits.labels.tsv")["label"] == ["c", "a", "b"]


def test_labels_of_no_protein_get_a_sentence(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "labels.tsv").write_text("P12345\tx\n")
    database = folder(protein_like(9))
    arguments = ("--input", database, database, "--labels", tmp_path / "labels.tsv")
    outcome = run(*arguments, "--output", tmp_path / "hits.tsv")
    assert outcome.status == 1
    assert "labels none of the 9 proteins" in outcome.stderr
    assert "'P12345', the first protein's is 'r1'" in outcome.stderr
    assert not (tmp_path / "hits.tsv").exists()

"""The command: folders and sequences in, a table of hits out; what does not fit together gets a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rd_hf.embedding.folder import OutputFolder
from rd_hf.search import database as database_module
from rd_hf.search import job
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


def test_hits_are_rows_with_rank_and_score(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    rows, queries = protein_like(30), protein_like(4, seed=1)
    database, asked = folder(rows), folder(queries, "queries", ids=["q|1", "q/2", "q\t3", "q4"])
    said = run("--input", asked, database, "--neighbours", 2, "--output", tmp_path / "deep" / "hits.parquet")
    assert said.status == 0
    assert "4 queries against 30 proteins: 8 hits, cosine at level L" in said.stdout
    hits = pq.read_table(tmp_path / "deep" / "hits.parquet")
    assert hits.column_names == ["query_record", "query_id", "rank", "record", "id", "similarity", "level"]
    assert hits["query_record"].to_pylist() == [1, 1, 2, 2, 3, 3, 4, 4]
    assert hits["query_id"].to_pylist()[::2] == ["q|1", "q/2", "q\t3", "q4"]
    assert hits["rank"].to_pylist() == [1, 2] * 4
    records = np.array(hits["record"]).reshape(-1, 2)
    np.testing.assert_array_equal(records, by_hand(queries, rows, 2, "cosine"))
    assert hits["id"].to_pylist() == [f"r{record}" for record in records.ravel()]
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)[records - 1]
    expected = (queries[:, None] * rows[records - 1]).sum(-1) / lengths
    np.testing.assert_allclose(np.array(hits["similarity"]).reshape(-1, 2), expected, rtol=1e-6)
    assert set(hits["level"].to_pylist()) == {"L"}


@pytest.mark.parametrize("suffix", ["tsv", "csv"])
def test_text_is_text(run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, suffix: str) -> None:
    database = folder(protein_like(3))
    output = tmp_path / f"hits.{suffix}"
    assert run("--input", database, database, "--metric", "euclidean", "--output", output).status == 0
    lines = output.read_text().splitlines()
    between = "\t" if suffix == "tsv" else ","
    assert lines[0] == between.join(["query_record", "query_id", "rank", "record", "id", "distance", "level"])
    assert len(lines) == 1 + 3 * 2, "each has two others"
    assert lines[1].startswith(between.join(["1", "r1", "1", ""]))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("level", ["S", "L"])
def test_a_database_against_itself_leaves_its_own_rows_out(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, metric: str, level: str
) -> None:
    rows = protein_like(60)
    rows[40] = rows[3]
    database = folder(rows)
    arguments = ("--input", database, database, "--metric", metric, "--level", level, "--neighbours", 5)
    assert run(*arguments, "--output", tmp_path / "hits.tsv").status == 0
    cut = rows[:, : DIMS[level]]
    found = records_found(tmp_path / "hits.tsv", 5)
    np.testing.assert_array_equal(found, by_hand(cut, cut, 5, metric, itself=True))
    assert (found[3, 0], found[40, 0]) == (41, 4), "an equal protein of another record is a neighbour"


def test_memory_is_bounded_whatever_is_searched(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = protein_like(50)
    database = folder(rows)
    sizes: dict[str, list[int]] = {"database": [], "queries": []}
    nearest = job.nearest

    def watched(blocks, queries, *more):  # type: ignore[no-untyped-def]
        def each():  # type: ignore[no-untyped-def]
            for block in blocks:
                sizes["database"].append(len(block.records))
                yield block

        sizes["queries"].append(len(queries))
        return nearest(each(), queries, *more)

    monkeypatch.setattr(job, "nearest", watched)
    monkeypatch.setattr(database_module, "CHUNK_BYTES", 5 * 4 * 32)
    monkeypatch.setattr(job, "_QUERIES", 11)
    run("--input", database, database, "--output", tmp_path / "hits.tsv")
    assert max(sizes["database"]) == 5
    assert sizes["queries"] == [11, 11, 11, 11, 6]
    np.testing.assert_array_equal(records_found(tmp_path / "hits.tsv", 10), by_hand(rows, rows, 10, "cosine", True))


def test_a_normalised_folder_is_searched_by_its_first_dimensions_too(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    rows = protein_like(40)
    whole = folder(rows / np.linalg.norm(rows, axis=1, keepdims=True), normalize=True)
    arguments = ("--input", whole, whole, "--metric", "euclidean", "--neighbours", 4)
    assert run(*arguments, "--level", "S", "--output", tmp_path / "hits.tsv").status == 0
    cut = rows[:, :8] / np.linalg.norm(rows[:, :8], axis=1, keepdims=True)
    np.testing.assert_array_equal(records_found(tmp_path / "hits.tsv", 4), by_hand(cut, cut, 4, "euclidean", True))
    distances = np.array(read_hits(tmp_path / "hits.tsv")["distance"], dtype=float)
    expected = np.sort(np.linalg.norm(cut[:, None] - cut[None], axis=-1), axis=1)[:, 1:5].ravel()
    # Float32 of vectors of length one, normalised twice.
    np.testing.assert_allclose(distances, expected, atol=1e-6)


def test_sequences_are_embedded_as_the_database_was(
    run: Callable[..., Outcome], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    random_proteins(tmp_path / "all.fasta", 12)
    sequences = random_proteins(tmp_path / "q.fasta", 3, seed=1)
    (tmp_path / "q.fasta").open("a").write(">bad\nMK*T\n")
    database = embed(tiny_checkpoint, tmp_path / "all.fasta", tmp_path / "db", "--pooling", "max")
    queries = embed(tiny_checkpoint, tmp_path / "q.fasta", tmp_path / "q", "--pooling", "max")
    said = run("--input", tmp_path / "q.fasta", database, "--output", tmp_path / "a.tsv")
    assert said.status == 0, said.stderr
    assert "1 records could not be embedded and have no hits, the first of them record 4 (bad): stop" in said.stderr
    assert run("--input", queries, database, "--output", tmp_path / "b.tsv").status == 0
    assert (tmp_path / "a.tsv").read_text() == (tmp_path / "b.tsv").read_text()
    assert len(read_hits(tmp_path / "a.tsv")["id"]) == 10 * len(sequences)


def change_manifest(path: Path, **fields: object) -> None:
    """Replace fields of a folder's manifest."""
    folder = OutputFolder(path)
    folder.write_manifest({**(folder.manifest() or {}), **fields})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--level", "XL"), "synthetic has no level 'XL'; its levels are S, M, L"),
        (("--shortlist-level", "S"), "a funnel needs both --shortlist-level and --shortlist"),
        (("--shortlist", 20), "a funnel needs both --shortlist-level and --shortlist"),
        (("--shortlist-level", "L", "--shortlist", 20), "--shortlist-level L is not smaller than level L"),
        (
            ("--shortlist-level", "S", "--shortlist", 5),
            "--shortlist 5 holds fewer candidates than --neighbours 10 asks for",
        ),
        (("--label-column", "x"), "no --labels"),
        (("--labels", "absent.tsv"), "absent.tsv: no such file"),
        (("--model", "absent/model"), "absent/model is neither here nor complete in the cache"),
    ],
)
def test_choices_that_do_not_fit_get_a_sentence(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, more: tuple[object, ...], says: str
) -> None:
    database = folder(protein_like(20))
    outcome = run("--input", database, database, "--output", tmp_path / "hits.tsv", *more)
    assert outcome.status == 1
    assert outcome.stderr.startswith("rd-hf search: error: ")
    assert says in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert not (tmp_path / "hits.tsv").exists()


def test_folders_that_cannot_be_searched_get_a_sentence(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    queries = folder(protein_like(3), "queries")

    def says(database: Path, *more: object) -> str:
        outcome = run("--input", queries, database, "--output", tmp_path / "hits.tsv", *more)
        assert outcome.status == 1
        (sentence,) = outcome.stderr.splitlines()
        return sentence

    assert "is no folder of embeddings" in says(tmp_path / "absent")
    database = folder(protein_like(9), "residues", pooling="residue")
    assert "pooling 'residue', many rows a protein" in says(database)
    database = folder(protein_like(9), "other", fingerprint="commit:other")
    assert "embeddings of two models cannot be compared" in says(database)
    database = folder(protein_like(9), "max", pooling="max")
    assert "was made with pooling max" in says(database)
    database = folder(protein_like(9), "unit", normalize=True)
    assert "was made with normalize True" in says(database, "--metric", "euclidean")
    database = folder(protein_like(9), "running")
    change_manifest(database, status="running")
    assert "is not finished: give its embed command again" in says(database)
    change_manifest(database, status="complete", job={})
    assert "is not as an embedding job writes it" in says(database)
    database = folder(protein_like(9), "short")
    (database / "embeddings-000001.parquet").write_bytes(b"")
    assert "embeddings-000001.parquet is missing or not as it was written" in says(database)
    database = folder(protein_like(9), "noise")
    noise = database / "embeddings-000001.parquet"
    noise.write_bytes(bytes(noise.stat().st_size))
    assert "is missing or not as it was written" in says(database)
    database = folder(protein_like(9), "named")
    assert "cannot be compared, so give --model" in says(database, "--model", tiny_checkpoint)
    database = folder(protein_like(9)[:, :8], "small")
    assert "holds levels up to S, not L: give --shortlist N" in says(database, "--level", "L")
    assert "must end in one of .parquet, .tsv, .csv" in says(database, "--output", tmp_path / "hits.xls")


def test_queries_that_lack_a_level_get_a_sentence(
    run: Callable[..., Outcome], folder: Callable[..., Path], tmp_path: Path
) -> None:
    database, small = folder(protein_like(9)), folder(protein_like(3)[:, :8], "small")
    arguments = ("--input", small, database, "--output", tmp_path / "hits.tsv")
    outcome = run(*arguments, "--level", "L")
    assert outcome.status == 1
    assert "holds levels up to S, not L: embed the queries with --level L" in outcome.stderr
    assert run(*arguments).status == 0
    assert set(read_hits(tmp_path / "hits.tsv")["level"]) == {"S"}


def test_another_revision_of_the_model_is_refused(run: Callable[..., Outcome], tmp_path: Path) -> None:
    model = tmp_path / "model"
    random_model([16, 32]).save_pretrained(model)
    random_proteins(tmp_path / "all.fasta", 5)
    database = embed(model, tmp_path / "all.fasta", tmp_path / "db")
    random_model([16, 32], seed=1).save_pretrained(model)
    arguments = ("--input", tmp_path / "all.fasta", database, "--output", tmp_path / "hits.tsv")
    outcome = run(*arguments)
    assert outcome.status == 1
    assert "embeddings of two models cannot be compared" in outcome.stderr
    model.rename(tmp_path / "moved")
    outcome = run(*arguments)
    assert outcome.status == 1
    assert "say with --model where it is now" in outcome.stderr

"""Progressive search: equal to the large level's search among the shortlisted, each protein computed once, ever."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rd_hf.search import progressive
from tests.conftest import environment, kill
from tests.search.conftest import Outcome, by_hand, embed, random_proteins, records_found


@pytest.fixture
def world(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A folder with all.fasta and q.fasta, ``small`` and ``large`` made of the first, ``q`` of the second."""
    random_proteins(tmp_path / "all.fasta", 40)
    random_proteins(tmp_path / "q.fasta", 5, seed=1)
    embed(tiny_checkpoint, tmp_path / "all.fasta", tmp_path / "small", "--level", "L0")
    embed(tiny_checkpoint, tmp_path / "all.fasta", tmp_path / "large")
    embed(tiny_checkpoint, tmp_path / "q.fasta", tmp_path / "q")
    return tmp_path


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sequences that the large level was computed for, as they are."""
    calls: list[str] = []
    compute = progressive.CandidateEmbedder._compute

    def counted(self: progressive.CandidateEmbedder, sequences: list[str]) -> np.ndarray:
        calls.extend(sequences)
        return compute(self, sequences)

    monkeypatch.setattr(progressive.CandidateEmbedder, "_compute", counted)
    return calls


def vectors(folder: Path) -> np.ndarray:
    """(rows, width) of an embedding folder."""
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file)["embedding"].to_pylist()]
    return np.array(rows)


def arguments(world: Path, *more: object) -> tuple[object, ...]:
    return (
        *("--input", world / "q.fasta", "--database", world / "small", "--level", "L2", "--neighbours", 3),
        *("--shortlist", 8, "--output", world / "hits.tsv", *more),
    )


def expected_hits(world: Path, shortlist: int = 8) -> tuple[np.ndarray, set[int]]:
    """Hits by hand from the folders that hold all levels, and all shortlisted records."""
    queries, large = vectors(world / "q"), vectors(world / "large")
    shortlisted = np.sort(by_hand(queries[:, :32], vectors(world / "small"), shortlist, "cosine"), axis=1)
    best = [
        chosen[by_hand(query[None], large[chosen - 1], 3, "cosine")[0] - 1]
        for query, chosen in zip(queries, shortlisted, strict=True)
    ]
    return np.array(best), set(shortlisted.ravel().tolist())


@pytest.mark.parametrize("queries", ["q.fasta", "q"])
def test_it_finds_what_a_search_at_the_large_level_finds_among_the_shortlisted(
    run: Callable[..., Outcome], world: Path, computed: list[str], queries: str
) -> None:
    outcome = run(*arguments(world), "--input", world / queries)
    assert outcome.status == 0, outcome.stderr
    hits, shortlisted = expected_hits(world)
    np.testing.assert_array_equal(records_found(world / "hits.tsv", 3), hits)
    # The first protein is the last one too: one sequence, one computation.
    sequences = {line for line in (world / "all.fasta").read_text().splitlines() if not line.startswith(">")}
    assert len(computed) == len(set(computed)) == len(shortlisted - {40} if 1 in shortlisted else shortlisted)
    assert set(computed) < sequences
    assert (
        f"level L2 computed for {len(computed)} proteins ({sum(map(len, computed))} residues), 0 from" in outcome.stdout
    )
    assert "recall" not in outcome.stdout


def test_a_shortlist_of_all_is_the_large_levels_search(run: Callable[..., Outcome], world: Path) -> None:
    assert run(*arguments(world, "--shortlist", 40)).status == 0
    whole = by_hand(vectors(world / "q"), vectors(world / "large"), 3, "cosine")
    np.testing.assert_array_equal(records_found(world / "hits.tsv", 3), whole)


def test_the_next_query_pays_for_what_is_new(run: Callable[..., Outcome], world: Path, computed: list[str]) -> None:
    assert run(*arguments(world)).status == 0
    first, again = (world / "hits.tsv").read_text(), len(computed)
    outcome = run(*arguments(world))
    assert (world / "hits.tsv").read_text() == first
    assert len(computed) == again
    assert f"computed for 0 proteins (0 residues), {again} from the cache" in outcome.stdout
    assert run(*arguments(world, "--shortlist", 20)).status == 0
    assert len(computed) == len(set(computed)) > again
    files = [path.name for path in (world / "small" / ".search").rglob("*.parquet")]
    assert all(set(name.removesuffix(".parquet")) <= set("0123456789abcdef") for name in files)


def test_killed_it_goes_on_after_its_last_chunk(run: Callable[..., Outcome], world: Path, computed: list[str]) -> None:
    cache = world / "cache"
    # A process of its own, slowed down, in chunks of a protein, killed once it has kept some.
    code = (
        "import sys, time; from rd_hf.search import progressive as p; from rd_hf.commands.search import main\n"
        "p.CHUNK_RESIDUES = 1; keep = p.CandidateEmbedder._keep\n"
        "p.CandidateEmbedder._keep = lambda *a: (keep(*a), time.sleep(0.2))\n"
        "main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments(world, "--cache", cache, "--input", world / "q"))]
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    # One pattern a folder: hidden folders of files that are being written come and go.
    while len(list(cache.glob("*/*.parquet"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    kill(process)
    kept = len(list(cache.rglob("*.parquet")))
    assert not (world / "hits.tsv").exists()
    outcome = run(*arguments(world, "--cache", cache))
    hits, _ = expected_hits(world)
    np.testing.assert_array_equal(records_found(world / "hits.tsv", 3), hits)
    assert f", {kept} from the cache" in outcome.stdout
    assert computed
    rest = len(computed)
    computed.clear()
    assert run(*arguments(world)).status == 0
    assert len(computed) == rest + kept, "nothing was computed twice"


@pytest.mark.parametrize("pooling", ["max", "cls"])
def test_other_poolings_and_normalised_folders(
    run: Callable[..., Outcome], world: Path, tiny_checkpoint: Path, pooling: str
) -> None:
    more = ("--pooling", pooling, "--normalize")
    database = embed(tiny_checkpoint, world / "all.fasta", world / "small-2", "--level", "L0", *more)
    large = embed(tiny_checkpoint, world / "all.fasta", world / "large-2", *more)
    outcome = run(*arguments(world, "--database", database, "--shortlist", 40, "--metric", "euclidean"))
    assert outcome.status == 0, outcome.stderr
    queries = embed(tiny_checkpoint, world / "q.fasta", world / "q-2", *more)
    whole = by_hand(vectors(queries), vectors(large), 3, "euclidean")
    np.testing.assert_array_equal(records_found(world / "hits.tsv", 3), whole)


def test_other_sequences_than_those_that_were_embedded_are_refused(run: Callable[..., Outcome], world: Path) -> None:
    lines = (world / "all.fasta").read_text().splitlines()

    def says(text: list[str]) -> str:
        (world / "all.fasta").write_text("\n".join(text) + "\n")
        outcome = run(*arguments(world, "--shortlist", 40))
        assert outcome.status == 1
        (sentence,) = outcome.stderr.splitlines()
        assert "was made from with --database-input, or embed again" in sentence
        return sentence

    # One residue of one protein, in its middle: the id and the length are as before.
    sequence = lines[13]
    other = sequence[:10] + ("A" if sequence[10] != "A" else "G") + sequence[11:]
    assert "record 7 has another sequence there than in" in says([*lines[:13], other, *lines[14:]])
    assert "record 7 is 'p7' of" in says([*lines[:13], sequence + "A", *lines[14:]])
    assert "record 7 is 'p8' of" in says([*lines[:12], *lines[14:]])
    assert "record 40 is not in" in says(lines[:-2])
    (world / "all.fasta").rename(world / "moved.fasta")
    outcome = run(*arguments(world))
    assert outcome.status == 1
    assert "all.fasta is not there" in outcome.stderr
    (world / "moved.fasta").write_text("\n".join(lines) + "\n")
    assert run(*arguments(world, "--database-input", world / "moved.fasta")).status == 0


def test_a_damaged_cache_gets_a_sentence(run: Callable[..., Outcome], world: Path) -> None:
    assert run(*arguments(world)).status == 0
    for path in (world / "small" / ".search").rglob("*.parquet"):
        path.write_bytes(b"PAR1")
    outcome = run(*arguments(world))
    assert outcome.status == 1
    assert "is damaged" in outcome.stderr
    assert "delete it, it will be computed again" in outcome.stderr

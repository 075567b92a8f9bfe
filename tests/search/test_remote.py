"""A folder that was published is searched where it is: in ranges, kept in the cache, and never in damaged ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.conftest import Outcome
from tests.hub.local import hub_here
from tests.hub.server import FakeHub, Fault, digest_of, weights_sent
from tests.search import test_bytes
from tests.search.conftest import DIMS, protein_like, write_folder

URL = "hf://datasets/me/proteins"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    with hub_here(tmp_path / "home") as hub:
        yield hub


@pytest.fixture
def published(tmp_path: Path, hub: FakeHub) -> Path:
    """A folder in blocks, three files of a thousand rows, here and on the Hub."""
    files = (protein_like(1000, DIMS["L"], seed) for seed in range(3))
    folder = write_folder(tmp_path / "database", files, DIMS, layout="blocks")
    hub.add("datasets/me/proteins", folder)
    return folder


@pytest.fixture
def search(run: Callable[..., Outcome], tmp_path: Path) -> Callable[[object], tuple[Outcome, bytes]]:
    """Search a database at the middle level: what came of it, and the hits."""
    queries = write_folder(tmp_path / "queries", iter([protein_like(20, DIMS["L"], 9)]), DIMS)

    def call(database: object) -> tuple[Outcome, bytes]:
        output = tmp_path / "hits.tsv"
        output.unlink(missing_ok=True)
        done = run("--input", queries, database, "--level", "M", "--k", 5, "--output", output)
        return done, output.read_bytes() if output.exists() else b""

    return call


def object_of(folder: Path, index: int) -> str:
    """Name of a part's content on the Hub."""
    return digest_of((folder / f"embeddings-{index:06d}.parquet").read_bytes())


def test_a_small_level_is_fetched_by_its_share_of_the_bytes_and_once(
    run: Callable[..., Outcome], tmp_path: Path, hub: FakeHub
) -> None:
    dims, rows = test_bytes.DIMS, test_bytes.ROWS
    queries = write_folder(tmp_path / "queries", test_bytes.files(20, 1), dims)
    plain = write_folder(tmp_path / "plain", test_bytes.files(rows, 0), dims)
    hub.add("datasets/me/proteins", write_folder(tmp_path / "blocks", test_bytes.files(rows, 0), dims, layout="blocks"))
    found = []
    for place in (plain, URL, URL):
        start, output = len(hub.log), tmp_path / "hits.tsv"
        assert run("--input", queries, place, *test_bytes.SETTINGS, "--output", output).status == 0
        found.append((output.read_bytes(), weights_sent(hub.log[start:]), hub.log[start:]))
    (here, none, _), (first, sent, _), (second, again, asked) = found
    assert first == second == here
    share = 4 * dims["0.3M"] * rows
    assert none == 0
    assert share < sent <= 1.05 * share
    # The commit alone is asked for.
    assert again == 0
    assert {request.path for request in asked} <= {
        "/api/datasets/me/proteins",
        "/api/datasets/me/proteins/revision/main",
    }


def test_a_connection_that_ends_in_the_middle_is_taken_up_again(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]]
) -> None:
    expected = search(published)[1]
    hub.faults = [Fault("GET", "/cdn/", "cut", times=3), Fault("GET", "/resolve/", "status", times=1)]
    done, hits = search(URL)
    assert done.status == 0, done.stderr
    assert hits == expected
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_a_file_that_is_cut_short_gives_a_sentence(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]]
) -> None:
    repo = hub.repos["datasets/me/proteins"]
    content = repo.commits[repo.refs["main"]]["embeddings-000001.parquet"][:-100]
    repo.commits[repo.refs["main"]]["embeddings-000001.parquet"] = content
    done, hits = search(URL)
    assert (done.status, hits) == (1, b"")
    assert "embeddings-000001.parquet has" in done.stderr
    assert "cut short" in done.stderr


@pytest.mark.parametrize("times", [1, 9])
def test_the_bytes_of_a_range_are_all_there_or_none_is_used(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]], times: int
) -> None:
    """Answers with half of what was asked for, which say that it is all: once, and each time."""
    expected = search(published)[1]
    # Of a column, of which a part would do for some rows.
    hub.faults = [Fault("GET", f"/cdn/{object_of(published, 1)}", "short", times=times)]
    done, hits = search(URL)
    if times == 1:
        assert (done.status, hits) == (0, expected)
    else:
        assert (done.status, hits) == (1, b"")
        assert "embeddings-000001.parquet cannot be read" in done.stderr


def place_of(folder: Path, column: str) -> int:
    """Where the middle of a column lies in the second file."""
    chunk = pq.read_metadata(folder / "embeddings-000001.parquet").row_group(0)
    paths = [chunk.column(leaf) for leaf in range(chunk.num_columns)]
    (one,) = (leaf for leaf in paths if leaf.path_in_schema.startswith(column))
    return one.data_page_offset + one.total_compressed_size // 2


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def test_a_damaged_page_gives_a_sentence_and_one_of_another_level_nothing(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]]
) -> None:
    expected, name = search(published)[1], object_of(published, 1)
    whole = hub.objects[name]
    hub.objects[name] = flipped(whole, place_of(published, "block_L"))
    assert search(URL)[1] == expected
    hub.add("datasets/me/again", published)
    hub.objects[name] = flipped(whole, place_of(published, "block_S"))
    done, hits = search("hf://datasets/me/again")
    assert (done.status, hits) == (1, b"")
    assert "embeddings-000001.parquet is not as it was written" in done.stderr
    # What was kept of it is gone, so that the same command finds it mended.
    hub.objects[name] = whole
    assert search("hf://datasets/me/again")[1] == expected


def test_what_was_damaged_in_the_cache_is_fetched_anew(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]], tmp_path: Path
) -> None:
    expected = search(URL)[1]
    (kept,) = (tmp_path / "home").rglob("embeddings-000001.parquet.part")
    kept.write_bytes(flipped(kept.read_bytes(), place_of(published, "block_S")))
    done, hits = search(URL)
    assert (done.status, hits) == (1, b"")
    assert "give the same command again" in done.stderr
    assert search(URL)[1] == expected


def test_a_kill_while_a_range_is_kept_costs_that_range_alone(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]], tmp_path: Path
) -> None:
    expected = search(URL)[1]
    (noted,) = (tmp_path / "home").rglob("embeddings-000001.parquet.ranges")
    lines = noted.read_text()
    # The last line was not written to its end, and names other bytes.
    noted.write_text(lines[:-2])
    start = len(hub.log)
    assert search(URL)[1] == expected
    first, beyond = map(int, lines.split()[-2:])
    assert weights_sent(hub.log[start:]) == beyond - first


def test_what_moves_on_is_seen_and_a_commit_that_is_named_stays(
    hub: FakeHub, published: Path, search: Callable[..., tuple[Outcome, bytes]], tmp_path: Path
) -> None:
    before = search(URL)[1]
    commit = hub.repos["datasets/me/proteins"].refs["main"]
    other = write_folder(tmp_path / "other", iter([protein_like(500, DIMS["L"], 77)]), DIMS, layout="blocks")
    hub.add("datasets/me/proteins", other)
    assert search(URL)[1] == search(other)[1] != before
    start = len(hub.log)
    assert search(f"{URL}@{commit}")[1] == before
    # Of what is named by a commit and lies in the cache, the Hub is not asked.
    assert hub.log[start:] == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/me/nothing", "is not there, or not for everybody: check the name, or log in (hf auth login"),
        ("hf://datasets/me/hidden", "is not there, or not for everybody: check the name, or log in (hf auth login"),
        ("hf://datasets/me/proteins/deeper", "is no folder of embeddings (it holds no _manifest.json)"),
        (f"{URL}@nothing", "revision not found"),
    ],
)
def test_what_is_not_there_is_a_sentence(
    hub: FakeHub,
    published: Path,
    search: Callable[..., tuple[Outcome, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    words: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    hub.add("datasets/me/hidden", published, private=True)
    done, hits = search(url)
    assert (done.status, hits) == (1, b"")
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1

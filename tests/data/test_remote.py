"""Inputs that lie elsewhere: read as files here are, taken up again where a connection broke, never cut short."""

from __future__ import annotations

import gzip
import importlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from rd_hf.data import remote
from rd_hf.data.records import InputError
from rd_hf.data.sources import check_sources, read_records
from tests.hub.local import hub_here
from tests.hub.server import FakeHub, Fault

FILES = ("p.fasta", "p.fasta.gz", "p.csv", "deeper/p.csv.gz", "p.parquet")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[FakeHub]:
    """A Hub with the same proteins in each format; larger than what is fetched at once."""
    draw = random.Random(0)
    rows = [(f"p{number}", "".join(draw.choices("LAGVSERTIDPKQNFYMHWC", k=400))) for number in range(13_500)]
    fasta = "".join(f">{name}\n{letters}\n" for name, letters in rows).encode()
    table = "\n".join(["id,sequence", *map(",".join, rows)]).encode()
    folder = tmp_path / "files"
    (folder / "deeper").mkdir(parents=True)
    contents = (fasta, gzip.compress(fasta, 1), table, gzip.compress(table, 1))
    for name, content in zip(FILES, contents, strict=False):
        (folder / name).write_bytes(content)
    pq.write_table(pa.table({"id": [a for a, _ in rows], "sequence": [b for _, b in rows]}), folder / FILES[-1])
    with hub_here(tmp_path / "home") as hub:
        hub.add("datasets/me/proteins", folder)
        yield hub


def read(source: object) -> list[tuple[str, str]]:
    return [(record.id, record.sequence) for record in read_records(str(source))]


def at_hub(name: str) -> str:
    return f"hf://datasets/me/proteins/{name}"


@pytest.mark.parametrize("name", FILES)
def test_each_format_is_read_as_it_is_here(hub: FakeHub, tmp_path: Path, name: str) -> None:
    assert read(at_hub(name)) == read(tmp_path / "files" / name)


@pytest.mark.parametrize("name", ["p.fasta", "p.parquet"])
def test_a_connection_that_ends_in_the_middle_is_taken_up_again(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.faults = [Fault("GET", f"({name}$|/cdn/)", "cut", times=2)]
    assert read(at_hub(name)) == read(tmp_path / "files" / name)
    assert hub.faults[0].times == 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("hf://datasets/me/proteins/q.fasta", "no such file there"),
        ("hf://datasets/me/proteins@dev/p.fasta", "revision not found"),
        ("hf://datasets/me/nothing/p.fasta", "not for everybody: check the name, or log in (hf auth login"),
        ("hf://datasets/me/proteins", "is a folder: give the files in it, for example hf://datasets/me/proteins/p.csv"),
        ("hf://datasets/me/proteins/deeper", "for example hf://datasets/me/proteins/deeper/p.csv.gz"),
        ("ftp://x.org/p.fasta", "fetch it (curl -L -o p.fasta ...)"),
    ],
)
def test_what_is_not_there_is_a_sentence(hub: FakeHub, url: str, words: str) -> None:
    with pytest.raises(InputError) as error:
        check_sources([url])
    assert words in str(error.value)


def test_without_the_library_of_a_store_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match="s3:// is read by s3fs: pip install 's3fs'"):
        check_sources(["s3://bucket/p.fasta"])


class Store(MemoryFileSystem):
    """In place of a store in the cloud, which needs a library and a network."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}
    _strip_protocol = classmethod(lambda cls, path: MemoryFileSystem._strip_protocol(path.removeprefix("s3://")))
    claims = 0  # bytes that each file is said to have beyond those that come

    def _open(self, path: str, *args: Any, **how: Any) -> Any:
        file = super()._open(path, *args, **how)
        if "w" in how.get("mode", "rb") or not Store.claims:
            return file
        return SimpleNamespace(read=file.read, seek=file.seek, tell=file.tell, close=file.close, size=14 + Store.claims)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> None:
    # As one that is installed is known.
    monkeypatch.setitem(importlib.import_module("fsspec.registry")._registry, "s3", Store)
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    Store().pipe_file("/bucket/p.fasta", b">a\nMKTAYIAKQR\n")


@pytest.mark.usefixtures("store")
def test_a_store_is_read() -> None:
    check_sources(["s3://bucket/p.fasta"])
    assert read("s3://bucket/p.fasta") == [("a", "MKTAYIAKQR")]
    assert remote.facts_of("s3://bucket/p.fasta")["bytes"] == 14
    with pytest.raises(InputError, match="no such file there"):
        check_sources(["s3://bucket/q.fasta"])


@pytest.mark.usefixtures("store")
def test_a_file_never_ends_before_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """FASTA has no mark of its end: what breaks off must not pass for the whole."""
    monkeypatch.setattr(Store, "claims", 5)
    with pytest.raises(InputError, match=r"p\.fasta cannot be read \(it ended after 14 of 19 bytes\)"):
        read("s3://bucket/p.fasta")


class TestOfTheWeb:
    """By HTTP, without the Hub's client."""

    @pytest.fixture(autouse=True)
    def library(self) -> None:
        pytest.importorskip("aiohttp")

    @pytest.mark.parametrize("name", FILES)
    def test_each_format_is_read_as_it_is_here(self, hub: FakeHub, tmp_path: Path, name: str) -> None:
        url = f"{hub.endpoint}/datasets/me/proteins/resolve/main/{name}?download=true"
        check_sources([url])
        assert read(url) == read(tmp_path / "files" / name)

    def test_a_connection_that_ends_in_the_middle_is_taken_up_again(self, hub: FakeHub, tmp_path: Path) -> None:
        url = f"{hub.endpoint}/datasets/me/proteins/resolve/main/p.fasta"
        hub.faults = [Fault("GET", "p.fasta", "cut", times=2)]
        assert read(url) == read(tmp_path / "files" / "p.fasta")
        assert hub.faults[0].times == 0

    def test_what_is_not_there_is_a_sentence(self, hub: FakeHub) -> None:
        url = f"{hub.endpoint}/datasets/me/proteins/resolve/main"
        for name, words in (("q.fasta", "no such file there"), ("p.fasta", "cannot be read")):
            hub.faults = [Fault("GET", "p.fasta", "refuse", times=9), Fault("HEAD", "p.fasta", "refuse", times=9)]
            with pytest.raises(InputError, match=words):
                check_sources([f"{url}/{name}"])

    def test_a_change_is_told_by_its_etag(self, hub: FakeHub) -> None:
        url = f"{hub.endpoint}/datasets/me/proteins/resolve/main/p.csv"
        before = remote.facts_of(url)
        files = dict(hub.repos["datasets/me/proteins"].commits[hub.repos["datasets/me/proteins"].refs["main"]])
        files["p.csv"] = files["p.csv"].replace(b"A", b"G")
        hub.repos["datasets/me/proteins"].commit(files)
        now = remote.facts_of(url)
        assert before["bytes"] == now["bytes"]
        assert before["version"] != now["version"]

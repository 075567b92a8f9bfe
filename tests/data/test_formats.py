"""CONTRIBUTING's check-list of an input format, walked: one is added to the table of formats, and read everywhere."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from Bio import SeqIO

from rd_hf.commands.embed import main as embed
from rd_hf.conversion import raw
from rd_hf.data.sources import read_records
from rd_hf.data.streams import open_text
from rd_hf.data.tables import FORMATS, Table, of_rows
from tests.data.table import render
from tests.embedding.conftest import read

PIR = ">P1;p1\nfirst\nMKTAYI AKQR*\n>P1;p2\nsecond\nGAVLIM*\n"


@contextmanager
def pir(source: str | Path, on_read: Callable[[int], None] | None = None, **_: Any) -> Iterator[Table]:
    """A format of NBRF's, by Biopython."""
    with open_text(source, on_read) as handle:
        yield of_rows(source, ({"id": one.id, "sequence": str(one.seq)} for one in SeqIO.parse(handle, "pir")))


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of a format that was added in one place."""
    monkeypatch.setitem(FORMATS, ".pir", pir)
    path = tmp_path / "proteins.PIR.gz"
    path.write_bytes(gzip.compress(PIR.encode()))
    return path


def test_a_format_is_added_in_one_place(source: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    found = [(record.id, record.sequence) for record in read_records(source, on_read=counts.append)]
    assert found == [("p1", "MKTAYIAKQR"), ("p2", "GAVLIM")]
    assert sum(counts) == source.stat().st_size
    assert "`.pir`" in render(), "the page of the formats says it too"
    fasta = tmp_path / "proteins.fasta"
    fasta.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in found))
    for number, path in enumerate((source, fasta)):
        job = ["--model", str(tiny_checkpoint), "--input", str(path), "--output", str(tmp_path / f"out{number}")]
        assert embed([*job, "--quiet"]) == 0
    first, second = (read(tmp_path / f"out{number}") for number in (0, 1))
    assert first["id"].to_pylist() == ["p1", "p2"]
    assert first["embedding"].equals(second["embedding"])


def test_a_format_of_raw_embeddings_is_added_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NpzFile(raw.Raw):
        def __init__(self, path: Path) -> None:
            self.path, self._file = str(path), np.load(path)
            self.ids = self._file.files
            self.width = self._file[self.ids[0]].shape[-1]

        def take(self, places: Any) -> list[np.ndarray]:
            return [self._file[self.ids[place]] for place in places]

    values = np.random.default_rng(0).normal(size=(2, 32)).astype(np.float32)
    np.savez(tmp_path / "a.npz", p1=values[0], p2=values[1])
    monkeypatch.setitem(raw.FORMATS, ".npz", lambda path, **_: [NpzFile(path)])
    (found,) = raw.open_raw(str(tmp_path / "a.npz"), "mean", {}, None, None)
    assert (found.ids, found.width) == (["p1", "p2"], 32)
    assert np.array_equal(found.take([1, 0]), values[::-1])

"""A search at a small level of a folder in blocks reads that level's bytes, counted at the file system."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.embedding import part_file, reader
from tests.search.conftest import Outcome, write_folder

DIMS = {"0.3M": 64, "1.2M": 128, "2.7M": 192}
ROWS = 100_000
SETTINGS = ("--whiten", "none", "--level", "0.3M", "--k", 5)


class CountingFile(io.FileIO):
    """A file that adds up what is read of those in ``folder``."""

    folder: Path
    read_bytes = 0

    def _count(self, size: int) -> None:
        if Path(str(self.name)).parent == CountingFile.folder:
            CountingFile.read_bytes += size

    def readinto(self, buffer: Any) -> int:
        size = super().readinto(buffer)
        self._count(size or 0)
        return size or 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(-1 if size is None else size) or b""
        self._count(len(content))
        return content


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[CountingFile]:
    """Let every file of embeddings be opened so, and not be mapped, which no file system sees."""
    original = pq.ParquetFile

    def opened(path: Path, *, memory_map: bool, **how: Any) -> pq.ParquetFile:
        return original(pa.PythonFile(CountingFile(path), mode="r"), **how)

    monkeypatch.setattr(part_file.pq, "ParquetFile", opened)
    monkeypatch.setattr(reader, "open", lambda path, mode: CountingFile(path), raising=False)
    return CountingFile


def files(rows: int, seed: int) -> Iterator[np.ndarray]:
    """Vectors in files as a job cuts them: small ones first."""
    generator = np.random.default_rng(seed)
    done = 0
    while done < rows:
        count = min(rows - done, max(1024, done // 64))
        yield generator.standard_normal((count, DIMS["2.7M"]), dtype=np.float32)
        done += count


def test_a_small_level_is_searched_by_its_share_of_the_bytes(
    run: Callable[..., Outcome], tmp_path: Path, counted: type[CountingFile]
) -> None:
    queries = write_folder(tmp_path / "queries", files(20, 1), DIMS)
    read = {}
    for layout in ("plain", "blocks"):
        made = {} if layout == "plain" else {"layout": layout}
        database = counted.folder = write_folder(tmp_path / layout, files(ROWS, 0), DIMS, **made)
        counted.read_bytes = 0
        output = tmp_path / f"{layout}.tsv"
        outcome = run("--queries", queries, "--database", database, *SETTINGS, "--output", output)
        assert outcome.status == 0
        read[layout] = counted.read_bytes
        # Beside the columns that are told, footers.
        said = float(outcome.stdout.partition(" MB of the database read")[0].rpartition(" ")[2])
        # Of two digits.
        assert said == pytest.approx(read[layout] / 1e6, rel=0.04)
    assert (tmp_path / "plain.tsv").read_bytes() == (tmp_path / "blocks.tsv").read_bytes()
    share = 4 * DIMS["0.3M"] * ROWS
    assert share < read["blocks"] <= 1.05 * share
    assert read["plain"] > 2.9 * share

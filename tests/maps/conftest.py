"""Embedding folders with embeddings of the test's choice, and the map command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.commands.map import main
from rd_hf.embedding.columns import to_arrow
from rd_hf.embedding.folder import OutputFolder
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.files import file_sha256
from tests.conftest import Outcome, run_here

DIMS = {"S": 4, "M": 8, "L": 12}


@pytest.fixture
def draw(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command."""
    return partial(run_here, main, capsys)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium, for the tests that have one."""
    from tests.maps.browser import start

    started = start(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


def write_folder(
    path: Path,
    vectors: np.ndarray,
    ids: Sequence[str] | None = None,
    dims: dict[str, int] | None = None,
    parts: int = 2,
    descriptions: Sequence[str] | None = None,
    status: str = "complete",
    lengths: bool = True,
    **about: object,
) -> Path:
    """A folder as rd-hf embed leaves it, with these (n, widest) embeddings; that it is one is what
    ``test_what_embed_writes_is_what_is_drawn`` is for."""
    folder = OutputFolder(path)
    folder.claim()
    dims = dims or DIMS
    ids = ids if ids is not None else [f"p{number}" for number in range(len(vectors))]
    described = {
        "model": "owner/model",
        "fingerprint": "sha256:0",
        "levels": [max(dims, key=lambda level: dims[level])],
        "nested_dims": dims,
        "pooling": "mean",
        "normalize": False,
        **about,
    }
    noted = []
    for index, rows in enumerate(np.array_split(np.arange(len(vectors)), parts)):
        table = pa.table(
            {
                "source": pa.array([f"{path}/{'ab'[index % 2]}.fasta"] * len(rows)),
                "record": pa.array(rows + 1, pa.int64()),
                "id": pa.array([ids[row] for row in rows], pa.string()),
                "description": pa.array([descriptions[row] if descriptions else ids[row] for row in rows], pa.string()),
                "length": pa.array(rows + 100, pa.int32(), mask=np.full(len(rows), not lengths)),
                "embedding": to_arrow(list(vectors[rows]), vectors.shape[1], EmbeddingOptions()),
            }
        ).replace_schema_metadata({"rd_hf": json.dumps(described)})
        pq.write_table(table, folder.part_path(index))
        part = folder.part_path(index)
        sizes = {"bytes": part.stat().st_size, "first_record": int(rows[0]) + 1, "records": len(rows)}
        noted.append({"file": part.name, "sha256": file_sha256(part), "written": len(rows), "rejected": 0, **sizes})
    model = {"name": "owner/model", "revision": None, "fingerprint": "sha256:0", "nested_dims": dims}
    columns = {f"{name}_column": None for name in ("sequence", "id", "positions")}
    widest = {"level": described["levels"][0], "width": vectors.shape[1]}
    folder.write_manifest(
        {
            "format": 2,
            "model": model,
            "job": {
                "inputs": ["p.fasta"],
                **{name: described[name] for name in ("levels", "pooling", "normalize")},
                **columns,
            },
            "columns": {"embedding": widest},
            "status": status,
            "parts": noted,
        }
    )
    return folder.path


def clusters(count: int, width: int, number: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(count, width) float32 in clusters, and each row's cluster."""
    generator = np.random.default_rng(seed)
    which = generator.integers(0, number, count)
    centres = 1.5 * generator.standard_normal((number, width))
    return (centres[which] + generator.standard_normal((count, width))).astype(np.float32), which

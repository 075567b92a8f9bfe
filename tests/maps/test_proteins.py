"""Reading a folder: what rd-hf embed wrote, level by level, or one sentence that says why not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.data.records import InputError
from rd_hf.embedding.job import JobSettings, run_job
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.files import file_sha256
from rd_hf.launch import processes
from rd_hf.maps import proteins as module
from rd_hf.maps.proteins import read_proteins
from tests.embedding.conftest import random_fasta
from tests.maps.conftest import DIMS, clusters, write_folder


def embedded(model: Path, folder: Path, **options: object) -> Path:
    """A folder that an embedding job wrote: 12 proteins in three parts."""
    fasta = random_fasta(folder / "proteins.fasta", 12, longest=30)
    settings = JobSettings(
        model=str(model),
        inputs=(str(fasta),),
        output=str(folder / "out"),
        options=EmbeddingOptions(**options),  # type: ignore[arg-type]
        part_records=5,
    )
    run_job(settings, processes(), show_progress=False)
    return folder / "out"


def test_what_embed_writes_is_what_is_drawn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = embedded(tiny_checkpoint, tmp_path)
    found = read_proteins(out)
    rows = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert found.ids == [row["id"] for row in rows]
    assert found.records.tolist() == [row["record"] for row in rows]
    assert found.lengths.tolist() == [row["length"] for row in rows]
    assert found.sources == [row["source"] for row in rows]
    assert found.total == 11  # one of the twelve is rejected
    assert found.levels == {"L0": 32, "L1": 48, "L2": 64}
    whole = np.array([row["embedding"] for row in rows], dtype=np.float32)
    for level, width in found.levels.items():
        assert np.array_equal(found.at(level), whole[:, :width])


def test_normalised_levels_are_those_that_embed_stores(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = embedded(tiny_checkpoint, tmp_path, levels=("L0", "L2"), normalize=True)
    found = read_proteins(out)
    table = [row for path in sorted(out.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    for level in ("L0", "L2"):
        stored = np.array([row[f"embedding_{level}"] for row in table], dtype=np.float32)
        # Dividing twice instead of once: a rounding or two of float32.
        np.testing.assert_allclose(found.at(level), stored, rtol=0, atol=3e-7)


def test_max_pooling_is_drawn(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert read_proteins(embedded(tiny_checkpoint, tmp_path, pooling="max")).pooling == "max"


def test_a_row_a_residue_is_refused_by_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    out = embedded(tiny_checkpoint, tmp_path, pooling="residue")
    with pytest.raises(InputError, match=r"a row a residue .pooling residue.* embed with --pooling mean"):
        read_proteins(out)


def test_levels_asked_for_come_smallest_first_and_alone(tmp_path: Path) -> None:
    vectors, _ = clusters(30, 12)
    found = read_proteins(write_folder(tmp_path / "e", vectors), ["M", "S"])
    assert list(found.levels) == ["S", "M"]
    assert np.array_equal(found.vectors, vectors[:, :8])


def test_a_sample_is_uniform_in_order_and_repeatable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = clusters(500, 12)
    folder = write_folder(tmp_path / "e", vectors, parts=7)
    # Above the limit a sample is the way out.
    monkeypatch.setattr(module, "MOST_PROTEINS", 400)
    with pytest.raises(InputError, match=r"500 proteins, more than the 400 .* --num-sequences"):
        read_proteins(folder)
    found = read_proteins(folder, sample=100, seed=3)
    rows = found.records - 1
    assert len(set(rows.tolist())) == 100
    assert (np.diff(rows) > 0).all()
    assert np.array_equal(found.vectors, vectors[rows])
    assert found.ids == [f"p{row}" for row in rows]
    assert found.total == 500
    assert np.array_equal(read_proteins(folder, sample=100, seed=3).records, found.records)
    assert not np.array_equal(read_proteins(folder, sample=100, seed=4).records, found.records)
    monkeypatch.undo()
    assert len(read_proteins(folder, sample=1000).ids) == 500


def damage_manifest(folder: Path) -> None:
    (folder / "_manifest.json").write_text("{")


def lose_part(folder: Path) -> None:
    (folder / "embeddings-000001.parquet").unlink()


def cut_part(folder: Path) -> None:
    path = folder / "embeddings-000001.parquet"
    path.write_bytes(path.read_bytes()[:-100])


def lose_a_number(folder: Path) -> None:
    """A file that is as the manifest says, but has a row whose record is not known."""
    path = folder / "embeddings-000001.parquet"
    table = pq.read_table(path)
    records = [None, *table["record"].to_pylist()[1:]]
    column = pa.array(records, pa.int64())
    table = table.set_column(table.column_names.index("record"), "record", column)
    pq.write_table(table, path)
    manifest = json.loads((folder / "_manifest.json").read_text())
    manifest["parts"][1] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    (folder / "_manifest.json").write_text(json.dumps(manifest))


def lose_rows(folder: Path) -> None:
    path = folder / "embeddings-000001.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (damage_manifest, "manifest.json is damaged"),
        (lose_part, "embeddings-000001.parquet is missing or not as it was written"),
        (cut_part, "embeddings-000001.parquet is missing or not as it was written"),
        (lose_rows, "embeddings-000001.parquet is missing or not as it was written"),
        (lose_a_number, "embeddings-000001.parquet is not as it was written"),
    ],
)
def test_a_damaged_folder_is_said(tmp_path: Path, damage: object, sentence: str) -> None:
    folder = write_folder(tmp_path / "e", clusters(10, 12)[0])
    read_proteins(folder)
    damage(folder)  # type: ignore[operator]
    with pytest.raises(InputError, match=sentence):
        read_proteins(folder)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    vectors, _ = clusters(10, 12)
    with pytest.raises(InputError, match=r"nowhere is no folder of embeddings"):
        read_proteins(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"is not finished: give its embed command again"):
        read_proteins(write_folder(tmp_path / "a", vectors, status="running"))
    with pytest.raises(InputError, match="holds 2 proteins, and a map needs at least 3"):
        read_proteins(write_folder(tmp_path / "b", vectors[:2]))
    with pytest.raises(InputError, match=f"holds no level 'XL': it holds {', '.join(DIMS)}"):
        read_proteins(write_folder(tmp_path / "c", vectors), ["S", "XL"])
    vectors[7, 3] = np.nan
    with pytest.raises(InputError, match=r"record 8 .p7.: its embedding is not finite"):
        read_proteins(write_folder(tmp_path / "d", vectors))

"""``--output-dtype binary``: the signs of whitened dimensions, eight in a byte, nested as the dimensions are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import rd_hf
from rd_hf.bases.whitening import fit_whitening, moments_of_rows
from rd_hf.commands import convert, export, map, search
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder, EmbeddingOptions
from rd_hf.embedding.columns import to_arrow
from rd_hf.embedding.part_file import write_part
from rd_hf.embedding.quantization import dequantize, quantized
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.storage import columns_of
from rd_hf.fitting import install_whitening
from tests.conftest import TWO_PROCESSES, random_model
from tests.embedding.conftest import Outcome, content_hashes, job_of_ten, parts, read, run_process

Embed = Callable[..., Outcome]
DIMS = {"L0": 32, "L1": 48, "L2": 64}
SIGNS = ("--output-dtype", "binary")


def whitened_model(path: Path, second: int = 16) -> Path:
    """A saved family with statistics to whiten by, whose second block is so wide."""
    model = random_model([32, 48, 64], residual_directions=[second, 16])
    blocks = [32, second, 16]
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((600, sum(blocks))))
    install_whitening(model, fit_whitening(moments_of_rows(rows, blocks), [0.5, 0.5, 1]), of="proteins")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whitened_model(tmp_path_factory.mktemp("whitened"))


@pytest.fixture
def job(embed: Embed, model: Path, tmp_path: Path) -> Callable[..., Path]:
    return job_of_ten(embed, model, tmp_path)


def stored(folder: Path) -> torch.Tensor:
    """(rows, bytes): all columns of vectors, beside each other."""
    table = read(folder)
    names = [name for name in table.column_names if name.startswith(("embedding", "block_"))]
    columns = [np.array(table[name].to_pylist(), np.uint8) for name in names]
    return torch.from_numpy(np.concatenate(columns, axis=1))


def test_signs_are_packed_from_the_highest_bit_on() -> None:
    values = np.array([[0.5, -1, 0, 2, -3, -4, -5, -6, 1e-30, -1, -1, -1, -1, -1, -1, 7]], np.float32)
    packed = quantized(values, "binary")
    assert packed.tolist() == [[0b10010000, 0b10000001]]
    floats = rd_hf.dequantize(packed)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, np.where(values > 0, 1, -1))
    assert dequantize(values) is values
    with pytest.raises(ValueError, match="signs are stored as bytes"):
        dequantize(packed.astype(np.int64))


@pytest.mark.parametrize("layout", ["plain", "blocks"])
def test_a_folder_holds_the_signs_of_whitened_vectors(
    job: Callable[..., Path], model: Path, tmp_path: Path, layout: str
) -> None:
    folder, floats = (
        EmbeddingFolder(job("signs", *SIGNS, "--layout", layout)),
        EmbeddingFolder(job("white", "--whiten")),
    )
    for width in DIMS.values():
        rows = zip(folder.all_rows(width), floats.all_rows(width), strict=True)
        for (row, signs), (same, values) in rows:
            assert row == same
            np.testing.assert_array_equal(signs, np.where(values > 0, 1, -1))
    manifest = json.loads((tmp_path / "signs" / "_manifest.json").read_text())
    assert (manifest["format"], manifest["job"]["output_dtype"], manifest["job"]["whiten"]) == (3, "binary", True)


def test_every_prefix_of_every_level_is_that_levels_own(job: Callable[..., Path], model: Path) -> None:
    """By jobs of their own, in either layout, and by an Embedder."""
    sequences = [line for line in (job("whole", *SIGNS).parent / "p.fasta").read_text().splitlines() if line[0] != ">"]
    whole = stored(job("whole", *SIGNS))
    for level, width in DIMS.items():
        for layout in ("plain", "blocks"):
            own = stored(job(f"{level}-{layout}", *SIGNS, "--level", level, "--layout", layout))
            assert torch.equal(own, whole[:, : width // 8])
    found = Embedder(model, output_dtype="binary", layout="blocks").embed([one for one in sequences if "*" not in one])
    joined = np.concatenate([np.stack(column) for column in found.values()], axis=1)
    assert joined.dtype == np.uint8
    assert torch.equal(torch.from_numpy(joined), whole)


def test_an_embedder_gives_whole_vectors_as_an_array(model: Path) -> None:
    sequences = ["MKTAYIAKQR", "GSHMASMTGGQQMG", "MKTAYIAKQR"]
    floats = Embedder(model, whiten=True).encode(sequences)
    for layout in ("plain", "blocks"):
        embedder = Embedder(model, output_dtype="binary", layout=layout)
        signs = embedder.encode(sequences)
        np.testing.assert_array_equal(dequantize(signs), np.where(np.asarray(floats) > 0, 1, -1))
        assert embedder.encode([]).shape == (0, 8)
        similar = embedder.similarity(signs, signs)
        np.testing.assert_allclose(similar, dequantize(signs) @ dequantize(signs).T / 64, atol=1e-6)
    assert np.array_equal(Embedder(model, whiten=True, layout="blocks").encode(sequences), floats)


def test_two_jobs_and_two_processes_write_the_same_bytes(job: Callable[..., Path], model: Path, tmp_path: Path) -> None:
    words = (*SIGNS, "--layout", "blocks")
    one, other = job("one", *words), job("other", *words)
    assert content_hashes(one) == content_hashes(other)
    arguments = ("--model", model, "--input", tmp_path / "p.fasta", "--part-records", 4, *words)
    outcome = run_process(*arguments, "--output", tmp_path / "two", launcher=TWO_PROCESSES)
    assert outcome.status == 0, outcome.stderr
    assert content_hashes(tmp_path / "two") == content_hashes(one)


def test_residues_have_signs_too(job: Callable[..., Path]) -> None:
    signs, floats = job("signs", *SIGNS, "--pooling", "residue"), job("white", "--whiten", "--pooling", "residue")
    rows = zip(EmbeddingFolder(signs).all_rows(48), EmbeddingFolder(floats).all_rows(48), strict=True)
    for (_, one), (_, values) in rows:
        np.testing.assert_array_equal(one, np.where(values > 0, 1, -1))


@pytest.mark.parametrize("layout", ["plain", "blocks"])
def test_they_take_a_thirty_second_of_the_floats_bytes(tmp_path: Path, layout: str) -> None:
    """Parquet has no numbers of one byte, and notes for each number whether a vector begins."""
    rows = list(np.random.default_rng(0).standard_normal((16384, 192), dtype=np.float32))
    sizes = {}
    for dtype in ("float32", "binary"):
        options = EmbeddingOptions(layout=layout, output_dtype=dtype)
        columns = columns_of(options, {"2.7M": 192}, {"0.3M": 64, "1.2M": 128, "2.7M": 192})
        arrays: dict[str, pa.Array] = {"record": pa.array(range(len(rows))), "length": pa.array(range(len(rows)))}
        arrays |= {one.name: to_arrow(rows, one.width, options, one.first) for one in columns}
        path = tmp_path / f"{dtype}.parquet"
        with path.open("wb") as handle:
            write_part(handle, arrays, columns, options, {})
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        leaves = [group.column(leaf) for group in groups for leaf in range(metadata.num_columns)]
        vectors = [leaf for leaf in leaves if leaf.path_in_schema.startswith(("embedding", "block_"))]
        sizes[dtype] = sum(leaf.total_compressed_size for leaf in vectors)
    assert abs(32 * sizes["binary"] / sizes["float32"] - 1) < 0.02


def test_readers_take_signs_for_numbers(job: Callable[..., Path], tmp_path: Path) -> None:
    """Rows are compared by how many signs agree, queries being signs too, or whitened floats."""
    signs, floats = job("signs", *SIGNS, "--layout", "blocks"), job("white", "--whiten")
    for queries in (signs, floats):
        words = ["--queries", queries, "--database", signs, "--k", 3, "--level", "L1"]
        assert search.main([str(one) for one in [*words, "--output", tmp_path / "hits.parquet"]]) == 0
        hits = pq.read_table(tmp_path / "hits.parquet").to_pylist()
        asked, rows = (
            {row["record"]: value for row, value in EmbeddingFolder(folder).all_rows(48)} for folder in (queries, signs)
        )
        for hit in hits:
            one, other = asked[hit["query_record"]], rows[hit["record"]]
            cosine = float(one @ other) / float(np.linalg.norm(one) * np.linalg.norm(other))
            assert abs(hit["similarity"] - cosine) < 1e-6
    assert map.main([str(signs), "--output", str(tmp_path / "map.html")]) == 0
    assert export.main([str(signs), "--output", str(tmp_path / "out.h5")]) == 0


def test_raw_embeddings_are_whitened_before_their_signs_are_taken(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generator = np.random.default_rng(1)
    (tmp_path / "ids.txt").write_text("".join(f"p{number}\n" for number in range(5)))
    for width in DIMS.values():
        np.save(tmp_path / f"{width}.npy", generator.standard_normal((5, width)).astype(np.float32))
    raw = [tmp_path / f"{width}.npy" for width in DIMS.values()]
    words = ["--model", model, "--input", *raw, "--ids", tmp_path / "ids.txt", "--output"]
    for name, more in (("plain", ()), ("signs", SIGNS)):
        assert convert.main([str(one) for one in [*words, tmp_path / name, *more]]) == 0
    plain = np.stack([value for _, value in EmbeddingFolder(tmp_path / "plain").all_rows()])
    started = Embedder(model)._started(None)
    expected = started.model.whiten(torch.from_numpy(plain)).numpy() > 0
    np.testing.assert_array_equal(stored(tmp_path / "signs").numpy(), np.packbits(expected, axis=1))


def test_signs_change_their_layout(job: Callable[..., Path], tmp_path: Path) -> None:
    plain, blocks = job("plain", *SIGNS), job("blocks", *SIGNS, "--layout", "blocks")
    for source, layout, expected in ((plain, "blocks", blocks), (blocks, "plain", plain)):
        out = tmp_path / f"to-{layout}"
        words = ["--input", source, "--layout", layout, "--output", out]
        assert convert.main([str(one) for one in words]) == 0
        assert content_hashes(out) == content_hashes(expected)


def test_what_has_no_signs_to_keep_is_refused(
    job: Callable[..., Path],
    embed: Embed,
    model: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(ValueError, match="have no length to normalize"):
        EmbeddingOptions(output_dtype="binary", normalize=True)
    with pytest.raises(ValueError, match="above zero nearly everywhere"):
        EmbeddingOptions(output_dtype="binary", pooling="max")
    with pytest.raises(InputError, match="there is nothing to whiten by"):
        Embedder(tiny_checkpoint, output_dtype="binary")
    with pytest.raises(InputError, match="level L1 would end within one, at dimension 44"):
        Embedder(model, output_dtype="binary", width=44)
    assert Embedder(model, output_dtype="binary", width=40).widths == {"L1": 40}
    with pytest.raises(InputError, match="level L1 would end within one, at dimension 44"):
        Embedder(whitened_model(tmp_path / "odd", 12), output_dtype="binary")
    folder = job("signs", *SIGNS, "--level", "L0")
    outcome = embed("--extend", folder, "--level", "L2", "--output", tmp_path / "out")
    assert "cannot be extended: its vectors were whitened" in outcome.stderr
    fasta = tmp_path / "p.fasta"
    words = ("--model", model, "--input", fasta, "--part-records", 4, "--level", "L0", "--output", folder, "--whiten")
    assert "output_dtype was 'binary' and is now 'float32'" in embed(*words).stderr
    capsys.readouterr()
    queries = ["--queries", fasta, "--database", folder, "--level", "L2", "--k", 3, "--shortlist", 5]
    assert search.main([str(one) for one in [*queries, "--output", tmp_path / "hits.tsv"]]) == 1
    assert "as signs alone, which do not tell whether sequences are those" in capsys.readouterr().err


def test_a_dtype_of_a_version_to_come_is_refused_by_name(job: Callable[..., Path]) -> None:
    path = job("signs", *SIGNS) / "_manifest.json"
    path.write_text(path.read_text().replace('"output_dtype": "binary"', '"output_dtype": "int4"'))
    with pytest.raises(InputError, match="is stored in 'int4', and this version of rd_hf knows float32, float16, bin"):
        EmbeddingFolder(path.parent)


def test_a_folder_of_signs_is_not_taken_for_one_of_floats(job: Callable[..., Path]) -> None:
    folder = job("signs", *SIGNS)
    path = folder / "_manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "format": 2}))
    with pytest.raises(InputError, match="format is 2, and its layout 'plain' and dtype 'binary' are not"):
        EmbeddingFolder(folder)
    path.write_text(json.dumps(manifest))
    table = pq.read_table(parts(folder)[0])
    pq.write_table(
        table.set_column(5, "embedding", read(job("white", "--whiten"))["embedding"][: len(table)]), parts(folder)[0]
    )
    with pytest.raises(InputError, match="is missing or not as it was written"):
        EmbeddingFolder(folder).check_files(())

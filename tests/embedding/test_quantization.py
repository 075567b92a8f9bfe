"""``--output-dtype int8`` and ``binary``: places on a grid, and signs, eight in a byte; nested as dimensions are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
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
from rd_hf.embedding.quantization import beyond, dequantize, quantized
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.storage import columns_of
from rd_hf.fitting import install_whitening
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import TWO_PROCESSES, random_model
from tests.embedding.conftest import Outcome, content_hashes, job_of_ten, parts, read, run_process

Embed = Callable[..., Outcome]
DIMS = {"L0": 32, "L1": 48, "L2": 64}
SIGNS, PLACES = ("--output-dtype", "binary"), ("--output-dtype", "int8")
BOTH = pytest.mark.parametrize("words", [SIGNS, PLACES], ids=["binary", "int8"])


def whitened_model(path: Path, second: int = 16) -> Path:
    """A saved family with statistics to whiten by, and narrow grids that clip; its second block is so wide."""
    model = random_model([32, 48, 64], residual_directions=[second, 16])
    blocks, generator = [32, second, 16], np.random.default_rng(0)
    rows = torch.from_numpy(generator.standard_normal((600, sum(blocks))))
    spreads = tuple(torch.from_numpy(generator.uniform(0.05, 0.3, (2, 2, 2, width))) for width in blocks)
    whitening = replace(fit_whitening(moments_of_rows(rows, blocks), [0.5, 0.5, 1]), spreads=spreads)
    install_whitening(model, whitening, of="proteins")
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
    kind = table.schema.field(names[0]).type.value_type.to_pandas_dtype()
    columns = [np.array(table[name].to_pylist(), kind) for name in names]
    return torch.from_numpy(np.concatenate(columns, axis=1))


def test_signs_are_packed_from_the_highest_bit_on() -> None:
    values = np.array([[0.5, -1, 0, 2, -3, -4, -5, -6, 1e-30, -1, -1, -1, -1, -1, -1, 7]], np.float32)
    packed = quantized(values, "binary")
    assert packed.tolist() == [[0b10010000, 0b10000001]]
    floats = rd_hf.dequantize(packed)
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, np.where(values > 0, 1, -1))
    assert dequantize(values) is values
    with pytest.raises(ValueError, match="is uint8"):
        dequantize(packed.astype(np.int64))


def test_numbers_are_rounded_to_the_places_of_a_grid() -> None:
    grid = np.array([[1, 0, -2], [0.5, 1, 0.25]], np.float32)
    values = np.array([[1.3, 126.6, -2.13], [-100, -400, -2]], np.float32)
    places = quantized(values, "int8", grid)
    assert (places.dtype, places.tolist()) == (np.int8, [[1, 127, -1], [-127, -127, 0]])
    assert beyond(values, grid) == 2
    np.testing.assert_array_equal(
        rd_hf.dequantize(places, grid), np.array([[1.5, 127, -2.25], [-62.5, -127, -2]], np.float32)
    )
    np.testing.assert_array_equal(dequantize(places[:, :2], grid), dequantize(places, grid)[:, :2])
    for wrong in (None, grid[:, :2]):
        with pytest.raises(ValueError, match="3 numbers of int8 lie on a grid of as many dimensions: give the folder"):
            dequantize(places, wrong)


@pytest.mark.parametrize("layout", ["plain", "blocks"])
@pytest.mark.parametrize("more", [(), ("--whiten",), ("--pooling", "residue")], ids=["plain", "whitened", "residues"])
def test_a_folder_holds_places_on_the_grid_of_its_model(
    job: Callable[..., Path], tmp_path: Path, layout: str, more: tuple[str, ...]
) -> None:
    """Read back, numbers are within half a step, but for those that lie beyond the grid, which are counted."""
    places = EmbeddingFolder(job("int8", *PLACES, *more, "--layout", layout))
    floats = EmbeddingFolder(job("floats", *more))
    model = RDEsmModel.from_pretrained(floats.model.name, above="L2")
    own = [block.spread[int(more[:1] != ("--pooling",)), int("--whiten" in more)] for block in model.whitening]
    mean, deviation = torch.cat(own, dim=1).numpy()
    assert places.grid is not None
    np.testing.assert_allclose(places.grid, (mean, deviation * 6 / 127), rtol=1e-6)
    clipped = 0
    for width in DIMS.values():
        clipped = 0
        for (row, read_back), (same, values) in zip(places.all_rows(width), floats.all_rows(width), strict=True):
            assert row == same
            far = np.abs(values - mean[:width]) > 127 * places.grid[1, :width]
            assert (np.abs(read_back - values) <= 0.5001 * places.grid[1, :width])[~far].all()
            inside = np.clip(values, *(mean[:width] + sign * 127 * places.grid[1, :width] for sign in (-1, 1)))
            assert (np.abs(read_back - inside) <= 0.5001 * places.grid[1, :width]).all()
            clipped += int((np.abs(np.rint((values - mean[:width]) / places.grid[1, :width])) > 127).sum())
    manifest = json.loads((tmp_path / "int8" / "_manifest.json").read_text())
    assert clipped
    assert manifest["counts"]["clipped"] == clipped
    entries = [json.loads(path.read_text()) for path in (tmp_path / "int8" / ".job").glob("0*.json")]
    assert sum(entry.get("clipped", 0) for entry in entries) == clipped
    assert (manifest["format"], manifest["job"]["output_dtype"]) == (3, "int8")
    assert "clipped" not in floats.manifest["counts"]


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


@BOTH
def test_every_prefix_of_every_level_is_that_levels_own(
    job: Callable[..., Path], model: Path, words: tuple[str, str]
) -> None:
    """By jobs of their own, in either layout, and by an Embedder."""
    sequences = [line for line in (job("whole", *words).parent / "p.fasta").read_text().splitlines() if line[0] != ">"]
    whole = stored(job("whole", *words))
    share = whole.shape[1] / 64
    for level, width in DIMS.items():
        for layout in ("plain", "blocks"):
            own = stored(job(f"{level}-{layout}", *words, "--level", level, "--layout", layout))
            assert torch.equal(own, whole[:, : int(width * share)])
    asked = [one for one in sequences if "*" not in one]
    found = Embedder(model, output_dtype=words[1], layout="blocks").embed(asked)
    joined = np.concatenate([np.stack(column) for column in found.values()], axis=1)
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


@BOTH
def test_two_jobs_and_two_processes_write_the_same_bytes(
    job: Callable[..., Path], model: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    words = (*words, "--layout", "blocks")
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
@pytest.mark.parametrize(("dtype", "times"), [("int8", 4), ("binary", 32)])
def test_they_take_their_share_of_the_floats_bytes(tmp_path: Path, layout: str, dtype: str, times: int) -> None:
    """Parquet has no numbers of one byte, and notes for each number whether a vector begins."""
    rows = list(np.random.default_rng(0).uniform(-1, 1, (16384, 192)).astype(np.float32))
    grid = np.tile(np.array([[0], [1 / 127]], np.float32), (1, 192))
    sizes = {}
    for kind in ("float32", dtype):
        options = EmbeddingOptions(layout=layout, output_dtype=kind)
        columns = columns_of(options, {"2.7M": 192}, {"0.3M": 64, "1.2M": 128, "2.7M": 192})
        arrays: dict[str, pa.Array] = {"record": pa.array(range(len(rows))), "length": pa.array(range(len(rows)))}
        arrays |= {one.name: to_arrow(rows, one.width, options, one.first, grid) for one in columns}
        path = tmp_path / f"{kind}.parquet"
        with path.open("wb") as handle:
            write_part(handle, arrays, columns, options, {})
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
        leaves = [group.column(leaf) for group in groups for leaf in range(metadata.num_columns)]
        vectors = [leaf for leaf in leaves if leaf.path_in_schema.startswith(("embedding", "block_"))]
        sizes[kind] = sum(leaf.total_compressed_size for leaf in vectors)
    assert abs(times * sizes[dtype] / sizes["float32"] - 1) < 0.02


@BOTH
def test_readers_take_bytes_for_numbers(job: Callable[..., Path], tmp_path: Path, words: tuple[str, ...]) -> None:
    """Rows are compared as what they stand for (signs by how many agree), queries being bytes too, or floats."""
    signs, floats = job("bytes", *words, "--whiten", "--layout", "blocks"), job("white", "--whiten")
    for queries in (signs, floats):
        asked = ["--queries", queries, "--database", signs, "--k", 3, "--level", "L1"]
        assert search.main([str(one) for one in [*asked, "--output", tmp_path / "hits.parquet"]]) == 0
        hits = pq.read_table(tmp_path / "hits.parquet").to_pylist()
        sought, rows = (
            {row["record"]: value for row, value in EmbeddingFolder(folder).all_rows(48)} for folder in (queries, signs)
        )
        for hit in hits:
            one, other = sought[hit["query_record"]], rows[hit["record"]]
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
    assert convert.main([str(one) for one in [*words, tmp_path / "places", *PLACES]]) == 0
    folder = EmbeddingFolder(tmp_path / "places")
    assert folder.grid is not None
    np.testing.assert_array_equal(stored(tmp_path / "places").numpy(), quantized(plain, "int8", folder.grid))
    started = Embedder(model)._started(None)
    expected = started.model.whiten(torch.from_numpy(plain)).numpy() > 0
    np.testing.assert_array_equal(stored(tmp_path / "signs").numpy(), np.packbits(expected, axis=1))


@BOTH
def test_bytes_change_their_layout(job: Callable[..., Path], tmp_path: Path, words: tuple[str, ...]) -> None:
    plain, blocks = job("plain", *words), job("blocks", *words, "--layout", "blocks")
    for source, layout, expected in ((plain, "blocks", blocks), (blocks, "plain", plain)):
        out = tmp_path / f"to-{layout}"
        assert convert.main([str(one) for one in ["--input", source, "--layout", layout, "--output", out]]) == 0
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


def test_what_has_no_grid_is_refused(
    job: Callable[..., Path], embed: Embed, model: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="normalize scales each vector by a length of its own"):
        EmbeddingOptions(output_dtype="int8", normalize=True)
    for pooling in ("max", "cls"):
        with pytest.raises(ValueError, match=f"none of pooling '{pooling}'"):
            EmbeddingOptions(output_dtype="int8", pooling=pooling)
    with pytest.raises(InputError, match="holds no grids of one byte, since it was fitted before"):
        Embedder(tiny_checkpoint, output_dtype="int8")
    folder = job("int8", *PLACES, "--level", "L0")
    outcome = embed("--extend", folder, "--level", "L2", "--output", tmp_path / "out")
    assert "cannot be extended: it was stored in int8, which rounds" in outcome.stderr
    words = ("--model", model, "--input", tmp_path / "p.fasta", "--part-records", 4, "--level", "L0")
    assert "output_dtype was 'int8' and is now 'float32'" in embed(*words, "--output", folder).stderr
    embedder = Embedder(model, output_dtype="int8")
    places = embedder.encode(["MKTAYIAKQR"])
    with pytest.raises(ValueError, match="64 numbers of int8 lie on a grid"):
        embedder.similarity(places, places)
    assert embedder.grid is not None
    np.testing.assert_array_equal(dequantize(places, job("whole", *PLACES)), dequantize(places, embedder.grid))


@pytest.mark.parametrize(
    "grid", [None, {"centre": [0.0] * 64}, {"centre": [0.0] * 64, "step": [0.0] * 64}, {"step": 1}]
)
def test_a_grid_that_no_job_writes_is_refused(job: Callable[..., Path], grid: object) -> None:
    path = job("int8", *PLACES) / "_manifest.json"
    manifest = {name: one for name, one in json.loads(path.read_text()).items() if name != "grid"}
    path.write_text(json.dumps(manifest if grid is None else manifest | {"grid": grid}))
    with pytest.raises(InputError, match="grid"):
        EmbeddingFolder(path.parent)


def test_the_larger_level_of_a_folder_of_bytes_is_computed_for_its_shortlist(
    job: Callable[..., Path], tmp_path: Path
) -> None:
    """The stored numbers are rounded, and clipped: still what is computed is known for the proteins' own."""
    folder = job("int8", *PLACES, "--level", "L0")
    queries = ["--queries", tmp_path / "p.fasta", "--database", folder, "--level", "L2", "--k", 3, "--shortlist", 5]
    assert search.main([str(one) for one in [*queries, "--output", tmp_path / "hits.tsv"]]) == 0


def test_a_dtype_of_a_version_to_come_is_refused_by_name(job: Callable[..., Path]) -> None:
    path = job("signs", *SIGNS) / "_manifest.json"
    path.write_text(path.read_text().replace('"output_dtype": "binary"', '"output_dtype": "int4"'))
    with pytest.raises(
        InputError, match="is stored in 'int4', and this version of rd_hf knows float32, float16, int8, bin"
    ):
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

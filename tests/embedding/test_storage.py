"""Layouts: whole vectors in a column, or what each level adds in one of its own; the same numbers, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from rd_hf.commands import export, info, map, search
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder, EmbeddingOptions
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.storage import columns_of, covering, described, read_columns
from tests.embedding.conftest import Outcome, content_hashes, job_of_ten, parts, read

Embed = Callable[..., Outcome]
DIMS = {"L0": 32, "L1": 48, "L2": 64}
BLOCKS = ("--layout", "blocks")


@pytest.fixture
def job(embed: Embed, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., Path]:
    return job_of_ten(embed, tiny_checkpoint, tmp_path)


def spans(options: EmbeddingOptions, widths: dict[str, int]) -> dict[str, tuple[str, int, int]]:
    return {one.name: (one.level, one.first, one.stop) for one in columns_of(options, widths, DIMS)}


def test_columns_of_each_layout() -> None:
    plain, blocks = EmbeddingOptions(levels=("L0", "L1")), EmbeddingOptions(layout="blocks", levels=("L0", "L1"))
    assert spans(plain, {"L0": 32, "L1": 48}) == {"embedding_L0": ("L0", 0, 32), "embedding_L1": ("L1", 0, 48)}
    # Levels share their blocks.
    assert spans(blocks, {"L0": 32, "L1": 48}) == {"block_L0": ("L0", 0, 32), "block_L1": ("L1", 32, 48)}
    # The last one is cut, and those beyond are not there.
    assert spans(blocks, {"L1": 40}) == {"block_L0": ("L0", 0, 32), "block_L1": ("L1", 32, 40)}
    assert spans(blocks, {"L0": 20}) == {"block_L0": ("L0", 0, 20)}
    for options in (plain, blocks):
        columns = columns_of(options, {"L0": 32, "L2": 64}, DIMS)
        assert read_columns(described(columns), options.layout) == columns


def test_no_more_columns_are_read_than_a_width_needs() -> None:
    def names(options: EmbeddingOptions, width: int) -> list[str]:
        return [one.name for one in covering(columns_of(options, {"L0": 32, "L2": 64}, DIMS), width)]

    several, blocks = EmbeddingOptions(levels=("L0", "L2")), EmbeddingOptions(layout="blocks")
    assert [names(several, width) for width in (8, 32, 33)] == [["embedding_L0"], ["embedding_L0"], ["embedding_L2"]]
    assert [names(blocks, width) for width in (8, 32)] == [["block_L0"], ["block_L0"]]
    assert names(blocks, 33) == ["block_L0", "block_L1"]
    assert names(blocks, 64) == ["block_L0", "block_L1", "block_L2"]


@pytest.mark.parametrize(
    "options",
    [(), ("--pooling", "residue"), ("--output-dtype", "float16"), ("--width", 40)],
    ids=["mean", "residue", "float16", "cut"],
)
def test_every_prefix_is_that_of_the_plain_folder(job: Callable[..., Path], options: tuple[object, ...]) -> None:
    plain, blocks = job("plain", *options), job("blocks", *BLOCKS, *options)
    one, other = EmbeddingFolder(plain), EmbeddingFolder(blocks)
    assert one.levels == other.levels
    for width in one.levels.values():
        rows = zip(one.all_rows(width), other.all_rows(width), strict=True)
        for (row, whole), (same, joined) in rows:
            assert row == same
            assert whole.dtype == joined.dtype
            np.testing.assert_array_equal(whole, joined)
    # A level is its columns, beside each other.
    column = read(blocks)["block_L1"].combine_chunks()
    kind = column.type if "--pooling" not in options else column.type.value_type
    assert pa.types.is_fixed_size_list(kind)
    assert kind.list_size == list(other.levels.values())[1] - 32


def test_an_embedder_gives_the_blocks(job: Callable[..., Path], tiny_checkpoint: Path) -> None:
    sequences = ["MKTAYIAKQR", "GSHMASMTGGQQMG"]
    whole = Embedder(tiny_checkpoint).embed(sequences)["embedding"]
    embedder = Embedder(tiny_checkpoint, layout="blocks")
    found = embedder.embed(sequences)
    assert list(found) == ["block_L0", "block_L1", "block_L2"]
    joined = [np.concatenate(blocks) for blocks in zip(*found.values(), strict=True)]
    np.testing.assert_array_equal(joined, whole)
    dataset = Dataset.from_dict({"sequence": sequences})
    mapped = dataset.map(embedder, batched=True, features=embedder.features(dataset.features))
    np.testing.assert_array_equal(np.array(mapped["block_L2"], np.float32), [one[48:] for one in whole])


def test_an_embedders_features_are_its_columns(tiny_checkpoint: Path) -> None:
    features = Embedder(tiny_checkpoint, layout="blocks").features()
    assert {name: one.length for name, one in features.items()} == {"block_L0": 32, "block_L1": 16, "block_L2": 16}


def test_readers_of_both_layouts_say_the_same(
    job: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, blocks = job("plain"), job("blocks", *BLOCKS)
    import h5py

    for level in ("L0", "L1", None):
        chosen = () if level is None else ("--level", level)
        for name, folder in (("plain", plain), ("blocks", blocks)):
            words = ["--queries", folder, "--database", folder, "--whiten", "none", "--k", 3, *chosen]
            assert search.main([str(one) for one in [*words, "--output", tmp_path / f"{name}.tsv"]]) == 0
            assert export.main([str(one) for one in [folder, "--output", tmp_path / f"{name}.h5", *chosen]]) == 0
        assert (tmp_path / "plain.tsv").read_bytes() == (tmp_path / "blocks.tsv").read_bytes()
        with h5py.File(tmp_path / "plain.h5") as one, h5py.File(tmp_path / "blocks.h5") as other:
            assert list(one) == list(other)
            for key in one:
                np.testing.assert_array_equal(one[key][()], other[key][()])
    words = ["--queries", blocks, "--database", plain, "--whiten", "none", "--shortlist-level", "L0", "--shortlist", 5]
    assert search.main([str(one) for one in [*words, "--k", 3, "--output", tmp_path / "funnel.tsv"]]) == 0
    capsys.readouterr()
    assert info.main([str(blocks)]) == 0
    said = capsys.readouterr().out
    assert "columns: block_L0: L0, 32 wide; block_L1: L1, 16 wide; block_L2: L2, 16 wide" in said
    assert "layout blocks" in said
    assert map.main([str(blocks), "--output", str(tmp_path / "map.html")]) == 0


def test_a_manifest_says_the_layout_and_keeps_earlier_versions_off(job: Callable[..., Path]) -> None:
    """They read format 2, and would take the widest block for all of its level."""
    plain, blocks = (json.loads((job(*words) / "_manifest.json").read_text()) for words in (["p"], ["b", *BLOCKS]))
    assert (plain["format"], "layout" in plain["job"]) == (2, False)
    assert (blocks["format"], blocks["job"]["layout"]) == (3, "blocks")


def test_a_folder_of_another_layout_is_not_gone_on_with(
    job: Callable[..., Path], embed: Embed, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    plain, blocks = job("plain"), job("blocks", *BLOCKS)
    words = ("--model", tiny_checkpoint, "--input", tmp_path / "p.fasta", "--part-records", 4, "--output")
    before = content_hashes(blocks)
    outcome = embed(*words, blocks)
    assert outcome.status == 1
    assert "layout was 'blocks' and is now 'plain'" in outcome.stderr
    assert "layout was 'plain' and is now 'blocks'" in embed(*words, plain, *BLOCKS).stderr
    assert content_hashes(blocks) == before
    assert "3 parts, 3 of them from an earlier run" in embed(*words, blocks, *BLOCKS).stdout


def test_extended_it_keeps_its_layout(job: Callable[..., Path], embed: Embed, tmp_path: Path) -> None:
    """A new folder is written whole, and the old one stays what its manifest and caches know it by."""
    small, plain = job("small", "--level", "L0", *BLOCKS), job("plain-small", "--level", "L0")
    before = content_hashes(small)
    for start, out in ((small, "out"), (plain, "plain-out")):
        outcome = embed("--extend", start, "--level", "L2", "--output", tmp_path / out)
        assert outcome.status == 0, outcome.stderr
    assert content_hashes(small) == before
    assert parts(tmp_path / "out")[0].is_file()
    assert pq.read_schema(parts(tmp_path / "out")[0]).names[-3:] == ["block_L0", "block_L1", "block_L2"]
    found, expected = (EmbeddingFolder(tmp_path / name).all_rows() for name in ("out", "plain-out"))
    assert all(np.array_equal(one, other) for (_, one), (_, other) in zip(found, expected, strict=True))
    outcome = embed("--extend", small, "--level", "L2", "--layout", "plain", "--output", tmp_path / "no")
    assert "was made with layout 'blocks', not 'plain'" in outcome.stderr


def test_what_blocks_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="normalize scales each level by itself"):
        EmbeddingOptions(layout="blocks", normalize=True)
    with pytest.raises(ValueError, match="layout must be one of plain, blocks, not 'tiles'"):
        EmbeddingOptions(layout="tiles")


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (("job", "layout"), "tiles", "is in layout 'tiles', and this version of rd_hf knows plain and blocks: update"),
        (("format",), 9, "was written by another version of rd_hf"),
        (("columns", "block_L1", "width"), 15, "and not what one level after the other adds"),
        (("columns", "block_L1", "level"), "L0", "and not what one level after the other adds"),
        (("job", "layout"), "plain", "format is 3, and its layout 'plain' and"),
    ],
)
def test_a_layout_that_is_not_known_or_not_so_is_a_sentence(
    job: Callable[..., Path], field: tuple[str, ...], value: object, says: str
) -> None:
    folder = job("blocks", *BLOCKS)
    path = folder / "_manifest.json"
    manifest = json.loads(path.read_text())
    place = manifest
    for name in field[:-1]:
        place = place[name]
    place[field[-1]] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=says):
        EmbeddingFolder(folder).check_files(())

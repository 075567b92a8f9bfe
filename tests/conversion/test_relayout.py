"""``rd-hf convert --layout``: without a model, byte for byte what a job in that layout writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rd_hf.commands.convert import main
from rd_hf.commands.embed import main as embed_main
from rd_hf.embedding.folder import OutputFolder
from rd_hf.embedding.reader import EmbeddingFolder
from tests.conftest import Outcome, run_here
from tests.embedding.conftest import content_hashes, random_fasta
from tests.embedding.test_reader import drop_checksums, flip_byte

BLOCKS = ("--layout", "blocks")


@pytest.fixture
def convert(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    return partial(run_here, main, capsys)


@pytest.fixture
def job(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Embed ten proteins in parts of four; the folder."""
    fasta = random_fasta(tmp_path / "p.fasta", 10, longest=20)

    def run(name: str, *options: object) -> Path:
        words = ("--model", tiny_checkpoint, "--input", fasta, "--part-records", 4, "--output", tmp_path / name)
        assert run_here(embed_main, capsys, *words, *options).status == 0
        return tmp_path / name

    return run


@pytest.mark.parametrize(
    "options",
    [(), ("--pooling", "residue"), ("--output-dtype", "float16"), ("--level", "L0", "L2"), ("--width", 40)],
    ids=["mean", "residue", "float16", "several levels", "cut"],
)
def test_either_way_the_files_are_those_of_a_job(
    job: Callable[..., Path], convert: Callable[..., Outcome], tmp_path: Path, options: tuple[object, ...]
) -> None:
    plain, blocks = job("plain", *options), job("blocks", *BLOCKS, *options)
    said = convert("--input", plain, *BLOCKS, "--output", tmp_path / "to-blocks")
    assert "10 proteins: 9 written, 1 rejected" in said.stdout, said.stderr
    assert convert("--input", blocks, "--layout", "plain", "--output", tmp_path / "to-plain").status == 0
    assert content_hashes(tmp_path / "to-blocks") == content_hashes(blocks)
    assert content_hashes(tmp_path / "to-plain") == content_hashes(plain)
    for made, asked in (("to-blocks", blocks), ("to-plain", plain)):
        one, other = (json.loads((path / "_manifest.json").read_text()) for path in (tmp_path / made, asked))
        assert {name: one[name] for name in other} == other


def test_what_it_writes_is_gone_on_with_and_extended(
    job: Callable[..., Path], convert: Callable[..., Outcome], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, blocks = job("small", "--level", "L0"), job("scratch", "--level", "L0", *BLOCKS)
    convert("--input", small, *BLOCKS, "--output", tmp_path / "made")
    job("made", "--level", "L0", *BLOCKS)
    assert content_hashes(tmp_path / "made") == content_hashes(blocks)
    for start, out in (("made", "out"), ("scratch", "expected")):
        words = ("--extend", tmp_path / start, "--level", "L2", "--output", tmp_path / out)
        assert run_here(embed_main, capsys, *words).status == 0
    assert content_hashes(tmp_path / "out") == content_hashes(tmp_path / "expected")


def test_stopped_anywhere_and_started_again_it_writes_the_same(
    job: Callable[..., Path], convert: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, blocks = job("plain"), job("blocks", *BLOCKS)
    original = OutputFolder.write_entry

    def interrupted(self: OutputFolder, entry: Any) -> None:
        if entry.index == 1:
            raise KeyboardInterrupt  # its Parquet file is there, its journal entry is not
        original(self, entry)

    words = ("--input", plain, *BLOCKS, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "write_entry", interrupted)
        assert convert(*words).status == 130
    assert "3 parts, 1 of them from an earlier run" in convert(*words).stdout
    assert content_hashes(tmp_path / "out") == content_hashes(blocks)
    flip_byte(tmp_path / "out", "block_L1")
    assert "embeddings-000001.parquet is not as it was written: doing part 1 again" in convert(*words).stderr
    assert content_hashes(tmp_path / "out") == content_hashes(blocks)


def test_a_folder_of_an_earlier_version_is_converted(
    job: Callable[..., Path], convert: Callable[..., Outcome], tmp_path: Path
) -> None:
    plain, blocks = job("plain"), job("blocks", *BLOCKS)
    drop_checksums(plain)
    assert convert("--input", plain, *BLOCKS, "--output", tmp_path / "out").status == 0
    assert content_hashes(tmp_path / "out") == content_hashes(blocks)


def test_what_cannot_be_converted_is_a_sentence(
    job: Callable[..., Path], convert: Callable[..., Outcome], tmp_path: Path
) -> None:
    plain, unit, blocks = job("plain"), job("unit", "--normalize"), job("blocks", *BLOCKS)

    def refused(*words: object, output: str = "out") -> str:
        said = convert(*words, "--output", tmp_path / output)
        assert said.status == 1
        assert said.stderr.count("\n") == 1
        return said.stderr

    assert "is in layout 'plain' already: name another one with --layout" in refused("--input", plain)
    assert f"{unit} cannot be in layout 'blocks': normalize scales each level" in refused("--input", unit, *BLOCKS)
    said = refused("--input", plain, *BLOCKS, "--output-dtype", "float16")
    assert "a folder of embeddings, whose layout is changed and nothing else: leave --output-dtype away" in said
    assert "one folder of embeddings is converted at a time" in refused("--input", plain, blocks, *BLOCKS)
    assert "name it with --model" in refused("--input", tmp_path / "p.fasta")
    assert not (tmp_path / "out").exists()
    before = content_hashes(unit)
    assert "holds another job" in refused("--input", plain, *BLOCKS, output="unit")
    assert content_hashes(unit) == before
    flip_byte(plain)
    assert "embeddings-000001.parquet is not as it was written" in refused("--input", plain, *BLOCKS)
    assert EmbeddingFolder(blocks).rows == 9

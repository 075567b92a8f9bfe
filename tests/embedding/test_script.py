"""``rd-hf embed``: files in, Parquet out, every record accounted for, every mistake one sentence."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import transformers
from datasets import load_dataset

from tests.conftest import environment
from tests.embedding.conftest import Outcome, Reference, content_hashes, read, scale_tensors

Embed = Callable[..., Outcome]
RECORDS = [
    ("a", "a first", "MKTAYIAKQR"),
    ("b/..\\x:é", "b/..\\x:é", "ACDEFGHIKLMNPQ"),
    ("a", "a again", "mktayi-akqr*"),
    ("bad", "bad", "MK*T"),
    ("", "", "GAVLIMJ"),
]


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "proteins.fasta"
    path.write_text("".join(f">{description}\n{sequence}\n" for _, description, sequence in RECORDS))
    return path


def test_every_record_is_written_in_order_or_rejected(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    outcome = embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
    assert "5 records: 4 written, 1 rejected" in outcome.stdout
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == ["a", "b/..\\x:é", "a", ""]
    assert table["description"].to_pylist() == ["a first", "b/..\\x:é", "a again", ""]
    assert table["record"].to_pylist() == [1, 2, 3, 5]
    assert table["length"].to_pylist() == [10, 14, 10, 7]
    assert set(table["source"].to_pylist()) == {str(fasta)}
    values = np.array(table["embedding"].to_pylist())
    assert values.shape == (4, 64)
    assert np.array_equal(values[0], values[2])
    rejects = (tmp_path / "out" / "_rejects.tsv").read_text().splitlines()
    assert rejects == [
        "source\trecord\tid\treason",
        f"{fasta}\t4\tbad\tstop codon '*' inside the sequence (position 3 of 4)",
    ]


def test_the_manifest_says_what_made_the_files(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    embed(
        "--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--level", "L1", "L2", "--normalize"
    )
    manifest = json.loads((tmp_path / "out" / "_manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["model"]["nested_dims"] == {"L0": 32, "L1": 48, "L2": 64}
    assert manifest["model"]["fingerprint"].startswith("sha256:")
    assert manifest["job"]["levels"] == ["L1", "L2"]
    assert manifest["job"]["normalize"] is True
    assert manifest["columns"] == {
        "embedding_L1": {"level": "L1", "width": 48},
        "embedding_L2": {"level": "L2", "width": 64},
    }
    assert manifest["counts"] == {
        "records": 5, "written": 4, "rejected": 1, "unique": 3, "long": 0, "residues": 41, "parts": 1,
    }  # fmt: skip
    assert manifest["parts"][0]["sha256"] == content_hashes(tmp_path / "out")["embeddings-000000.parquet"]
    about = json.loads(pq.read_schema(tmp_path / "out" / "embeddings-000000.parquet").metadata[b"rd_hf"])
    assert about["nested_dims"] == {"L0": 32, "L1": 48, "L2": 64}


def test_several_inputs_of_any_kind_are_read_one_after_the_other(
    embed: Embed, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.fasta.gz").write_bytes(gzip.compress(b">one\nMKT\n"))
    (tmp_path / "b.csv").write_text("name,sequence\ntwo,MKTA\n")
    piped = io.TextIOWrapper(io.BufferedReader(io.BytesIO(b">three\nMKTAY\n")))  # type: ignore[arg-type]
    monkeypatch.setattr("sys.stdin", piped)
    inputs = [tmp_path / "a.fasta.gz", tmp_path / "b.csv", "-"]
    outcome = embed("--model", tiny_checkpoint, "--input", *inputs, "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.stderr
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == ["one", "two", "three"]
    assert table["record"].to_pylist() == [1, 2, 3]
    assert table["source"].to_pylist() == [str(source) for source in inputs]


@pytest.mark.parametrize("pooling", ["residue", "positions"])
def test_rows_a_residue_load_as_a_dataset(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path, pooling: str
) -> None:
    extra = ["--positions", 1, 7] if pooling == "positions" else []
    embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--pooling", pooling, *extra)
    rows = load_dataset(
        "parquet", data_files=str(tmp_path / "out" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    ).with_format("torch")
    expected = [2] * 4 if pooling == "positions" else [10, 14, 10, 7]
    assert [tuple(row["embedding"].shape) for row in rows] == [(count, 64) for count in expected]


def test_parts_are_cut_by_records_or_by_bytes_and_hold_the_same_rows(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    common = ("--model", tiny_checkpoint, "--input", fasta)
    embed(*common, "--output", tmp_path / "one")
    embed(*common, "--output", tmp_path / "many", "--part-records", 2)
    assert len(list((tmp_path / "many").glob("*.parquet"))) == 3
    one, many = read(tmp_path / "one"), read(tmp_path / "many")
    assert one.drop_columns("embedding").equals(many.drop_columns("embedding"))
    # Other batches, so float32 sums in another order.
    np.testing.assert_allclose(
        np.array(one["embedding"].to_pylist()), np.array(many["embedding"].to_pylist()), atol=1e-5
    )


def test_strict_stops_at_the_first_record_that_would_be_rejected(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    outcome = embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--strict")
    assert outcome.status == 1
    assert outcome.stderr.startswith(f"rd-hf embed: error: {fasta} record 4 (bad): stop codon")
    assert outcome.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("policy", "written", "rejected"),
    [("window", [10, 14, 10, 7], 1), ("truncate", [10, 14, 10, 7], 1), ("error", [10, 10, 7], 2)],
)
def test_long_sequences(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path, policy: str, written: list[int], rejected: int
) -> None:
    options = ("--long", policy, "--max-length", 12, "--overlap", 4, "--pooling", "residue")
    outcome = embed("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", *options)
    assert outcome.status == 0, outcome.stderr
    table = read(tmp_path / "out")
    assert table["length"].to_pylist() == written
    covered = [min(length, 12) if policy == "truncate" else length for length in written]
    assert [len(rows) for rows in table["embedding"].to_pylist()] == covered
    assert len((tmp_path / "out" / "_rejects.tsv").read_text().splitlines()) == 1 + rejected


def test_a_job_whose_every_record_is_rejected_is_whole_and_fails_with_the_reasons(
    embed: Embed, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.fasta").write_text(">x\tq\nMK*T\n>y\n")
    outcome = embed("--model", tiny_checkpoint, "--input", tmp_path / "bad.fasta", "--output", tmp_path / "out")
    assert outcome.status == 1
    assert "none of the 2 records could be embedded" in outcome.stderr
    assert "record 2 (y): no residues" in outcome.stderr
    assert read(tmp_path / "out").num_rows == 0
    assert json.loads((tmp_path / "out" / "_manifest.json").read_text())["status"] == "complete"


def test_numbers_beyond_float16_are_rejected_not_stored_as_infinity(
    embed: Embed, fasta: Path, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    model = Path(shutil.copytree(tiny_checkpoint, tmp_path / "model"))
    scale_tensors(model, ".directions", 1e6)
    command = ("--model", model, "--input", fasta, "--output", tmp_path / "out", "--output-dtype", "float16")
    outcome = embed(*command)
    assert outcome.status == 1
    assert "none of the 5 records could be embedded" in outcome.stderr
    assert "beyond float16: use --output-dtype float32" in (tmp_path / "out" / "_rejects.tsv").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--input", "absent.fasta"], "absent.fasta: no such file; check the path"),
        (["--model", "absent-folder"], "absent-folder is no folder here, no family known by name"),
        (["--level", "650M"], "has no level '650M'; its levels are L0, L1, L2"),
        (["--positions", "3"], "set pooling to 'positions'"),
        (["--positions-column", "where", "--pooling", "positions"], "is FASTA, which has no column 'where'"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(
    embed: Embed, fasta: Path, tiny_checkpoint: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    defaults = ["--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out"]
    outcome = embed(*defaults, *arguments)
    assert outcome.status == 1
    assert sentence in outcome.stderr
    assert outcome.stderr.startswith("rd-hf embed: error: ")
    assert outcome.stderr.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.parquet"))


def test_help_teaches_and_does_not_wait_for_torch() -> None:
    program = (
        "import sys, runpy\nsys.argv = ['rd-hf', 'embed', '--help']\n"
        "try:\n    runpy.run_module('rd_hf', run_name='__main__')\n"
        "except SystemExit:\n    print('heavy:', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.endswith("heavy: []\n")
    for words in ("Interrupted", "_rejects.tsv", "never of cls, eos or padding", "no residue and no record is lost"):
        assert words in " ".join(run.stdout.split())


def test_a_first_embedding_waits_for_nothing_that_it_does_not_need(tiny_checkpoint: Path, tmp_path: Path) -> None:
    fasta = tmp_path / "ten.fasta"
    fasta.write_text("".join(f">p{place}\nMKTAYIAKQR\n" for place in range(10)), encoding="utf-8")
    arguments = ["--model", str(tiny_checkpoint), "--input", str(fasta), "--output", str(tmp_path / "out")]
    program = (
        "import atexit, gc, sys\n"
        # What is registered first runs last: after the command's own.
        "atexit.register(lambda: print('left:', gc.get_freeze_count() > 100_000))\n"
        "looked = []\n"
        "gc.callbacks.append(lambda phase, about: looked.append(about['generation']))\n"
        "from rd_hf.commands.embed import main\n"
        f"assert main({arguments!r}) == 0\n"
        # Of what transformers itself does not read where it is installed.
        "print('heavy:', sorted({'pandas', 'datasets', 'sklearn', 'matplotlib'} & set(sys.modules)))\n"
        "print('looks:', len(looked) // 2 < 300, gc.isenabled())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, timeout=120, check=True
    )
    # Importing torch and transformers the plain way looks for garbage some 1,500 times, and once more at the end.
    # Releases up to 4.57 read scikit-learn themselves.
    heavy = "heavy: []" if transformers.__version__ >= "5" else "heavy: ['sklearn']"
    assert run.stdout.splitlines()[-3:] == [heavy, "looks: True True", "left: True"]


def test_a_process_of_its_own_does_the_same(reference: Reference, tmp_path: Path, embed: Embed) -> None:
    assert reference.outcome.status == 0
    assert reference.outcome.stderr == "", "without a terminal there is no progress bar, and nothing to warn of"
    embed(*reference.arguments, tmp_path / "here")
    process, here = read(reference.folder), read(tmp_path / "here")
    assert process.drop_columns("embedding").equals(here.drop_columns("embedding"))
    # The number of threads, and with it the order of summing, may differ.
    np.testing.assert_allclose(
        np.array(process["embedding"].to_pylist()), np.array(here["embedding"].to_pylist()), atol=1e-5
    )

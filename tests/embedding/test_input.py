"""Awkward input through whole jobs: what is in the input is in the output or in the rejects, readable and distinct."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset

from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.fitting import FitOptions, draw_sample
from tests.data.cases import COMPRESSIONS, POSITION_VALUES, REFUSED_FILES, SEQUENCE_VALUES, TEXT, Case
from tests.embedding.conftest import Outcome, read

Embed = Callable[..., Outcome]


@pytest.fixture
def job(embed: Embed, tiny_checkpoint: Path, tmp_path: Path) -> Embed:
    """A job with the smallest level."""

    def run(*arguments: object) -> Outcome:
        return embed("--model", tiny_checkpoint, "--level", "L0", "--output", tmp_path / "out", *arguments)

    return run


def rejects(folder: Path) -> list[dict[str, str]]:
    with (folder / "_rejects.tsv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle, dialect="excel-tab"))


def test_text_that_cannot_be_encoded_goes_through_every_file_of_a_job(job: Embed, tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    fasta, table = folder + b"/caf\xe9.fasta", folder + b"/l\xf6n.jsonl"
    with open(fasta, "wb") as handle:
        handle.write(b">p\xe5 caf\xe9\nMKTAY\n>p\xe9\nMK*T\n>p\xe9\nGAVL\n")
    with open(table, "wb") as handle:
        handle.write(b'{"id": "q\\ud800", "sequence": "MKT"}\n{"id": "q\\udfff", "sequence": NaN}\n')
    arguments = ["--input", os.fsdecode(fasta), os.fsdecode(table)]
    outcome = job(*arguments)
    assert outcome.status == 0, outcome.stderr
    assert "5 records: 3 written, 2 rejected" in outcome.stdout
    assert outcome.stderr.count("not in the file's encoding") == 2, "once a file"

    names = [rf"{tmp_path}/caf\xe9.fasta", rf"{tmp_path}/l\xf6n.jsonl"]
    written = read(tmp_path / "out")
    assert written["id"].to_pylist() == [r"p\xe5", r"p\xe9", r"q\ud800"]
    assert written["description"][0].as_py() == r"p\xe5 caf\xe9"
    assert written["source"].to_pylist() == [names[0], names[0], names[1]]
    assert [(reject["source"], reject["id"]) for reject in rejects(tmp_path / "out")] == [
        (names[0], r"p\xe9"),
        (names[1], r"q\udfff"),
    ]
    manifest = (tmp_path / "out" / "_manifest.json").read_text()
    assert json.loads(manifest)["job"]["inputs"] == names
    # The same command again finds the same job.
    assert "1 parts, 1 of them from an earlier run" in job(*arguments).stdout
    missing = job("--input", os.fsdecode(folder + b"/n\xf6.fasta"))
    assert missing.status == 1
    assert r"n\xf6.fasta: no such file" in missing.stderr


def test_rows_that_quotes_would_join_are_all_there(job: Embed, tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    rows = [f"p{number}\tnote\tMKTAY" for number in range(50)]
    rows[2:4] = ['p2\t"b\tGSHMAS', 'p3\tc" x\tAAAAA']
    rows[7], rows[9] = "p7\tMKTAY", 'p9\t"\tMKTAY'
    path.write_text("\n".join(["id\tnote\tsequence", *rows]))
    outcome = job("--input", path)
    assert "50 records: 49 written, 1 rejected" in outcome.stdout
    (reject,) = rejects(tmp_path / "out")
    assert (reject["record"], reject["reason"]) == ("8", "line 9 has 2 cells where the header has 3")
    table = read(tmp_path / "out")
    assert table["id"].to_pylist() == [f"p{number}" for number in range(50) if number != 7]
    assert table["length"].to_pylist()[2] == 6
    sample = draw_sample([str(path)], FitOptions())
    assert (sample.records, sample.rejected, sorted(sample.sequences)) == (50, 1, ["AAAAA", "GSHMAS", "MKTAY"])


def test_strict_names_the_line(job: Embed, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,sequence\np1,MK,TAY\n")
    outcome = job("--input", path, "--strict")
    assert outcome.status == 1
    assert f"{path} record 1 (1): line 2 has 3 cells where the header has 2; correct the record" in outcome.stderr


@pytest.mark.parametrize("kind", COMPRESSIONS)
def test_a_compressed_file_is_the_same_job_as_the_plain_one(job: Embed, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "proteins.fasta"
    path.write_bytes(COMPRESSIONS[kind](TEXT.encode()))
    assert "2 records: 2 written, 0 rejected" in job("--input", path).stdout


@pytest.mark.parametrize("case", REFUSED_FILES[:4], ids=lambda case: case.what)
def test_an_archive_ends_the_job_in_a_sentence(job: Embed, tmp_path: Path, case: Case) -> None:
    path = tmp_path / "proteins.fasta"
    path.write_bytes(case.value)
    outcome = job("--input", path)
    assert outcome.status == 1
    assert f"{path} {case.reason}" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_nucleotides_are_said_and_refused_when_strict(job: Embed, tmp_path: Path) -> None:
    path = tmp_path / "genes.fasta"
    path.write_text(">g1\n" + "ATGGCGTACN" * 12 + "\n>p1\nMKTAYIAKQR\n")
    sentence = f"{path}: 1 of the first 2 records look like nucleotide sequences (A, C, G, T, U, N only)"
    refused = job("--input", path, "--strict")
    assert refused.status == 1
    assert sentence in refused.stderr
    assert not list((tmp_path / "out").glob("*.parquet"))
    said = job("--input", path)
    assert said.status == 0
    assert said.stderr.count(sentence) == 1
    heard: list[str] = []
    draw_sample([str(path)], FitOptions(), say=heard.append)
    assert len(heard) == 1
    assert heard[0].startswith(sentence)


FORMATS = [None, "numpy", "torch", "pandas", "arrow"]
WHERE: dict[str, list[Any]] = {
    "lists": [[1, 2], [6, 2], [3, 1]],
    "ragged lists": [[1], [6, 2], [3]],
    "lists of text": [["1", "2"], ["6", "2"], ["3", "1"]],
    "whole numbers": [1, 6, 3],
    "floats": [1.0, 6.0, 3.0],
    "text": ["1,2", "6;2", "[3]"],
}


@pytest.mark.parametrize("style", FORMATS)
@pytest.mark.parametrize("form", WHERE)
def test_positions_of_a_dataset_in_any_format(tiny_checkpoint: Path, style: str | None, form: str) -> None:
    sequences = ["MKTAYI", "GAVLIM", "MKT"]
    dataset = Dataset.from_dict({"sequence": sequences, "at": WHERE[form]}).with_format(style)
    embedder = Embedder(tiny_checkpoint, level="L0", pooling="positions", positions_column="at")
    found = dataset.map(embedder, batched=True).with_format(None)["embedding"]
    rows = Embedder(tiny_checkpoint, level="L0", pooling="residue").embed(sequences)["embedding"]
    expected = {"text": [[1, 2], [6, 2], [3]], "ragged lists": [[1], [6, 2], [3]]}.get(form)
    if expected is None:
        expected = [[1], [6], [3]] if form in ("whole numbers", "floats") else [[1, 2], [6, 2], [3, 1]]
    for values, every, asked in zip(found, rows, expected, strict=True):
        np.testing.assert_array_equal(np.array(values), every[[number - 1 for number in asked]])


@pytest.mark.parametrize("case", [case for case in POSITION_VALUES if case.reason], ids=lambda case: case.what)
def test_positions_that_are_none_are_a_reason(tiny_checkpoint: Path, case: Case) -> None:
    embedder = Embedder(tiny_checkpoint, level="L0", pooling="positions", on_reject="null")
    found = embedder.embed(["MKTAY", "MKTAY"], [[1], case.value])
    assert found["reject_reason"] == [None, case.reason]
    with pytest.raises(InputError, match=r"row 2 of the batch \('MKTAY'\.\.\.\) cannot be embedded: positions"):
        Embedder(tiny_checkpoint, level="L0", pooling="positions").embed(["MKTAY", "MKTAY"], [[1], case.value])


@pytest.mark.parametrize("case", SEQUENCE_VALUES, ids=lambda case: case.what)
def test_a_value_that_is_no_text_is_a_reason(tiny_checkpoint: Path, case: Case) -> None:
    found = Embedder(tiny_checkpoint, level="L0", on_reject="null").embed(["MKT", case.value])
    assert found["reject_reason"][1] == (case.reason or ("no residues" if case.gives == "" else None))
    assert (found["embedding"][1] is None) == (found["reject_reason"][1] is not None)


@pytest.mark.parametrize(
    "sequences",
    [
        pd.Series(["MKT", pd.NA], index=[9, 4], dtype="string"),
        pd.Series(["MKT", ""], index=[9, 4]),
        pa.array(["MKT", None]),
        np.array(["MKT", None], dtype=object),
        ("MKT", ""),
    ],
    ids=lambda sequences: type(sequences).__name__,
)
def test_sequences_of_any_library_are_rows(tiny_checkpoint: Path, sequences: Any) -> None:
    found = Embedder(tiny_checkpoint, level="L0", on_reject="null").embed(sequences)
    assert found["reject_reason"] == [None, "no residues"]

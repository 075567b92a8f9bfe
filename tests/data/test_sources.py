"""Tables and other sources give the same records as FASTA would."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.data.records import InputError
from rd_hf.data.sources import is_hub_dataset, read_records, table_format

ROWS = [("p1", "MKTAYIAKQR"), ("p2", "NA"), ("p3", "nan"), ("", "MK"), ("1e5", "")]


def write(path: Path) -> Path:
    kind = table_format(path)
    if kind == ".parquet":
        table = pa.table(
            {"id": [row[0] for row in ROWS], "sequence": [row[1] for row in ROWS], "v": [[1.0]] * len(ROWS)}
        )
        pq.write_table(table, path)
        return path
    if kind == ".jsonl":
        text = "".join(json.dumps({"id": name, "sequence": sequence}) + "\n\n" for name, sequence in ROWS)
    else:
        mark = "\t" if kind == ".tsv" else ","
        text = f"id{mark}Sequence{mark}score\n" + "".join(f"{name}{mark}{sequence}{mark}1\n" for name, sequence in ROWS)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.jsonl", "a.v2.jsonl.gz", "a.parquet"])
def test_a_table_is_read_as_text_row_by_row(tmp_path: Path, name: str) -> None:
    counts: list[int] = []
    path = write(tmp_path / name)
    found = list(read_records(path, on_read=counts.append))
    # "NA" and "nan" are peptides and "1e5" is a name: nothing is guessed.
    assert [(record.id, record.sequence) for record in found] == ROWS
    assert [record.number for record in found] == [1, 2, 3, 4, 5]
    # Parquet counts by rows, so it may be off by a byte's rounding.
    assert sum(counts) == pytest.approx(path.stat().st_size, abs=1)


def test_a_column_can_be_named_and_a_wrong_name_lists_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("wild,mutant_sequence\nx,MK\n")
    assert next(read_records(path, sequence_column="mutant_sequence", id_column="wild")).id == "x"
    with pytest.raises(InputError, match="its columns are wild, mutant_sequence"):
        next(read_records(path, sequence_column="seq"))
    with pytest.raises(InputError, match="name one with --sequence-column"):
        next(read_records(path))


@pytest.mark.parametrize("cell", ["23 45", "[23, 45]", "23;45"])
def test_positions_come_from_a_column(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f'sequence,where\nMK,"{cell}"\n')
    assert next(read_records(path, positions_column="where")).positions == (23, 45)


def test_positions_that_are_no_numbers_are_the_problem_of_their_record(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sequence,where\nMK,1\nMK,A23V\n")
    assert [record.problem for record in read_records(path, positions_column="where")] == [
        "",
        "positions 'A23V' are not whole numbers",
    ]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", b"sequence\n", "holds no rows"),
        ("a.jsonl", b'{"sequence": "MK"}\n{"seq', "cannot be read after record 1"),
        ("a.jsonl", b"[1]\n", "is no JSON object"),
        ("a.parquet", b"PAR1 and no more", "is no readable Parquet file"),
        ("a.csv.gz", gzip.compress(b"sequence\n" + b"MKAAA\n" * 9000)[:-20], "is damaged after"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        list(read_records(path))


def test_hub_datasets_are_told_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "file").write_text(">a\nMK\n")
    assert is_hub_dataset("someone/proteins")
    assert is_hub_dataset("someone/proteins:test")
    assert not is_hub_dataset("owner/file")
    assert not is_hub_dataset("data/proteins.fasta")
    assert [record.sequence for record in read_records("owner/file")] == ["MK"]
    with pytest.raises(InputError, match="someone/proteins is neither here nor"):
        list(read_records("someone/proteins"))

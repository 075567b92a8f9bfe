"""Rows of tables: every line and every value is a record, rejected with a reason, or refused in a sentence."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rd_hf.data import tables
from rd_hf.data.records import FastaRecord, InputError
from rd_hf.data.sources import read_records
from tests.data import cases
from tests.data.cases import Case

relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def pairs(path: Path, **columns: Any) -> list[tuple[str, str]]:
    return [(record.id, record.problem or record.sequence) for record in read_records(path, **columns)]


def named(case: Case) -> str:
    return case.what


@pytest.mark.parametrize("case", cases.TAB_ROWS, ids=named)
def test_a_row_of_a_tab_separated_file(tmp_path: Path, case: Case) -> None:
    path = tmp_path / "a.tsv"
    # The next row is always its own, and the last one is there: nothing is eaten.
    path.write_text(f"id|note|sequence\n{case.value}\np9|c|AAAAA\n".replace("|", "\t"))
    assert pairs(path) == [*case.gives, cases.NEXT]


@pytest.mark.parametrize("delimiter", ",;")
@pytest.mark.parametrize("case", cases.COMMA_ROWS, ids=named)
def test_a_row_of_a_comma_or_semicolon_file(tmp_path: Path, case: Case, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id,note,sequence\n{case.value}\np9,c,AAAAA\n".replace(",", delimiter))
    assert pairs(path) == [*case.gives, cases.NEXT]


@pytest.mark.parametrize("case", cases.DELIMITED, ids=named)
def test_the_delimiter_is_found(tmp_path: Path, case: Case) -> None:
    name, text = case.value
    (tmp_path / name).write_text(text)
    assert pairs(tmp_path / name) == [case.gives]


@pytest.mark.parametrize(("name", "mark"), [("a.tsv", "\t"), ("a.csv", ",")])
def test_a_header_in_quotes_says_that_all_quotes_are_meant(tmp_path: Path, name: str, mark: str) -> None:
    path = tmp_path / name
    # Each of the two lines of the row has three cells if its quotes mean nothing.
    path.write_text('"id"|"note"|"sequence"\n"p2"|"b|GSHMAS\nc|d"|"MKV"\n"p9"|"c"|"AAAAA"\n'.replace("|", mark))
    assert pairs(path) == [("p2", "MKV"), cases.NEXT]


def test_a_delimiter_that_is_not_found_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id|sequence\np1|MKT\n")
    with pytest.raises(InputError, match=r"its columns are id\|sequence \(told apart by commas\)"):
        pairs(path)


def test_a_quote_that_nothing_closes_never_eats_the_rest(tmp_path: Path) -> None:
    for mark, name in (("\t", "a.tsv"), (",", "a.csv")):
        rows = [f"p{number}{mark}note{mark}MKTAY" for number in range(10000)]
        rows[100] = f'p100{mark}"note{mark}MKTAY'
        path = tmp_path / name
        path.write_text("\n".join([f"id{mark}note{mark}sequence", *rows]))
        assert pairs(path) == [(f"p{number}", "MKTAY") for number in range(10000)]


def test_cells_that_span_lines_are_said_once(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,sequence\np1,"MK\nTAY"\np2,"GA\nVL"\n')
    said: list[str] = []
    assert [record.sequence for record in read_records(path, say=said.append)] == ["MKTAY", "GAVL"]
    assert said == [f"{path}: quoted cells span lines, first 2 to 3; they are read as one row"]


# Lines that look like anything, of a header with three columns.
pieces = st.sampled_from(["\t", ",", '"', '""', "a", "MK", "\n", "\r\n", " ", "é", "'"])


@given(st.lists(pieces, max_size=40).map("".join), st.sampled_from(["\t", ","]))
@relaxed
def test_each_line_of_any_text_is_part_of_one_record(tmp_path: Path, text: str, mark: str) -> None:
    path = tmp_path / ("any.tsv" if mark == "\t" else "any.csv")
    path.write_bytes(f"id{mark}note{mark}sequence\n{text}".encode())
    said: list[str] = []
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line]
    if not lines:
        with pytest.raises(InputError, match="holds no rows"):
            list(read_records(path))
        return
    found = list(read_records(path, say=said.append))
    if not said:
        assert len(found) == len(lines)
    # A row that is read has the cells of its line, or those that RFC 4180 gives it: never its neighbour's.
    strict = set()
    for first in range(len(lines)):
        for last in range(first, len(lines)):
            try:
                rows = list(csv.reader(io.StringIO("\n".join(lines[first : last + 1])), delimiter=mark, strict=True))
            except csv.Error:
                continue
            strict |= {(row[0], "".join(row[2].split())) for row in rows if len(rows) == 1 and len(row) == 3}
    plain = {(c[0], "".join(c[2].split())) for c in (line.split(mark) for line in lines) if len(c) == 3}
    assert {(r.id, r.sequence) for r in found if not r.problem} <= strict | plain


cell = st.text("ab \",\t\n'é", max_size=6)


@given(
    st.lists(st.tuples(cell, cell, st.text("MKTAY", min_size=1, max_size=5)), min_size=1, max_size=5),
    st.sampled_from(["\t", ","]),
)
@relaxed
def test_a_table_with_all_cells_in_quotes_is_read_as_it_was_written(
    tmp_path: Path, rows: list[tuple[str, str, str]], mark: str
) -> None:
    path = tmp_path / ("any.tsv" if mark == "\t" else "any.csv")
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, delimiter=mark, quoting=csv.QUOTE_ALL, lineterminator="\n")
        writer.writerows([("id", "note", "sequence"), *rows])
    assert pairs(path) == [(name, sequence) for name, _, sequence in rows]


@given(st.lists(st.tuples(cell, st.text("MKTAY", min_size=1, max_size=5), cell), min_size=1, max_size=5))
@relaxed
def test_a_comma_table_is_read_as_it_was_written_or_rejected(tmp_path: Path, rows: list[tuple[str, str, str]]) -> None:
    path = tmp_path / "any.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle, lineterminator="\n").writerows([("id", "sequence", "note"), *rows])
    written = iter([(name, sequence) for name, sequence, _ in rows])
    # In their order, some left out.
    assert all((record.id, record.sequence) in written for record in read_records(path) if not record.problem)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


JSON_VALUES = [
    case for case in cases.SEQUENCE_VALUES if type(case.value) in (str, type(None), float, int, bool, list, dict)
]


@pytest.mark.parametrize("case", JSON_VALUES, ids=named)
def test_a_json_value_that_is_no_text_is_a_rejected_record(tmp_path: Path, case: Case) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "p1", "sequence": case.value}, {"id": "p2", "sequence": "MK"}])
    first, second = read_records(path)
    assert (first.id, first.sequence, first.problem) == ("p1", case.gives or "", case.reason)
    assert second.sequence == "MK"


JSON_IDS = [case for case in cases.ID_VALUES if type(case.value) in (str, type(None), float, int, list, dict)]


@pytest.mark.parametrize("case", JSON_IDS, ids=named)
def test_a_json_id_is_kept_readable_or_rejected(tmp_path: Path, case: Case) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": case.value, "sequence": "MK"}])
    (record,) = read_records(path)
    number = case.gives is None or case.gives == "the record's number"
    assert (record.id, record.problem) == ("1" if number else case.gives, case.reason)
    record.id.encode()


def test_a_key_given_twice_is_a_rejected_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"sequence": "MK"}\n{"sequence": "MK", "sequence": "ML"}\n')
    assert pairs(path) == [("1", "MK"), ("2", "line 2 gives two values for one key")]


@pytest.mark.parametrize("header", ["id,sequence,sequence", "id,Sequence,SEQUENCE"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, header: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{header}\np1,MK,ML\n")
    with pytest.raises(InputError, match=r"has 2 columns \(.*\) that may hold the sequence: rename all but one"):
        pairs(path)


def test_ids_of_a_text_table_that_are_not_utf_8_stay_distinct(tmp_path: Path) -> None:
    for name in ("a.csv", "a.jsonl"):
        row = b'{"id": "p%s", "sequence": "MK"}\n' if name == "a.jsonl" else b"p%s,MK\n"
        path = tmp_path / name
        head = b"" if name == "a.jsonl" else b"id,sequence\n"
        path.write_bytes(head + row % b"1" + row % b"\xe5" + row % b"\xe9")
        said: list[str] = []
        assert [record.id for record in read_records(path, say=said.append)] == ["p1", r"p\xe5", r"p\xe9"]
        assert len(said) == 1
        assert "from record 2 on" in said[0]


def make(kind: pa.DataType, values: list[str]) -> pa.Array:
    """Text as a column of a type, dictionaries through their values."""
    if pa.types.is_dictionary(kind):
        inner = make(kind.value_type, values)
        return inner.dictionary_encode().cast(kind)
    return pa.array([value.encode() for value in values] if "binary" in str(kind) else values, kind)


@pytest.mark.parametrize("kind", cases.TEXT_TYPES, ids=str)
def test_a_parquet_column_of_any_text_type_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table(
            {"id": make(kind, ["p000000001", "p000000002"]), "sequence": make(kind, ["MKTAYIAKQR", "GAVLIMFWPS"])}
        ),
        path,
    )
    assert pairs(path) == [("p000000001", "MKTAYIAKQR"), ("p000000002", "GAVLIMFWPS")]


@pytest.mark.parametrize("kind", [kind for kind in cases.ID_TYPES if kind not in cases.TEXT_TYPES], ids=str)
def test_whole_numbers_of_any_type_are_ids(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    inner = pa.array([7, 8], getattr(kind, "value_type", kind))
    ids = inner.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else inner
    pq.write_table(pa.table({"id": ids, "sequence": ["MK", "ML"]}), path)
    assert pairs(path) == [("7", "MK"), ("8", "ML")]


@pytest.mark.parametrize("kind", cases.POSITION_TYPES, ids=str)
def test_positions_of_any_list_type_are_read(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    text = "list" not in str(kind)
    values: list[Any] = ["1,2", "2;3"] if text else [[1, 2], [2, 3]]
    if "string" in str(kind) and not text:
        values = [["1", "2"], ["2", "3"]]
    pq.write_table(pa.table({"sequence": ["MKT", "MLT"], "at": pa.array(values, kind)}), path)
    assert [record.positions for record in read_records(path, positions_column="at")] == [(1, 2), (2, 3)]


# Doubles that are all NaN are what pandas writes of an empty column.
NO_TEXT = {
    pa.float64(): [float("nan")] * 2,
    pa.bool_(): [True, False],
    pa.int64(): [1, 2],
    pa.list_(pa.string()): [["M"], ["K"]],
}


@pytest.mark.parametrize("kind", NO_TEXT, ids=str)
def test_a_parquet_column_that_holds_no_text_is_refused(tmp_path: Path, kind: pa.DataType) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": ["p1", "p2"], "sequence": pa.array(NO_TEXT[kind], kind)}), path)
    with pytest.raises(
        InputError, match=re.escape(f"column 'sequence' holds {pq.read_schema(path).field(1).type}, no text")
    ):
        pairs(path)


def test_other_columns_of_parquet_may_hold_no_id_and_no_positions(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [["a"]], "sequence": ["MK"], "at": [True]}), path)
    with pytest.raises(InputError, match=r"column 'id' holds list<.*>, neither text nor numbers: .*--id-column"):
        pairs(path)
    with pytest.raises(InputError, match=r"column 'at' holds bool, no whole numbers: .*--positions-column"):
        pairs(path, id_column="sequence", positions_column="at")


def test_parquet_bytes_that_are_no_text_are_rejected_as_records(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    offsets = pa.array([0, 2, 4], pa.int32()).buffers()[1]
    broken = pa.StringArray.from_buffers(2, offsets, pa.py_buffer(b"MKM\xff"))
    pq.write_table(pa.table({"id": broken, "sequence": broken}), path)
    reason = "the sequence is bytes that are not UTF-8 (at byte 2)"
    assert pairs(path) == [("MK", "MK"), (r"M\xff", reason)]


def test_a_dataset_gives_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"id": [b"p\xe5", b"p2", b"p3"], "sequence": ["MK", None, "ML"], "at": [[1], [2], None]}
    dataset = Dataset.from_dict(rows)
    monkeypatch.setattr("datasets.load_dataset", lambda name, split, streaming: dataset.to_iterable_dataset())
    found = list(read_records("someone/proteins", positions_column="at"))
    assert [(r.id, r.sequence, r.positions) for r in found] == [
        (r"p\xe5", "MK", (1,)),
        ("p2", "", (2,)),
        ("p3", "ML", ()),
    ]


@given(
    st.lists(
        st.one_of(
            st.none(),
            st.booleans(),
            st.integers(),
            st.floats(),
            st.text(max_size=5),
            st.lists(st.integers(), max_size=2),
        ),
        min_size=1,
        max_size=8,
    )
)
@relaxed
def test_each_json_line_is_a_record_whatever_it_holds(tmp_path: Path, values: list[Any]) -> None:
    # A column of names alone is refused as a whole.
    values.append("MKTAY")
    path = write_jsonl(tmp_path / "any.jsonl", [{"id": value, "sequence": value} for value in values])
    found: list[FastaRecord] = list(read_records(path))
    assert len(found) == len(values)
    for value, record in zip(values, found, strict=True):
        record.id.encode()
        assert bool(record.problem) == (not isinstance(value, (str, type(None))))


def test_the_longest_cell_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LONGEST_CELL", 5)
    path = tmp_path / "a.csv"
    path.write_text('id,note,sequence\np1,"a,MK\n' + "p2,b,ML\n" * 20 + 'p3,c",MV\n')
    assert [sequence for _, sequence in pairs(path)] == ["MK", *["ML"] * 20, "MV"]

"""Which column is read: by its name, in a stated order, and only where it holds sequences."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rd_hf.data import sources
from rd_hf.data.columns import SEQUENCE_COLUMNS, is_name
from rd_hf.data.records import InputError
from rd_hf.data.sources import read_records

BETA, ALPHA = (
    "MVHLTPEEKSAVTALWGKVNVDEVGGEALGRLLVVYPWTQRFFESFGDLST",
    "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERMFLSFPTTKTYFPHFDLSH",
)
NAMES = ["Hemoglobin subunit beta", "Hemoglobin subunit alpha"]
Columns = dict[str, list[Any]]


def as_csv(folder: Path, columns: Columns) -> Path:
    path = folder / "a.csv"
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join(",".join(f'"{cell}"' for cell in row) + "\n" for row in rows))
    return path


def as_tsv(folder: Path, columns: Columns) -> Path:
    path = folder / "a.tsv"
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows))
    return path


def as_jsonl(folder: Path, columns: Columns) -> Path:
    path = folder / "a.jsonl"
    path.write_text(
        "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True))
    )
    return path


def as_parquet(folder: Path, columns: Columns) -> Path:
    path = folder / "a.parquet"
    pq.write_table(pa.table(columns), path)
    return path


@pytest.fixture(params=["csv", "tsv", "jsonl", "parquet", "Hub"])
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Write a table in each format that there is."""

    def as_hub(_: Path, columns: Columns) -> str:
        def rows(source: str) -> Iterator[dict[str, Any]]:
            return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))

        monkeypatch.setattr(sources, "_hub_rows", rows)
        return "someone/proteins"

    formats = {"csv": as_csv, "tsv": as_tsv, "jsonl": as_jsonl, "parquet": as_parquet, "Hub": as_hub}
    return lambda **columns: formats[request.param](tmp_path, {k.replace("__", " "): v for k, v in columns.items()})


def test_the_names_of_the_field_are_known_whatever_signs_they_have(written: Callable[..., Any]) -> None:
    for name in ("AA_sequence", "aa_seq", "Protein__Sequence", "AminoAcidSequence", "mutated-sequence", "primary"):
        said: list[str] = []
        source = written(**{"Protein__ID": ["HBB", "HBA"], "Protein": NAMES, name: [BETA, ALPHA]})
        found = [(record.id, record.sequence) for record in read_records(source, say=said.append)]
        assert found == [("HBB", BETA), ("HBA", ALPHA)], name
        shown = name.replace("__", " ")
        assert said == [
            f"{source}: sequences are read from column {shown!r}, ids from column 'Protein ID'; --sequence-column "
            "names another"
        ]


def test_a_column_of_names_is_refused_and_read_where_it_is_named(written: Callable[..., Any]) -> None:
    for name, cells in {
        "Protein": ["ACTIN", "KINASE", "FERRITIN LIGHT"],
        "protein": [*NAMES, "Myoglobin"],
        "primary": ["P68871", "P69905", "P02144"],
        "sequence": [*NAMES, "Myoglobin"],
        "protein_seq": ["Actin", "Titin", "Ferritin light chain"],
    }.items():
        source = written(Entry=["a", "b", "c"], **{name: cells})
        with pytest.raises(InputError, match=rf"column '{name}' holds '{cells[0]}.*--sequence-column") as refused:
            list(read_records(source))
        assert "\n" not in str(refused.value)
        assert len(list(read_records(source, sequence_column=name))) == 3


def test_sequences_are_read_whatever_they_look_like(written: Callable[..., Any]) -> None:
    """In blocks, soft-masked, with gaps and stops, short peptides: under a name that says sequence, nothing is lost."""
    blocks = " ".join(BETA[start : start + 10] for start in range(0, len(BETA), 10))
    for name, cells in {
        "sequence": ["MKT", "NA"],
        "peptide__sequence": ["MKT", "NA"],
        "protein": [BETA.lower(), blocks, f"{ALPHA}*", "NA"],
        "Protein": [BETA[:30], "M1", ALPHA],
        "seq": ["M1", "K2"],
    }.items():
        asked = {"sequence_column": "peptide sequence"} if name.startswith("peptide") else {}
        found = list(read_records(written(**{name: cells}), **asked))
        assert [record.sequence for record in found] == ["".join(cell.split()) for cell in cells]


def test_the_plain_names_come_first_and_without_a_word(written: Callable[..., Any]) -> None:
    said: list[str] = []
    source = written(protein=[ALPHA, BETA], primary=[ALPHA, ALPHA], Sequence=[BETA, BETA])
    assert {record.sequence for record in read_records(source, say=said.append)} == {BETA}
    assert said == []
    assert SEQUENCE_COLUMNS[0] == "sequence"
    assert SEQUENCE_COLUMNS[-1] == "protein"


def test_two_columns_of_one_name_are_refused(written: Callable[..., Any]) -> None:
    source = written(**{"AA__sequence": [BETA], "AA_sequence": [ALPHA]})
    with pytest.raises(InputError, match=r"2 columns \(AA sequence, AA_sequence\) that may hold the sequence"):
        list(read_records(source))


def test_what_ends_a_table_early_ends_it_there(tmp_path: Path) -> None:
    """Looking ahead costs none of the records before the damage."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"protein_seq": "MKT"}\n{"protein_seq": "MKV"}\n{"prot')
    found = []
    with pytest.raises(InputError, match="cannot be read after record 2"):
        found.extend(record.sequence for record in read_records(path))
    assert found == ["MKT", "MKV"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hemoglobin subunit beta", True),
        ("FERRITIN LIGHT", True),
        ("Hsp70", True),
        ("P68871", True),
        ("Actin", True),
        ("actin, beta", True),
        ("MKT\nAYI", False),
        ("ACTIN", False),
        ("MKTAYIAKQR MKTAYIAKQR MKT", False),
        ("mktayiakqr", False),
        ("MKTmktAYI-.*", False),
    ],
)
def test_what_reads_as_a_name(text: str, expected: bool) -> None:
    assert is_name(text) is expected

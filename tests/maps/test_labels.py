"""Labels: a header, an id column, any number of label columns; what is ambiguous is said, not guessed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rd_hf.data.records import InputError
from rd_hf.maps.labels import column, label_columns, read_labels


def test_labels_are_numbered_by_frequency() -> None:
    found = column("kingdom", ["b", "", "c", "a", "c", "b", "c"])
    assert found.labels == ["c", "b", "a"]
    assert found.codes.tolist() == [2, 0, 1, 3, 1, 2, 1]
    assert found.unlabelled == 1
    assert column("tied", ["b", "a"]).labels == ["a", "b"]


@pytest.mark.parametrize("packed", [False, True])
def test_every_column_is_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "labels.tsv"
    text = b'kingdom\tEntry\tfamily\nArchaea\tx\t\n\nBacteria\ty\t"a ""b"""\nBacteria\ty\t\n'
    path.write_bytes(gzip.compress(text) if packed else text)
    assert read_labels(path) == {"kingdom": {"x": "Archaea", "y": "Bacteria"}, "family": {"y": 'a "b"'}}


def test_ids_that_repeat_share_a_label_and_empty_ids_have_none(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text("id\tk\nx\tA\n\tB\nelsewhere\tC\n")
    (found,), foreign = label_columns(path, ["x", "", "y", "x"])
    assert found.labels == ["A"]
    assert found.codes.tolist() == [1, 0, 0, 1]
    assert foreign == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no rows"),
        ("x\tA\ny\tB\n", "the first line must name the columns.*'x.tA'"),
        ("id\nx\n", "the first line must name the columns"),
        ("id\tk\tk\nx\t1\t2\n", "the first line must name the columns"),
        ("id\tk\nx\n", "line 2 has 1 cell where the header has 2"),
        ("id\tk\nx\tA\ny\tB\nx\tB\n", "'x' has two labels as k, 'A' and 'B': keep one"),
        ("id\tk\nP1\tA\n", "labels none of the 2 proteins: its first id is 'P1', the first protein's is 'x'"),
        ("id\tk\n", "labels none of the 2 proteins: it is empty"),
    ],
)
def test_a_wrong_table_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "labels.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        label_columns(path, ["x", "y"])


def test_a_table_cut_short_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tk\n" + b"".join(b"p%d\tA\n" % number for number in range(9999)))[:-40])
    with pytest.raises(InputError, match="damaged"):
        read_labels(path)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "absent.tsv")

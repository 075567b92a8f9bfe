"""Tables of labels: one reader for searches and maps, of files as people and tools write them."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from rd_hf.data.labels import Matches, read_labels, split_labels
from rd_hf.data.records import InputError


def labels_of(path: Path, column: str | None = None) -> dict[str, tuple[str, ...]]:
    """Labels of each id in the column that is read."""
    (cells,) = read_labels(path, column).values()
    return {name: split_labels(each) for name, each in cells.items()}


def test_files_of_labels(tmp_path: Path) -> None:
    plain = tmp_path / "labels.tsv"
    plain.write_text("id\tlabel\na\tx; y\nb\tz\na\tw\nc\t\n")
    assert labels_of(plain) == {"a": ("x", "y", "w"), "b": ("z",)}
    (tmp_path / "labels.tsv.gz").write_bytes(gzip.compress(b"a\tx\nb\ty\n"))
    assert labels_of(tmp_path / "labels.tsv.gz") == {"a": ("x",), "b": ("y",)}
    plain.write_text("sid\tfold\tfamily\nd1\ta.1\ta.1.1.1\n")
    assert labels_of(plain, "family") == {"d1": ("a.1.1.1",)}
    plain.write_text("sid\tnote\tnote\tfamily\nd1\ta\tb\ta.1.1.1\n")
    assert labels_of(plain, "family") == {"d1": ("a.1.1.1",)}


def test_files_as_other_tools_write_them(tmp_path: Path) -> None:
    """Cells in quotes with a tab inside, quotes that are letters, other encodings, ids that look like numbers."""
    path = tmp_path / "labels.tsv"
    path.write_text('007\t"a\tb; c"\n7\t5"-nucleotidase\n1e3\t"open\n"1.0"\tq\nNA\tz\n')
    assert labels_of(path) == {
        **{"007": ("a\tb", "c"), "7": ('5"-nucleotidase',), "1e3": ('"open',), "1.0": ("q",), "NA": ("z",)}
    }
    path.write_bytes("id\tlabel\r\nprotéine\tnoyau cellulaire\r\n".encode("utf-16"))
    assert labels_of(path) == {"protéine": ("noyau cellulaire",)}
    path.write_bytes("p1\tprotéine\n".encode("latin-1"))
    assert labels_of(path) == {"p1": ("prot\\xe9ine",)}


@pytest.mark.parametrize("packed", [False, True])
def test_every_column_is_read_and_the_ids_need_not_be_the_first(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "labels.tsv"
    text = b'kingdom\tEntry\tfamily\nArchaea\tx\t\n\nBacteria\ty\t"a ""b"""\nBacteria\ty\t\n'
    path.write_bytes(gzip.compress(text) if packed else text)
    expected = {"kingdom": {"x": ["Archaea"], "y": ["Bacteria"]}, "family": {"y": ['a "b"']}}
    assert read_labels(path, all_columns=True) == expected
    assert read_labels(path) == {"kingdom": expected["kingdom"]}
    assert labels_of(path, "family") == {"y": ('a "b"',)}


@pytest.mark.parametrize(
    "text",
    [
        # The id comes first, and what separates labels in its cell separates no cells.
        "r1\ta;b;c\nr2\td\n",
        "r1,a;b;c\nr2,d\n",
        "r1\ta;b\nr2\td\nr1\tc\n",
        "id,label\nr1,a;b;c\nr2,d\n",
        "id;label\nr1;a\nr2;d\nr1;b\nr1;c\n",
        'label,accession\n"a; b;c",r1\nd,r2\n',
        # Further cells, and lines of blanks, among those without a header.
        "r1\ta;b;c\n \n\t\nr2\td\tcomment\n",
    ],
)
def test_however_cells_are_separated(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_text(text)
    assert labels_of(path) == {"r1": ("a", "b", "c"), "r2": ("d",)}


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("a\tx\nb\n", None, "line 2 has no column 2"),
        ("a\nb\n", None, "line 1 has no column 2"),
        ("id\tlabel\n", None, "gives no id a label"),
        ("id\tlabel\na\t;\n", None, "gives no id a label"),
        ("a\tx\n", "family", "has no column 'family'; its columns are a, x"),
        ("", None, "holds no rows"),
        ("id\nx\n", None, "the first line must name the columns, each once.*'id'"),
        # An unquoted comma in a label would else cut it, or move the next one.
        ("id,label\nx,a, b\n", None, "line 2 has 3 cells where the header has 2; mend the row"),
    ],
)
def test_odd_files_get_a_sentence(tmp_path: Path, text: str, column: str | None, says: str) -> None:
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(tmp_path / "labels.tsv", column)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id\tk\tk\nx\t1\t2\n", "the first line must name the columns"),
        ("id\tk\t\nx\t1\t2\n", "the first line must name the columns"),
        ("id\tk\nx\n", "line 2 has 1 cell where the header has 2"),
        ("id\tk\nx\t1\t2\n", "line 2 has 3 cells where the header has 2"),
    ],
)
def test_where_all_columns_are_read_rows_and_names_are_whole(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(tmp_path / "labels.tsv", all_columns=True)


def test_a_table_cut_short_gets_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "labels.tsv.gz"
    path.write_bytes(gzip.compress(b"id\tk\n" + b"".join(b"p%d\tA\n" % number for number in range(9999)))[:-40])
    with pytest.raises(InputError, match="damaged"):
        read_labels(path)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "absent.tsv")


def test_ids_match_as_they_are_or_by_the_accession_in_them() -> None:
    matches = Matches("labels.tsv", {"P1": "x", "sp|P2|B_YEAST": "y", "P2": "z", "|P3|": "w", "Q": "v"})
    names = ["sp|P1|A_YEAST", "sp|P2|B_YEAST", "tr|P9|C", "P1", "", "a|b|c|d", "sp|Q", "x||y", None]
    assert matches.find(names) == ["P1", "sp|P2|B_YEAST", None, "P1", None, None, None, None, None]
    assert (matches.by_id, matches.by_accession) == (2, 1)
    assert matches.unused == {"P2", "|P3|", "Q"}
    assert str(matches) == "2 proteins matched by their id, 1 by the accession in it"
    matches.require("folder", 8, "sp|P1|A_YEAST")
    with pytest.raises(
        InputError, match="'P1', the first protein's is 'x'; write ids as the embedding folder has them"
    ):
        Matches("labels.tsv", {"P1": "x"}).require("folder", 8, "x")

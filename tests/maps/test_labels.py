"""What points are coloured by: labels of the proteins that are drawn; what is ambiguous is said, not guessed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rd_hf.data.records import InputError
from rd_hf.maps.labels import Column, columns_of
from rd_hf.maps.proteins import Proteins, read_proteins
from rd_hf.maps.settings import MapSettings
from tests.maps.conftest import clusters, write_folder


def test_labels_are_numbered_by_frequency() -> None:
    found = Column.of("kingdom", ["b", "", "c", "a", "c", "b", "c"])
    assert found.labels == ["c", "b", "a"]
    assert found.codes.tolist() == [2, 0, 1, 3, 1, 2, 1]
    assert Column.of("tied", ["b", "a"]).labels == ["a", "b"]


def coloured(
    path: Path, ids: list[str], table: Path | None = None, categories: tuple[str, ...] = ()
) -> tuple[list[Column], list[str]]:
    """Columns of a table (``labels.tsv``) for proteins of these ids, all of one input, and what is said of them."""
    proteins: Proteins = read_proteins(write_folder(path / "e", clusters(len(ids), 12)[0], ids, parts=1))
    labels = str(table or path / "labels.tsv")
    settings = MapSettings(str(path / "e"), str(path / "map.html"), labels=labels, categories=categories)
    return columns_of(settings, proteins)


def test_ids_that_repeat_share_a_label_and_empty_ids_have_none(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("id\tk\nx\tA\n\tB\nelsewhere\tC\n")
    (found,), notes = coloured(tmp_path, ["x", "", "y", "x"])
    assert found.labels == ["A"]
    assert found.codes.tolist() == [1, 0, 0, 1]
    path = tmp_path / "labels.tsv"
    assert notes == [
        f"proteins without k in {path}, drawn grey: 2",
        f"ids of {path} that belong to no protein of {tmp_path / 'e'}: 1",
    ]


def test_a_protein_with_several_labels_has_one_colour_and_is_counted(tmp_path: Path) -> None:
    """One cell is drawn as it is; lines that agree say nothing new; those that differ make a label of several."""
    (tmp_path / "labels.tsv").write_text("id\tk\nx\tA; B\ny\tA\ny\tB\nz\tB\nz\tB\n")
    (found,), notes = coloured(tmp_path, ["x", "y", "z"])
    assert [found.labels[code - 1] for code in found.codes] == ["A; B", "A;B", "B"]
    assert notes == [f"proteins with several labels as k in {tmp_path / 'labels.tsv'}, drawn as one such as 'A;B': 1"]


def test_proteins_found_by_their_accession_are_counted(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("P1\tA\nz\tB\n")
    (found,), notes = coloured(tmp_path, ["sp|P1|A_YEAST", "tr|P2|B_YEAST", "z"])
    assert [found.labels[code - 1] if code else "" for code in found.codes] == ["A", "", "B"]
    assert notes[-1] == "1 proteins matched by their id, 1 by the accession in it"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("id\tk\nP1\tA\n", "labels none of the 3 proteins of .*: its first id is 'P1', the first protein's is 'x'"),
        ("id\tk\n", "gives no id a label"),
    ],
)
def test_a_table_of_no_protein_gets_a_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "labels.tsv").write_text(text)
    with pytest.raises(InputError, match=sentence):
        coloured(tmp_path, ["x", "y", "z"])


def test_numbers_are_read_as_numbers_and_shown_on_a_scale() -> None:
    written = ["2", "10", "-1.5", "+3e2", ".5", "7.", "1e-3", "0"]
    found = Column.of("melting", [*written, "", "NA", "2;3"])
    assert found.scale
    assert found.numbers is not None
    # An empty cell, one that says so, and several numbers are none.
    assert found.numbers[:8].tolist() == [float(one) for one in written]
    assert np.isnan(found.numbers[8:]).all()
    # Equally frequent ones stand in the order of numbers, not of text.
    assert found.labels[:8] == ["-1.5", "0", "1e-3", ".5", "2", "7.", "10", "+3e2"]


@pytest.mark.parametrize("word", ["", "x", "1_000", "infinity", "1e999", "0x10", "1,5", "٣", "12 kDa", "A;1"])
def test_one_label_that_is_no_number_makes_categories(word: str) -> None:
    found = Column.of("k", [*map(str, range(20)), word])
    assert (found.numbers is None) == bool(word)  # an empty cell is no label
    assert found.scale == (not word)


def test_few_numbers_and_those_said_to_be_names_are_categories() -> None:
    few = Column.of("cluster", [str(row % 7) for row in range(50)])
    assert few.numbers is not None  # the page can draw a scale of them all the same
    assert not few.scale
    assert Column.of("cluster", [str(row % 8) for row in range(50)]).scale
    assert not Column.of("cluster", [str(row % 8) for row in range(50)], categories=True).scale
    assert Column.of("constant", ["1", "1"]).numbers is None


def test_a_scale_is_said_with_the_way_out(tmp_path: Path) -> None:
    ids = [f"p{row}" for row in range(10)]
    (tmp_path / "labels.tsv").write_text("id\tlength\n" + "".join(f"{one}\t{row}\n" for row, one in enumerate(ids[:9])))
    path = tmp_path / "labels.tsv"
    (found,), notes = coloured(tmp_path / "a", ids, path)
    assert found.scale
    assert notes == [
        f"length in {path} holds numbers: drawn on a scale; --categories length gives each a colour",
        f"proteins without one number as length in {path}, drawn grey: 1",
    ]
    (found,), notes = coloured(tmp_path / "b", ids, path, categories=("length",))
    assert not found.scale
    assert notes == [f"proteins without length in {path}, drawn grey: 1"]
    with pytest.raises(InputError, match=r"has no column 'width' to draw as categories: it has length"):
        coloured(tmp_path / "c", ids, path, categories=("width",))

"""The table beside the page: what was computed, to the last digit, by record and level."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from rd_hf.maps.projection import project
from rd_hf.maps.proteins import read_proteins
from tests.maps.conftest import DIMS, Outcome, clusters, write_folder
from tests.maps.test_neighbours import brute_force


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    # An id that repeats and one that is empty: records tell them apart.
    return write_folder(tmp_path / "e", clusters(30, 12)[0], ["twice", "twice", "", *(f"p{row}" for row in range(27))])


def test_coordinates_and_neighbours_are_those_that_are_drawn(
    draw: Callable[..., Outcome], folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "map.parquet"
    done = draw(folder, "--neighbours", 4, "--table", path, "--output", tmp_path / "map.html")
    assert done.status == 0, done.stderr
    assert f"coordinates and neighbours written to {path}\n" in done.stdout
    rows = pq.read_table(path).to_pylist()
    assert [row["level"] for row in rows] == [level for level in DIMS for _ in range(30)]
    proteins = read_proteins(folder)
    for projection in project(proteins):
        own = [row for row in rows if row["level"] == projection.level]
        assert [row["record"] for row in own] == list(range(1, 31))
        assert [row["id"] for row in own] == proteins.ids
        assert np.array_equal([[row["x"], row["y"]] for row in own], projection.points)
        cosines = brute_force(proteins.at(projection.level))
        order = np.argsort(-cosines)[:, :4]
        assert np.array_equal([row["neighbour_records"] for row in own], order + 1)
        assert [row["neighbour_ids"] for row in own] == [[proteins.ids[place] for place in near] for near in order]
        similar = np.take_along_axis(cosines, order, axis=1)
        # float32 products of up to 12 numbers.
        np.testing.assert_allclose([row["similarities"] for row in own], similar, atol=1e-6)


def test_as_text_lists_are_joined_and_digits_kept(draw: Callable[..., Outcome], folder: Path, tmp_path: Path) -> None:
    arguments = (folder, "--neighbours", 2, "--quiet", "--output", tmp_path / "map.html")
    for name in ("map.tsv", "map.csv", "map.parquet"):
        assert draw(*arguments, "--table", tmp_path / name).status == 0
    rows = pq.read_table(tmp_path / "map.parquet").to_pylist()
    for name, delimiter in (("map.tsv", "\t"), ("map.csv", ",")):
        with open(tmp_path / name, newline="") as handle:
            read = list(csv.DictReader(handle, delimiter=delimiter))
        assert len(read) == len(rows)
        for text, row in zip(read, rows, strict=True):
            assert (float(text["x"]), float(text["y"])) == (row["x"], row["y"])
            assert text["neighbour_records"] == ";".join(map(str, row["neighbour_records"]))
            assert text["neighbour_ids"] == ";".join(row["neighbour_ids"])
            assert [np.float32(one) for one in text["similarities"].split(";")] == row["similarities"]


def test_without_neighbours_there_are_no_columns_of_them(
    draw: Callable[..., Outcome], folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "map.tsv"
    assert draw(folder, "--neighbours", 0, "--table", path, "--output", tmp_path / "map.html").status == 0
    assert path.read_text().partition("\n")[0] == "record\tid\tlevel\tx\ty"


def test_a_table_replaces_no_input(draw: Callable[..., Outcome], folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.tsv"
    labels.write_text("p1\tA\n")
    done = draw(folder, "--labels", labels, "--table", labels, "--output", tmp_path / "map.html")
    assert done.status == 1
    assert f"--table {labels} would replace --labels {labels}: choose another --table\n" in done.stderr
    assert labels.read_text() == "p1\tA\n"
    done = draw(folder, "--table", folder / "embeddings-000000.parquet", "--output", tmp_path / "map.html")
    assert done.status == 1
    assert "a folder of embeddings, and could replace a part of it" in done.stderr

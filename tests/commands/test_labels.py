"""Labels on the command line: what ``rd-hf search`` reads, ``rd-hf map`` reads, as the same labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rd_hf.commands import map as map_command
from rd_hf.commands import search as search_command
from tests.maps.conftest import clusters, write_folder
from tests.search.conftest import read_hits

pytest.importorskip("faiss")
pytest.importorskip("plotly")

# Five proteins, two of them called as in UniProt. The labels are those of the first four.
IDS = ["p0", "p1", "sp|P2|B_YEAST", "sp|P3|C_YEAST", "p4"]
LABELS = {0: {"a"}, 1: {"b"}, 2: {"a", "b"}, 3: {"c d"}}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("comma table with a header", "accession,label\np0,a\np1,b\nsp|P2|B_YEAST,a;b\nsp|P3|C_YEAST,c d\nQ,e\n"),
        ("tabs without a header", "p0\ta\np1\tb\nsp|P2|B_YEAST\ta;b\nsp|P3|C_YEAST\tc d\nQ\te\n"),
        ("one id on two lines", "id\tlabel\np0\ta\nsp|P2|B_YEAST\ta\np1\tb\np1\tb\nsp|P2|B_YEAST\tb\nP3\tc d\nQ\te\n"),
        ("accessions", "label;Entry\na;p0\nb;p1\n\"a; b\";P2\nc d;P3\ne;Q\n"),
    ],
)  # fmt: skip
def test_one_file_gives_searches_and_maps_the_same_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    folder, labels = write_folder(tmp_path / "e", clusters(5, 12)[0], IDS, parts=1), tmp_path / "labels.txt"
    labels.write_text(text)
    hits, page = tmp_path / "hits.tsv", tmp_path / "map.html"
    shared = ["--labels", str(labels), "--output"]
    queries = ["--input", str(folder), str(folder), "--neighbours", "3", "--whiten", "none"]
    assert search_command.main([*queries, *shared, str(hits)]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    found = read_hits(hits)
    searched = {
        int(record) - 1: set(of.split(";")) for record, of in zip(found["record"], found["labels"], strict=True)
    }
    assert searched == LABELS
    assert "1 of 5 proteins have no label and are left out ('p4')" in said.err
    assert "1 labelled ids are not in the database ('Q')" in said.err

    assert map_command.main([str(folder), *shared, str(page), "--neighbours", "0"]) == 0, capsys.readouterr().err
    drawn = capsys.readouterr().out
    (data,) = re.findall(r'<script id="data" type="application/json">(.*?)</script>', page.read_text(), re.DOTALL)
    (column,) = json.loads(data)["columns"]
    assert column["name"] == "label"
    assert {frozenset(re.split("; ?", label)) for label in column["labels"]} == set(map(frozenset, LABELS.values()))
    assert f"proteins without label in {labels}, drawn grey: 1" in drawn
    assert f"ids of {labels} that belong to no protein of {folder}: 1" in drawn

    by_accession = {"one id on two lines": 1, "accessions": 2}.get(name, 0)
    words = f"{4 - by_accession} proteins matched by their id, {by_accession} by the accession in it"
    assert (words in said.err, words in drawn) == (bool(by_accession), bool(by_accession))

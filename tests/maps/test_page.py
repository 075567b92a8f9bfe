"""The page as a file: what it carries is what was computed, and text stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.maps import page as module
from rd_hf.maps.labels import Column
from rd_hf.maps.neighbours import nearest
from rd_hf.maps.page import COLOURS, Map, inline_json, number_scales, page_data, render_page
from rd_hf.maps.projection import project
from rd_hf.maps.proteins import read_proteins
from tests.maps.conftest import Outcome, clusters, write_folder

HOSTILE = [
    "</script><script>window.injected = 1</script>",
    "<img src=x onerror='window.injected = 2'>",
    "<!--<script>",
    "]]>&quot;&lt;\u2028\u2029\x00",
    "{{ 7 * 7 }}",
    "${window.injected = 3}",
]


def content(folder: Path, count: int = 40, ids: list[str] | None = None) -> Map:
    vectors, which = clusters(count, 12)
    proteins = read_proteins(write_folder(folder / "e", vectors, ids))
    return Map(
        title="title",
        proteins=proteins,
        projections=project(proteins),
        neighbours=nearest(proteins.vectors, proteins.levels, 5),
        columns=[
            Column.of("family", [f"f{cluster}" for cluster in which]),
            Column.of("melting", ["", *(str(row / 3) for row in range(1, count))]),
        ],
        method="Principal components",
    )


def unpacked(text: str, kind: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype=kind)


def test_numbers_arrive_as_they_were(tmp_path: Path) -> None:
    drawn = content(tmp_path)
    data = json.loads(inline_json(page_data(drawn)))
    assert [level["name"] for level in data["levels"]] == ["S", "M", "L"]
    for level, projection in zip(data["levels"], drawn.projections, strict=True):
        points = unpacked(level["points"], "<i2").reshape(-1, 2) * data["step"]
        # Rounded to a step; a frame has 65,535 of them.
        np.testing.assert_allclose(points, projection.points, atol=data["step"] * 0.501)
        assert data["step"] < np.abs(projection.points).max() / 1000
        near = drawn.neighbours[projection.level]
        assert np.array_equal(unpacked(level["neighbours"], "<u2").reshape(-1, 5), near.indices)
        similar = unpacked(level["similarities"], "<u2").reshape(-1, 5) / 32767.5 - 1
        np.testing.assert_allclose(similar, near.similarities, atol=1.6e-5)
    assert unpacked(data["records"], "<f8").tolist() == list(range(1, 41))
    assert unpacked(data["lengths"], "<u4").tolist() == list(range(100, 140))
    assert np.array_equal(unpacked(data["columns"][0]["codes"], "<i4"), drawn.columns[0].codes)
    assert data["columns"][0]["numbers"] is None
    numbers = drawn.columns[1].numbers
    assert numbers is not None
    assert np.array_equal(unpacked(data["columns"][1]["numbers"], "<f8"), numbers, equal_nan=True)
    assert [column["scale"] for column in data["columns"]] == [False, True]


def test_descriptions_lose_their_id_and_their_length(tmp_path: Path) -> None:
    vectors, _ = clusters(3, 12)
    descriptions = ["p0 kinase", "p1", "p2 " + "x" * 1000]
    proteins = read_proteins(write_folder(tmp_path / "e", vectors, descriptions=descriptions))
    drawn = Map("t", proteins, project(proteins), {}, [], "m")
    found = page_data(drawn)["descriptions"]
    assert found[:2] == ["kinase", ""]
    assert found[2] == "x" * 199 + "…"


@settings(deadline=None)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_in_a_page_is_the_same_json_and_cannot_end_its_element(value: object) -> None:
    text = inline_json(value)
    assert json.loads(text) == value
    assert not set(text) & set("<>&\u2028\u2029")


class Elements(HTMLParser):
    """Elements of a page, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.policy = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        assert not (found.get("src") or "").strip(), f"{tag} fetches {found['src']}"
        assert (found.get("href") or "data:,") == "data:,"
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""

    def handle_data(self, text: str) -> None:
        if self.tags and self.tags[-1] == "script" and text.strip():
            self.scripts.append(text)


def test_hostile_text_adds_no_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # plotly.js would be four megabytes to parse; its place in the page is the same.
    monkeypatch.setattr(module, "_plotly", lambda: "/* plotly */")
    plain = Elements(render_page(content(tmp_path / "a")))
    drawn = content(tmp_path / "b", ids=(HOSTILE * 7)[:40])
    hostile = Map(
        HOSTILE[0], drawn.proteins, drawn.projections, {}, [Column.of(HOSTILE[1], HOSTILE * 6 + HOSTILE[:4])], ""
    )
    text = render_page(hostile)
    found = Elements(text)
    assert found.tags == plain.tags
    assert json.loads(found.scripts[0])["ids"] == (HOSTILE * 7)[:40]
    assert HOSTILE[0] not in text


def test_only_the_pages_own_scripts_may_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_plotly", lambda: "/* plotly */\r\n")
    found = Elements(render_page(content(tmp_path)))
    allowed = set(re.findall(r"'sha256-([^']+)'", found.policy))
    hashes = {base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in found.scripts[1:]}
    assert allowed == hashes
    assert len(hashes) == 6
    assert "default-src 'none'" in found.policy
    assert "http" not in found.policy
    with pytest.raises(ValueError, match="ends its own element"):
        module._inline_script("'</SCRIPT>'")


# Machado, Oliveira and Fernandes 2009 (IEEE TVCG 15:1291), severity 1; on linear RGB.
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(colour: str, deficiency: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB colour as somebody with the deficiency sees it."""
    srgb = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(deficiency @ linear, 0, 1)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(matrix @ seen / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def smallest_difference(colours: list[str]) -> float:
    """The least CIE76 difference of two colours, whichever deficiency looks at them."""
    return min(
        float(np.linalg.norm(lab(one, matrix) - lab(other, matrix)))
        for matrix in DEFICIENCIES.values()
        for place, one in enumerate(colours)
        for other in colours[:place]
    )


def tokens(scheme: str) -> dict[str, str]:
    """Colours of the page's style, by name."""
    css = (Path(module.__file__).parent / "templates" / "page.css").read_text()
    block = css[css.index(':root[data-theme="dark"]') :] if scheme == "dark" else css
    return dict(re.findall(r"--(\w+): (#\w{6})", block.split("}")[0]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_scale_rises_for_every_reader_and_leaves_the_page(scheme: str) -> None:
    scale = number_scales()[scheme]
    for deficiency in DEFICIENCIES.values():
        lightness = np.array([lab(colour, deficiency)[0] for colour in scale])
        assert (np.diff(lightness) > 2.3).all()  # what is just noticeable
    assert min(np.linalg.norm(lab(colour, np.eye(3)) - lab(tokens(scheme)["page"], np.eye(3))) for colour in scale) > 35


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_differ_for_the_colour_blind_and_from_the_page(scheme: str) -> None:
    token = tokens(scheme)
    colours = [token["ink"] if name == "ink" else name for name in COLOURS]
    # 2.3 is what is just noticeable; several times that is told apart in small dots.
    assert smallest_difference(colours) > 10
    assert min(np.linalg.norm(lab(colour, np.eye(3)) - lab(token["page"], np.eye(3))) for colour in colours) > 35
    # What the check is for: a palette of reds and greens does not pass it.
    assert smallest_difference(["#2ca02c", "#d62728", "#8c564b", "#7f7f7f"]) < 10


def test_the_command_writes_the_page_or_says_why_not(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    vectors, which = clusters(60, 12)
    folder = write_folder(tmp_path / "e", vectors)
    labels = tmp_path / "labels.tsv"
    rows = [f"p{row}\tf{which[row]}\t{row % 2}\n" for row in range(50)] + ["q\tf0\t0\n"]
    labels.write_text("id\tfamily\tparity\n" + "".join(rows))
    output = tmp_path / "map.html"
    done = draw(folder, "--labels", labels, "--color-by", "parity", "--neighbours", 4, "--output", output)
    assert done.status == 0, done.stderr
    assert "60 proteins of 60 at S, M, L" in done.stdout
    assert f"proteins without parity in {labels}, drawn grey: 10\n" in done.stdout
    assert f"ids of {labels} that belong to no protein of {folder}: 1\n" in done.stdout
    text = output.read_text()
    data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    assert [one["name"] for one in data["columns"]] == ["parity", "family", "input"]
    assert data["columns"][2]["labels"] == ["a.fasta", "b.fasta"]
    assert data["k"] == 4
    assert not list(tmp_path.glob("*.tmp"))
    # Written again, it is the same page; without neighbours and descriptions, a smaller one.
    assert draw(folder, "--labels", labels, "--color-by", "parity", "--neighbours", 4, "--output", output).status == 0
    assert output.read_text() == text
    bare = tmp_path / "bare.html"
    assert draw(folder, "--neighbours", 0, "--no-descriptions", "--quiet", "--output", bare) == Outcome(0, "", "")
    assert len(bare.read_text()) < len(text)


def test_wrong_commands_get_one_sentence(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "e", clusters(10, 12)[0])
    labels = tmp_path / "labels.tsv"
    labels.write_text("id\tfamily\np1\tA\n")
    output = tmp_path / "map.html"
    (tmp_path / "there").mkdir()
    for arguments, sentence in [
        ((tmp_path, "--output", output), "no folder of embeddings"),
        ((folder, "--output", tmp_path / "there"), "give --output a file in a folder that exists"),
        ((folder, "--output", tmp_path / "no" / "map.html"), "give --output a file in a folder that exists"),
        ((folder, "--table", tmp_path / "no" / "t.tsv", "--output", output), "give --table a file in a folder that"),
        ((folder, "--table", tmp_path / "t.xlsx", "--output", output), "must end in one of .parquet, .tsv, .csv"),
        (
            (folder, "--table", tmp_path / "one.tsv", "--output", tmp_path / "one.tsv"),
            "--table and --output are the same file",
        ),
        ((folder, "--level", "XL", "--output", output), "holds no level 'XL'"),
        ((folder, "--labels", tmp_path / "no.tsv", "--output", output), "no such file"),
        (
            (folder, "--labels", labels, "--color-by", "order", "--output", output),
            "has no column 'order' to colour by: it has family, input",
        ),
    ]:
        done = draw(*arguments)
        assert done.status == 1
        assert done.stderr.startswith("rd-hf map: error: ")
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
        assert not output.exists()


def test_proteins_of_unknown_length_are_drawn(draw: Callable[..., Outcome], tmp_path: Path) -> None:
    """A folder that was converted from stored embeddings may not know them."""
    folder = write_folder(tmp_path / "e", clusters(10, 12)[0], lengths=False)
    assert draw(folder, "--output", tmp_path / "map.html").status == 0
    assert not read_proteins(folder).lengths.any()


def test_without_plotly_the_extra_is_named(
    draw: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module._plotly.cache_clear()
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    done = draw(write_folder(tmp_path / "e", clusters(10, 12)[0]), "--output", tmp_path / "map.html")
    assert done.status == 1
    assert 'pip install "rd_hf[map]"' in done.stderr

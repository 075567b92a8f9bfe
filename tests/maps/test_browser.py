"""The page in a real browser: opened from a file, moved, searched, clicked; skipped where there is no Chromium.

The same for six proteins with hostile names and for twenty thousand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rd_hf.commands.map import main
from rd_hf.maps.projection import project
from rd_hf.maps.proteins import read_proteins
from tests.maps.browser import Page, needs_chromium, webdriver
from tests.maps.conftest import clusters, write_folder
from tests.maps.test_neighbours import brute_force
from tests.maps.test_page import HOSTILE

pytestmark = needs_chromium
DIMS = {"S": 16, "M": 32, "L": 48}


@pytest.fixture(scope="module")
def thousands(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, Path]:
    """20,000 proteins in eight families at three levels: folder, embeddings, page."""
    home = tmp_path_factory.mktemp("thousands")
    vectors, which = clusters(20_000, 48, number=8)
    ids = [f"sp|P{row:05d}|NAME{row}_ECOLI" for row in range(20_000)]
    described = [
        f"{one} Putative transporter {row} OS=Escherichia coli (strain K12) OX=83333" for row, one in enumerate(ids)
    ]
    folder = write_folder(home / "embeddings", vectors, ids, DIMS, parts=3, descriptions=described)
    rows = [f"{one}\tfamily {cluster}\n" for one, cluster in zip(ids[100:], which[100:], strict=True)]
    (home / "labels.tsv").write_text("id\tfamily\n" + "".join(rows))
    page = home / "map.html"
    arguments = [str(folder), "--labels", str(home / "labels.tsv"), "--output", str(page), "--quiet"]
    assert main(arguments) == 0
    return folder, vectors, page


def test_twenty_thousand_proteins_are_opened_moved_and_searched(
    browser: Any, thousands: tuple[Path, np.ndarray, Path]
) -> None:
    folder, vectors, path = thousands
    assert path.stat().st_size < 15_000_000
    page = Page(browser, path)
    assert page.run("return document.querySelectorAll('#plot canvas').length") > 0  # WebGL, not 20,000 elements
    expected = {one.level: one.points for one in project(read_proteins(folder))}
    reach = max(np.abs(points).max() for points in expected.values())
    positions = {"L": page.drawn()}
    for level, key in (("M", "\ue012"), ("S", "\ue012")):  # arrow left
        page.to_level(level, key)
        positions[level] = page.drawn()
    for level, points in expected.items():
        # Int16 steps of the frame, then float32.
        np.testing.assert_allclose(positions[level], points, atol=reach / 32767)
    assert np.abs(positions["S"] - positions["L"]).max() > 0.1
    assert "S, 16 dimensions" in page.texts("#level-name")[0]

    # Searched by id, then by label; both are marked in the map.
    page.search("p00123")
    page.wait("document.getElementById('found').textContent.startsWith('1 of 20,000')")
    marked = "document.getElementById('plot').data.at(-3).x.length"
    page.wait(f"{marked} === 1")
    assert page.texts("#matches .name") == ["sp|P00123|NAME123_ECOLI"]
    page.search("family 3")
    page.wait("!document.getElementById('found').textContent.startsWith('1 of')")
    family = page.run("return proteinMap.search('family 3').length")
    assert f"{family:,} of 20,000" in page.texts("#found")[0]
    page.wait(f"{marked} === {family}")
    assert len(page.texts("#matches .name")) == 60

    # Clicked: its neighbours at the level in sight, exact, with their similarity; then at another level.
    page.search("p00123")
    page.wait("document.querySelectorAll('#matches button').length === 1")
    page.find("#matches button").click()
    for level, key in (("S", None), ("M", "\ue014")):  # arrow right
        if key is not None:
            page.to_level(level, key)
        cosines = brute_force_row(vectors[:, : DIMS[level]], 123)
        nearest = np.argsort(-cosines)[:10]
        assert page.texts("#near .name") == [f"sp|P{row:05d}|NAME{row}_ECOLI" for row in nearest]
        shown = [float(text.removesuffix("new")) for text in page.texts("#near .value")]
        # Four decimals of steps of 2 / 65,535.
        np.testing.assert_allclose(shown, cosines[nearest], atol=7e-5)
        ringed = page.run("const ring = document.getElementById('plot').data.at(-2); return [...ring.x, ...ring.y]")
        np.testing.assert_allclose(np.reshape(ringed, (2, -1)).T, expected[level][nearest], atol=reach / 32767)
    assert f"at {level}" in page.texts("#near-title")[0]

    assert page.errors() == []
    assert [address for address in page.requests() if not address.startswith(("file:", "data:", "blob:"))] == []


def brute_force_row(vectors: np.ndarray, row: int) -> np.ndarray:
    """(n,) float64 cosines of one protein with all."""
    values = vectors.astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    cosines = values @ values[row]
    cosines[row] = -np.inf
    return np.asarray(cosines)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    """Few proteins, far from each other, whose names, descriptions, labels and title are markup; its embeddings."""
    home = tmp_path_factory.mktemp("hostile")
    vectors, _ = clusters(len(HOSTILE) + 1, 12)
    ids = [*HOSTILE, ""]
    described = [f"{one} {other}" for one, other in zip(ids, reversed(ids), strict=True)]
    folder = write_folder(home / "embeddings", vectors, ids, descriptions=described)
    labels = home / "labels.tsv"
    # A table has no room for the characters that end a line.
    plain = [one for one in HOSTILE if "\x00" not in one]
    labels.write_text(f"id\t{HOSTILE[1]}\n" + "".join(f"{one}\t{one}<b>\n" for one in plain[1:]))
    page = home / "map.html"
    assert main([str(folder), "--labels", str(labels), "--title", HOSTILE[0], "--output", str(page), "--quiet"]) == 0
    return vectors, page


def test_hostile_names_are_shown_as_they_are(browser: Any, hostile: tuple[np.ndarray, Path]) -> None:
    vectors, path = hostile
    page = Page(browser, path)
    assert page.texts("h1") == [HOSTILE[0]]
    for protein in range(len(vectors)):
        page.point_at(protein)
        name = [*HOSTILE, "(no id, record 7)"][protein]
        page.wait(f"document.querySelector('#tip b')?.textContent === {json.dumps(name)}")
        page.click()
        page.wait(f"document.getElementById('chosen-id').textContent === {json.dumps(name)}")
        cosines = brute_force(vectors)[protein]
        assert page.texts("#near .name") == [
            [*HOSTILE, "(no id, record 7)"][other] for other in np.argsort(-cosines)[: len(vectors) - 1]
        ]
    page.search("<img")
    assert HOSTILE[1] in page.texts("#matches .name")
    assert page.run("return window.injected") is None
    assert page.run("return document.querySelectorAll('img, #panel b, #panel script').length") == 0
    assert page.errors() == []


def test_the_policy_stops_what_was_not_put_there(browser: Any, hostile: tuple[np.ndarray, Path]) -> None:
    page = Page(browser, hostile[1])
    page.run(
        """const script = document.createElement("script"); script.textContent = "window.injected = 4";
        document.body.append(script); fetch("http://127.0.0.1:9/").catch(() => (window.refused = true));"""
    )
    page.wait("window.refused === true")
    assert page.run("return window.injected") is None
    said = " ".join(page.errors())
    assert "Executing inline script violates the following Content Security Policy" in said
    assert "Connecting to 'http://127.0.0.1:9/' violates the following Content Security Policy" in said


@pytest.fixture(scope="module")
def hundreds(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    """400 proteins of five families that overlap, 40 without label: their embeddings and their page."""
    home = tmp_path_factory.mktemp("hundreds")
    vectors, which = clusters(400, 12)
    folder = write_folder(home / "embeddings", vectors)
    (home / "labels.tsv").write_text("id\tfamily\n" + "".join(f"p{row}\tf{which[row]}\n" for row in range(40, 400)))
    page = home / "map.html"
    assert main([str(folder), "--labels", str(home / "labels.tsv"), "--output", str(page), "--quiet"]) == 0
    return vectors, page


def test_the_legend_hides_and_the_schemes_change(browser: Any, hundreds: tuple[np.ndarray, Path]) -> None:
    page = Page(browser, hundreds[1])
    names = page.texts("#legend .name")
    assert len(names) == 6
    assert names[-1] == "no label"
    assert page.texts("#legend .count")[-1] == "40"
    visible = "document.getElementById('plot').data.slice(0, 6).filter((one) => one.visible !== false).length"
    page.find("#legend button").click()
    page.wait(f"{visible} === 5")
    assert page.find("#legend button").get_attribute("aria-pressed") == "false"
    page.find("#all").click()
    page.wait(f"{visible} === 6")
    webdriver.ActionChains(browser).double_click(page.find("#legend button")).perform()
    page.wait(f"{visible} === 1")
    page.find("#all").click()

    # Coloured by the other column, the inputs.
    page.find("#column option[value='1']").click()
    page.wait("document.querySelectorAll('#legend button').length === 2")
    assert page.texts("#legend .name") == ["a.fasta", "b.fasta"]

    paper = "document.getElementById('plot').layout.paper_bgcolor"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.run(f"return {paper}"), page.run(f"return {ground}")
    page.find("#theme").click()
    page.wait(f"{paper} !== '{light[0]}'")
    assert page.run(f"return {ground}") != light[1]
    # The reader's own scheme, before anybody touched the button.
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    try:
        assert Page(browser, hundreds[1]).run(f"return {ground}") == "rgb(20, 24, 29)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert page.errors() == []


def test_what_is_looked_at_stands_in_the_address(browser: Any, hundreds: tuple[np.ndarray, Path]) -> None:
    page = Page(browser, hundreds[1])
    page.to_level("M", "\ue012")
    page.search("p7")
    page.wait("location.hash.includes('search=p7')")
    page.find("#matches button").click()
    page.find("#theme").click()
    page.wait("location.hash.includes('scheme=')")
    address = page.run("return location.href")
    # A page that is open already would only jump to a place in it.
    browser.get("about:blank")
    again = Page(browser, hundreds[1], address)
    assert again.run("return document.getElementById('plot').dataset.level") == "M"
    assert again.texts("#chosen-id") == ["p7"]
    assert len(again.texts("#near .name")) == 10
    assert again.texts("#found")[0].startswith("11 of 400")
    assert again.run("return document.documentElement.dataset.theme") == "dark"
    # Whatever else stands there is passed over.
    browser.get("about:blank")
    other = Page(browser, hundreds[1], hundreds[1].as_uri() + "#level=XL&record=999&colour=%3Cb%3E&scheme=%22")
    assert other.run("return document.getElementById('plot').dataset.level") == "L"
    assert other.find("#chosen").get_attribute("hidden") is not None
    assert other.errors() == []


def test_agreement_of_neighbours_is_what_counting_gives(browser: Any, hundreds: tuple[np.ndarray, Path]) -> None:
    vectors, path = hundreds
    page = Page(browser, path)
    which = clusters(400, 12)[1]
    labelled = np.arange(400) >= 40
    counts = np.bincount(which[labelled])
    chance = (counts * (counts - 1)).sum() / (360 * 359)
    shares = []
    for level, width in {"S": 4, "M": 8, "L": 12}.items():
        nearest = brute_force(vectors[:, :width]).argmax(axis=1)
        counted = labelled & labelled[nearest]
        shares.append((which[nearest] == which)[counted].mean())
        found = page.run(
            f"return proteinMap.agreement(proteinMap.levels.find(l => l.name === '{level}'), proteinMap.columns[0])"
        )
        assert found["all"] == counted.sum()
        assert found["share"] == pytest.approx(shares[-1])
        assert found["chance"] == pytest.approx(chance)
    assert page.texts("#ladder .share") == [f"{100 * share:.1f} %" for share in shares]
    assert chance < shares[0] < shares[-1]  # there is something to see

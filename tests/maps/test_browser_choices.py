"""What a reader does with the page in a real browser: numbers on a scale, proteins chosen with a rectangle, pictures
and ids saved, a slider that stays in sight; skipped where there is no Chromium."""

from __future__ import annotations

import json
import struct
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rd_hf.commands.convert import main as convert
from rd_hf.commands.map import main
from rd_hf.maps.projection import project
from rd_hf.maps.proteins import read_proteins
from tests.maps.browser import PATIENCE, Page, needs_chromium, webdriver
from tests.maps.conftest import DIMS, clusters, write_folder
from tests.maps.test_neighbours import brute_force

pytestmark = needs_chromium
COUNT = 300
TITLE = "<b>Map</b> & more"
LABEL = "<i>kinase</i>"


@pytest.fixture(scope="module")
def melting() -> np.ndarray:
    """(n,) a number for each protein by its cluster, NaN for the first 30; one lies far from all others."""
    which = clusters(COUNT, 12)[1]
    numbers = np.round(40 + 5 * which + np.random.default_rng(1).standard_normal(COUNT), 2)
    numbers[:30], numbers[30] = np.nan, 1e6
    return numbers


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, melting: np.ndarray) -> Path:
    """A page that opens with numbers; its other column has two labels, one of them markup."""
    home = tmp_path_factory.mktemp("choices")
    folder = write_folder(home / "embeddings", clusters(COUNT, 12)[0], parts=1)
    rows = [f"p{row}\t{'' if row < 30 else melting[row]}\t{LABEL if row % 3 else 'other'}\n" for row in range(COUNT)]
    (home / "labels.tsv").write_text("id\tmelting\tkind\n" + "".join(rows))
    page = home / "map.html"
    arguments = [str(folder), "--labels", str(home / "labels.tsv"), "--title", TITLE, "--output", str(page), "--quiet"]
    assert main(arguments) == 0
    return page


@pytest.fixture
def page(browser: Any, path: Path, tmp_path: Path) -> Page:
    """The page, opened anew; what it saves lies in ``tmp_path``."""
    behaviour = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    browser.get("about:blank")
    return Page(browser, path)


def saved(folder: Path, suffix: str) -> Path:
    """The file that the page saved, once it is whole."""
    end = time.monotonic() + PATIENCE
    while not (found := list(folder.glob(f"*{suffix}"))):
        assert time.monotonic() < end, f"no {suffix} was saved"
        time.sleep(0.02)
    return found[0]


def markers(page: Page, place: int) -> dict[str, Any]:
    """How plotly draws the points of a trace."""
    found = page.run(
        "const one = document.getElementById('plot').data[arguments[0]].marker; "
        "return { ...one, color: typeof one.color === 'string' ? one.color : Array.from(one.color) }",
        place,
    )
    assert isinstance(found, dict)
    return found


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, ties sharing the middle one."""
    return np.array([(values < value).sum() + ((values == value).sum() - 1) / 2 for value in values])


def test_numbers_are_drawn_on_a_scale(page: Page, melting: np.ndarray) -> None:
    there = melting[~np.isnan(melting)]
    # Those without a number lie below, in grey.
    assert page.texts("#legend .count") == ["30"]
    assert isinstance(markers(page, 0)["color"], str)
    drawn = markers(page, 1)
    np.testing.assert_allclose(drawn["color"], there.astype(np.float32))
    # The hundredth that lies outermost is cut off: one protein of a million would leave one colour to all others.
    low, high = np.sort(there)[[3, 266]]
    assert (drawn["cmin"], drawn["cmax"]) == (low, high)
    assert page.texts(".ends span")[::2] == [f"≤ {low:.4g}", f"≥ {high:.4g}"]
    shares = []
    for width in DIMS.values():
        nearest = brute_force(clusters(COUNT, 12)[0][:, :width]).argmax(axis=1)
        both = ~np.isnan(melting) & ~np.isnan(melting[nearest])
        rank = np.zeros(COUNT)
        rank[~np.isnan(melting)] = ranks(there)
        shares.append(np.corrcoef(rank[both], rank[nearest][both])[0, 1])
    assert page.texts("#ladder .share") == [f"{share:.2f}" for share in shares]
    assert "rank correlation of a protein's melting" in page.texts("#ladder-note")[0]


def test_a_switch_makes_categories_of_numbers(browser: Any, page: Page, path: Path, melting: np.ndarray) -> None:
    different = len(np.unique(melting[~np.isnan(melting)]))
    page.find("#as-categories").click()
    page.wait("document.querySelectorAll('#legend button').length === 44")  # 42 styles, the others, those without
    assert f"{different - 42} other labels" in page.texts("#legend .name")
    assert page.run("return document.querySelectorAll('.scale').length") == 0
    address = page.run("return location.href")
    assert "as=categories" in address
    browser.get("about:blank")
    again = Page(browser, path, address)
    assert again.run("return document.getElementById('as-categories').checked") is True
    again.find("#as-categories").click()
    again.wait("document.querySelectorAll('.scale').length === 1")
    again.find("#column option[value='1']").click()
    again.wait("document.querySelectorAll('#legend button').length === 2")
    assert not again.find("#categories").is_displayed()  # no numbers, no switch
    assert again.errors() == []


def drag(page: Page, tool: str, *corners: tuple[float, float]) -> None:
    """Draw with a tool of the map, from corner to corner of these places in it."""
    page.find(f"[data-val={tool}]").click()
    box = page.run("const box = document.getElementById('plot').getBoundingClientRect(); return [box.left, box.top]")
    chain = webdriver.ActionChains(page.browser, duration=0)
    pointer = chain.w3c_actions.pointer_action
    for number, (x, y) in enumerate(corners):
        pointer.move_to_location(round(box[0] + x), round(box[1] + y))
        if number == 0:
            pointer.pointer_down()
    pointer.pointer_up()
    chain.perform()


def within(page: Page, path: Path, left: float, top: float, right: float, bottom: float) -> list[int]:
    """Proteins whose place at the largest level lies in a rectangle of the map."""
    axes = page.run(
        "const { xaxis, yaxis } = document.getElementById('plot')._fullLayout;"
        "return [xaxis.p2l(arguments[0]), xaxis.p2l(arguments[2]), yaxis.p2l(arguments[3]), yaxis.p2l(arguments[1])]",
        *(left, top, right, bottom),
    )
    x, y = project(read_proteins(path.parent / "embeddings"))[-1].points.T
    return np.flatnonzero((axes[0] < x) & (x < axes[1]) & (axes[2] < y) & (y < axes[3])).tolist()


@pytest.mark.parametrize("tool", ["select", "lasso"])
def test_proteins_are_chosen_in_the_map_and_their_ids_saved(page: Page, path: Path, tmp_path: Path, tool: str) -> None:
    left, top, right, bottom = 300, 200, 520, 460
    expected = within(page, path, left, top, right, bottom)
    assert 10 < len(expected) < COUNT - 10
    corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
    drag(page, tool, *(corners if tool == "lasso" else [corners[0], corners[2]]))
    page.wait("document.getElementById('found').textContent.includes('chosen in the map')")
    assert page.texts("#found")[0].startswith(f"{len(expected)} of {COUNT} proteins")
    assert page.texts("#matches .name") == [f"p{row}" for row in expected[:60]]
    marked = "document.getElementById('plot').data.at(-3).x.length"
    page.wait(f"{marked} === {len(expected)}")
    page.find("#save-ids").click()
    assert saved(tmp_path, "-ids.txt").read_text() == "".join(f"p{row}\n" for row in expected)
    # They stay chosen on the way to another level, until they are let go.
    page.to_level("M", "\ue012")
    assert page.run(f"return {marked}") == len(expected)
    page.find("#let-go").click()
    page.wait(f"{marked} === 0")
    assert page.texts("#found") == [""]
    assert page.errors() == []


def test_the_picture_has_title_level_and_legend(page: Page, tmp_path: Path) -> None:
    page.find("#column option[value='1']").click()
    page.wait("document.querySelectorAll('#legend button').length === 2")
    page.to_level("M", "\ue012")
    page.find("#svg").click()
    text = saved(tmp_path, ".svg").read_text()
    root = ElementTree.fromstring(text)
    said = ["".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")]
    # Text of the data is text, though it looks like markup.
    assert f"{TITLE}Level M, 8 dimensions" in said[[TITLE in one for one in said].index(True)]
    assert f"{COUNT} proteins · owner/model" in " ".join(said)
    assert {"kind", f"{LABEL} (200)", "other (100)"} <= set(said)
    # Few points are shapes that a drawing program can change.
    assert text.count('class="point"') >= COUNT
    assert not list(root.iter("{http://www.w3.org/2000/svg}image"))
    page.find("#legend button").click()  # hidden on the page, it is hidden in the picture
    page.find("#png").click()
    content = saved(tmp_path, ".png").read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content.startswith(b"\x89PNG")
    seen = page.run("const plot = document.getElementById('plot'); return [plot.clientWidth, plot.clientHeight]")
    assert width > 2 * seen[0]  # twice the dots, and room for the legend and the title
    assert height > 2 * seen[1]
    assert page.errors() == []


def test_the_picture_of_numbers_has_their_scale(page: Page, tmp_path: Path) -> None:
    page.find("#svg").click()
    root = ElementTree.fromstring(saved(tmp_path, ".svg").read_text())
    said = {"".join(one.itertext()) for one in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"melting", *page.texts(".ends span"), "no number (30)"} <= said


@pytest.fixture(params=[(1300, 850), (390, 760)], ids=["desk", "phone"])
def sized(browser: Any, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """A window of a desk and of a phone."""
    width, height = request.param
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    yield width, height
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_slider_stays_in_sight_and_says_the_level(sized: tuple[int, int], page: Page) -> None:
    slider = page.find("#level")
    assert slider.get_attribute("aria-valuetext") == "L, 12 dimensions"
    page.search("p123")
    page.wait("document.querySelectorAll('#matches button').length === 1")
    page.find("#matches button").click()
    page.wait("!document.getElementById('chosen').hidden")
    # At the end of the list of neighbours too; nothing lies over it, nor it over the protein's name.
    for end in ("#chosen-id", "#near li:last-child"):
        page.run("document.querySelector(arguments[0]).scrollIntoView({ block: 'nearest' })", end)
        for css in ("#level", end):
            where = page.run(
                "const box = document.querySelector(arguments[0]).getBoundingClientRect();"
                "const found = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);"
                "return [box.top, box.bottom, Boolean(found?.closest(arguments[0]))]",
                css,
            )
            assert where[0] >= 0, css
            assert where[1] <= sized[1] + 1, css  # a fraction of a dot is cut off by rounding
            assert where[2], f"{css} is covered after {end}"
    page.to_level("S", "\ue011")  # home
    assert slider.get_attribute("aria-valuetext") == "S, 4 dimensions"


def test_a_folder_without_lengths_is_drawn(browser: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """As ``rd-hf convert`` makes it of stored means."""
    inputs = []
    for level, width in (("L0", 32), ("L1", 48)):
        np.save(tmp_path / f"{level}.npy", clusters(20, width)[0])
        (tmp_path / f"{level}.ids.txt").write_text("".join(f"p{row}\n" for row in range(20)))
        inputs.append(str(tmp_path / f"{level}.npy"))
    folder, path = tmp_path / "folder", tmp_path / "map.html"
    assert convert(["--model", str(tiny_checkpoint), "--input", *inputs, "--output", str(folder), "--quiet"]) == 0
    assert main([str(folder), "--output", str(path), "--quiet"]) == 0
    page = Page(browser, path, path.as_uri() + "#record=7")
    assert page.texts("#chosen-id") == ["p6"]
    assert page.texts("#chosen-about") == ["record 7"]
    assert json.loads(page.run("return JSON.stringify(proteinMap.levels.map((one) => one.name))")) == ["L0", "L1"]
    assert page.errors() == []

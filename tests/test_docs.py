"""The site of the project: it builds strictly and without a network, its links lead somewhere, its notebooks run.

With RD_HF_SITE in the environment, the folder that scripts/docs.sh made, nothing is built again.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from benchmarks.common import write_tables
from docs.levels import PAGE, render

from tests.conftest import REPOSITORY, environment

DOCS = REPOSITORY / "scripts" / "docs"
SCRIPT = REPOSITORY / "scripts" / "docs.sh"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
ROOMS = [f"rd_hf.{path.parent.name}" for path in sorted((REPOSITORY / "rd_hf").glob("*/__init__.py"))]
PUBLIC = [
    (room, name)
    for room in ("rd_hf", *ROOMS)
    for name in getattr(importlib.import_module(room), "__all__", ())
    if not name.startswith("__")
]
# What arrays are called in annotations.
ARRAYS = re.compile(r"ndarray|Tensor")
# (n, width), (batch, length, k_i), (width,)
SHAPE = re.compile(r"\(\w+,(?: [\w*-]+,?)*\)|\(\w+(?:, [\w*-]+)+\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if built := os.environ.get("RD_HF_SITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    # What the script does once it has its environment.
    done = subprocess.run(
        ["bash", "-euc", SCRIPT.read_text(encoding="utf-8").partition("docs\n")[2], "docs.sh", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        # No port answers there: what asks a network fails.
        env={
            **environment(),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "https_proxy": "http://127.0.0.1:9",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_a_warning_ends_the_build() -> None:
    """With --quiet no warning is counted, and --strict says nothing."""
    (line,) = re.findall(r"^python -m mkdocs .*", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE)
    assert {"--strict"} <= set(line.split())
    assert not {"--quiet", "-q"} & set(line.split())


class Page(HTMLParser):
    """What a page links to, what it needs to be shown, and its anchors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.needs: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag in {"script", "img", "iframe"} and "src" in values:
            self.needs.append(values["src"])
        if tag == "link" and values.get("rel") in {"stylesheet", "icon", "preload"}:
            self.needs.append(values["href"])


read = cache(Page)


def test_every_link_leads_somewhere(site: Path) -> None:
    dead = []
    pages = [path for path in site.rglob("*.html") if path.name != "404.html"]
    assert len(pages) > 35
    for path in pages:
        for link in (*read(path).links, *read(path).needs):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and target.suffix == ".html" and unquote(parts.fragment) not in read(target).anchors:
                dead.append(f"{path.relative_to(site)}: {link} (no such heading)")
    assert not dead, "\n".join(dead)


def test_a_page_is_shown_without_a_network(site: Path) -> None:
    for path in site.rglob("*.html"):
        outside = [need for need in read(path).needs if urlsplit(need).netloc]
        assert not outside, f"{path.name} needs {outside}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_every_page_of_the_repository_is_in_it(site: Path) -> None:
    kept = subprocess.run(["git", "ls-files", "*.md"], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    titles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.html"))
    for name in kept.stdout.split():
        if name.startswith("tests/"):
            continue
        heading = (REPOSITORY / name).read_text(encoding="utf-8").partition("# ")[2].partition("\n")[0]
        # A title as it stands, less marks of code.
        assert heading.replace("`", "").replace("&", "&amp;") in re.sub(r"</?code>", "", titles), name


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: value)
def test_every_public_name_is_in_the_reference(site: Path, room: str, name: str) -> None:
    page = site / "reference" / f"{room}.html"
    anchors = read(page).anchors
    links = [urlsplit(link) for link in read(page).links]
    named = f"{room}.{name}" in anchors or any(link.fragment.endswith(f".{name}") for link in links)
    assert named, f"{page.name} lacks {name}"


def functions_of(value: object) -> list[object]:
    """A function, or the public methods of a class that it defines itself."""
    if not inspect.isclass(value):
        return [value]
    own = [one for name, one in vars(value).items() if inspect.isfunction(one) and not name.startswith("_")]
    return [*own, *([value.__call__] if "__call__" in vars(value) else [])]


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: value)
def test_what_takes_or_gives_arrays_says_their_shapes(room: str, name: str) -> None:
    value = getattr(importlib.import_module(room), name)
    assert inspect.getdoc(value), f"{name} has no docstring"
    for function in functions_of(value):
        annotations = getattr(function, "__annotations__", {})
        if any(ARRAYS.search(str(kind)) for kind in annotations.values()):
            words = f"{inspect.getdoc(function)}\n{inspect.getdoc(value)}"
            assert SHAPE.search(words), f"{room}.{name}: {function} gives no shape"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_run_and_shown_with_what_it_gave(site: Path, path: Path) -> None:
    stored = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells), "store it without outputs"
    # It checks itself: a cell that fails ends the build.
    assert any(line.startswith("assert ") for cell in cells for line in "".join(cell["source"]).splitlines())
    page = site / "notebooks" / f"{path.stem}.html"
    pictures = [need for need in read(page).needs if f"{path.stem}_files" in need]
    drawn = sum("plt.subplots(" in "".join(cell["source"]) for cell in cells)
    assert len(pictures) == drawn > 0
    assert "Warning" not in page.read_text(encoding="utf-8")


def test_the_table_of_costs_is_that_of_the_plan(tmp_path: Path) -> None:
    made = tmp_path / PAGE.name
    made.write_text(PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    write_tables(made, {"costs": render()})
    assert made.read_text(encoding="utf-8") == PAGE.read_text(encoding="utf-8"), "run python scripts/docs/levels.py"

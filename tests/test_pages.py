"""Figures on the pages are those of the files that they name, and the check of that finds what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure as Picture

from tests import pages
from tests.conftest import REPOSITORY
from tests.pages import READMES, fits, name_of, stale_outputs, unfounded, wrong_figures

SOURCE = """# A report

| contender | width | Spearman | difference | 95 % | wins |
|---|---:|---:|---:|---:|---:|
| rd.L | 192 | 0.6275 | -0.0061 | [-0.0134, +0.0007] | 35.0 % |
| raw.L | 192 | 0.634 | +0.0721 | [+0.0622, +0.0821] | 98.3 % |
"""
ROWS = "| level | raw | nested | the authors' number |\n|---|---:|---:|---:|\n| L (192) | .634 | .628 | .999 |"


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_every_figure_with_a_source_is_the_sources(path: Path) -> None:
    assert list(unfounded(path)) == []


@pytest.mark.parametrize(
    ("block", "wrong"),
    [
        (f"<!-- from report.md: .{{}} -->\n{ROWS}", []),
        (f"<!-- from report.md: raw.{{}} -->\n{ROWS}", [".628"]),
        (f"<!-- from report.md#A rep: .{{}} -->\n{ROWS}", []),
        (f"<!-- from report.md#Other: .{{}} -->\n{ROWS}", [".634", ".628"]),
        (f"<!-- from report.md: .{{}} -->\n{ROWS.replace('.634', '.635')}", [".635"]),
        (f"<!-- from report.md: .{{}} -->\n{ROWS.replace('.628', '.6280')}", [".6280"]),
        # As many words as columns.
        (f"<!-- from report.md: raw.{{}}; rd.{{}} -->\n{ROWS}", []),
        (f"<!-- from report.md: raw.{{}}; rd.{{}} -->\n{ROWS.replace('.628', '.634')}", [".634"]),
        # Without words a row is a part of one line, in its order.
        ("<!-- from report.md -->\n| a | b |\n|---|---|\n| any | .628 | −.006 [−.013, +.001] |", []),
        ("<!-- from report.md -->\n| a | b |\n|---|---|\n| any | .628 | −.006 [−.013, +.082] |", ["no line"]),
        ("<!-- from report.md -->\n| a | b |\n|---|---|\n| any | −.006 | .628 |", ["no line"]),
        # In words; a figure without a sign is a size, one of percent may be what is missing to the whole.
        ("<!-- from report.md: rd.L; raw.L -->\nIt loses .006 on 65 % of 2.7M, and\nwins on 98 % (+.0721).", []),
        ("<!-- from report.md: rd.L; raw.L -->\nIt loses .007 on 64 %.", [".007", "64 %"]),
        ("<!-- from report.md: rd.L -->\nIt loses +.006.", ["+.006"]),
        ("<!-- from report.json: L heldout -->\nHeld out, 7 % or .0733 of 71,756.", []),
        ("<!-- from report.json: L heldout -->\nHeld out, 9 %.", ["9 %"]),
    ],
)
def test_a_changed_figure_is_found(tmp_path: Path, block: str, wrong: list[str]) -> None:
    (tmp_path / "report.md").write_text(SOURCE)
    (tmp_path / "report.json").write_text('[{"level": "L", "heldout": {"residues": 71756, "r2": 0.0733030992}}]')
    found = list(wrong_figures(block, tmp_path))
    assert len(found) == len(wrong)
    assert all(sentence.startswith(text) for sentence, text in zip(found, wrong, strict=True))


@pytest.mark.parametrize("name", pages.HELD)
def test_changed_figures_of_the_held_pages_are_found(name: str) -> None:
    """Each figure below a comment, one at a time, three steps of its last digit away."""
    path, found, tried = REPOSITORY / name, 0, 0
    for _, block in pages.blocks_of(path.read_text()):
        if source := pages.SOURCE.search(block):
            for match in pages.FIGURE.finditer(block, source.end()):
                (figure,) = pages.figures(match[0])
                changed = f"{abs(figure.value) + 3 * figure.step:.{len(match['digits'].partition('.')[2])}f}"
                text = block[: match.start("digits")] + changed + block[match.end("digits") :]
                tried += 1
                found += bool(list(wrong_figures(text, path.parent)))
    assert tried > 10
    # Those of a row's name and the authors' own are not looked at, and a few may be some other figure of their line.
    assert found > 0.8 * tried


def test_a_figure_of_a_held_page_needs_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REPOSITORY", tmp_path)
    monkeypatch.setattr(pages, "HELD", {"page.md": "Evidence"})
    (tmp_path / "report.md").write_text(SOURCE)
    page = tmp_path / "page.md"
    page.write_text(
        f"# A page\n\nOf .5.\n\n## Evidence\n\n<!-- from report.md: .{{}} -->\n{ROWS}\n\nIn 2026, 0.3M, `.5`.\n"
    )
    assert list(unfounded(page)) == []
    page.write_text(page.read_text() + "\nSo .628 it is.\n")
    assert list(unfounded(page)) == [".628 (Evidence) come from no file: put <!-- from PATH#heading: words --> above"]


def test_a_stale_output_and_a_stale_picture_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "REPOSITORY", tmp_path)
    page, picture = tmp_path / "page.md", tmp_path / "drawn.png"
    Picture(figsize=(1, 1)).savefig(picture)
    example = "<!-- not run: long; tests/pages.py -->\n```bash\necho {}; cp {} drawn.png\n```\n\n```\n0.43 right\n```\n"
    page.write_text(example.format("0.43 right", picture) + "\n![a](drawn.png)\n")
    assert list(stale_outputs(page)) == []
    page.write_text(example.format("0.42 right", picture))
    assert "0.42 right" in next(stale_outputs(page))
    other = tmp_path / "other.png"
    Picture(figsize=(1, 1), facecolor="black").savefig(other)
    page.write_text(example.format("0.43 right", other) + "\n![a](drawn.png)\n")
    (stale,) = stale_outputs(page)
    assert stale.startswith("drawn.png is another picture than echo")


def test_dots_stand_for_anything() -> None:
    assert fits("seconds: ...\nwritten", "\nseconds: 1.2\nwritten\n")
    assert not fits("seconds: ...", "seconds: 1.2\nwritten")
    assert not fits("a.c", "abc")

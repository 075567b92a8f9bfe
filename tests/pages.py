"""The pages of the repository: their examples, what long ones print, and where their figures come from.

    bash scripts/check_pages.sh                 before a release, in a clone: everything, minutes
    bash scripts/check_pages.sh README.md       some pages

1. An example that tests/test_readmes.py does not run, but that is followed by its output, is run here, in a folder of
   its own that has the repository's folders and, where it lies beside the repository, the data in `DATA`. It must print
   what stands on the page (`...` for anything), and a picture that it writes must look like that of the page.
2. A table or paragraph below a comment

       <!-- from PATH#heading: words; words -->

   has no figure that the lines of this file with these words have not: rounded as it stands on the page, in percent or
   as a share, as it is or as what is missing to the whole. `{}` in the words is the first word of the table's row, and
   where there are as many words as columns, each is of its column. Without words, every row of a table must be part of
   one line of the file. Figures in `THEIRS` are the authors' own.
3. Pages in `HELD` have no table or paragraph with a decimal figure or a percentage that lacks such a comment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path

from matplotlib.testing.compare import compare_images
from matplotlib.testing.exceptions import ImageComparisonFailure

from tests.conftest import REPOSITORY, SHARED_DATA, environment

READMES = sorted(
    path
    for path in [*REPOSITORY.glob("*.md"), *REPOSITORY.glob("[!.]*/**/*.md")]
    if not {"data", ".venv", "node_modules"} & set(path.relative_to(REPOSITORY).parts[:-1])
    # A card is tested where it is made; a report holds no example.
    and "rd-esm2-mini" not in path.parts
    and "quickstart_output" not in path.parts
)
PAGES = REPOSITORY / "scripts" / "docs" / "pages"
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]*) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Example:
    """One fenced block.

    Attributes:
        kind: bash, python, or nothing for an output.
        code: its text.
        why: why it is not run, None for one that is.
    """

    kind: str
    code: str
    why: str | None


def examples(path: Path) -> list[Example]:
    return [Example(m["kind"], m["code"], m["why"]) for m in FENCE.finditer(path.read_text())]


def name_of(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


# Pages, and where it is only a part of one its heading, whose figures all need a file that they come from.
HELD = {"README.md": "Evidence", "rd_hf/evaluation/PAPER.md": ""}
THEIRS = "the authors' number"
# Names that examples have for data which is not carried.
DATA = {
    "archaea.fasta.gz": "sequences/prokka_sprot_Archaea.fasta.gz",
    "mitochondria.fasta.gz": "sequences/prokka_sprot_Mitochondria.fasta.gz",
    "ecoli.fasta.gz": "sequences/ecoli_K12_UP000000625.fasta.gz",
    "yeast.fasta.gz": "sequences/yeast_UP000002311.fasta.gz",
}
SOURCE = re.compile(r"^<!-- from (?P<path>[^:#\s]+)(?:#(?P<part>[^:]*?))?(?:: (?P<words>.*?))? -->$", re.MULTILINE)
# No part of a name such as 2.7M or L2; a minus sign may be either character.
FIGURE = re.compile(r"(?<![\w.])(?P<sign>[+−-]?)(?P<digits>\d[\d,]*(?:\.\d+)?|\.\d+)(?![\w]|\.\d)(?P<percent> ?%)?")
# Two pictures of one run differ by nothing; fonts of another machine by a few grey values (root mean square).
PICTURE_TOLERANCE = 10.0


@dataclass(frozen=True)
class Figure:
    """A number in a text.

    Attributes:
        text: as it stands there.
        value: with its sign.
        signed: whether a sign stands there.
        step: the value of its last digit.
        percent: whether it is followed by a percent sign.
    """

    text: str
    value: float
    signed: bool
    step: float
    percent: bool

    def is_of(self, other: Figure) -> bool:
        """Whether ``other``, of a file, is what this stands for."""
        values = [other.value if self.signed else abs(other.value)]
        if self.percent:
            values += [100 * value for value in values if not other.percent]
            values += [100 - value for value in values]
        # Half a step, and what floating point loses of it.
        return any(abs(self.value - value) <= 0.5 * self.step * (1 + 1e-6) for value in values)


def figures(text: str) -> list[Figure]:
    """Numbers in a text, in order."""
    found = []
    for match in FIGURE.finditer(text):
        digits, sign = match["digits"].replace(",", ""), match["sign"]
        decimals = len(digits.partition(".")[2])
        value = float(digits) * (-1 if sign in {"−", "-"} else 1)
        found.append(Figure(match[0], value, bool(sign), 10.0**-decimals, bool(match["percent"])))
    return found


def lines_of(path: Path, part: str) -> list[str]:
    """Lines of a file below a heading that begins so; of JSON a line for each value: the keys to it, and the value."""
    if path.suffix != ".json":
        sections = re.split(r"^#+ ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return [line for one in sections if one.startswith(part) for line in one.splitlines()]

    def leaves(value: object, before: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{before} {key}")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for number, inner in enumerate(value):
                yield from leaves(inner, f"{before} {inner.get('level', number)}")
        elif not isinstance(value, list):
            yield f"{before} = {value:.12f}" if isinstance(value, float) else f"{before} = {value}"

    return list(leaves(json.loads(path.read_text(encoding="utf-8")), path.stem))


def blocks_of(page: str) -> list[tuple[str, str]]:
    """Paragraphs, lists and tables of a page, each with the heading that it stands under; examples are left out."""
    heading, found = "", []
    for block in re.split(r"\n\s*\n", FENCE.sub("", page)):
        if block.startswith("#"):
            heading, _, block = block.lstrip("# ").partition("\n")
        if block.strip():
            found.append((heading, block.strip("\n")))
    return found


def is_part(row: list[Figure], line: list[Figure]) -> bool:
    """Whether the figures of a row stand in a line, in this order."""
    rest = iter(line)
    return all(any(figure.is_of(other) for other in rest) for figure in row)


def wrong_figures(block: str, folder: Path) -> Iterator[str]:
    """A sentence for each figure of a block that its file does not have; nothing where no file is named."""
    source = SOURCE.search(block)
    if source is None:
        return
    path, words = folder / source["path"], (source["words"] or "").split("; ")
    if not path.exists():
        yield f"{source['path']} is not there"
        return
    lines = lines_of(path, source["part"] or "")
    rows = [row.strip("|").split("|") for row in SOURCE.sub("", block).strip().splitlines()]
    theirs: list[int] = []
    if len(rows) > 2 and set("".join(rows[1])) <= set("-: "):
        theirs = [number for number, cell in enumerate(rows[0]) if cell.strip() == THEIRS]
        rows = rows[2:]
    else:  # no table: one cell, of no name
        rows = [["", " ".join(" ".join(row) for row in rows)]]
    for name, *cells in rows:
        said = [figures(cell) for number, cell in enumerate(cells, start=1) if number not in theirs]
        whole = list(chain.from_iterable(said))
        place = name.strip(" *") or cells[0][:60]
        if words == [""]:
            if not any(is_part(whole, figures(line)) for line in lines):
                yield f"no line of {path.name} has all of {', '.join(one.text for one in whole)} ({place})"
            continue
        wanted = [word.replace("{}", (name.split() or [""])[0]) for word in words]
        known = [[figure for line in lines if word in line for figure in figures(line)] for word in wanted]
        for number, cell in enumerate(said):
            # As many words as columns: each is of its column, where the file has such a line.
            own = known[number] if len(known) == len(said) else []
            for figure in cell:
                if not any(figure.is_of(other) for other in own or chain.from_iterable(known)):
                    yield f"{figure.text} is in no line of {path.name} with {' or '.join(wanted)} ({place})"


def unfounded(path: Path) -> Iterator[str]:
    """What is wrong with the figures of a page."""
    part = HELD.get(name_of(path))
    for heading, block in blocks_of(path.read_text(encoding="utf-8")):
        yield from wrong_figures(block, path.parent)
        if part is not None and part in ("", heading) and not SOURCE.search(block):
            text = re.sub(r"`[^`]*`|\]\([^)]*\)|\d+/\d+|arXiv [\d.]+", "", block)
            bare = [figure.text for figure in figures(text) if figure.percent or figure.step < 0.1]
            if bare:
                yield f"{', '.join(bare)} ({heading}) come from no file: put <!-- from PATH#heading: words --> above"


def fits(said: str, printed: str) -> bool:
    """Whether an output on a page is what was printed, blank lines apart; `...` stands for anything in a line."""
    pattern = [re.escape(line.rstrip()).replace(r"\.\.\.", ".*") for line in said.splitlines() if line.strip()]
    lines = [line.rstrip() for line in printed.splitlines() if line.strip()]
    return len(lines) == len(pattern) and all(map(re.fullmatch, pattern, lines))


def same_picture(shown: Path, written: Path) -> bool:
    """Whether two PNG files look alike."""
    try:
        return compare_images(str(shown), str(written), PICTURE_TOLERANCE) is None
    except ImageComparisonFailure:  # of another size
        return False


def stale_outputs(path: Path) -> Iterator[str]:
    """What long examples of a page print, where it is not what stands there."""
    found = examples(path)
    for example, output in pairwise(found):
        if example.why is None or example.kind != "bash" or output.kind:
            continue
        needs = {name: SHARED_DATA / place for name, place in DATA.items() if name in example.code}
        absent = [str(place) for place in needs.values() if not place.exists()]
        if absent:
            print(f"{name_of(path)}: not run, for want of {', '.join(absent)}")
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            links = needs | {one: REPOSITORY / one for one in ("scripts", "hub_configs", "rd_hf")}
            for link, place in links.items():
                (folder / link).symlink_to(place)
            command = example.code.splitlines()[0]
            search = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                ["bash", "-euc", example.code],
                cwd=folder,
                env={**environment(), "PATH": search},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode or not fits(output.code, done.stdout):
                yield f"{command} ends with {done.returncode} and prints\n{done.stdout}{done.stderr[-2000:]}"
            for picture in folder.rglob("*.png"):
                shown = path.parent / picture.name
                if f"]({picture.name})" in path.read_text(encoding="utf-8") and not same_picture(shown, picture):
                    yield f"{shown.name} is another picture than {command} draws"


def main(names: list[str]) -> int:
    """Check these pages, or all; 1 where something is wrong."""
    paths = [REPOSITORY / name for name in names] or READMES
    wrong = 0
    for path in paths:
        for problem in [*unfounded(path), *stale_outputs(path)]:
            wrong += 1
            print(f"{name_of(path)}: {problem}", flush=True)
    print(f"{len(paths)} pages, {wrong} problems")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

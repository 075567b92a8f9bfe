"""Every example in every README runs, every link in them leads somewhere, and the front page is short.

An example that cannot run here stands below a comment, `<!-- not run: why; where it is checked -->`; its commands are
still read by the parsers that they are for, and its Python is compiled.
"""

from __future__ import annotations

import ast
import gzip
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from rd_hf.__main__ import commands, main
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment

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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the examples speak of: the repository's own folders, a few proteins in several forms, a scan."""
    for name in ("scripts", "hub_configs", "tests", "rd_hf"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    proteins = ["MKTAYIAKQR", "MKTAYIAKQK", "GAVLIMFWPS", "CDEFGHIKLM", "NPQRSTVWYA", "mktayiakqr*"]
    fasta = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(proteins))
    (tmp_path / "proteome.fasta.gz").write_bytes(gzip.compress(fasta.encode()))
    (tmp_path / "proteins.csv").write_text("id,sequence\n" + "".join(f"{p},{p[:9]}\n" for p in proteins))
    carried_records = gzip.decompress(EXAMPLE_FASTA.read_bytes()).decode().split(">")[1:]
    short = [record for record in carried_records if len(record) < 150][:60]
    (tmp_path / "proteins.fasta.gz").write_bytes(gzip.compress("".join(f">{one}" for one in short).encode()))
    carried = REPOSITORY / "tests" / "evaluation" / "data"
    (tmp_path / "cv_folds_singles.tsv").symlink_to(carried / "cv_folds_singles.tsv")
    (tmp_path / "dms").mkdir()
    for scan in carried.glob("*.csv"):
        (tmp_path / "dms" / scan.name).symlink_to(scan)
    return tmp_path


def words_of(line: str) -> list[str]:
    """As a shell takes them: a comment starts with a word, and `REPO#2` has none."""
    return shlex.split(re.sub(r"(^|\s)#.*", "", line))


def run(example: Example, folder: Path, capsys: pytest.CaptureFixture[str], names: dict[str, object]) -> str:
    """Its standard output. `rd-hf` and Python run in this process, where all that takes seconds is imported already;
    tests/test_wheel.py types the commands into a shell."""
    capsys.readouterr()
    if example.kind == "python":
        exec(compile(example.code, "README", "exec"), names)
        return capsys.readouterr().out
    for line in example.code.replace("\\\n", " ").splitlines():
        words = words_of(line)
        if words[0] == "rd-hf":
            assert main(words[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        else:
            path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
            subprocess.run(["bash", "-euc", line], cwd=folder, env={**environment(), "PATH": path}, check=True)
    return capsys.readouterr().out


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_examples_run_as_written(
    path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    said: list[str] = []
    names: dict[str, object] = {}
    unrun = False
    for example in examples(path):
        if example.kind and (unrun := example.why is not None):
            check_unrun(example)
        elif example.kind in {"bash", "python"}:
            # A page of the site is read from its top; any other block stands for itself.
            names = {"__name__": "__main__"} | (names if path.parent == PAGES else {})
            said.append(run(example, folder, capsys, names))
        elif example.kind == "bibtex":
            check_citation(example.code)
        elif example.kind == "" and (said or unrun):
            # What follows code is its output.
            assert unrun or said[-1] == example.code
        else:
            pytest.fail(f"{path} has a block of {example.kind or 'no language'!r} that nothing checks")
    if path == REPOSITORY / "README.md":
        neighbours = [line for line in "".join(said).splitlines() if re.match(r"\S+ \['", line)]
        assert len(neighbours) == 2, "two levels from the same file"
        # The same protein again is the nearest of all at every level.
        assert all(line.split("[")[1].startswith("'p5'") for line in neighbours)


def check_citation(code: str) -> None:
    """BibTeX says what CITATION.cff says."""
    known = (REPOSITORY / "CITATION.cff").read_text(encoding="utf-8")
    for field, value in re.findall(r"(\w+) = \{+([^{}]+)\}+", code):
        for word in re.split(r", | and ", value) if field == "author" else [value]:
            assert word in known, f"{field}: {word}"


def check_unrun(example: Example) -> None:
    """It says where it is checked otherwise, and is at least well formed."""
    assert example.why
    where = re.findall(r"[\w/]+\.(?:py|md)", example.why)
    assert where, f"not run ({example.why}): say where it is checked"
    assert all((REPOSITORY / one).exists() for one in where), example.why
    if example.kind == "python":
        ast.parse(example.code)
        return
    for line in example.code.replace("\\\n", " ").splitlines():
        words = words_of(line)
        if "rd_hf" in words:  # behind a launcher
            words = ["rd-hf", *words[words.index("rd_hf") + 1 :]]
        if words and words[0] in {"python", "bash"}:
            assert (REPOSITORY / words[1]).exists(), line
        if not words or words[0] != "rd-hf":
            continue
        name = next(" ".join(words[1 : 1 + count]) for count in (2, 1) if " ".join(words[1 : 1 + count]) in commands())
        parser = importlib.import_module(commands()[name][0]).build_parser()
        parser.parse_args(words[1 + len(name.split()) :])


def anchors(path: Path) -> set[str]:
    """As a forge makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = target.partition("#")
        found = path.parent / file if file else path
        assert found.exists(), f"{path}: {target}"
        if anchor:
            assert anchor in anchors(found), f"{path}: {target}"


def test_the_front_page_is_short_and_leads_to_every_other() -> None:
    front = REPOSITORY / "README.md"
    assert len(front.read_text().splitlines()) <= 200
    linked = {(REPOSITORY / target).resolve() for target in re.findall(r"\]\(([^)\s#]+)", front.read_text())}
    pages = [path for path in READMES if path != front and (path.name == "README.md" or path.parent == REPOSITORY)]
    assert len(pages) > 8
    for path in pages:
        assert path in linked, f"README.md has no link to {name_of(path)}"
    for algorithm in ("bases/regression.py", "bases/chain.py", "model/bases_rd_esm.py"):
        assert REPOSITORY / "rd_hf" / algorithm in linked

"""Every example in every README runs, every link in them leads somewhere, and the front page is short.

They run as a user of the wheel would type them, in a folder with no file of the repository. The only difference is a
short file `example`, which goes before the 1,000 proteins of that name, so that a page takes seconds; pages in `NEEDS`
have what they name beside it. tests/test_wheel.py types the front page's first minute with an installed wheel.

An example that cannot run here stands below a comment, `<!-- not run: why; where it is checked -->`; its commands are
still read by the parsers that they are for, and its Python is compiled. An output below one is compared there.
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
from pathlib import Path

import pytest

from rd_hf.__main__ import COMMANDS, main
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment
from tests.pages import PAGES, READMES, Example, examples, name_of

# What a page names that neither the package nor an earlier command of the page brings: files of the reader's own, and
# of a clone alone.
NEEDS = {
    "hub_configs/README.md": ("scripts", "hub_configs"),
    "rd_hf/embedding/README.md": ("proteins.csv",),
    "rd_hf/training/README.md": ("labelled.csv",),
    "scripts/docs/pages/finetuning.md": ("scripts",),
    "scripts/docs/pages/residues.md": ("scripts",),
}
ASSAY = REPOSITORY / "tests" / "evaluation" / "data" / "BCHB_CHLTE_Tsuboyama_2023_2KRU.csv"
# Pages whose printed results are of the carried proteins themselves, of which they embed a few.
ON_CARRIED = ("rd_hf/search/README.md",)
PROTEINS = ("MKTAYIAKQR", "MKTAYIAKQK", "GAVLIMFWPS", "CDEFGHIKLM", "NPQRSTVWYA", "mktayiakqr*")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where examples are typed; empty."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def furnish(folder: Path, page: str) -> None:
    """Put there what a page needs, and a short `example`."""
    if page not in ON_CARRIED:
        fasta = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(PROTEINS))
        short = [record for record in gzip.decompress(EXAMPLE_FASTA.read_bytes()).decode().split(">") if record]
        few = [record for record in short if len(record) < 150][:60]
        (folder / "example").write_text(fasta + "".join(f">{record}" for record in few))
    for name in NEEDS.get(page, ()):
        if name == "proteins.csv":
            (folder / name).write_text("id,sequence\n" + "".join(f"{p},{p[:9]}\n" for p in PROTEINS))
        elif name == "labelled.csv":
            (folder / name).symlink_to(ASSAY)
        else:
            (folder / name).symlink_to(REPOSITORY / name)


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
    furnish(folder, name_of(path))
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
            assert unrun or example.why or said[-1] == example.code
            check_where(example)
        else:
            pytest.fail(f"{path} has a block of {example.kind or 'no language'!r} that nothing checks")
    if name_of(path) == "rd_hf/embedding/README.md":
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
    check_where(example)
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
        name = next(" ".join(words[1 : 1 + count]) for count in (2, 1) if " ".join(words[1 : 1 + count]) in COMMANDS)
        parser = importlib.import_module(COMMANDS[name][0]).build_parser()
        parser.parse_args(words[1 + len(name.split()) :])


def check_where(example: Example) -> None:
    """A comment on what is not run names the file that checks it."""
    if example.why is not None:
        where = re.findall(r"[\w/]+\.(?:py|md)", example.why)
        assert where, f"not run ({example.why}): say where it is checked"
        assert all((REPOSITORY / one).exists() for one in where), example.why


def test_examples_name_nothing_that_only_a_clone_has() -> None:
    """Of the repository's folders, in what is run of a page that needs none."""
    for path in READMES:
        for example in examples(path):
            if example.kind in {"bash", "python"} and example.why is None:
                found = set(re.findall(r"\b(hub_configs|scripts|tests)/", example.code))
                assert found <= set(NEEDS.get(name_of(path), ())), f"{name_of(path)}: {example.code}"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_a_help_page_name_nothing_that_only_a_clone_has(name: str) -> None:
    description = importlib.import_module(COMMANDS[name][0]).build_parser().description
    assert description
    assert not re.findall(r"\b(?:hub_configs|scripts|tests)/", description)


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

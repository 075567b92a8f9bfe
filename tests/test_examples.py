"""The stories under scripts/examples run from end to end, on less than they tell of, and leave their pictures."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, environment

EXAMPLES = REPOSITORY / "scripts" / "examples"


def tell(name: str, output: Path, **settings: str) -> str:
    """Run a story from another folder than the repository's; what it printed."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        cwd=output.parent,
        env={**environment(), "PATH": os.environ["PATH"], "RD_HF_OUTPUT": str(output), **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_beta_lactamase(tmp_path: Path) -> None:
    printed = tell("beta_lactamase.py", tmp_path / "out", RD_HF_VARIANTS="24")
    levels = re.findall(r"^(\S+): Spearman -?\d\.\d\d over 24 unseen variants$", printed, re.MULTILINE)
    assert levels == ["0.3M", "1.2M", "2.7M"]
    assert len(re.findall(r"ranks first: [A-Z]\d+[A-Z] \(measured: \d+\)", printed)) == 3
    assert is_png(tmp_path / "out" / "beta_lactamase.png")


@pytest.mark.skipif(find_spec("rd_hf.search") is None, reason="there is no search in this tree")
def test_label_transfer(tmp_path: Path) -> None:
    printed = tell("label_transfer.py", tmp_path / "out", RD_HF_PROTEINS="24")
    assert "6 new proteins, 18 known" in printed
    assert [line.split(":")[0] for line in printed.splitlines()[1:4]] == ["0.3M", "1.2M", "2.7M"]
    assert is_png(tmp_path / "out" / "label_transfer.png")


def test_the_part_of_the_scan_is_the_scans(shared_data: Path) -> None:
    """Where the whole scan lies beside the project: every eighth row of it, as it is."""
    with open(shared_data / "dms" / "BLAT_ECOLX_Stiffler_2015.csv", newline="") as file:
        whole = [(row["mutant"], row["DMS_score"]) for row in csv.DictReader(file)]
    with open(EXAMPLES / "data" / "BLAT_ECOLX_part.csv", newline="") as file:
        assert [(row["mutant"], row["DMS_score"]) for row in csv.DictReader(file)] == whole[::8]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_they_open_as_notebooks(path: Path) -> None:
    """Cells of the percent format, none of them empty, and the words of those in Markdown behind a `#`."""
    text = path.read_text()
    assert text.startswith("# %% [markdown]\n# # ")
    cells = re.split(r"^# %%", text, flags=re.MULTILINE)[1:]
    assert len(cells) > 5
    for cell in cells:
        head, _, body = cell.partition("\n")
        assert body.strip()
        if head.strip() == "[markdown]":
            assert all(line.startswith("#") for line in body.strip().splitlines())

"""The README's Embed section, its code run as written."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from tests.conftest import REPOSITORY, environment


@pytest.fixture(scope="module")
def section() -> str:
    text = (REPOSITORY / "README.md").read_text()
    return text[text.index("\n## Embed\n") : text.index("\n## Fit\n")]


def test_the_commands_and_examples_run_as_written(
    section: str, mini_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    shipped = (mini_checkpoint / "config.json").exists()
    shutil.copytree(mini_checkpoint if shipped else tiny_checkpoint, tmp_path / "hub_configs" / "rd-esm2-mini")
    (tmp_path / "scripts").symlink_to(REPOSITORY / "scripts")
    proteins = ["MKTAYIAKQR", "MKTAYIAKQK", "GAVLIMFWPS", "CDEFGHIKLM", "NPQRSTVWYA", "mktayiakqr*"]
    fasta = "".join(f">p{number}\n{sequence}\n" for number, sequence in enumerate(proteins))
    (tmp_path / "proteome.fasta.gz").write_bytes(gzip.compress(fasta.encode()))
    (tmp_path / "proteins.csv").write_text("id,sequence\n" + "".join(f"{p},{p[:9]}\n" for p in proteins))
    blocks = re.findall(r"```(bash|python)\n(.*?)```", section, re.DOTALL)
    assert [kind for kind, _ in blocks] == ["bash", "python", "python"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    said = []
    for kind, code in blocks:
        run = subprocess.run(
            ["bash", "-euc", code] if kind == "bash" else [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**environment(), "PATH": path, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        said.append(run.stdout)
    assert "6 records: 6 written, 0 rejected" in said[0]
    neighbours = said[1].splitlines()
    assert len(neighbours) == 2, "two levels from the same file"
    for line in neighbours:
        # The same protein again is the nearest of all at every level.
        assert line.split("[")[1].startswith("'p5'")


def test_the_table_of_letters_says_what_the_code_does(section: str) -> None:
    rows = dict(re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.MULTILINE))
    assert clean_sequence("XBZUO") == "XBZUO"
    assert any("`X B Z U O`" in row and "kept" in text for row, text in rows.items())
    assert clean_sequence("MJ") == "MX"
    assert rows["`J`"].startswith("becomes `X`")
    assert clean_sequence("mk-.*") == "MK"
    with pytest.raises(RejectedSequenceError):
        clean_sequence("M*K")

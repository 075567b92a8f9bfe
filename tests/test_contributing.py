"""CONTRIBUTING's check-lists are enough: one of each is added to a copy of the package, where they say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.conftest import REPOSITORY, environment

COMMAND = '''"""Say hello.

    rd-hf hello
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser


def build_parser() -> argparse.ArgumentParser:
    return command_parser("hello", __doc__)


def run(args: argparse.Namespace) -> None:
    print("hello")


main = command(build_parser, run)
'''
# File, what stands there, what is put before it.
ADDED = [
    (
        "__main__.py",
        '    "embed": ("rd_hf.commands.embed"',
        '    "hello": ("rd_hf.commands.hello", "say hello"),\n',
    ),
    (
        "families.py",
        "# By `model_type`, as the records that travel.\n",
        'NEW = (Member("1M", "me/one", 64, 2, 4), Member("2M", "me/two", 96, 3, 4))\n\n\n',
    ),
    ("families.py", '    "esmc": Family(', '    "new": Family("rd-new", NEW, esm2_backbone),\n'),
    (
        "model/pooling_rd_esm.py",
        '        Pooling(\n            "max",',
        """        Pooling(
            "last",
            one_row=True,
            affine=True,
            pool_rows=lambda first, rows, positions: rows[-1].clone(),
            pool_batch=lambda states, keep: states.take_along_dim(keep.sum(dim=1)[:, None, None], dim=1)[:, 0].float(),
        ),
""",
    ),
    ("data/tables.py", '    ".parquet": parquet,', '    ".bars": partial(delimited, kind=".tsv"),\n'),
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Runs a command of the copy in its folder; gives what it prints."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(REPOSITORY / "rd_hf", folder / "rd_hf", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "rd_hf" / "commands" / "hello.py").write_text(COMMAND)
    for file, before, new in ADDED:
        path = folder / "rd_hf" / file
        text = path.read_text()
        assert text.count(before) == 1, f"{file} has no one place for it"
        path.write_text(text.replace(before, new + before))
    (folder / "proteins.bars").write_text("id\tsequence\nfirst\tMKTAYIAKQR\nsecond\tGSHMASLVPRGS\n")

    def call(*words: object) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "rd_hf", *map(str, words)],
            env={**environment(), "PYTHONPATH": str(folder)},
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call.folder = folder  # type: ignore[attr-defined]
    return call


def test_a_command(run: Callable[..., str]) -> None:
    assert run("hello") == "hello\n"


def test_a_family(run: Callable[..., str]) -> None:
    text = run("info", "rd-new-2M")
    assert re.search(r"^ *1M +64 .* me/one$", text, re.MULTILINE)
    assert re.search(r"^ *2M +96 .* me/two$", text, re.MULTILINE)


def test_a_pooling_and_an_input_format(run: Callable[..., str]) -> None:
    folder: Path = run.folder  # type: ignore[attr-defined]
    mini = REPOSITORY / "hub_configs" / "rd-esm2-mini"
    found = {}
    for pooling in ("last", "residue"):
        run("embed", "--model", mini, "--input", "proteins.bars", "--output", pooling, "--pooling", pooling)
        (part,) = (folder / pooling).glob("*.parquet")
        table = pq.read_table(part)
        assert table["id"].to_pylist() == ["first", "second"]
        found[pooling] = table["embedding"].to_pylist()
    for last, rows in zip(found["last"], found["residue"], strict=True):
        # One batch of the same two proteins: only the place where float32 is rounded may differ.
        np.testing.assert_allclose(last, rows[-1], rtol=0, atol=1e-6)

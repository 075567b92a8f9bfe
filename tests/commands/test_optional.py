"""A command whose optional package is absent says which, and what to install, in one sentence."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

from rd_hf.commands.optional import OPTIONAL, what_to_install
from tests.conftest import REPOSITORY, environment

COMMANDS = {
    "train": ["--model", "m", "--input", "i.csv", "--target", "t", "--output", "o"],
    "evaluate_dms": ["--model", "m", "--assays", "a.csv", "--output", "o"],
    "evaluate_homology": ["--model", "m", "--domains", "d", "--output", "o"],
    "evaluate_residues": ["--model", "m", "--output", "o"],
}
CODE = """
import contextlib, importlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # as if it were not installed
found = {}
for command, words in json.loads(sys.argv[2]).items():
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = importlib.import_module(f"rd_hf.commands.{command}").main(words)
    found[command] = f"{status} {said.getvalue()}"
print(json.dumps(found))
"""


def test_every_command_with_an_extra_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(list(OPTIONAL)), json.dumps(COMMANDS)],
        cwd=REPOSITORY,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for command, said in json.loads(done.stdout.splitlines()[-1]).items():
        assert re.match(r"1 rd-hf (evaluate )?\w+: error: this needs ", said), f"{command}: {said}"
        extra = "train" if command == "train" else "eval"
        assert said.endswith(f'which is not installed: pip install "rd_hf[{extra}]"\n'), f"{command}: {said}"


def test_what_is_to_be_typed_looks_for_no_rd_hf_on_an_index() -> None:
    """The package is on none: where it is installed, pip takes it as it is, and adds what the extra brings."""
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--no-deps", "rd_hf[eval]"]
    done = subprocess.run(pip, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Requirement already satisfied: rd_hf[eval]" in done.stdout


def test_a_fault_of_our_own_is_no_missing_package() -> None:
    with pytest.raises(ModuleNotFoundError, match="no rd_hf"):
        what_to_install(ModuleNotFoundError("no rd_hf.nowhere", name="rd_hf.nowhere"))

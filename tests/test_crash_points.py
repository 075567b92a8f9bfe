"""Killed before any of its file operations, a command ends when it is given again, with the same bytes.

All points take long: RD_HF_FULL=1 tries them. By default every so many are tried, and the first and the last operation
of each kind.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY, environment

COMMANDS = ("embed", "extend", "convert", "fit", "push", "release")
STEP = 1 if os.environ.get("RD_HF_FULL") else 40


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each command, all tried by one process, which imports torch once."""
    work = tmp_path_factory.mktemp("crash")
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash_points", str(work), "--step", str(STEP)],
        env={key: value for key, value in environment().items() if key != "HF_HUB_OFFLINE"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    content: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return content


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_command_ends_it_to_the_same_bytes(command: str, found: dict[str, Any]) -> None:
    operations, tried = found[command]["operations"], found[command]["tried"]
    print(f"{command}: {len(operations)} file operations, killed before {len(tried)} of them")
    assert found[command]["wrong"] == []
    assert {operations[point - 1] for point in tried} == set(operations), "every kind of operation"
    assert STEP > 1 or len(tried) > 0.95 * len(operations)

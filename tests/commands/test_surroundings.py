"""The real commands in odd surroundings: the result is there, and the exit code tells of the job."""

from __future__ import annotations

import fcntl
import os
import pty
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rd_hf.commands.embed import main as embed
from tests.conftest import EXAMPLE_FASTA, environment

PLAIN_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def line(name: str, *arguments: object) -> str:
    words = [sys.executable, "-m", "rd_hf", name, *arguments]
    return shlex.join(map(str, words))


def bash(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["bash", "-c", line], env={**environment(), **variables}, capture_output=True, timeout=240, check=False
    )


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    path = tmp_path / "protéines.fasta"
    path.write_text(">α β\nMKTAYIAKQR\n>b\nMKTAYIAKQRQISFVK\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("ending", "variables"),
    [
        ("| true; exit ${PIPESTATUS[0]}", {"OMP_NUM_THREADS": "4,2"}),
        ("> /dev/full", {"OMP_NUM_THREADS": "", "WORLD_SIZE": ""}),
        ("<&- >&- 2>&-", {"COLUMNS": "1", **PLAIN_C}),
    ],
    ids=["reader gone, list of threads", "disk full, empty settings", "all closed, plain C locale"],
)
def test_an_embedding_job_ends_well(
    ending: str, variables: dict[str, str], fasta: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "sortie-é"
    done = bash(
        f"{line('embed', '--model', tiny_checkpoint, '--input', fasta, '--output', output)} {ending}", **variables
    )
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert pq.read_table(output)["description"].to_pylist() == ["α β", "b"]


def test_a_fit_in_a_plain_c_locale_whose_reader_goes_away_ends_well(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """It speaks long before its end, and its card has letters that are no ASCII."""
    output = tmp_path / "modèle"
    command = line("fit", "--config", tiny_checkpoint, "--input", EXAMPLE_FASTA, "--num-sequences", 30)
    done = bash(f"{command} --output {shlex.quote(str(output))} | true; exit ${{PIPESTATUS[0]}}", **PLAIN_C)
    assert done.returncode == 0, done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert "R²" in (output / "README.md").read_text(encoding="utf-8")
    assert not (output / ".fit").exists()


def test_a_job_without_its_input_says_so(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python's standard input is None where it was closed (`<&-`)."""
    monkeypatch.setattr("sys.stdin", None)
    assert embed(["--model", str(tiny_checkpoint), "--input", "-", "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "standard input is closed" in said
    assert said.count("\n") == 1


def test_a_narrow_terminal_costs_nothing(fasta: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    main, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 1, 0, 0))
    arguments = ("--model", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--part-records", 1)
    process = subprocess.Popen(
        shlex.split(line("embed", *arguments)), env=environment(), stdout=terminal, stderr=terminal, stdin=terminal
    )
    os.close(terminal)
    said = b""
    while True:
        try:
            said += os.read(main, 10_000)
        except OSError:  # the other end is closed
            break
    assert process.wait(timeout=120) == 0, said
    assert b"Traceback" not in said
    assert b"2 records: 2 written" in said

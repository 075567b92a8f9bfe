"""README's first command, step by step, on fewer sequences (the shell script adds the installation)."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment


def step(*command: str | Path) -> str:
    command = (sys.executable, *command)
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_fit_embed_and_check(mini_checkpoint: Path, tmp_path: Path) -> None:
    model, embeddings = tmp_path / "model", tmp_path / "embeddings"
    few = tmp_path / "few.fasta"
    with gzip.open(EXAMPLE_FASTA, "rt") as source:
        few.write_text("".join(line for line, _ in zip(source, range(400), strict=False)))
    fitted = step("-m", "rd_hf", "fit", "--config", mini_checkpoint, "--input", few, "--output", model)
    assert "192" in fitted
    embedded = step("-m", "rd_hf", "embed", "--model", model, "--input", few, "--output", embeddings)
    printed = step(REPOSITORY / "scripts" / "quickstart_check.py", model, few, embeddings)
    assert "datasets.map on the first" in printed
    assert printed.count(": True") == 3
    assert "False" not in printed
    assert "nats" in printed
    assert ".parquet" in printed
    # A page: with the shell script's own lines, all that a new user sees.
    script = (REPOSITORY / "scripts" / "quickstart.sh").read_text()
    lines = sum(len(said.splitlines()) for said in (fitted, embedded, printed)) + script.count("\necho ") + 1
    assert lines <= 40

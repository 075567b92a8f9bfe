"""The embed command in this process or in one of its own, and ways to look at what it wrote."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from rd_hf.commands.embed import main
from tests.conftest import Outcome, environment, run_here


@pytest.fixture
def embed(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Run the command in this process."""
    return partial(run_here, main, capsys)


def command(*arguments: object, launcher: tuple[str, ...] = (sys.executable,)) -> list[str]:
    """The command line that a user would give."""
    return [*launcher, "-m", "rd_hf", "embed", *map(str, arguments)]


def run_process(*arguments: object, launcher: tuple[str, ...] = (sys.executable,)) -> Outcome:
    """Run the command as a process of its own."""
    done = subprocess.run(
        command(*arguments, launcher=launcher),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def random_fasta(path: Path, count: int, seed: int = 0, longest: int = 120) -> Path:
    """Random proteins, one of them twice, one of them bad."""
    generator = random.Random(seed)
    sequences = [
        "".join(generator.choices("LAGVSERTIDPKQNFYMHWC", k=generator.randint(5, longest))) for _ in range(count)
    ]
    sequences[count // 2] = sequences[0]
    sequences[count // 3] = "MK*T"
    path.write_text("".join(f">r{number}\n{sequence}\n" for number, sequence in enumerate(sequences)))
    return path


REFERENCE_PARTS = 100


@dataclass(frozen=True)
class Reference:
    """A job of many parts and what it wrote when nothing interrupted it."""

    arguments: list[object]  # all but --output, which is the last
    outcome: Outcome
    folder: Path
    seconds: float


@pytest.fixture(scope="session")
def reference(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """One uninterrupted run in a process of its own, which the interrupted ones are held against."""
    folder = tmp_path_factory.mktemp("reference")
    fasta = random_fasta(folder / "proteins.fasta", 100)
    arguments = ["--model", tiny_checkpoint, "--input", fasta, "--part-records", 1, "--output"]
    started = time.monotonic()
    outcome = run_process(*arguments, folder / "out")
    return Reference(arguments, outcome, folder / "out", time.monotonic() - started)


def scale_tensors(model: Path, ending: str, factor: float) -> None:
    """Multiply the tensors of a saved model whose names end so, whichever files hold them."""
    touched = 0
    for path in model.glob("*.safetensors"):
        tensors = load_file(path)
        chosen = [name for name in tensors if name.endswith(ending)]
        for name in chosen:
            tensors[name] *= factor
        if chosen:
            save_file(tensors, path, metadata={"format": "pt"})
        touched += len(chosen)
    assert touched, f"no tensor of {model} ends in {ending}"


def parts(folder: Path) -> list[Path]:
    """Parquet files of an output folder, in order."""
    return sorted(folder.glob("embeddings-*.parquet"))


def read(folder: Path) -> pa.Table:
    """All rows of an output folder, in order."""
    return pa.concat_tables([pq.read_table(path) for path in parts(folder)])


def content_hashes(folder: Path) -> dict[str, str]:
    """Hash of each file that a user would read; the manifest apart, which names the folder's own history."""
    files = [*parts(folder), folder / "_rejects.tsv"]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of its own, mounted with the options given."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("mounting a file system needs root")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"mounting is not permitted here: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        # A process that a test ended may still be leaving: it keeps its file, and the name goes away at once.
        subprocess.run(["umount", "--lazy", place], check=True)


def job_of_ten(embed: Callable[..., Outcome], model: Path, folder: Path) -> Callable[..., Path]:
    """What embeds ten proteins, in parts of four, into a folder of the name given, with the options given."""
    fasta = random_fasta(folder / "p.fasta", 10, longest=20)

    def run(name: str, *options: object) -> Path:
        words = ("--model", model, "--input", fasta, "--part-records", 4, "--output", folder / name)
        outcome = embed(*words, *options)
        assert outcome.status == 0, outcome.stderr
        return folder / name

    return run

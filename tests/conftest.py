"""Shared fixtures: a tiny random family (milliseconds), the shipped mini family, real sequences."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing in the tests may reach a network; the Hub tests point the client at a local server themselves.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import psutil
import pytest
import torch

from rd_hf.families import Member, esm2_backbone
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLE_FASTA = REPOSITORY / "rd_hf" / "data" / "examples" / "proteins_1000.fasta.gz"
SHARED_DATA = REPOSITORY.parent / "shared" / "data"
# A launcher of several processes on one machine's CPUs; for its GPUs accelerate launch does the same. (With --cpu that
# starts a single process, whatever --num_processes says.)
TWO_PROCESSES = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Folders whose tests take every warning as an error, but for those that pyproject.toml names, where RD_HF_WARNINGS says
# so: scripts/test.sh does, and runs with older libraries, which warn of other things, do not.
NO_WARNINGS = [REPOSITORY / "tests" / name for name in ("data", "model")]


# Files that take a minute and more come first, so that of two workers none waits long for the other at the end.
LONG = ("test_ray", "test_release", "test_crash_points", "test_load", "test_fitting", "test_families", "test_wheel")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    # Garbage of another test is found at any time, and is not this one's doing.
    not_its_own = ("ignore::ResourceWarning", "default::pytest.PytestUnraisableExceptionWarning")
    # First of a test's marks, so that one of its own has the last word.
    strict = pytest.mark.filterwarnings("error", *not_its_own, *config.getini("filterwarnings"))
    for item in items:
        if os.environ.get("RD_HF_WARNINGS") == "error" and item.path.parent in NO_WARNINGS:
            item.add_marker(strict, append=False)


def pytest_collection_finish() -> None:
    """Leave what imports made out of each collection of garbage: a million objects, that take half a second."""
    gc.collect()
    gc.freeze()


def pearson_records(source: Any) -> list[Any]:
    """Records as Biopython's Pearson reader has them, another implementation; it came with 1.85."""
    from Bio import SeqIO

    try:
        return list(SeqIO.parse(source, "fasta-pearson"))
    except ValueError as error:
        if "Unknown format" not in str(error):
            raise
        pytest.skip("this release of Biopython has no Pearson reader")


def environment() -> dict[str, str]:
    """One thread a process: sums are then added in one order, and tests that run side by side do not fight."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill(process: subprocess.Popen[Any]) -> None:
    """SIGKILL a command and all that it started: a launcher's processes outlive it."""
    everyone = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everyone)


@dataclass(frozen=True)
class Outcome:
    """What a command ended with and printed."""

    status: int
    stdout: str
    stderr: str


def run_here(main: Callable[[list[str]], int], capsys: pytest.CaptureFixture[str], *arguments: object) -> Outcome:
    """Run a command in this process: the same code without the seconds that torch takes to import."""
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return Outcome(status, printed.out, printed.err)


def backbone_settings(width: int, layers: int = 2, heads: int = 4) -> dict[str, object]:
    """Arguments of an ESM-2 ``EsmConfig`` of any size."""
    return esm2_backbone(Member("", "", width, layers, heads))


def random_model(
    widths: list[int], names: list[str] | None = None, seed: int = 0, layers: int = 2, **settings: object
) -> RDEsmModel:
    """A family with random backbones and random bases, in eval mode."""
    torch.manual_seed(seed)
    names = names or [f"L{index}" for index in range(len(widths))]
    levels = [
        {"name": name, "backbone": backbone_settings(width, layers)} for name, width in zip(names, widths, strict=True)
    ]
    model = RDEsmModel(RDEsmConfig(levels=levels, **settings)).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        readout = model.readout.buffers() if model.config.readout is not None else ()
        for buffer in (*model.projections.buffers(), *readout):
            buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    return model


def trainer_class() -> tuple[Any, Any]:
    """transformers' `Trainer` and its arguments; it imports `datasets`, which needs a newer client than some have."""
    try:
        from transformers import Trainer, TrainingArguments
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"this release's Trainer cannot be imported here: {error}")
    return Trainer, TrainingArguments


@pytest.fixture
def tiny_model() -> RDEsmModel:
    """Three levels, 32 / 48 / 64 wide."""
    return random_model([32, 48, 64])


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny family, as a user's folder."""
    folder = tmp_path_factory.mktemp("checkpoint")
    random_model([32, 48, 64]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def mini_checkpoint() -> Path:
    """The shipped mini family: pretrained backbones and fitted bases."""
    return REPOSITORY / "hub_configs" / "rd-esm2-mini"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Larger real data beside the project; tests that need it skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA

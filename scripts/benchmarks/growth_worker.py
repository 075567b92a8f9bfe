"""Runs the jobs of ``growth.py`` in a process (or several) of its own and prints the seconds of each as JSON.

    growth_worker.py fit|embed SCRATCH MODEL FASTA [MODEL FASTA ...]
    torchrun --nproc_per_node 2 growth_worker.py ...

Everything is imported and a first small job done before a clock starts, so that a time is that of the job: reading the
file, all forward passes, and what is written. With several processes it ends when the last of them is done.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from transformers.utils import logging

from rd_hf.embedding import EmbeddingOptions, JobSettings, run_job
from rd_hf.fitting import FitOptions, draw_sample, fit_bases
from rd_hf.hub import load_family
from rd_hf.launch import leave, processes

# Small, so that parts are many enough to be shared evenly by two processes.
PART_RECORDS = 128


def fit(model: str, fasta: str, output: Path, accelerator: Accelerator) -> float:
    """Seconds of drawing the sample and fitting all bases on it, the family being in memory."""
    family = load_family(model)
    options = FitOptions()
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    fit_bases(family, draw_sample([fasta], options), options, output / ".fit", accelerator)
    return time.perf_counter() - started


def embed(model: str, fasta: str, output: Path, accelerator: Accelerator) -> float:
    """Seconds of an embedding job, mean-pooled, loading the model (tens of milliseconds) included."""
    settings = JobSettings(model, (fasta,), str(output), EmbeddingOptions(), part_records=PART_RECORDS)
    accelerator.wait_for_everyone()
    started = time.perf_counter()
    run_job(settings, processes(), show_progress=False)
    return time.perf_counter() - started


JOBS: dict[str, Callable[[str, str, Path, Accelerator], float]] = {"fit": fit, "embed": embed}


def main() -> None:
    job, scratch, *pairs = sys.argv[1:]
    logging.disable_progress_bar()
    accelerator = Accelerator(cpu=True)
    seconds = []
    # The first once more at the start: kernels are chosen and files read once.
    work = [*pairs[:2], *pairs]
    for number, (model, fasta) in enumerate(zip(work[::2], work[1::2], strict=True)):
        output = Path(scratch) / f"{job}-{number}"
        seconds.append(JOBS[job](model, fasta, output, accelerator))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shutil.rmtree(output)
    if accelerator.is_main_process:
        print(json.dumps(seconds[1:]))
    leave(processes())


if __name__ == "__main__":
    main()

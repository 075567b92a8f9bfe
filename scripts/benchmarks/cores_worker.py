"""Runs the jobs of ``cores.py`` in a process (or several) of its own and prints what each took as JSON.

    cores_worker.py SCRATCH MODEL FASTA PART_RECORDS HOW [HOW ...]
    torchrun --nproc_per_node 2 cores_worker.py ...

HOW is ``threads`` (a job as it is) or ``shared`` (every batch by all threads). Everything is imported and a first job,
not counted, done before a clock starts.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

import torch

from rd_hf.embedding import EmbeddingOptions, JobSettings, concurrency, run_job
from rd_hf.launch import leave, processes

USUAL = concurrency._BATCHES_PER_THREAD


def main() -> None:
    scratch, model, fasta, part_records, *ways = sys.argv[1:]
    group = processes()
    answers = []
    for number, how in enumerate([ways[0], *ways]):
        # No part has so many batches that concurrency would pay.
        concurrency._BATCHES_PER_THREAD = USUAL if how == "threads" else sys.maxsize
        output = Path(scratch) / f"out-{number}"
        settings = JobSettings(model, (fasta,), str(output), EmbeddingOptions(), part_records=int(part_records))
        group.all_well(True)
        wall, processor = time.perf_counter(), time.process_time()
        summary = run_job(settings, group, show_progress=False)
        took = {
            "how": how,
            "wall": time.perf_counter() - wall,
            "processor": time.process_time() - processor,
            "residues": summary.residues,
            "threads": torch.get_num_threads(),
            "stages": summary.seconds,
        }
        answers.append(took)
        group.all_well(True)
        if group.is_main:
            shutil.rmtree(output)
    if group.is_main:
        print(json.dumps(answers[1:]))
    leave(group)


if __name__ == "__main__":
    main()

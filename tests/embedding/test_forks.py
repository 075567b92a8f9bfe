"""Embedders inherited by a process that was forked after the model ran: made anew, whichever pool made it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rd_hf.data.records import InputError
from rd_hf.embedding import checkpoint
from rd_hf.embedding.checkpoint import prepare_after_fork, threads_of_a_worker
from tests.conftest import environment

# Long enough that a product is shared by several threads: short ones run on one, and would not hang.
PROGRAM = """
import concurrent.futures, multiprocessing, os, sys
import multiprocess
import torch
from rd_hf.embedding import Embedder

torch.set_num_threads(4)
embedder = Embedder(sys.argv[1])
sequences = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ" * 10, "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEV" * 9]
expected = embedder.embed(sequences)["embedding"]

def inherited(_):
    return abs(embedder.embed(sequences)["embedding"][0] - expected[0]).max()

def fresh(_):
    return abs(Embedder(sys.argv[1]).embed(sequences)["embedding"][0] - expected[0]).max()

def raw(work):
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, str(work(0)).encode())
        os._exit(0)
    os.close(writer)
    return [float(os.read(reader, 100))]

def spread(pool, work):
    with pool:
        return list(pool.map(work, range(2)))

POOLS = {
    "multiprocessing": lambda work: spread(multiprocessing.get_context("fork").Pool(2), work),
    "futures": lambda work: spread(
        concurrent.futures.ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")), work
    ),
    "multiprocess": lambda work: spread(multiprocess.get_context("fork").Pool(2), work),
    "os.fork": raw,
    "torch": lambda work: spread(torch.multiprocessing.get_context("fork").Pool(2), work),
}
for name, pool in POOLS.items():
    # One thread in place of four: sums in another order.
    assert max(pool(inherited)) < 1e-5
    print(name)
assert max(raw(fresh)) < 1e-5
"""


def test_an_embedder_works_in_the_processes_of_any_pool(mini_checkpoint: Path) -> None:
    # Two threads or more must be there to get lost.
    surroundings = {**environment(), "OMP_NUM_THREADS": "4"}
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", PROGRAM, mini_checkpoint],
        env=surroundings,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, complaints = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"it hangs after {process.communicate()[0].split()}")
    assert said.split() == ["multiprocessing", "futures", "multiprocess", "os.fork", "torch"], complaints
    assert process.returncode == 0, complaints


def test_a_model_on_a_gpu_is_refused_in_a_fork() -> None:
    with pytest.raises(InputError, match=r"forked from one that had the model on cuda.*'spawn'"):
        prepare_after_fork(torch.device("cuda", 0))


@pytest.mark.parametrize(
    ("value", "threads"),
    [("4,2", 4), ("", 1), ("3", 3), (" 2 ", 2), ("all", 1), ("0", 1), ("-1", 1), (None, 1), ("2,", 2)],
)
def test_thread_settings_of_any_legal_form_are_read(
    value: str | None, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert threads_of_a_worker() == threads
    monkeypatch.setattr(checkpoint, "_forked", True)
    assert threads_of_a_worker() == 1

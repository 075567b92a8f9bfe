"""Long jobs give memory back. A process of its own for each claim: the allocator remembers what came before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rd_hf.embedding.job import run_job
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.memory import bound_kernels
from tests.embedding.conftest import random_fasta

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's books of a process")

# MB in use by this process's allocator (glibc's own books: what is free inside counts as free).
USED = """
import ctypes, re, tempfile
C = ctypes.CDLL(None)
C.fopen.restype = ctypes.c_void_p

def used():
    with tempfile.NamedTemporaryFile("r") as books:
        handle = ctypes.c_void_p(C.fopen(books.name.encode(), b"w"))
        C.malloc_info(0, handle)
        C.fclose(handle)
        whole = books.read().rpartition("</heap>")[2]
    sizes = {kind: int(size) for kind, size in re.findall(r'type="(\\w+)"(?: count="\\d+")? size="(\\d+)"', whole)}
    return (sizes["current"] - sizes["fast"] - sizes["rest"]) / 2**20
"""

PRODUCTS = """
import sys, torch
from rd_hf.memory import bound_kernels
if sys.argv[1] == "bounded":
    bound_kernels()
weight, bias = torch.randn(64, 64), torch.randn(64)

def product(rows):
    torch.ops.mkldnn._linear_pointwise(torch.randn(rows, 64), weight, bias, "gelu", [], "none")

with torch.inference_mode():
    product(7)
    before = used()
    for rows in range(8, 1008):
        product(rows)
print(used() - before)
"""

# Pieces of 64 kB, every second one let go: none is at the end, where glibc would return it by itself.
SCATTERED = """
import ctypes
from benchmarks.resident import resident_mb
from rd_hf.memory import trim_heap
C = ctypes.CDLL(None)
C.malloc.restype, C.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

trim_heap()
pieces = [C.malloc(65536) for _ in range(2000)]
for piece in pieces:
    ctypes.memset(piece, 1, 65536)
for piece in pieces[::2]:
    C.free(piece)
before = resident_mb("VmRSS")
trim_heap()
print(before - resident_mb("VmRSS"))
"""


def _printed(script: str, *arguments: str) -> float:
    root = Path(__file__).parents[1]
    clean = {name: value for name, value in os.environ.items() if not name.endswith("_CACHE_CAPACITY")}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**clean, "PYTHONPATH": os.pathsep.join((str(root), str(root / "scripts")))},
    )
    return float(done.stdout.splitlines()[-1])


@linux
def test_what_was_let_go_between_pieces_in_use_returns_to_the_machine() -> None:
    # 1,000 x 64 kB = 62.5 MB; a page at either end of a piece may be shared with a neighbour: an eighth of it.
    assert _printed(SCATTERED) > 50


@linux
def test_compiled_products_of_a_thousand_shapes_are_not_all_kept() -> None:
    bounded, every = (_printed(USED + PRODUCTS, how) for how in ("bounded", "unbounded"))
    # 64 of 1,000 would be a fifteenth; what else the allocator has in use moves by a MB or so.
    assert bounded < every / 3


def test_what_the_user_set_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "7")
    # Set first, so that what is set below is undone after the test.
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "")
    monkeypatch.delenv("LRU_CACHE_CAPACITY")
    bound_kernels()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "7"
    assert os.environ["LRU_CACHE_CAPACITY"] == "64"


def test_a_job_gives_back_after_every_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    output = tmp_path / "out"
    finished: list[int] = []
    monkeypatch.setattr(
        "rd_hf.embedding.worker.trim_heap", lambda: finished.append(len(list(output.glob("*.parquet"))))
    )
    fasta = random_fasta(tmp_path / "proteins.fasta", 7)
    settings = JobSettings(str(tiny_checkpoint), (str(fasta),), str(output), EmbeddingOptions(), part_records=3)
    run_job(settings, show_progress=False)
    assert finished == [1, 2, 3]

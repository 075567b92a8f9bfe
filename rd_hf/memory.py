"""Bounds on the memory of libraries beneath, so that a job's last hour needs no more than its first minutes."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

# oneDNN's own cache of compiled products, and that of torch's layer above it: both hold 1,024 unless set otherwise
# before their first use. A batch needs three of each backbone's shapes for each thread that computes one, and all its
# layers find them again; the next batch has another shape. 1,024 of them came to 100 MB over a million records.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS = 64


def bound_kernels() -> None:
    """Keep fewer compiled products in a process that has computed none yet, unless the user set how many."""
    for name in _CACHES:
        os.environ.setdefault(name, str(_KERNELS))


def trim_heap() -> None:
    """Return free pieces of memory to the machine, with glibc; elsewhere this does nothing.

    Parts differ in size, so that what one leaves free seldom fits the next, and glibc by itself returns only what lies
    at the very end. It takes three to nine milliseconds over 200 MB.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

"""What a long job gives back, so that its last hour needs no more memory than its first minutes.

Both are about libraries beneath: Python's objects stay level, and so do tensors.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache
from typing import Any

# oneDNN's own cache of compiled products, and that of torch's layer above it: both hold 1,024 unless told otherwise
# before their first use. A batch needs three of each backbone's shapes for each thread that computes one, and all its
# layers find them again; the next batch has another shape. 1,024 of them came to 100 MB over a million records.
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KERNELS = 64


def bound_kernels() -> None:
    """Keep the products compiled for the last few batches, not for the last thousand.

    It holds where this process has computed none yet, and leaves alone what the user set.
    """
    for name in _CACHES:
        os.environ.setdefault(name, str(_KERNELS))


def trim_heap() -> None:
    """Hand free pieces of memory back to the machine.

    Parts differ in size, so that what one leaves free seldom fits the next, and glibc by itself returns only what lies
    at the very end. Three to nine milliseconds over 200 MB; elsewhere than on glibc it does nothing.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None

"""Several batches at once on a CPU, each by threads of its own, in place of one batch by all threads after the other.

A batch that fits the caches is hundreds of products of a millisecond or less. Where all threads share each product,
each ends with all waiting for the slowest, and what comes between two products is done by one. Threads that each have
a batch wait for nobody; torch lets go of the interpreter within its operations. Weights are shared.

Where a GPU computes, two threads take turns at ordering batches, so that one of them makes its batch ready and puts
results away while the device has the other's; two more read and write beside them (:class:`Aside`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import nn

# Bounds memory on a machine of many cores: there, several threads share one batch.
MAX_CONCURRENCY = 8
# Batches per thread, below which the wait for the last one costs more than concurrency saves.
_BATCHES_PER_THREAD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def concurrency_for(batches: int, most: int = MAX_CONCURRENCY) -> int:
    """How many of so many batches to compute at once, at most ``most``; 1 where concurrency does not pay.

    It follows from the number of batches and of torch's threads alone, and so do the bits of what is computed.
    """
    threads = torch.get_num_threads()
    concurrency = threads // -(-threads // most)
    return concurrency if concurrency > 1 and batches >= _BATCHES_PER_THREAD * concurrency else 1


def may_share(model: nn.Module) -> bool:
    """Whether several threads may run a model at once: no module of it keeps a table of one batch, or compiles.

    ESM-2's rotary positions do on older transformers (4.57, 5.0), where one batch would be rotated by another's angles.
    """
    return not any(
        hasattr(module, "_cos_cached") or getattr(module, "graph", None) is not None for module in model.modules()
    )


def in_order(work: Callable[[Item], Result], items: Iterable[Item], concurrency: int) -> Generator[tuple[Item, Result]]:
    """Yield each item with what ``work`` makes of it, in the order given, up to ``concurrency`` of them worked at once.

    At most twice as many are started and not yet yielded, so that memory does not grow with their number. Whoever
    stops early must close this iterator: it waits for what is started, and gives torch its threads back. What
    ``work`` raises is raised when its item's turn comes.
    """
    if concurrency < 2:
        for item in items:
            yield item, work(item)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(concurrency, "rd_hf-batch", torch.set_num_threads, (max(1, threads // concurrency),))
    started: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            started.append((item, pool.submit(work, item)))
            if len(started) == 2 * concurrency:
                first, result = started.popleft()
                yield first, result.result()
        while started:
            first, result = started.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The number is each thread's own for OpenMP, but all threads' for MKL and for threads to come.
        torch.set_num_threads(threads)


class Aside:
    """A thread that reads and one that writes while a device computes; none on a CPU, which is busy.

    At most one thing is written at a time, so that memory is bounded. Leaving its context waits until all is written,
    and raises what went wrong there unless something did inside.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._written: Future[None] | None = None

    def start(self) -> None:
        """Have threads from now on."""
        self._pool = self._pool or ThreadPoolExecutor(2, "rd_hf-aside")

    def soon(self, work: Callable[[], Result]) -> Callable[[], Result]:
        """Begin something whose result is wanted soon, and return what waits for it; without threads it does it."""
        return work if self._pool is None else self._pool.submit(work).result

    def write(self, work: Callable[[], None]) -> None:
        """Do something once the thing before it is done, whose error is raised here."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._written = self._pool.submit(work)

    def wait(self) -> None:
        """Wait until all is written; raises the error of what could not be."""
        written, self._written = self._written, None
        if written is not None:
            written.result()

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        try:
            if kind is None:
                self.wait()
            elif self._written is not None:
                # Of what was computed before.
                self._written.exception()
        finally:
            if self._pool is not None:
                # What reads may be waiting for who types.
                self._pool.shutdown(wait=False, cancel_futures=True)

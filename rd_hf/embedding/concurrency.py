"""Several batches at once on a CPU, each by threads of its own, in place of one batch by all threads after the other.

A batch that fits the caches is hundreds of products of a millisecond or less. Where all threads share each product,
each ends with all waiting for the slowest, and what comes between two products is done by one. Threads that each have
a batch wait for nobody; torch lets go of the interpreter within its operations. Weights are shared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

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
    pool = ThreadPoolExecutor(concurrency, "rd_hf-batch", torch.set_num_threads, (threads // concurrency,))
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

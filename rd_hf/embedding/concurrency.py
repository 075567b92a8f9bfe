"""Several batches at once on a CPU, each by threads of its own, in place of one batch by all threads after the other.

A batch that fits the caches is hundreds of products of a millisecond or less. Where all threads share each of them,
each ends with all waiting for the slowest (and for one that the machine gave to another program, for as long as that
has it), and what comes between two products is done by one. Threads that each have a batch wait for nobody; torch lets
go of the interpreter within its operations. Weights are shared, so that one thread costs the activations of one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import nn

# Bounds memory on a machine of many cores: there, several threads share one thread.
MAX_CONCURRENCY = 8
# Batches one thread, below which the wait for the last one costs more than concurrency save.
_BATCHES_PER_THREAD = 4

Item = TypeVar("Item")
Result = TypeVar("Result")


def concurrency_for(batches: int, most: int = MAX_CONCURRENCY) -> int:
    """How many of so many batches to compute at once, at most ``most``; 1 where concurrency do not pay.

    It follows from the number of batches and of torch's threads alone, and so do the bits of what is computed.
    """
    threads = torch.get_num_threads()
    concurrency = threads // -(-threads // most)
    return concurrency if concurrency > 1 and batches >= _BATCHES_PER_THREAD * concurrency else 1


def may_share(model: nn.Module) -> bool:
    """Whether several threads may run a model at once: no module of it keeps a table of the batch in hand.

    ESM-2's rotary positions do on older transformers (4.57, 5.0), where one batch would be turned by another's angles.
    """
    return not any(hasattr(module, "_cos_cached") for module in model.modules())


def in_order(work: Callable[[Item], Result], items: Iterable[Item], concurrency: int) -> Generator[tuple[Item, Result]]:
    """Each item with what ``work`` makes of it, in the order given, up to ``concurrency`` of them worked at once.

    At most twice as many are begun and not yet handed out, so that memory does not grow with their number. Whoever
    stops early must close this iterator: it waits for what is begun, and gives torch its threads back.

    Args:
        work: called with one item, in a thread that has its share of torch's threads. What it raises is raised when
            its item's turn comes.
        items: taken in this thread, as they are needed.
        concurrency: with 1, ``work`` is called in this thread, with all of torch's.
    """
    if concurrency < 2:
        for item in items:
            yield item, work(item)
        return
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(concurrency, "rd_hf-batch", torch.set_num_threads, (threads // concurrency,))
    begun: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            begun.append((item, pool.submit(work, item)))
            if len(begun) == 2 * concurrency:
                first, result = begun.popleft()
                yield first, result.result()
        while begun:
            first, result = begun.popleft()
            yield first, result.result()
    finally:
        pool.shutdown(cancel_futures=True)
        # The number is each thread's own for OpenMP, but all threads' for MKL and for threads to come.
        torch.set_num_threads(threads)

"""How much of the time a device waits for the host: told to users, and decides nothing."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class DeviceClock:
    """Adds up the time between the first batch's start and the last one's end, and how much of it no batch computed.

    On CUDA by events, which the device stamps as it comes to them: what lies between the end of one batch and the start
    of the next is waiting. Elsewhere by the host's clock, and several batches may compute at once.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._running = 0
        self._since: float | None = None  # when the last batch ended, or the first of those that run began
        self._events: deque[tuple[Any, Any]] = deque()  # of batches that the device may not have come to yet
        self._last: Any = None  # the event at the end of the last batch that is counted
        self.computing_seconds = self.waiting_seconds = 0.0

    @property
    def share(self) -> float | None:
        """Share of the time that was spent waiting, 0 to 1; None before a batch has ended."""
        self._count(wait=True)
        total = self.computing_seconds + self.waiting_seconds
        return self.waiting_seconds / total if total else None

    def __str__(self) -> str:
        total, share = self.computing_seconds + self.waiting_seconds, self.share
        return "no batch was computed" if share is None else f"{100 * share:.1f} % of {total:.1f} s between batches"

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Note that a batch is computed, or on CUDA ordered, within."""
        if self._device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            start.record(stream)
            try:
                yield
            finally:
                end.record(stream)
                self._events.append((start, end))
                self._count()
            return
        with self._lock:
            if not self._running:
                self.waiting_seconds += self._passed()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self.computing_seconds += self._passed()

    def _passed(self) -> float:
        now = time.perf_counter()
        passed, self._since = 0.0 if self._since is None else now - self._since, now
        return passed

    def _count(self, wait: bool = False) -> None:
        """Add what lies between events that the device has come to, or all of them, and let these go."""
        while self._events and (wait or self._events[0][1].query()):
            start, end = self._events.popleft()
            end.synchronize()
            self.computing_seconds += start.elapsed_time(end) / 1e3
            if self._last is not None:
                self.waiting_seconds += max(0.0, self._last.elapsed_time(start)) / 1e3
            self._last = end

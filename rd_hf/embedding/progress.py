"""What a user sees of a long job: a bar with residues/s and time left."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar over the bytes of the input, the one total that is known before the end (None where it is not).

    The bytes read for a part are counted as its residues are embedded, so that the bar moves with the work and
    not with the reading (those read ahead with the part before). The rate is that of ``unit``.
    """

    def __init__(self, total: int | None, shown: bool = True, unit: str = "residues") -> None:
        layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining}, {postfix}" if total else "{elapsed}, {postfix}"
        self._bar = tqdm(
            total=total, disable=None if shown else True, bar_format=layout, mininterval=0.5, maxinterval=5, leave=False
        )
        self._bar.set_postfix_str("reading", refresh=False)
        self._unit = unit
        self._waiting = 0
        self._residues = 0
        self._started = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def read(self, count: int) -> None:
        """Note bytes that were read."""
        self._waiting += count

    def embedded(self, residues: int, of: int) -> None:
        """Note that a batch is done: ``residues`` of the part's ``of``."""
        self._residues += residues
        rate = self._residues / max(1e-9, time.perf_counter() - self._started)
        self._bar.set_postfix_str(f"{self._residues:,} {self._unit}, {rate:,.0f} {self._unit}/s", refresh=False)
        self._bar.update(self._waiting * residues / max(1, of))

    def part_done(self) -> None:
        """Note that the part is finished."""
        self._waiting = 0

    def skipped(self) -> None:
        """Note that the part was finished earlier, or is another process's."""
        self._bar.update(self._waiting)
        self._waiting = 0

    def say(self, text: str) -> None:
        """Print a line without breaking the bar."""
        self._bar.write(text, file=sys.stderr)

"""How long a job takes on many workers that fail now and then, from what one of them takes: a simulation.

What is assumed, all of it:

- a worker is ready ``start`` seconds after it is asked for, and does parts one after the other, each in
  ``tokens x token + part`` seconds; lengths are drawn from the sample given, and a part has as many records as the job
  would give it;
- the driver gives parts out in order to whoever is free first, and adopts them one at a time, ``adopt`` seconds each;
- a worker is lost after an exponentially distributed time of mean ``between_losses`` seconds, with the part it had in
  hand; another is there ``start`` seconds later; nothing else fails, and no worker is slower than another;
- before all that, the inputs are staged: ``stage`` seconds per record, shared by all workers while there are files.

What is left out: a file system that many workers fill up, machines of several kinds, a cluster that must be waited for.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from rd_hf.data.batching import SPECIAL_TOKENS
from rd_hf.embedding.parts import part_limit


@dataclass(frozen=True)
class Costs:
    """Seconds: until a worker is ready, for a token, a part, its adoption by the driver, a record's staging."""

    start: float
    token: float
    part: float = 0.0
    adopt: float = 0.0
    stage: float = 0.0


@dataclass(frozen=True)
class Simulated:
    """What a simulated job took.

    Attributes:
        seconds: from its start to its end.
        lost: parts that were begun and lost.
        busy: share of the workers' time that went into parts which were kept.
    """

    seconds: float
    lost: int
    busy: float


def parts_of(records: int, lengths: Sequence[int], padding: float, largest: int, seed: int = 0) -> list[float]:
    """Tokens of each part of a job over so many records.

    Args:
        records: how many.
        lengths: residues of the sample that their lengths are drawn from.
        padding: share of the tokens.
        largest: records that a part has at most.
        seed: of the draw.
    """
    generator = random.Random(seed)
    sums = [0, *accumulate(generator.choices(lengths, k=100_000))]
    parts, before = [], 0
    while before < records:
        count = min(part_limit(before, largest), records - before)
        begin = generator.randrange(len(sums) - count)
        parts.append((sums[begin + count] - sums[begin] + SPECIAL_TOKENS * count) / (1 - padding))
        before += count
    return parts


def simulate(
    parts: Sequence[float],
    workers: int,
    costs: Costs,
    records: int,
    files: int,
    between_losses: float | None = None,
    seed: int = 0,
) -> Simulated:
    """Run a job in thought; see the module for what is assumed.

    Args:
        parts: tokens of each.
        workers: how many.
        costs: of a worker and the driver.
        records, files: of the input, for its staging.
        between_losses: mean seconds until a worker is lost, None for never.
        seed: of the losses.
    """
    generator = random.Random(seed)
    begin = costs.stage * records / min(workers, files)

    def dies_after(ready: float) -> float:
        return ready + generator.expovariate(1 / between_losses) if between_losses else float("inf")

    free = [(ready := begin + costs.start, dies_after(ready)) for _ in range(min(workers, len(parts)))]
    heapq.heapify(free)
    waiting = list(enumerate(parts))[::-1]
    lost, kept, done = 0, 0.0, 0.0
    ends = []
    while waiting:
        at, dies = heapq.heappop(free)
        index, tokens = waiting.pop()
        takes = tokens * costs.token + costs.part
        if at + takes > dies:
            lost += 1
            waiting.append((index, tokens))
            heapq.heappush(free, (ready := max(at, dies) + costs.start, dies_after(ready)))
            continue
        kept += takes
        ends.append(at + takes)
        heapq.heappush(free, (at + takes, dies))
    # The driver is one: what is handed over waits for its turn.
    for end in sorted(ends):
        done = max(done, end) + costs.adopt
    return Simulated(done, lost, kept / (done * workers))

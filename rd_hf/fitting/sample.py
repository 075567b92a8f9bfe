"""The sequences that are drawn for a fit, and the batches that they are run in."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from rd_hf.data.batching import token_budget_batches
from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import read_records
from rd_hf.fitting.settings import FitOptions

# Of the sequences to fit on, those by which the ridge is chosen before all are fitted together.
_TUNING_SHARE = 0.1
# Fitted on; chooses the ridge of a readout; kept out to judge by. And of all that is fitted on, means of sequences.
Split = Literal["training", "tuning", "heldout", "means"]


@dataclass(frozen=True)
class Sample:
    """Sequences to fit on and sequences to judge by, cleaned and cut, in input order.

    Attributes:
        heldout: positions of those kept out of the fit.
        records, rejected, duplicates: how many the sources held.
    """

    ids: list[str]
    sequences: list[str]
    heldout: frozenset[int]
    records: int
    rejected: int
    duplicates: int

    @property
    def distinct(self) -> int:
        """How many usable sequences the sources held, each counted once."""
        return self.records - self.rejected - self.duplicates

    def residues(self, *, heldout: bool) -> int:
        """Residues of one side of the split."""
        return sum(len(s) for position, s in enumerate(self.sequences) if (position in self.heldout) == heldout)

    def __str__(self) -> str:
        return (
            f"{self.records:,} records: {len(self.sequences):,} distinct sequences drawn "
            f"({len(self.heldout):,} held out), {self.duplicates:,} duplicates, {self.rejected:,} unusable"
        )


def draw_sample(
    sources: Sequence[str],
    options: FitOptions,
    sequence_column: str | None = None,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> Sample:
    """Read every source once and draw distinct sequences from them, uniformly and by seed.

    Memory holds the sample and 16 bytes for each distinct sequence read. ``say`` is called with what a user should
    know of a source, such as that it looks like nucleotides. What cannot be used raises an InputError.
    """
    draw = random.Random(options.seed)
    seen: set[bytes] = set()
    # The n sequences of smallest random priority are a uniform sample without replacement; a heap of their
    # negated priorities drops the largest as others come in.
    drawn: list[tuple[float, int, str, str]] = []
    records = rejected = duplicates = 0
    for source in sources:
        found = read_records(source, sequence_column, say=say)
        for record in tqdm(found, desc=f"reading {Path(source).name}", unit=" records", disable=not progress):
            records += 1
            try:
                sequence = clean_sequence(record.letters())[: options.max_length]
            except RejectedSequenceError:
                rejected += 1
                continue
            digest = hashlib.blake2b(sequence.encode(), digest_size=16).digest()
            if digest in seen:
                duplicates += 1
                continue
            seen.add(digest)
            room = options.num_sequences is None or len(drawn) < options.num_sequences
            add = heapq.heappush if room else heapq.heappushpop
            add(drawn, (-draw.random(), records, record.id, sequence))
    if not drawn:
        raise InputError(f"{', '.join(map(str, sources))}: none of {records} records holds a usable protein sequence")
    drawn.sort(key=lambda item: item[1])
    heldout_count = round(options.heldout_fraction * len(drawn))
    heldout = frozenset(random.Random(options.seed + 1).sample(range(len(drawn)), heldout_count))
    _, _, ids, sequences = map(list, zip(*drawn, strict=True))
    return Sample(ids, sequences, heldout, records, rejected, duplicates)


def tuning_positions(sample: Sample, seed: int) -> frozenset[int]:
    """Positions of the sequences, none of them held out, by which the ridge is chosen."""
    positions = [position for position in range(len(sample.sequences)) if position not in sample.heldout]
    if len(positions) < 2:
        raise ValueError("--one-pass needs two sequences or more to fit on, since it chooses its ridge by some of them")
    count = max(1, round(_TUNING_SHARE * len(positions)))
    return frozenset(random.Random(seed + 2).sample(positions, count))


def plan_batches(
    sample: Sample,
    budget: int,
    tuning: frozenset[int] = frozenset(),
    plan: Callable[[Sequence[int], int], list[list[int]]] = token_budget_batches,
) -> list[tuple[Split, list[int]]]:
    """Split and positions of every batch of at most ``budget`` tokens, the same in every process.

    ``plan`` says which sequences of these lengths share a batch: a layout's.
    """
    splits: dict[Split, list[int]] = {"training": [], "tuning": [], "heldout": []}
    for position in range(len(sample.sequences)):
        own: Split = "heldout" if position in sample.heldout else "tuning" if position in tuning else "training"
        splits[own].append(position)
    batches: list[tuple[Split, list[int]]] = []
    for split, positions in splits.items():
        lengths = [len(sample.sequences[position]) for position in positions]
        batches += [(split, [positions[i] for i in batch]) for batch in plan(lengths, budget)]
    return batches

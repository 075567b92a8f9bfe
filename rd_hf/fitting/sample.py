"""What a fit is asked to do, and the sequences that are drawn for it."""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from rd_hf.bases.regression import RegressionKind
from rd_hf.data.batching import token_budget_batches
from rd_hf.data.fasta import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.data.sources import read_records

# Fitted on, used to choose the ridge of a one-pass readout, kept out to judge by.
SamplePart = Literal["training", "tuning", "heldout"]


@dataclass(frozen=True)
class FitOptions:
    """What a fit is asked to do.

    Attributes:
        num_sequences: distinct sequences to sample; None takes all.
        seed: of the sample and of the held-out split.
        heldout_fraction: share of the sampled sequences kept out of the fit, to judge it.
        regression: "pcr" (the paper's), "ols" or "ridge".
        ridge_alpha: penalty of "ridge".
        residual_directions: how many each level after the first keeps; None is what the family's config says, by
            default the paper's k_i - k_(i-1).
        max_length: residues of a sequence that are used, from its start (ESM-2 was trained on 1,022).
        batch_tokens: tokens a batch, padding included.
        one_pass: layers of the largest backbone that the nested embedding is read out of too; None for no readout.
        block_weights: what each level's whitened block is multiplied by; None chooses them without labels, see
            :func:`rd_hf.bases.whitening.chain_whitening`.
    """

    num_sequences: int | None = None
    seed: int = 0
    heldout_fraction: float = 0.1
    regression: RegressionKind = "pcr"
    ridge_alpha: float = 1.0
    residual_directions: tuple[int, ...] | None = None
    max_length: int = 1022
    batch_tokens: int = 4096
    one_pass: tuple[int, ...] | None = None
    block_weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.num_sequences is not None and self.num_sequences < 1:
            raise ValueError(f"the number of sequences must be positive, got {self.num_sequences}")
        if not 0 <= self.heldout_fraction < 1:
            raise ValueError(f"the held-out fraction must lie in [0, 1), got {self.heldout_fraction}")
        if self.max_length < 1 or self.batch_tokens < 1:
            raise ValueError("the maximal length and the token budget must be positive")
        if not 0 < self.ridge_alpha < float("inf"):
            raise ValueError(f"the penalty of ridge must be positive and finite, got {self.ridge_alpha}")
        for weight in self.block_weights or ():
            if not 0 <= weight < float("inf"):
                raise ValueError(f"weights of blocks must be finite and not below 0, got {weight}")


@dataclass(frozen=True)
class Sample:
    """Sequences to fit on and sequences to judge by, cleaned and cut.

    Attributes:
        ids, sequences: of the whole sample, in input order.
        heldout: positions of those kept out of the fit.
        records, rejected, duplicates: what the sources held.
    """

    ids: list[str]
    sequences: list[str]
    heldout: frozenset[int]
    records: int
    rejected: int
    duplicates: int

    def residues(self, *, heldout: bool) -> int:
        """Residues of one side of the split."""
        return sum(len(s) for position, s in enumerate(self.sequences) if (position in self.heldout) == heldout)


def draw_sample(
    sources: Sequence[str],
    options: FitOptions,
    sequence_column: str | None = None,
    progress: bool = False,
    say: Callable[[str], None] | None = None,
) -> Sample:
    """Read every source once and draw distinct sequences from them, uniformly and by seed.

    Memory holds the sample and 16 bytes for each distinct sequence read. ``say`` is told in a sentence what a user
    should know of a source, such as that it looks like nucleotides.

    Raises:
        InputError: a source cannot be read, or nothing usable is in them.
    """
    draw = random.Random(options.seed)
    seen: set[bytes] = set()
    # The n sequences of smallest random priority are a uniform sample without replacement; a heap of their
    # negated priorities drops the largest as others come in.
    kept: list[tuple[float, int, str, str]] = []
    records = rejected = duplicates = 0
    for source in sources:
        for record in tqdm(
            read_records(source, sequence_column, say=say),
            desc=f"reading {Path(source).name}",
            unit=" records",
            disable=not progress,
        ):
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
            item = (-draw.random(), records, record.id, sequence)
            if options.num_sequences is None or len(kept) < options.num_sequences:
                heapq.heappush(kept, item)
            else:
                heapq.heappushpop(kept, item)
    if not kept:
        raise InputError(f"{', '.join(map(str, sources))}: none of {records} records holds a usable protein sequence")
    kept.sort(key=lambda item: item[1])
    heldout_count = round(options.heldout_fraction * len(kept))
    heldout = frozenset(random.Random(options.seed + 1).sample(range(len(kept)), heldout_count))
    return Sample([k[2] for k in kept], [k[3] for k in kept], heldout, records, rejected, duplicates)


def plan_batches(
    sample: Sample, budget: int, tuning: frozenset[int] = frozenset()
) -> list[tuple[SamplePart, list[int]]]:
    """(part of the sample, positions in it) of every batch of the pass, the same in every process.

    Args:
        sample, budget: what is batched, and tokens a batch.
        tuning: positions that are batched by themselves.
    """
    parts: dict[SamplePart, list[int]] = {"training": [], "tuning": [], "heldout": []}
    for position in range(len(sample.sequences)):
        part: SamplePart = "tuning" if position in tuning else "training"
        parts["heldout" if position in sample.heldout else part].append(position)
    batches: list[tuple[SamplePart, list[int]]] = []
    for part, positions in parts.items():
        lengths = [len(sample.sequences[p]) for p in positions]
        batches += [(part, [positions[i] for i in batch]) for batch in token_budget_batches(lengths, budget)]
    return batches

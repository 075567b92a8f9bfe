"""Batches under a token budget: sequences of like length together, hardly any padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rd_hf.data.residues import PAD_ID, encode

SPECIAL_TOKENS = 2  # cls before, eos after


def token_budget_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group sequences so that rows x longest row stays within ``budget`` tokens.

    Args:
        lengths: residues of each sequence.
        budget: tokens a batch, padding, cls and eos included. A sequence that exceeds it alone gets a batch
            of its own.

    Returns:
        Positions in ``lengths``, longest sequences first (what does not fit in memory fails at once, not after
        hours); ties keep their order, so that the same input gives the same batches everywhere.

    Raises:
        ValueError: the budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"a token budget must be positive, got {budget}")
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    widest = 0
    for position in order:
        if not batches or (len(batches[-1]) + 1) * widest > budget:
            batches.append([])
            widest = lengths[position] + SPECIAL_TOKENS
        batches[-1].append(position)
    return batches


def collate(sequences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of cleaned sequences: (batch, longest + 2) int64 each."""
    rows = [encode(sequence) for sequence in sequences]
    ids = np.full((len(rows), max(len(row) for row in rows)), PAD_ID, dtype=np.int64)
    for target, row in zip(ids, rows, strict=True):
        target[: len(row)] = row
    input_ids = torch.from_numpy(ids)
    return input_ids, input_ids.ne(PAD_ID).long()


def residue_mask(lengths: Sequence[int], padded_length: int) -> torch.Tensor:
    """True at residues, False at cls, eos and padding: (batch, padded_length) bool."""
    position = torch.arange(padded_length)
    limits = torch.tensor(lengths)[:, None]
    return (position >= 1) & (position <= limits)

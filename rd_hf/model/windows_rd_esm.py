"""Sequences longer than a model should see at once: cut into overlapping windows.

A sequence of L residues and windows of W that share at least O: there are n = ceil((L - O) / (W - O)) windows, all
W long (no padding among them), their starts spread evenly from 0 to L - W. How they become one sequence again is said
in ``merging_rd_esm.py``.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports nothing, so that who asks for the defaults alone
waits for nothing.
"""

from dataclasses import dataclass

# ESM-2 was trained on crops of 1,022 residues and cls and eos (Lin et al. 2023), ESM-C on up to twice that.
MAX_RESIDUES = 1022
# Least number of residues that neighbouring windows share.
OVERLAP = 256
# Cls and eos.
SPECIAL_TOKENS = 2
# What becomes of a longer sequence that a model is called with.
LONG_INPUTS = ("error", "window", "whole")


@dataclass(frozen=True)
class Piece:
    """Residues `start` to `stop` (exclusive) of sequence number `owner`; `whole` if that is all of it."""

    owner: int
    start: int
    stop: int
    whole: bool

    @property
    def length(self) -> int:
        """Residues in the piece."""
        return self.stop - self.start


def cut(owner: int, length: int, size: int, overlap: int) -> list[Piece]:
    """Pieces of at most `size` residues that cover a sequence and share at least `overlap`."""
    if length <= size:
        return [Piece(owner, 0, length, True)]
    count = -((overlap - length) // (size - overlap))  # ceil((length - overlap) / (size - overlap))
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    return [Piece(owner, start, start + size, False) for start in starts]

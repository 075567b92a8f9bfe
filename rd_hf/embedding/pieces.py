"""Sequences longer than the model should see at once: cut into overlapping pieces, merged with a taper.

A sequence of L residues and pieces of W that share at least O: there are n = ceil((L - O) / (W - O)) pieces, all
W long (no padding among them), their starts spread evenly from 0 to L - W. A residue's embedding is the weighted
mean over the pieces it lies in; its weight in a piece grows linearly from 1 / (O + 1) at the piece's ends to 1 at
O residues from them, so that a residue counts most where it has context on both sides and nothing jumps where one
piece ends. A residue in one piece only keeps its embedding as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Piece:
    """Residues ``start`` to ``stop`` (exclusive) of sequence number ``owner``; ``whole`` if that is all of it."""

    owner: int
    start: int
    stop: int
    whole: bool

    @property
    def length(self) -> int:
        """Residues in the piece."""
        return self.stop - self.start


def cut(owner: int, length: int, size: int, overlap: int) -> list[Piece]:
    """Pieces of at most ``size`` residues that cover a sequence and share at least ``overlap``."""
    if length <= size:
        return [Piece(owner, 0, length, True)]
    count = -((overlap - length) // (size - overlap))  # ceil((length - overlap) / (size - overlap))
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    return [Piece(owner, start, start + size, False) for start in starts]


def taper(length: int, overlap: int) -> np.ndarray:
    """Weight of each residue of a piece: (length,) float32 in (0, 1]."""
    from_end = np.minimum(np.arange(length), np.arange(length)[::-1])
    return np.minimum(1.0, (from_end + 1) / (overlap + 1)).astype(np.float32)


def merge_weights(pieces: list[Piece], overlap: int) -> list[np.ndarray]:
    """Share of each piece in each of its residues, the shares of a residue adding up to one: (length,) float32."""
    total = np.zeros(max(piece.stop for piece in pieces), dtype=np.float64)
    for piece in pieces:
        total[piece.start : piece.stop] += taper(piece.length, overlap)
    return [(taper(piece.length, overlap) / total[piece.start : piece.stop]).astype(np.float32) for piece in pieces]

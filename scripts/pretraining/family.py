"""Architectures of the mini family. Imports nothing heavy, so that ``--help`` can name them at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """Architecture of one family member."""

    width: int
    layers: int
    heads: int = 4


FAMILY = {"0.3M": Level(64, 6), "1.2M": Level(128, 6), "2.7M": Level(192, 6)}

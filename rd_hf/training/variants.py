"""Variants of one protein: from names of substitutions to sequences, positions, and folds by position."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from rd_hf.data.fasta import read_fasta
from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError, clean_sequence

_SUBSTITUTION = re.compile(r"([A-Za-z])(\d+)([A-Za-z])")
# How a table names the wild type itself.
_WILD_TYPE = frozenset({"wt", "_wt", "wild-type", "wildtype"})


class MisfitError(ValueError):
    """A substitution that the wild type cannot have; the message names it."""


def read_wild_type(path: str) -> str:
    """The one sequence of a FASTA file, cleaned; InputError where there are several, or it is no protein."""
    records = list(read_fasta(path))
    if len(records) != 1:
        raise InputError(f"{path} holds {len(records)} sequences: give --wild-type a file with one")
    try:
        return clean_sequence(records[0].letters())
    except RejectedSequenceError as error:
        raise InputError(f"{path}: {error}; mend the sequence") from error


def variant(wild_type: str, mutant: str) -> str:
    """The wild type with substitutions such as ``A42G:K50R``.

    Raises:
        RejectedSequenceError: it names no substitutions.
        MisfitError: the wild type has another residue there, or no such position; or one position twice.
    """
    if mutant.lower() in _WILD_TYPE:
        return wild_type
    letters = list(wild_type)
    substituted: set[int] = set()
    for name in mutant.split(":"):
        match = _SUBSTITUTION.fullmatch(name)
        if match is None:
            raise RejectedSequenceError(f"{mutant!r} is no substitution such as A42G or A42G:K50R")
        old, position, new = match[1].upper(), int(match[2]) - 1, match[3].upper()
        if not 0 <= position < len(wild_type):
            raise MisfitError(f"{name} names position {position + 1} of a wild type of {len(wild_type)} residues")
        if wild_type[position] != old:
            raise MisfitError(f"{name} does not fit the wild type, which has {wild_type[position]} there")
        if position in substituted:
            raise MisfitError(f"{mutant} substitutes one position twice")
        substituted.add(position)
        letters[position] = new
    return clean_sequence("".join(letters))


def positions_of(wild_type: str, sequences: Sequence[str]) -> list[tuple[int, ...]]:
    """Where each sequence, as long as the wild type, differs from it; from 0."""
    own = np.frombuffer(wild_type.encode(), dtype=np.uint8)
    return [tuple(np.flatnonzero(np.frombuffer(one.encode(), dtype=np.uint8) != own).tolist()) for one in sequences]


def position_folds(
    positions: Sequence[tuple[int, ...]], chosen: np.ndarray, count: int, scheme: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Folds of positions, by ProteinGym's schemes: what is tested is substituted nowhere in what is fitted on.

    Variants with substitutions in several folds take no part in either of them. The wild type is always fitted on.

    Args:
        positions: of each variant.
        chosen: numbers of the variants that are split.
        count: of folds; those without a variant to test, or to fit on, are left out.
        scheme: "modulo", the position modulo the folds, or "contiguous", stretches of as many substituted positions.
    """
    every = sorted({position for row in chosen.tolist() for position in positions[row]})
    if scheme == "modulo":
        part = {position: position % count for position in every}
    else:
        stretches = np.array_split(np.array(every), count)
        part = {position: number for number, stretch in enumerate(stretches) for position in stretch.tolist()}
    parts = [{part[position] for position in positions[row]} for row in chosen.tolist()]
    folds = []
    for number in range(count):
        test = chosen[[own == {number} for own in parts]]
        train = chosen[[number not in own for own in parts]]
        if len(test) and len(train):
            folds.append((train, test))
    return folds

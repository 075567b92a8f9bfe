"""Whitening of what is searched: by the database's own proteins, or by the statistics that came with the model.

Each level's block is centred, scaled and weighed by itself (:mod:`rd_hf.bases.whitening`), so that a shortlist at a
small level is still the first dimensions of what scores. Statistics of the very proteins that are searched fit best
where there are enough of them; those of the fit's residues are there for any number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.bases.whitening import Whitening, block_moments, fit_whitening
from rd_hf.data.records import InputError, Say
from rd_hf.embedding.checkpoint import Checkpoint
from rd_hf.files import FolderError
from rd_hf.search.database import Database, OnRows, every_nth
from rd_hf.search.settings import SearchSettings

# Different proteins per dimension of the widest block, from which on a database's own statistics are used: below three
# or four, those of the model found more (SCOPe, chain to a real ESM-2 8M).
ENOUGH = 4
_DISTINCT = "distinct"
# Rows that statistics are taken from at most, evenly spread: hundreds per dimension of the widest level there is.
ROWS = 65536


@dataclass(frozen=True, slots=True)
class RowWhitening:
    """Whitens rows of a database or of queries, by a whitening whose statistics come from ``source``."""

    whitening: Whitening
    source: str

    def __str__(self) -> str:
        weights = self.whitening.weights
        same = len(set(weights)) == 1
        weighed = "of one weight" if same else f"weighed {', '.join(f'{weight:.3g}' for weight in weights)}"
        return f"by {self.source}, blocks {weighed}"

    @property
    def digest(self) -> str:
        """Changes whenever a number does."""
        parts = (*self.whitening.means, *self.whitening.maps)
        return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Whiten (rows, width) float32 of any level, in float64: a row's result does not depend on those beside it."""
        # A copy: what is memory-mapped cannot be written to, which torch would warn of.
        rows = torch.from_numpy(vectors if vectors.flags.writeable else vectors.copy())
        return self.whitening(rows, torch.float64).float().numpy()


def find_whitening(
    settings: SearchSettings,
    database: Database,
    level: str,
    find_model: Callable[[], Checkpoint],
    cache: Path,
    report: Say,
    on_rows: OnRows,
) -> RowWhitening | None:
    """Find what both sides of a search that scores at ``level`` are whitened by; None for nothing.

    The model is resolved by ``find_model`` where its statistics are to be read; those of the database are kept in the
    folder ``cache``; ``report`` is told what a user should know of the choice. An InputError where it was asked for by
    name, and cannot be.
    """
    if not _is_whitened(settings, database):
        return None
    model, widths = database.model, _widths(database, level)
    # What came with the model is of exact embeddings, and does not commute with a maximum.
    model_can = model.block_weights is not None and not model.one_pass and database.options.commutes
    model_can = model_can and sum(widths) in model.nested_dims.values()
    by, statistics, lacks = settings.whiten, None, f"lacks level {level}"
    if level in database.levels and by != "model":
        if by == "database" or database.rows >= ENOUGH * max(widths):
            statistics = _statistics(database, level, widths, cache, report, on_rows)
            lacks = statistics.lacks(max(widths))
        else:
            lacks = f"has {database.rows:,} proteins, fewer than {ENOUGH} a dimension of its widest block"
    if by == "auto" and lacks and not model_can:
        why = f"{database.path} {lacks}, and {model.name} holds nothing to whiten by"
        report(f"vectors are compared as they are: {why}")
        return None
    if by == "database" or (by == "auto" and not lacks):
        if statistics is None:
            unknown = f"{database.path} does not hold level {level}, and so knows nothing to whiten it by"
            raise InputError(f"{unknown}: give --whiten model or none")
        if statistics.constant:
            raise InputError(f"{database.path} {lacks}, and so nothing to whiten by: give --whiten model or none")
        if lacks:
            report(f"{database.path} {lacks}: --whiten model or none may find more")
        weights = list(settings.block_weights) or model.block_weights or [1.0] * len(widths)
        fitted = statistics.fit(weights[: len(widths)])
        return RowWhitening(fitted, f"{statistics.moments[0].count:,} proteins of the database")
    if not model_can:
        nothing = f"{model.name} holds nothing to whiten level {level} of {database.path} by"
        raise InputError(f"{nothing}: --whiten database takes the statistics of its proteins")
    whitening = _of_model(find_model(), level, settings.block_weights)
    return RowWhitening(whitening, "the residues of the model's fit")


def _is_whitened(settings: SearchSettings, database: Database) -> bool:
    """Whether vectors are to be whitened, where statistics can be had; InputError for choices that do not fit."""
    given, levels = settings.block_weights, database.model.nested_dims
    if given and len(given) != len(levels):
        raise InputError(
            f"--block-weights gives {len(given)} numbers for the {len(levels)} levels of {database.model.name} "
            f"({', '.join(levels)}): give one a level"
        )
    why_not = None
    if database.options.whiten:
        why_not = f"{database.path} holds whitened vectors"
    elif database.options.normalize:
        why_not = f"{database.path} holds normalised vectors, each level scaled by itself"
    if settings.whiten == "none" or (settings.whiten == "auto" and (why_not or settings.metric == "euclidean")):
        if given:
            reason = why_not or "--whiten none or a Euclidean search leaves vectors as they are"
            raise InputError(f"--block-weights weighs whitened blocks, and {reason}: leave it away, or whiten")
        return False
    if why_not is not None:
        raise InputError(f"{why_not}: search them as they are with --whiten none, or embed without that choice")
    return True


def _widths(database: Database, level: str) -> list[int]:
    """Widths of the blocks up to a level, the last as the database holds it."""
    known = database.model.nested_dims
    ends = [database.levels.get(name, width) for name, width in known.items()][: list(known).index(level) + 1]
    return [wide - narrow for narrow, wide in pairwise([0, *ends])]


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Moments of each block of a database's rows, and how many rows differ: copies say nothing of how proteins vary."""

    moments: list[JointMoments]
    distinct: int

    def fit(self, weights: Sequence[float] | None = None) -> Whitening:
        """The whitening, with these weights of the blocks."""
        return fit_whitening([block for one in self.moments for block in block_moments(one)], weights)

    def _ranks(self) -> list[int]:
        """Dimensions of each block along which the rows vary by more than rounding."""
        return [int(matrix.any(dim=0).sum()) for matrix in self.fit().maps]

    @property
    def constant(self) -> bool:
        """Whether there is a block that is the same in all rows."""
        return min(self._ranks()) == 0

    def lacks(self, widest: int) -> str:
        """What there is too little of to whiten by, in words; empty where there is enough."""
        count = self.moments[0].count
        if self.distinct < ENOUGH * widest:
            few = f"fewer than {ENOUGH} a dimension of its widest block"
            return f"has {self.distinct:,} different proteins among {count:,}, {few}"
        for rank, one in zip(self._ranks(), self.moments, strict=True):
            # A model's own layer norm takes a direction from every protein, queries too. Where most are missing, these
            # are few proteins, whose copies differ in last digits.
            varying = int((one.scatter_diagonal() > 0).sum())
            if 2 * rank < varying:
                return f"has {count:,} proteins that vary in {rank:,} of {varying:,} dimensions of a block alone"
        return ""


def _statistics(
    database: Database, level: str, widths: list[int], cache: Path, report: Say, on_rows: OnRows
) -> _Statistics:
    """Statistics of evenly spread rows of a database, computed or found in the cache."""
    what = hashlib.sha256(repr([database.content, level, widths, ROWS, _DISTINCT]).encode()).hexdigest()[:32]
    path = cache / f"moments-{what}.safetensors"
    found = _cached(path, len(widths))
    if found is None:
        found = _moments(database, level, widths, on_rows)
        parts = [one.state() for one in found.moments]
        state = {f"{place}.{key}": value for place, part in enumerate(parts) for key, value in part.items()}
        state[_DISTINCT] = torch.tensor(found.distinct)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            save_tensors(path, state)
        except (OSError, FolderError) as error:
            report(f"statistics of the database cannot be kept in {cache} ({error}): the next search reads it again")
    return found


def _moments(database: Database, level: str, widths: list[int], on_rows: OnRows) -> _Statistics:
    """Read the rows; each block by itself, since what two have in common is not asked for, and would be large."""
    moments = [JointMoments([width]) for width in widths]
    every = max(1, -(-database.rows // ROWS))
    distinct: set[bytes] = set()
    for rows in every_nth(database.chunks(level, as_stored=True), every, on_rows):
        distinct.update(hashlib.blake2b(row, digest_size=16).digest() for row in rows)
        for one, part in zip(moments, torch.from_numpy(rows).split(widths, dim=1), strict=True):
            one.update([part])
    return _Statistics(moments, len(distinct))


def _cached(path: Path, blocks: int) -> _Statistics | None:
    """What an earlier search left; None where there is nothing, or nothing whole."""
    try:
        kept = load_tensors(path) if path.is_file() else {}
        parts = [
            {key.partition(".")[2]: value for key, value in kept.items() if key.startswith(f"{place}.")}
            for place in range(blocks)
        ]
        return _Statistics([JointMoments.from_state(part) for part in parts], int(kept[_DISTINCT]))
    except (ValueError, KeyError):
        return None


def _of_model(checkpoint: Checkpoint, level: str, given: Sequence[float]) -> Whitening:
    """The whitening that came with a model: its bases alone are read, no backbone is needed."""
    module = checkpoint.bases(level).whitening
    assert module is not None
    weights = tuple(given)[: len(module.widths)] or tuple(module.weights)
    maps = (block.get_buffer("map").double() * weight for block, weight in zip(module, weights, strict=True))
    return Whitening(tuple(block.get_buffer("mean").double() for block in module), tuple(maps), weights)

"""Whitening of what is searched: by the database's own proteins, or by what came with the model.

Each level's block is centred, scaled and weighed by itself (:mod:`rd_hf.bases.whitening`), so that a shortlist at a
small level is still the first dimensions of what scores. Statistics of the very proteins that are searched fit best
where there are enough of them; those of the fit's residues are at hand for any number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rd_hf.data.records import InputError
from rd_hf.embedding.checkpoint import Checkpoint, load_model
from rd_hf.files import FolderError
from rd_hf.search.database import Block, Database
from rd_hf.search.settings import SearchSettings

if TYPE_CHECKING:
    from rd_hf.bases.moments import JointMoments
    from rd_hf.bases.whitening import Whitening

# Different proteins a dimension of the widest block, from which on a database's own statistics are used: below three or
# four, those of the model found more (SCOPe, chain to a real ESM-2 8M).
ENOUGH = 4
_DISTINCT = "distinct"
# Rows that statistics are taken from at most, evenly spread: hundreds a dimension of the widest level there is.
ROWS = 65536


@dataclass(frozen=True, slots=True)
class BlockWhitening:
    """(b - mean) map of each block.

    Attributes:
        means, maps: float64, (d,) and (d, d) a block; weights are in the maps.
        words: what was done, for the summary.
    """

    means: tuple[np.ndarray, ...]
    maps: tuple[np.ndarray, ...]
    words: str

    @property
    def digest(self) -> str:
        """Changes whenever a number does."""
        return hashlib.sha256(b"".join(part.tobytes() for part in (*self.means, *self.maps))).hexdigest()

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Whiten rows of any level that ends at a block.

        In float64, so that a row's float32 result does not depend on the rows beside it.

        Args:
            vectors: (rows, width) float32.

        Returns:
            (rows, width) float32.
        """
        parts, start = [], 0
        for mean, turned in zip(self.means, self.maps, strict=True):
            if start == vectors.shape[1]:
                break
            block = vectors[:, start : start + len(mean)].astype(np.float64)
            parts.append(((block - mean) @ turned).astype(np.float32))
            start += len(mean)
        return np.concatenate(parts, axis=1)


def whitening(
    settings: SearchSettings,
    database: Database,
    level: str,
    find_model: Callable[[], Checkpoint],
    cache: Path,
    report: Callable[[str], None],
    on_rows: Callable[[int], object] = lambda rows: None,
) -> BlockWhitening | None:
    """What both sides of a search are whitened by; None for nothing.

    Args:
        settings: of the search; its ``whiten`` says by what.
        database: to search in.
        level: at which hits are scored.
        find_model: resolves the model, where its statistics are to be read.
        cache: folder that keeps the database's statistics.
        report: told in a sentence what a user should know of the choice.
        on_rows: told the rows of each block that was read.

    Raises:
        InputError: it was asked for in so many words, and cannot be.
    """
    by, options, held = settings.whiten, database.options, database.levels
    widths = _widths(database, level)
    weights = list(settings.block_weights) or database.model.block_weights
    if settings.block_weights and len(settings.block_weights) != len(database.model.nested_dims):
        raise InputError(
            f"--block-weights gives {len(settings.block_weights)} numbers for the {len(database.model.nested_dims)} "
            f"levels of {database.model.name} ({', '.join(database.model.nested_dims)}): give one a level"
        )
    why_not = None
    if options.whiten:
        why_not = f"{database.path} holds whitened vectors"
    elif options.normalize:
        why_not = f"{database.path} holds normalised vectors, each level scaled by itself"
    if by == "none" or (by == "auto" and (why_not or settings.metric == "euclidean")):
        if settings.block_weights:
            reason = why_not or "--whiten none or a Euclidean search leaves vectors as they are"
            raise InputError(f"--block-weights weighs whitened blocks, and {reason}: leave it away, or whiten")
        return None
    if why_not is not None:
        raise InputError(f"{why_not}: search them as they are with --whiten none, or embed without that choice")
    model_can = database.model.block_weights is not None and options.pooling != "max"
    # What came with the model is of exact embeddings.
    model_can &= not database.model.one_pass
    model_can &= sum(widths) in database.model.nested_dims.values()
    own, statistics, lacks = level in held, None, f"lacks level {level}"
    if own and (by == "database" or (by == "auto" and database.rows >= ENOUGH * max(widths))):
        statistics = _statistics(database, level, widths, cache, report, on_rows)
        lacks = statistics.lacks(max(widths))
    elif own:
        lacks = f"has {database.rows:,} proteins, fewer than {ENOUGH} a dimension of its widest block"
    if by == "auto":
        by = "database" if not lacks else "model" if model_can else "none"
        if by == "none":
            report(
                f"vectors are compared as they are: {database.path} {lacks}, and {database.model.name} holds nothing "
                "to whiten by"
            )
            return None
    if by == "database":
        if statistics is None:
            raise InputError(
                f"{database.path} does not hold level {level}, and so knows nothing to whiten it by: give --whiten "
                "model or none"
            )
        if statistics.constant:
            raise InputError(f"{database.path} {lacks}, and so nothing to whiten by: give --whiten model or none")
        if lacks:
            report(f"{database.path} {lacks}: --whiten model or none may find more")
        return statistics.blockwise([1.0] * len(widths) if weights is None else weights[: len(widths)])
    if not model_can:
        raise InputError(
            f"{database.model.name} holds nothing to whiten level {level} of {database.path} by: --whiten database "
            "takes the statistics of its proteins"
        )
    return _of_model(find_model(), level, settings.block_weights)


def _widths(database: Database, level: str) -> list[int]:
    """Widths of the blocks up to a level, the last as the database holds it."""
    known = database.model.nested_dims
    ends = [database.levels.get(name, width) for name, width in known.items()][: list(known).index(level) + 1]
    return [wide - narrow for narrow, wide in pairwise([0, *ends])]


@dataclass(frozen=True, slots=True)
class _Statistics:
    """Of the rows of a database.

    Attributes:
        moments: of each block.
        distinct: how many of the rows differ: copies of a protein say nothing more of how proteins vary.
    """

    moments: list[JointMoments]
    distinct: int

    def _fitted(self) -> Whitening:
        from rd_hf.bases.whitening import block_moments, fit_whitening

        return fit_whitening([block for one in self.moments for block in block_moments(one)])

    def _ranks(self) -> list[int]:
        """Dimensions of each block along which the rows vary by more than rounding."""
        return [int(turned.any(dim=0).sum()) for turned in self._fitted().maps]

    @property
    def constant(self) -> bool:
        """Whether there is a block that is the same in all rows."""
        return min(self._ranks()) == 0

    def lacks(self, widest: int) -> str:
        """What there is too little of to whiten by, in words; empty where there is enough."""
        count = self.moments[0].count
        if self.distinct < ENOUGH * widest:
            return (
                f"has {self.distinct:,} different proteins among {count:,}, fewer than {ENOUGH} a dimension of its "
                "widest block"
            )
        for rank, one in zip(self._ranks(), self.moments, strict=True):
            # A model's own layer norm takes a direction from every protein, queries too. Where most are missing, these
            # are few proteins, whose copies differ in last digits.
            varying = int((one.scatter_diagonal() > 0).sum())
            if 2 * rank < varying:
                return f"has {count:,} proteins that vary in {rank:,} of {varying:,} dimensions of a block alone"
        return ""

    def blockwise(self, weights: list[float]) -> BlockWhitening:
        """The whitening, with so much weight a block."""
        fitted = self._fitted()
        return BlockWhitening(
            tuple(mean.numpy() for mean in fitted.means),
            tuple((turned * weight).numpy() for turned, weight in zip(fitted.maps, weights, strict=True)),
            f"by {self.moments[0].count:,} proteins of the database, {_weighed(weights)}",
        )


def _statistics(
    database: Database,
    level: str,
    widths: list[int],
    cache: Path,
    report: Callable[[str], None],
    on_rows: Callable[[int], object],
) -> _Statistics:
    """Of evenly spread rows of a database, or what an earlier search kept of them."""
    import torch

    from rd_hf.bases.moments import save_tensors

    what = hashlib.sha256(repr([database.content, level, widths, ROWS, _DISTINCT]).encode()).hexdigest()[:32]
    path = cache / f"moments-{what}.safetensors"
    found = _kept(path, len(widths))
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


def _moments(database: Database, level: str, widths: list[int], on_rows: Callable[[int], object]) -> _Statistics:
    """A block's by itself: what two have in common is not asked for, and would be large."""
    import torch

    from rd_hf.bases.moments import JointMoments

    moments = [JointMoments([width]) for width in widths]
    every = max(1, -(-database.rows // ROWS))
    distinct: set[bytes] = set()
    seen = 0
    for block in database.blocks(level, plain=True):
        # A copy: what is memory-mapped cannot be written to, which torch would warn of.
        chosen = block.vectors[-seen % every :: every].copy()
        distinct.update(hashlib.blake2b(row, digest_size=16).digest() for row in chosen)
        for one, part in zip(moments, torch.from_numpy(chosen).split(widths, dim=1), strict=True):
            one.update([part])
        seen += len(block.records)
        on_rows(len(block.records))
    return _Statistics(moments, len(distinct))


def _kept(path: Path, blocks: int) -> _Statistics | None:
    """What an earlier search left; None where there is nothing, or nothing whole."""
    from rd_hf.bases.moments import JointMoments, load_tensors

    try:
        kept = load_tensors(path) if path.is_file() else {}
        parts = [
            {key.partition(".")[2]: value for key, value in kept.items() if key.startswith(f"{place}.")}
            for place in range(blocks)
        ]
        return _Statistics([JointMoments.from_state(part) for part in parts], int(kept[_DISTINCT]))
    except (ValueError, KeyError):
        return None


def _of_model(checkpoint: Checkpoint, level: str, given: tuple[float, ...]) -> BlockWhitening:
    # Its bases alone are read: no backbone is needed.
    model = load_model(
        checkpoint.name, checkpoint.revision, checkpoint.fingerprint, level, "float32", None, "cpu", above=level
    )
    module = model.whitening
    assert module is not None
    weights = list(given)[: len(module.widths)] or module.weights
    means, maps = [], []
    for block, weight in zip(module, weights, strict=True):
        means.append(block.get_buffer("mean").double().numpy())
        maps.append(block.get_buffer("map").double().numpy() * weight)
    return BlockWhitening(tuple(means), tuple(maps), f"by the residues of the model's fit, {_weighed(weights)}")


def _weighed(weights: list[float]) -> str:
    if len(set(weights)) == 1:
        return "blocks of one weight"
    return f"blocks weighed {', '.join(f'{weight:.3g}' for weight in weights)}"


def whitened(block: Block, by: BlockWhitening | None) -> Block:
    """A block of rows, whitened where there is something to do it by."""
    return block if by is None else replace(block, vectors=by(block.vectors))

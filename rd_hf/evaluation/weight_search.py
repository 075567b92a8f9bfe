"""The best weights of blocks, found WITH labels: how far a choice without them is from what could be had.

Every other choice of this package is made without a label. Here each superfamily's queries are judged with weights that
the queries of other superfamilies have chosen, so that even this bound has not seen what it is judged by.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from rd_hf.evaluation.homology import Relation
from rd_hf.evaluation.retrieval import query_blocks

# Only ratios of weights matter, so that the largest of each combination is the last step.
STEPS = (0.0, 0.25, 0.5, 1.0)
FOLDS = 5
# In place of the inner products of what is no negative: below all others, whatever the weights.
LEAST = -1e30
# Similarities of one block of queries are kept for each block of columns: 256 x 6,784 x 4 are 28 MB.
BLOCK = 256


def weight_grid(blocks: int, steps: Sequence[float] = STEPS) -> np.ndarray:
    """Every combination whose largest weight is the largest step: (g, blocks) float64."""
    combinations = np.array(list(itertools.product(steps, repeat=blocks)))
    return combinations[combinations.max(axis=1) == max(steps)]


def ranks_above(blocks: Sequence[torch.Tensor], wanted: Relation, grid: np.ndarray) -> np.ndarray:
    """Negatives more similar than the best positive, for every query and every weighting of blocks.

    The cosine of weighted concatenations is a sum over blocks, so that each block's inner products are formed once.

    Args:
        blocks: columns of each block, (n, d_i) of any float dtype.
        wanted: what is looked for.
        grid: (g, blocks) weights.

    Returns:
        (g, q) int32.
    """
    columns = [block.float() for block in blocks]
    squares = torch.stack([block.double().square().sum(dim=1) for block in blocks])
    factors = torch.from_numpy(grid**2)
    # A row's own length scales all of its similarities, which changes no ranking.
    lengths = (factors @ squares).clamp_min(1e-30).rsqrt().float()
    groups, masked = torch.from_numpy(wanted.groups), torch.from_numpy(wanted.masked)
    result = np.empty((len(grid), len(wanted.queries)), dtype=np.int32)
    for block, _ in query_blocks(wanted, BLOCK):
        rows = torch.from_numpy(wanted.queries[block])
        products = torch.stack([own[rows] @ own.T for own in columns])
        same = groups[rows][:, None] == groups
        query, positive = (same & (masked[rows][:, None] != masked)).nonzero(as_tuple=True)
        mine = products[:, query, positive]
        flat = products.masked_fill_(same, LEAST).flatten(1)
        for number, factor in enumerate(factors.float()):
            best = torch.full((len(rows),), -torch.inf)
            best.scatter_reduce_(0, query, (factor @ mine) * lengths[number, positive], "amax")
            cosines = (factor @ flat).view(len(rows), -1).mul_(lengths[number])
            result[number, block] = (cosines > best[:, None]).sum(dim=1).numpy()
    return result


@dataclass(frozen=True)
class WeightSearch:
    """What labels would choose.

    Attributes:
        hits: of weights chosen on other superfamilies, (q, 2) float64: hit@1 and hit@10 of every query.
        folds: fold of every query, (q,) int64.
        chosen: weights of each fold, (folds, blocks) float64.
        best: weights with the highest hit@10 over all queries, (blocks,) float64.
        best_hits: of those, judged by the queries that chose them, (q, 2) float64.
    """

    hits: np.ndarray = field(repr=False)
    folds: np.ndarray = field(repr=False)
    chosen: np.ndarray
    best: np.ndarray
    best_hits: np.ndarray = field(repr=False)


def _hits(above: np.ndarray) -> np.ndarray:
    return np.stack([above < k for k in (1, 10)], axis=-1).astype(np.float64)


def query_folds(wanted: Relation, folds: int = FOLDS) -> np.ndarray:
    """Fold of every query, whole groups together: (q,) int64.

    Raises:
        ValueError: fewer groups than folds.
    """
    groups = len(np.unique(wanted.clusters))
    if groups < folds:
        raise ValueError(f"{groups} groups of queries are too few for {folds} folds: weights cannot be searched")
    result = np.empty(len(wanted.queries), dtype=np.int64)
    for number, (_, test) in enumerate(GroupKFold(folds).split(wanted.queries, groups=wanted.clusters)):
        result[test] = number
    return result


def search_weights(
    blocks: Sequence[torch.Tensor],
    wanted: Relation,
    steps: Sequence[float] = STEPS,
    folds_of: np.ndarray | None = None,
) -> WeightSearch:
    """Choose weights by hit@10, each fold's on the groups of the others.

    Args:
        blocks, wanted: see :func:`ranks_above`.
        steps: weights to try.
        folds_of: fold of every query, (q,) int64; by default :func:`query_folds`.

    Raises:
        ValueError: see :func:`query_folds`.
    """
    folds = query_folds(wanted) if folds_of is None else folds_of
    grid = weight_grid(len(blocks), steps)
    above = ranks_above(blocks, wanted, grid)
    hits = np.empty((len(wanted.queries), 2))
    chosen = []
    for fold in range(folds.max() + 1):
        test = folds == fold
        pick = int((above[:, ~test] < 10).mean(axis=1).argmax())
        chosen.append(grid[pick])
        hits[test] = _hits(above[pick, test])
    best = int((above < 10).mean(axis=1).argmax())
    return WeightSearch(hits, folds, np.array(chosen), grid[best], _hits(above[best]))

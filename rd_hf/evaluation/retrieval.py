"""How well a query's own come out on top of a ranking by cosine, and the weights of blocks that labels would choose.

All against all, in chunks of queries, so that the whole matrix of similarities is never held. Figures of one query,
with P positives, N negatives and similarities s:

    hit@k     1 where one of the k most similar is positive
    AUROC     share of pairs of a positive and a negative that are in order, ties counting half
    AUPRC     average precision: mean over positives of the precision at their similarity

Ties are broken by no order that a file happens to have: hit@k is its expectation over all orders of what ties, and the
other two do not depend on it.

Every other choice of this package is made without a label. The search for weights is made WITH labels, to tell how far
a choice without them is from what could be had; each superfamily's queries are judged with weights that the queries of
other superfamilies have chosen, so that even this bound has not seen what it is judged by.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import GroupKFold

from rd_hf.evaluation.homology import Relation

# Of similarities rounded to float16 before ranking, as in the published protocol; "exact": of those as computed.
FIGURES = ("hit1", "hit10", "auroc", "auprc", "exact_hit1", "exact_hit10")
HITS = (1, 10)
# Queries whose similarities are held at once; in a search, of each block of columns: 256 x 6,784 x 4 are 28 MB.
CHUNK, SEARCH_CHUNK = 512, 256
# Weights that a search tries: only ratios matter, so that the largest of each combination is the last step.
STEPS = (0.0, 0.25, 0.5, 1.0)
FOLDS = 5
# In place of the inner products of what is no negative: below all others, whatever the weights.
LEAST = -1e30


def query_chunks(wanted: Relation, size: int) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Positions among the queries, (b,) int64, as many whole groups at once as fit ``size``; and again, by group."""
    order = np.argsort(wanted.clusters, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(wanted.clusters[order])) + 1)
    chunk: list[np.ndarray] = []
    for group in groups:
        if chunk and sum(map(len, chunk)) + len(group) > size:
            yield np.concatenate(chunk), chunk
            chunk = []
        chunk.append(group)
    yield np.concatenate(chunk), chunk


def hit_chance(above: np.ndarray, level: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of the first k is positive, over all orders of what ties with the best positive: (q,) float64.

    Of each query: ``above`` negatives are more similar than the best positive, and ``level`` negatives and
    ``positives`` are as similar as it, itself included. The chance is 1 - C(level, m) / C(level + positives, m), where
    m = k - above places are open to them.
    """
    missed = np.ones(len(above))
    for place in range(k):
        open_to_them = above + place < k
        left = np.maximum(level - place, 0)
        missed = np.where(open_to_them, missed * left / np.maximum(level + positives - place, 1), missed)
    return np.where(above < k, 1.0 - missed, 0.0)


def sortable(values: torch.Tensor) -> np.ndarray:
    """Float16 rounded from ``values`` as int16 of the same order, which sort in linear time; ties stay ties."""
    # Adding zero makes -0.0 the 0.0 that it equals.
    bits = (values.half() + 0.0).view(torch.int16).numpy()
    return np.where(bits < 0, bits ^ 0x7FFF, bits)


def _best_counts(positives: np.ndarray, negatives: np.ndarray) -> list[int]:
    """``above``, ``level`` and ``positives`` of :func:`hit_chance` for one query: similarities (P,) and (N,)."""
    best = positives.max()
    return [int((negatives > best).sum()), int((negatives == best).sum()), int((positives == best).sum())]


def _areas(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """AUROC and AUPRC of one query: similarities (P,), and (N,) sorted upwards."""
    ordered = np.sort(positives)
    below = np.searchsorted(negatives, ordered, side="left")
    up_to = np.searchsorted(negatives, ordered, side="right")
    # Positives and negatives at or above each one's similarity: what ties is met at once.
    found = len(ordered) - np.searchsorted(ordered, ordered, side="left")
    wrong = len(negatives) - below
    auroc = (below + up_to).sum() / (2 * len(negatives) * len(ordered))
    return float(auroc), float((found / (found + wrong)).mean())


def rank(rows: torch.Tensor, wanted: Relation) -> np.ndarray:
    """Figures of every query by cosine: (q, 6) float64 in the order of :data:`FIGURES`.

    Rows are embeddings, (n, d) of any float dtype, one per domain; NaN or infinity among them is a ValueError.
    """
    if not torch.isfinite(rows).all():
        raise ValueError("an embedding is NaN or infinite, which no ranking can place")
    # Inner products are then cosines; a row of zeros is like no other. In float32 similarities err by 1e-7 to 1e-6, far
    # below the gaps between neighbours in a ranking.
    units = torch.nn.functional.normalize(rows.double(), dim=1).float()
    counts = np.empty((2, len(wanted.queries), 3), dtype=np.int64)
    found = np.empty((len(wanted.queries), 2))
    for chunk, groups in query_chunks(wanted, CHUNK):
        cosines = units[wanted.queries[chunk]] @ units.T
        exact, rounded = cosines.numpy(), sortable(cosines)
        start = 0
        for group in groups:
            # One group's queries have the same negatives: all that is outside it.
            members = np.flatnonzero(wanted.groups == wanted.clusters[group[0]])
            outside = np.delete(np.arange(len(units)), members)
            # Integers of two bytes are sorted by their digits.
            negatives = np.sort(rounded[start : start + len(group), outside], axis=1, kind="stable")
            for row, query in enumerate(group):
                positives = members[wanted.masked[members] != wanted.masked[wanted.queries[query]]]
                ranked, line = rounded[start + row, positives], exact[start + row]
                found[query] = _areas(ranked, negatives[row])
                counts[0, query] = _best_counts(ranked, negatives[row])
                counts[1, query] = _best_counts(line[positives], line[outside])
            start += len(group)
    hits = [hit_chance(of[:, 0], of[:, 1], of[:, 2], k) for of in counts for k in HITS]
    return np.column_stack((hits[0], hits[1], found, hits[2], hits[3]))


def weight_grid(blocks: int) -> np.ndarray:
    """Every combination of :data:`STEPS` whose largest weight is the largest step: (g, blocks) float64."""
    combinations = np.array(list(itertools.product(STEPS, repeat=blocks)))
    return combinations[combinations.max(axis=1) == max(STEPS)]


def ranks_above(blocks: Sequence[torch.Tensor], wanted: Relation, grid: np.ndarray) -> np.ndarray:
    """Negatives more similar than the best positive, for every query and every weighting of blocks.

    The cosine of weighted concatenations is a sum over blocks, so that each block's inner products are formed once.

    Blocks are (n, d_i) of any float dtype, the grid of weights is (g, blocks), and what is returned (g, q) int32.
    """
    columns = [block.float() for block in blocks]
    squares = torch.stack([block.double().square().sum(dim=1) for block in blocks])
    factors = torch.from_numpy(grid**2)
    # A row's own length scales all of its similarities, which changes no ranking.
    lengths = (factors @ squares).clamp_min(1e-30).rsqrt().float()
    groups, masked = torch.from_numpy(wanted.groups), torch.from_numpy(wanted.masked)
    result = np.empty((len(grid), len(wanted.queries)), dtype=np.int32)
    for chunk, _ in query_chunks(wanted, SEARCH_CHUNK):
        rows = torch.from_numpy(wanted.queries[chunk])
        products = torch.stack([own[rows] @ own.T for own in columns])
        same = groups[rows][:, None] == groups
        query, positive = (same & (masked[rows][:, None] != masked)).nonzero(as_tuple=True)
        mine = products[:, query, positive]
        flat = products.masked_fill_(same, LEAST).flatten(1)
        for number, factor in enumerate(factors.float()):
            best = torch.full((len(rows),), -torch.inf)
            best.scatter_reduce_(0, query, (factor @ mine) * lengths[number, positive], "amax")
            cosines = (factor @ flat).view(len(rows), -1).mul_(lengths[number])
            result[number, chunk] = (cosines > best[:, None]).sum(dim=1).numpy()
    return result


class WeightSearch(NamedTuple):
    """What labels would choose; hits are hit@1 and hit@10 of every query, (q, 2) float64."""

    hits: np.ndarray  # of weights chosen on other superfamilies
    folds: np.ndarray  # fold of every query, (q,) int64
    chosen: np.ndarray  # weights of each fold, (folds, blocks) float64
    best: np.ndarray  # weights with the highest hit@10 over all queries, (blocks,) float64
    best_hits: np.ndarray  # of those, judged by the queries that chose them


def search_weights(
    blocks: Sequence[torch.Tensor], wanted: Relation, folds_of: np.ndarray | None = None
) -> WeightSearch:
    """Choose weights of blocks (see :func:`ranks_above`) by hit@10, each fold's on the groups of the others.

    ``folds_of`` is the fold of every query, (q,) int64; by default whole groups are drawn together.
    """
    folds = folds_of
    if folds is None:
        if (groups := len(np.unique(wanted.clusters))) < FOLDS:
            raise ValueError(f"{groups} groups of queries are too few for {FOLDS} folds: weights cannot be searched")
        folds = np.empty(len(wanted.queries), dtype=np.int64)
        for number, (_, test) in enumerate(GroupKFold(FOLDS).split(folds, groups=wanted.clusters)):
            folds[test] = number
    grid = weight_grid(len(blocks))
    above = ranks_above(blocks, wanted, grid)
    hits = above[:, :, None] < np.array(HITS)
    picks = [int(hits[:, folds != fold, 1].mean(axis=1).argmax()) for fold in range(folds.max() + 1)]
    best = int(hits[:, :, 1].mean(axis=1).argmax())
    judged = hits[np.array(picks)[folds], np.arange(len(folds))]
    return WeightSearch(judged.astype(np.float64), folds, grid[picks], grid[best], hits[best].astype(np.float64))

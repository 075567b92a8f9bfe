"""How well a query's own come out on top of a ranking by cosine.

All against all, in blocks of queries, so that the whole matrix of similarities is never held. Figures of one query,
with P positives, N negatives and similarities s:

    hit@k     1 where one of the k most similar is positive
    AUROC     share of pairs of a positive and a negative that are in order, ties counting half
    AUPRC     average precision: mean over positives of the precision at their similarity

Ties are broken by no order that a file happens to have: hit@k is its expectation over all orders of what ties, and the
other two do not depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rd_hf.evaluation.homology import Relation

# "float16": similarities are rounded before ranking, as in the published protocol. "none": as computed, in float32.
ROUNDINGS = ("float16", "none")
FIGURES = ("hit1", "hit10", "auroc", "auprc")
# Queries whose similarities are held at once.
BLOCK = 512


@dataclass(frozen=True)
class Ranking:
    """Figures of every query of one relation.

    Attributes:
        relation: its name.
        rounding: of :data:`ROUNDINGS`.
        figures: (q, 4) float64 in the order of :data:`FIGURES`.
    """

    relation: str
    rounding: str
    figures: np.ndarray = field(repr=False)


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """Rows of length 1, (n, d) float32, so that inner products are cosines; a row of zeros is like no other.

    Float32: similarities then err by 1e-7 to 1e-6, far below the gaps between neighbours in a ranking.
    """
    return torch.nn.functional.normalize(rows.double(), dim=1).float()


def query_blocks(wanted: Relation, size: int = BLOCK) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Queries by group, as many whole groups at once as fit ``size`` (one at least).

    Yields:
        Positions among the queries, (b,) int64, and those positions again, group by group.
    """
    order = np.argsort(wanted.clusters, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(wanted.clusters[order])) + 1)
    block: list[np.ndarray] = []
    for group in groups:
        if block and sum(map(len, block)) + len(group) > size:
            yield np.concatenate(block), block
            block = []
        block.append(group)
    yield np.concatenate(block), block


def hit_chance(above: np.ndarray, level: np.ndarray, positives: np.ndarray, k: int) -> np.ndarray:
    """Chance that one of the first k is positive, over all orders of what ties with the best positive.

    Args:
        above: negatives more similar than the best positive, (q,) int64.
        level: negatives as similar as it, (q,) int64.
        positives: positives as similar as it, itself included, (q,) int64.

    Returns:
        (q,) float64: 1 - C(level, m) / C(level + positives, m), where m = k - above places are open to them.
    """
    missed = np.ones(len(above))
    for place in range(k):
        open_to_them = above + place < k
        left = np.maximum(level - place, 0)
        missed = np.where(open_to_them, missed * left / np.maximum(level + positives - place, 1), missed)
    return np.where(above < k, 1.0 - missed, 0.0)


def query_counts(positives: np.ndarray, negatives: np.ndarray) -> tuple[int, int, int, float, float]:
    """What one query's figures are made of.

    Args:
        positives: similarities, (P,).
        negatives: similarities, (N,), sorted upwards.

    Returns:
        ``above``, ``level`` and ``positives`` of :func:`hit_chance`, AUROC and AUPRC.
    """
    ordered = np.sort(positives)
    below = np.searchsorted(negatives, ordered, side="left")
    up_to = np.searchsorted(negatives, ordered, side="right")
    auroc = (below + up_to).mean() / (2 * len(negatives))
    # Positives and negatives at or above each one's similarity: what ties is met at once.
    found = len(ordered) - np.searchsorted(ordered, ordered, side="left")
    wrong = len(negatives) - below
    same = int((ordered == ordered[-1]).sum())
    return (
        int(len(negatives) - up_to[-1]),
        int(up_to[-1] - below[-1]),
        same,
        float(auroc),
        float((found / (found + wrong)).mean()),
    )


def rank(rows: torch.Tensor, wanted: Sequence[Relation], roundings: Sequence[str] = ROUNDINGS) -> list[Ranking]:
    """Figures of every query by cosine.

    Args:
        rows: embeddings, (n, d) of any float dtype, one a domain.
        wanted: what is looked for.
        roundings: of :data:`ROUNDINGS`.

    Returns:
        One ranking a relation and rounding, queries in the relation's order.

    Raises:
        ValueError: an embedding is NaN or infinite.
    """
    if not torch.isfinite(rows).all():
        raise ValueError("an embedding is NaN or infinite, which no ranking can place")
    units = unit_rows(rows)
    results = []
    for relation in wanted:
        counts = {rounding: np.empty((len(relation.queries), 5)) for rounding in roundings}
        for block, groups in query_blocks(relation):
            cosines = units[relation.queries[block]] @ units.T
            start = 0
            for group in groups:
                own = cosines[start : start + len(group)]
                start += len(group)
                members = relation.groups == relation.clusters[group[0]]
                outside = torch.from_numpy(np.flatnonzero(~members))
                for rounding in roundings:
                    # Back in float32, which sorts faster; the values are those of float16.
                    values = own.half().float() if rounding == "float16" else own
                    negatives = np.sort(values[:, outside].numpy(), axis=1)
                    for row, query in enumerate(group):
                        masked = relation.masked == relation.masked[relation.queries[query]]
                        positive = values[row].numpy()[members & ~masked]
                        counts[rounding][query] = query_counts(positive, negatives[row])
        for rounding, found in counts.items():
            best = found[:, :3].T.astype(np.int64)
            hits = [hit_chance(*best, k) for k in (1, 10)]
            results.append(Ranking(relation.name, rounding, np.column_stack((*hits, found[:, 3:]))))
    return results

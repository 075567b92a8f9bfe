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

# Of similarities rounded to float16 before ranking, as in the published protocol; "exact": of those as computed.
FIGURES = ("hit1", "hit10", "auroc", "auprc", "exact_hit1", "exact_hit10")
HITS = (1, 10)
# Queries whose similarities are held at once.
BLOCK = 512


@dataclass(frozen=True)
class Ranking:
    """Figures of every query of one relation.

    Attributes:
        relation: its name.
        figures: (q, 6) float64 in the order of :data:`FIGURES`.
    """

    relation: str
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


def sortable(values: torch.Tensor) -> np.ndarray:
    """Float16 rounded from ``values`` as int16 of the same order, which sort in linear time; ties stay ties."""
    # Adding zero makes -0.0 the 0.0 that it equals.
    bits = (values.half() + 0.0).view(torch.int16).numpy()
    return np.where(bits < 0, bits ^ 0x7FFF, bits)


def best_counts(positives: np.ndarray, negatives: np.ndarray) -> list[int]:
    """``above``, ``level`` and ``positives`` of :func:`hit_chance` for one query: similarities (P,) and (N,)."""
    best = positives.max()
    return [int((negatives > best).sum()), int((negatives == best).sum()), int((positives == best).sum())]


def areas(positives: np.ndarray, negatives: np.ndarray) -> tuple[float, float]:
    """AUROC and AUPRC of one query.

    Args:
        positives: similarities, (P,).
        negatives: similarities, (N,), sorted upwards.
    """
    ordered = np.sort(positives)
    below = np.searchsorted(negatives, ordered, side="left")
    up_to = np.searchsorted(negatives, ordered, side="right")
    # Positives and negatives at or above each one's similarity: what ties is met at once.
    found = len(ordered) - np.searchsorted(ordered, ordered, side="left")
    wrong = len(negatives) - below
    auroc = (below + up_to).sum() / (2 * len(negatives) * len(ordered))
    return float(auroc), float((found / (found + wrong)).mean())


def rank(rows: torch.Tensor, wanted: Sequence[Relation]) -> list[Ranking]:
    """Figures of every query by cosine.

    Args:
        rows: embeddings, (n, d) of any float dtype, one a domain.
        wanted: what is looked for.

    Returns:
        One ranking a relation, queries in the relation's order.

    Raises:
        ValueError: an embedding is NaN or infinite.
    """
    if not torch.isfinite(rows).all():
        raise ValueError("an embedding is NaN or infinite, which no ranking can place")
    units = unit_rows(rows)
    results = []
    for relation in wanted:
        counts = np.empty((2, len(relation.queries), 3), dtype=np.int64)
        found = np.empty((len(relation.queries), 2))
        for block, groups in query_blocks(relation):
            cosines = units[relation.queries[block]] @ units.T
            exact, rounded = cosines.numpy(), sortable(cosines)
            start = 0
            for group in groups:
                # One group's queries have the same negatives: all that is outside it.
                members = np.flatnonzero(relation.groups == relation.clusters[group[0]])
                outside = np.delete(np.arange(len(units)), members)
                # Integers of two bytes are sorted by their digits.
                negatives = np.sort(rounded[start : start + len(group), outside], axis=1, kind="stable")
                for row, query in enumerate(group):
                    own = relation.masked[relation.queries[query]]
                    positives = members[relation.masked[members] != own]
                    ranked = rounded[start + row, positives]
                    found[query] = areas(ranked, negatives[row])
                    counts[0, query] = best_counts(ranked, negatives[row])
                    line = exact[start + row]
                    counts[1, query] = best_counts(line[positives], line[outside])
                start += len(group)
        hits = [hit_chance(of[:, 0], of[:, 1], of[:, 2], k) for of in counts for k in HITS]
        figures = np.column_stack((hits[0], hits[1], found, hits[2], hits[3]))
        results.append(Ranking(relation.name, figures))
    return results

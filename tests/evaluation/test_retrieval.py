"""The published protocol of remote homology, held against its definition written out in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from rd_hf.evaluation import homology
from rd_hf.evaluation.homology import Relation, hit_chance, rank, relation


def classification(seed: int, families: int = 14, groups: int = 6, domains: int = 60) -> Relation:
    """Domains in families, families in groups, at random."""
    generator = np.random.default_rng(seed)
    group_of_family = generator.integers(0, groups, families)
    masked = generator.integers(0, families, domains)
    return relation("superfamily", group_of_family[masked], masked)


def by_definition(rows: np.ndarray, wanted: Relation, query: int, rounded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Similarities of what counts for a query, in float64, and whether each is positive."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = units @ units[query]
    if rounded:
        cosines = cosines.astype(np.float16).astype(np.float64)
    counts = wanted.masked != wanted.masked[query]
    return cosines[counts], (wanted.groups == wanted.groups[query])[counts]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("offset", [0.0, 4.0])
def test_figures_are_those_of_the_definition(seed: int, offset: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(homology, "CHUNK", 7)  # so that there are several chunks
    wanted = classification(seed)
    # Far from the origin, as uncentred states are, rounded cosines tie; about it they take either sign.
    rows = np.random.default_rng(seed).standard_normal((60, 12)) + offset
    found = rank(torch.from_numpy(rows), wanted)
    ties = 0
    for query, figures in zip(wanted.queries, found, strict=True):
        scores, positive = by_definition(rows, wanted, query, rounded=False)
        order = positive[np.argsort(-scores)]
        assert figures[4:].tolist() == [float(order[:1].any()), float(order[:10].any())]
        scores, positive = by_definition(rows, wanted, query, rounded=True)
        ties += len(scores) - len(np.unique(scores))
        # Two of the 60 that tie in float64 and not in float32, or the reverse, move an area by about 1/(60 P).
        assert figures[2] == pytest.approx(roc_auc_score(positive, scores), abs=0.01)
        assert figures[3] == pytest.approx(average_precision_score(positive, scores), abs=0.02)
        best = scores[positive].max()
        above, level = (scores[~positive] > best).sum(), (scores[~positive] == best).sum()
        expected = hit_chance(*(np.array([n]) for n in (above, level, (scores[positive] == best).sum())), 10)
        assert figures[1] == pytest.approx(expected[0], abs=0.2)
    assert (ties > 200) == (offset > 0)


def test_rounded_similarities_tie_as_in_the_published_protocol() -> None:
    """Cosines that float16 cannot tell apart: every figure is that of a tie."""
    wanted = relation("superfamily", np.array([0, 0, 1, 2]), np.array([0, 1, 2, 3]))
    # Off by 1e-3 in angle: cosines differ by 1e-6, and float16 has steps of 5e-4 there.
    rows = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [1.0, 2e-3], [1.0, 3e-3]], dtype=torch.float64)
    figures = rank(rows, wanted)
    # Of three that tie one is positive: first by chance 1/3, always among ten; half of the pairs in order.
    np.testing.assert_allclose(figures[0], [1 / 3, 1, 1 / 2, 1 / 3, 1, 1])


def test_rounded_similarities_sort_as_float16_does() -> None:
    values = torch.tensor([0.5, -0.0, 0.0, -1.0, 1.0, -1e-4, 6e-8, -0.5, 0.50001])
    expected = values.half().float().numpy()
    found = homology.sortable(values).astype(np.int64)
    np.testing.assert_array_equal(np.sign(found[:, None] - found), np.sign(expected[:, None] - expected))


@given(above=st.integers(0, 4), level=st.integers(0, 4), positives=st.integers(1, 3), k=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_chance_of_a_hit_counts_every_order_of_what_ties(above: int, level: int, positives: int, k: int) -> None:
    tied = "n" * level + "p" * positives
    orders = [("n" * above + "".join(order))[:k] for order in set(itertools.permutations(tied))]
    expected = np.mean(["p" in order for order in orders])
    counts = (np.array([count]) for count in (above, level, positives))
    assert hit_chance(*counts, k)[0] == pytest.approx(expected)


def test_a_domain_without_an_embedding_is_like_no_other() -> None:
    wanted = relation("superfamily", np.array([0, 0, 1]), np.array([0, 1, 2]))
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 0.1]])
    assert rank(rows, wanted)[0].tolist() == [0.0, 1.0, 0.0, 0.5, 0.0, 1.0]
    with pytest.raises(ValueError, match="NaN or infinite"):
        rank(torch.tensor([[1.0], [float("nan")], [1.0]]), wanted)

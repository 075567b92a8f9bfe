"""Batches under a token budget."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.data.batching import SPECIAL_TOKENS, collate, residue_mask, token_budget_batches

lengths = st.lists(st.integers(0, 300), max_size=60)


@given(lengths, st.integers(1, 2000), st.floats(0, 1))
def test_each_sequence_is_in_one_batch_and_no_batch_exceeds_budget_or_spread(
    lengths: list[int], budget: int, spread: float
) -> None:
    batches = token_budget_batches(lengths, budget, spread)
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        rows = [lengths[position] + SPECIAL_TOKENS for position in batch]
        assert len(batch) == 1 or len(rows) * max(rows) <= budget
        assert min(rows) >= (1 - spread) * max(rows)


@given(lengths, st.integers(1, 2000))
def test_longest_come_first_and_ties_keep_their_order(lengths: list[int], budget: int) -> None:
    order = [position for batch in token_budget_batches(lengths, budget) for position in batch]
    assert order == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


@pytest.mark.parametrize(("budget", "spread"), [(0, 1.0), (-1, 1.0), (100, -0.1), (100, 1.5)])
def test_senseless_limits_are_refused(budget: int, spread: float) -> None:
    with pytest.raises(ValueError, match=r"budget|spread"):
        token_budget_batches([3], budget, spread)


def test_rows_are_cls_residues_eos_and_padding() -> None:
    input_ids, attention_mask = collate(["LAG", "V"])
    assert input_ids.tolist() == [[0, 4, 5, 6, 2], [0, 7, 2, 1, 1]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert residue_mask([3, 1], 5).tolist() == [[False, True, True, True, False], [False, True, False, False, False]]

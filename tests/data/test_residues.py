"""The table of what happens to each character, row by row, and the tokens that come out."""

from __future__ import annotations

import re
import string

import esm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.data.residues import RESIDUES, RejectedSequenceError, clean_sequence, encode
from tests.data.cases import LETTERS, Case


@pytest.mark.parametrize("case", LETTERS, ids=lambda case: case.what)
def test_each_character_is_kept_changed_removed_or_the_reason_of_a_rejection(case: Case) -> None:
    if case.gives is not None:
        assert clean_sequence(case.value) == case.gives
        return
    with pytest.raises(RejectedSequenceError, match=re.escape(case.reason)):
        clean_sequence(case.value)


@given(st.text(max_size=40))
def test_cleaning_gives_residues_or_a_reason_and_is_settled(raw: str) -> None:
    try:
        cleaned = clean_sequence(raw)
    except RejectedSequenceError:
        return
    assert cleaned
    assert set(cleaned) <= set(RESIDUES)
    assert clean_sequence(cleaned) == cleaned
    # No letter is lost or made: gaps, blanks and the stops at the end are all that goes.
    assert len(cleaned) == sum(letter in string.ascii_letters for letter in raw)


@given(st.text(RESIDUES, min_size=1, max_size=60))
def test_tokens_are_those_of_fair_esm(sequence: str) -> None:
    alphabet = esm.data.Alphabet.from_architecture("ESM-1b")
    expected = [alphabet.cls_idx, *alphabet.encode(sequence), alphabet.eos_idx]
    assert encode(sequence).tolist() == expected


def test_encode_refuses_what_was_not_cleaned() -> None:
    with pytest.raises(RejectedSequenceError, match="call clean_sequence"):
        encode("MKJ")

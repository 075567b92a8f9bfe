"""The table of what happens to each character, row by row, and the tokens that come out."""

from __future__ import annotations

import string

import esm
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.data.residues import RESIDUES, RejectedSequenceError, clean_sequence, encode


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("LAGVSERTIDPKQNFYMHWC", "LAGVSERTIDPKQNFYMHWC"),
        ("MXBZUOM", "MXBZUOM"),
        ("MJK", "MXK"),
        ("mkTAyj", "MKTAYX"),
        ("M-K..T", "MKT"),
        (" M K\tT\n", "MKT"),
        ("MKT*", "MKT"),
        ("MKT**", "MKT"),
        ("MKT*--", "MKT"),
    ],
)
def test_letters_that_are_kept_changed_or_removed(raw: str, cleaned: str) -> None:
    assert clean_sequence(raw) == cleaned


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "no residues"),
        ("*", "no residues"),
        ("-.-", "no residues"),
        ("MK*T", r"stop codon '\*' inside the sequence \(position 3 of 4\)"),
        ("MK1T", r"'1' is not a residue \(position 3 of 4\)"),
        ("M>K", "'>' is not a residue"),
        ("MKß", "'ß' is not a residue"),  # str.upper() would make it the residues SS
        ("MKſ", "'ſ' is not a residue"),  # str.upper() would make it S
        ("МK", "'М' is not a residue"),  # Cyrillic
        ("MK\0", "is not a residue"),
    ],
)
def test_everything_else_is_rejected_with_a_reason(raw: str, reason: str) -> None:
    with pytest.raises(RejectedSequenceError, match=reason):
        clean_sequence(raw)


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

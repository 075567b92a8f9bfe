"""Text that cannot be encoded becomes text that can, readable and distinct."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.data.records import KEEP_BYTES, readable

ANY_TEXT = st.text(st.characters(exclude_categories=[]))


@given(ANY_TEXT)
def test_readable_text_can_be_encoded_and_is_settled(text: str) -> None:
    made = readable(text)
    made.encode()
    assert readable(made) == made


@given(st.text())
def test_text_that_can_be_encoded_stays_as_it_is(text: str) -> None:
    assert readable(text) == text


@given(st.binary(), st.binary())
def test_different_bytes_give_different_text(first: bytes, second: bytes) -> None:
    # A backslash of the file's own may look like one that was put there.
    texts = [data.replace(b"\\", b"/").decode("utf-8", KEEP_BYTES) for data in (first, second)]
    same = first.replace(b"\\", b"/") == second.replace(b"\\", b"/")
    assert (readable(texts[0]) == readable(texts[1])) == same


@pytest.mark.parametrize(
    ("text", "made"),
    [
        (b"caf\xe9".decode("utf-8", KEEP_BYTES), r"caf\xe9"),
        (b"caf\xe9".decode("utf-8", "surrogateescape"), r"caf\xe9"),  # as Python has file names
        ("a\ud83d", r"a\ud83d"),
        ("\ud83d\ude00", r"\ud83d\ude00"),  # two halves by themselves, as no decoder gives them
        (b"A\x00\x00\xd8".decode("utf-16-le", KEEP_BYTES), r"A\x00\xd8"),
        ("é \U0001f600", "é \U0001f600"),
    ],
)
def test_what_it_looks_like(text: str, made: str) -> None:
    assert readable(text) == made

"""Cells of any library, as sequences, ids and positions, or rejected with a reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.data.records import readable
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.values import arrow_holds, as_list, id_text, position_numbers, sequence_text
from tests.data import cases
from tests.data.cases import Case


def named_id(value: Any) -> str:
    found = id_text(value)
    return "the record's number" if found is None else readable(found)


READERS: list[tuple[Callable[[Any], Any], Case]] = [
    *((sequence_text, case) for case in cases.SEQUENCE_VALUES),
    *((named_id, case) for case in cases.ID_VALUES),
    *((position_numbers, case) for case in cases.POSITION_VALUES),
    (position_numbers, Case("tensor", torch.tensor([23, 45]), (23, 45))),
    (position_numbers, Case("a list of tensors", [torch.tensor(23), torch.tensor(45.0)], (23, 45))),
    (position_numbers, Case("a scalar of Arrow", pa.scalar([23, 45]), (23, 45))),
    (position_numbers, Case("digits of another script", "٣", None, "positions '٣' are not whole numbers")),
    (position_numbers, Case("an underscore", "1_0", None, "positions '1_0' are not whole numbers")),
]


@pytest.mark.parametrize(("read", "case"), READERS, ids=lambda part: getattr(part, "what", None))
def test_a_value_is_read_or_rejected(read: Callable[[Any], Any], case: Case) -> None:
    if not case.reason:
        assert read(case.value) == case.gives
        return
    with pytest.raises(RejectedSequenceError, match=re.escape(case.reason)):
        read(case.value)


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.binary(),
    st.lists(st.integers()),
    st.complex_numbers(),
)


@given(ANYTHING)
def test_only_text_becomes_a_sequence(value: Any) -> None:
    try:
        found = sequence_text(value)
    except RejectedSequenceError:
        assert not isinstance(value, str)
        return
    assert found == (value if isinstance(value, str) else b"".join([value or b""]).decode())


@given(st.lists(st.integers(-3, 10**9)), st.sampled_from([" ", ",", ";", ", ", "\t"]))
def test_positions_are_the_same_in_every_form(numbers: list[int], mark: str) -> None:
    forms = [
        numbers,
        mark.join(map(str, numbers)),
        str(numbers),
        np.array(numbers, float),
        pa.scalar(numbers, pa.list_(pa.int64())),
    ]
    assert {position_numbers(form) for form in forms} == {tuple(numbers)}


COLUMNS = [
    ["a", "b"],
    ("a", "b"),
    np.array(["a", "b"]),
    pd.Series(["a", "b"], index=[7, 3]),
    pa.array(["a", "b"]),
    pa.chunked_array([["a"], ["b"]]),
]


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: type(column).__name__)
def test_a_column_of_any_library_is_a_list_of_its_rows(column: Any) -> None:
    assert as_list(column) == ["a", "b"]


def test_arrow_text_that_is_not_utf_8_comes_as_bytes() -> None:
    offsets, data = pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"ab\xff")
    assert as_list(pa.StringArray.from_buffers(2, offsets, data)) == [b"a", b"b\xff"]


@pytest.mark.parametrize(
    ("role", "good", "bad"),
    [
        ("sequence", cases.TEXT_TYPES, cases.NO_TEXT_TYPES),
        ("id", cases.ID_TYPES, [pa.list_(pa.string()), pa.struct([("id", pa.string())])]),
        ("positions", cases.POSITION_TYPES, cases.NO_POSITION_TYPES),
    ],
)
def test_types_of_columns_are_told_apart(role: str, good: list[pa.DataType], bad: list[pa.DataType]) -> None:
    assert [kind for kind in good if not arrow_holds(kind, role)] == []
    assert [kind for kind in bad if arrow_holds(kind, role)] == []

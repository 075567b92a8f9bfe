"""What a cell of a table, of any library, holds: a sequence, an id, positions; or why it holds none.

Nothing is turned into residues that was no text: ``NaN`` would be Asn-Ala-Asn, ``True`` four residues.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Integral, Number, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from rd_hf.data.records import KEEP_BYTES
from rd_hf.data.residues import RejectedSequenceError

if TYPE_CHECKING:
    import pyarrow as pa

_BYTES = (bytes, bytearray, memoryview)
_WORD = re.compile(r"[^\s,;\[\](){}]+")
_WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
# Arrow types as they name themselves, which is the same in every release.
_TEXT_TYPE = re.compile(r"(large_)?(string|binary)(_view)?|fixed_size_binary\[\d+\]|null")
_NUMBER_TYPE = re.compile(r"u?int\d+|halffloat|float|double")
_LIST_TYPE = re.compile(r"((large_)?list(_view)?|fixed_size_list)<")


def _is_missing(value: Any) -> bool:
    """Whether it is None, or pandas' NA or NaT; not NaN, which is a number where a text was expected."""
    return value is None or type(value).__name__ in ("NAType", "NaTType")


def _is_nan(value: Any) -> bool:
    return isinstance(value, (float, np.floating)) and math.isnan(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool) or type(value).__name__ in ("bool", "bool_"):
        return f"the truth value {value}"
    if isinstance(value, Number):
        return f"the number {value}"
    return f"a value of type {type(value).__name__}"


def sequence_text(value: Any) -> str:
    """Return the text of a sequence cell, empty where nothing is there; raises RejectedSequenceError if it is none."""
    if isinstance(value, str):
        return value
    if _is_missing(value):
        return ""
    if isinstance(value, _BYTES):
        try:
            return bytes(value).decode("utf-8")
        except UnicodeDecodeError as error:
            place = error.start + 1
            raise RejectedSequenceError(f"the sequence is bytes that are not UTF-8 (at byte {place})") from None
    if _is_nan(value):
        raise RejectedSequenceError("the sequence is missing (NaN)")
    raise RejectedSequenceError(f"the sequence is {_shown(value)}, no text")


def id_text(value: Any) -> str | None:
    """Return an id as text, None where there is none; raises RejectedSequenceError for a list or an object.

    Bytes are UTF-8; those that are not are kept as :data:`rd_hf.data.records.KEEP_BYTES` says.
    """
    if isinstance(value, str):
        return value
    if _is_missing(value) or _is_nan(value):
        return None
    if isinstance(value, _BYTES):
        return bytes(value).decode("utf-8", errors=KEEP_BYTES)
    if isinstance(value, Iterable):
        raise RejectedSequenceError(f"the id is {_shown(value)}, no text")
    return str(value)


def position_numbers(value: Any) -> tuple[int, ...]:
    """Return the residues asked for, counted from 1: one whole number, a list of them, or text such as ``23;45``.

    Floats count where they are whole, as a column of integers with a gap in it has them. Nothing asked for gives ().
    Raises RejectedSequenceError for something else.
    """
    for name in ("as_py", "tolist"):
        value = getattr(value, name)() if hasattr(value, name) else value
    if isinstance(value, _BYTES):
        value = bytes(value).decode("utf-8", errors="replace")
    if _is_missing(value) or _is_nan(value):
        return ()
    words = _WORD.findall(value) if isinstance(value, str) else value if isinstance(value, Iterable) else [value]
    try:
        return tuple(_whole(word) for word in words)
    except ValueError:
        shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
        raise RejectedSequenceError(f"positions {shown} are not whole numbers") from None


def _whole(word: Any) -> int:
    if isinstance(word, str) and _WHOLE.fullmatch(word):
        return int(word.partition(".")[0])
    if isinstance(word, Integral) and not isinstance(word, bool):
        return int(word)
    # An infinity or NaN is no whole number; a tensor's element is a number that is no Real.
    if isinstance(word, Real) and not isinstance(word, bool) and float(word).is_integer():
        return int(float(word))
    if hasattr(word, "item"):
        return _whole(word.item())
    raise ValueError


def as_list(column: Any) -> list[Any]:
    """Return a column of numpy, torch, pandas, polars or Arrow, or any sequence, as a list of its rows."""
    if isinstance(column, (list, tuple)):
        return list(column)
    for name in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, name):
            try:
                return list(getattr(column, name)())
            except UnicodeDecodeError:
                # Arrow text that is not UTF-8: its rows are judged as bytes.
                return list(column.cast("binary").to_pylist())
    return list(column)


def column_names(batch: Any) -> list[str]:
    """Return the names of the columns of an Arrow table, a data frame, or a mapping."""
    return list(batch.column_names if hasattr(batch, "column_names") else batch.keys())


def arrow_holds(kind: pa.DataType, role: str) -> bool:
    """Whether a column of an Arrow type can hold what it is read for: "sequence", "id" or "positions".

    Strings and bytes of every size, dictionaries and extensions of them, are text; any list may hold positions.
    """
    kind = getattr(kind, "storage_type", kind)
    if str(kind).startswith(("dictionary<", "run_end_encoded<")):
        return arrow_holds(kind.value_type, role)
    if role == "id":
        return kind.num_fields == 0
    name = str(kind)
    if role == "positions" and _LIST_TYPE.match(name):
        name = str(kind.value_type)
    number = role == "positions" and _NUMBER_TYPE.fullmatch(name)
    return bool(_TEXT_TYPE.fullmatch(name) or number)

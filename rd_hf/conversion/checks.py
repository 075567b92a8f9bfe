"""What is asked of a file of somebody else's before its numbers are read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rd_hf.data.fasta import InputError
from rd_hf.data.records import readable
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.values import id_text

# Deflate packs a thousand bytes into one at most, and hidden states hardly at all: a file that says it holds more than
# this is damaged, or was made to fill the memory. What is small is harmless whatever it says.
_MOST_PACKED, _HARMLESS = 1100, 64 << 20


@contextmanager
def reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn whatever a library says of a file that it cannot read into one sentence.

    Args:
        path, kind: the file, and what it should be, in words.

    Raises:
        InputError: anything was raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # each library raises many kinds, for damage of many kinds
        said = " ".join((str(error).strip().splitlines() or [type(error).__name__])[0].split())
        raise InputError(f"{path} is no {kind}: {said}") from error


def refuse_dtype(what: str, dtype: object) -> None:
    """Stop at numbers that are no hidden states.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{what} holds {dtype} where hidden states are wanted, which are floating-point numbers (float16, float32 or "
        f"float64): take it out of the input, or write it in one of these"
    )


def refuse_more_than_is_there(what: str, claimed: int, held: int) -> None:
    """Stop before memory is asked for that a file of this size cannot fill.

    Args:
        what: as messages name it.
        claimed, held: bytes of numbers that it says it has, and bytes that it takes in the file.

    Raises:
        InputError: it says more than it can hold.
    """
    if claimed > _HARMLESS + _MOST_PACKED * held:
        raise InputError(
            f"{what} says that it holds {claimed / 2**30:,.1f} GB of numbers in {held:,} bytes: it is damaged; make it "
            f"anew"
        )


def id_of(value: Any, number: int, where: str | Path) -> str:
    """An id as text, the record's number where there is none.

    Args:
        value: of a cell or an attribute, of any library: text, bytes, a number, nothing.
        number: of the record, from 1.
        where: the file, as messages name it.

    Raises:
        InputError: it is none of these.
    """
    try:
        text = id_text(value)
    except RejectedSequenceError as error:
        raise InputError(f"{where}, record {number:,}: {error}: give each protein an id") from error
    return readable(str(number) if text is None else text)

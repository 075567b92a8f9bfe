"""What a folder's manifest and journal may hold: looked at as they are read, since anybody may have written them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import Any

from rd_hf.embedding.options import BLOCKS, INT8, PLAIN, EmbeddingOptions
from rd_hf.embedding.settings import JobSettings
from rd_hf.embedding.storage import read_columns
from rd_hf.options import Bounds, option_fields

# Far beyond what a job counts, and within what every library here takes for a number.
_MOST = 1 << 53
# Names of part files, and of nothing that lies outside the folder or is hidden in it.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a value must be, in words, and whether one is."""

    words: str
    holds: Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Each:
    """A list, or an object with fields of any name, whose values are all of one kind."""

    kind: Any
    container: type = list


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _MOST


def _or_null(kind: Kind) -> Kind:
    return Kind(f"{kind.words} or null", lambda value: value is None or kind.holds(value))


TEXT = Kind("a text", lambda value: isinstance(value, str))
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
COUNT = Kind("a whole number", lambda value: _whole(value, 0))
SIZE = Kind("a whole number from 1", lambda value: _whole(value, 1))
NUMBER = Kind(
    "a finite number",
    lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
)
FILE = Kind(
    "the plain name of a file in the folder",
    lambda value: isinstance(value, str) and _FILE_NAME.fullmatch(value) is not None,
)


def _kind(one: Field) -> Any:
    """What a manifest holds of an option, by its default and the numbers that it takes."""
    bounds = one.metadata["kind"]
    kind = TEXT if bounds is None else COUNT if isinstance(bounds, Bounds) and bounds.least == 0 else SIZE
    if one.default is False:
        return FLAG
    if isinstance(one.default, tuple) or "nargs" in one.metadata:
        return Each(kind)
    return _or_null(kind) if one.default is None else kind


# Fields that are known; others are for versions to come.
_MODEL = {
    "name": TEXT,
    "revision": _or_null(TEXT),
    "fingerprint": TEXT,
    "nested_dims": Each(SIZE, dict),
    "longest": Each(COUNT, dict),
    "one_pass": FLAG,
    "block_weights": _or_null(Kind("numbers", lambda value: misfit(value, Each(NUMBER)) is None)),
}
_JOB = {one.name: _kind(one) for one in (*option_fields(JobSettings), *option_fields(EmbeddingOptions))}
_PART = {
    "file": FILE,
    "sha256": TEXT,
    "first_record": SIZE,
    **dict.fromkeys(("bytes", "records", "written", "rejected"), COUNT),
}
MANIFEST = {
    "status": TEXT,
    "model": _MODEL,
    "job": _JOB,
    "columns": Each({"level": TEXT, "width": SIZE}, dict),
    "parts": Each(_PART),
    "counts": Each(COUNT, dict),
    "grid": {"centre": Each(NUMBER), "step": Each(NUMBER)},
    "versions": Each(_or_null(TEXT), dict),
    "device": TEXT,
}
ENTRY = {
    **_PART,
    **dict.fromkeys(("index", "unique", "long", "residues", "clipped"), COUNT),
    "digest": TEXT,
    "rejects": Each({"source": TEXT, "record": SIZE, "id": TEXT, "reason": TEXT}),
}
# What whoever reads a finished folder relies on.
NEEDED = {
    "model": ("name", "revision", "fingerprint", "nested_dims"),
    "job": ("inputs", "levels", "pooling", "sequence_column", "id_column", "positions_column"),
    "columns": (),
    "parts": (),
}


def misfit(value: Any, kind: Any, name: str = "it") -> str | None:
    """Say what is wrong with a value out of a JSON file; None where nothing is.

    Args:
        value: whose ``name`` is given.
        kind: :class:`Kind`, :class:`Each`, or the kinds of an object's fields by name. A field may be absent.
    """
    if isinstance(kind, Kind):
        return None if kind.holds(value) else f"{name} is {_short(value)} and not {kind.words}"
    container = kind.container if isinstance(kind, Each) else dict
    if not isinstance(value, container):
        return f"{name} is {_short(value)} and not {'a list' if container is list else 'an object'}"
    items: Any = value  # an object or a list, as was just seen
    for field, one in items.items() if isinstance(items, dict) else enumerate(items):
        within = kind.kind if isinstance(kind, Each) else kind.get(field)
        if within is not None and (found := misfit(one, within, f"{name}.{field}" if name != "it" else str(field))):
            return found
    return None


def unfinished(manifest: dict[str, Any]) -> str | None:
    """Say what a manifest of a finished job lacks, or where it contradicts itself; None where nothing is wrong.

    Each of its fields, where it is there, is of its kind.
    """
    for field, names in NEEDED.items():
        if field not in manifest:
            return f"{field} is missing"
        if absent := [name for name in names if name not in manifest[field]]:
            return f"{field}.{absent[0]} is missing"
    dims, columns = manifest["model"]["nested_dims"], manifest["columns"]
    if not dims or list(dims.values()) != sorted(dims.values()):
        return f"model.nested_dims is {_short(dims)}, and not one level wider than the other"
    if not columns:
        return "columns is empty"
    for name, column in columns.items():
        level, width = column.get("level"), column.get("width")
        if level not in dims or width is None or width > dims[level]:
            return f"columns.{name} is {_short(column)}, which is no level of the model"
    if manifest["job"].get("layout") == BLOCKS:
        held = read_columns(columns, BLOCKS)
        ends = [*list(dims.items())[: len(held) - 1], (held[-1].level, held[-1].stop)]
        if [(column.level, column.stop) for column in held] != ends or held[-1].stop > dims[held[-1].level]:
            return f"columns is {_short(columns)}, and not what one level after the other adds"
    if manifest["job"].get("output_dtype") == INT8:
        held = read_columns(columns, manifest["job"].get("layout", PLAIN))
        grid, widest = manifest.get("grid", {}), max(column.stop for column in held)
        if [len(grid.get(name, ())) for name in ("centre", "step")] != [widest] * 2 or min(grid["step"]) <= 0:
            return f"grid is not a centre and a step above zero for each of {widest:,} dimensions"
    following = 1
    for index, part in enumerate(manifest["parts"]):
        if absent := [name for name in _PART if name not in part]:
            return f"parts.{index}.{absent[0]} is missing"
        if part["first_record"] != following or part["written"] + part["rejected"] != part["records"]:
            return f"parts.{index} does not count the records that follow the part before"
        following += part["records"]
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

"""Markdown tables, figures in them, and names of contenders: what all reports share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

GROUP = ["model", "depth", "pooling"]
CONTENDER = [*GROUP, "representation", "level", "labels"]
# How differences, and p and q, are written.
SIGNED, CHANCE = "+.4f", ".1e"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; the first column to the left, the others to the right."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def table_of(frame: pd.DataFrame, columns: Mapping[str, Callable[[dict], str]]) -> str:
    """A pipe table of a frame's rows: what each column is called, and its cell of a row."""
    rows = frame.to_dict("records")
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def number(value: float, spec: str = ".3f") -> str:
    """A figure of a table; an en dash where there is none."""
    return "–" if np.isnan(value) else format(value, spec)


def between(low: float, high: float, spec: str = ".3f") -> str:
    """An interval; an en dash where there is none."""
    return "–" if np.isnan(low) and np.isnan(high) else f"[{number(low, spec)}, {number(high, spec)}]"


def share(value: float, of: int) -> str:
    """A share of so many; of one it is no share."""
    return percent(value) if of > 1 else f"{value:g} of {of}"


def percent(value: float) -> str:
    """A share in percent."""
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def short_name(contender: Mapping[str, object] | Sequence, several: Mapping[str, bool]) -> str:
    """Return "rd.650M", with model, depth and pooling where a run has several of them.

    A contender is given by its columns by name, or by the values of :data:`CONTENDER`.
    """
    named = contender if isinstance(contender, Mapping) else dict(zip(CONTENDER, contender, strict=True))
    name = str(named["representation"])
    if named["level"]:
        name += f".{named['level']}"
    extras = [str(named[key]) for key in GROUP if several.get(key) and named["model"]]
    if named.get("labels", "true") != "true":
        extras.append("shuffled scores")
    return f"{name} ({', '.join(extras)})" if extras else name


def several_of(scores: pd.DataFrame) -> dict[str, bool]:
    """Of which columns of :data:`GROUP` a run has several values."""
    own = scores[scores["model"] != ""]
    return {key: own[key].nunique() > 1 for key in GROUP if key in own}


def groups_of(scores: pd.DataFrame) -> list[dict[str, object]]:
    """The model, depth and pooling of every family in a run."""
    own = scores[(scores["model"] != "") & (scores["labels"] == "true")]
    return own[GROUP].drop_duplicates().to_dict("records")

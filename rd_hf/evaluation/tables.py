"""Markdown tables, figures in them, and names of contenders: what all reports share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

GROUP = ["model", "depth", "pooling"]
CONTENDER = [*GROUP, "representation", "level", "labels"]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; the first column to the left, the others to the right."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def table_of(frame: pd.DataFrame, columns: Mapping[str, Callable[[dict], str]]) -> str:
    """A pipe table of a frame's rows: what each column is called, and its cell of a row."""
    rows = frame.to_dict("records")
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def number(value: float, digits: int = 3, sign: str = "") -> str:
    """A figure of a table; an en dash where there is none."""
    return "–" if np.isnan(value) else f"{value:{sign}.{digits}f}"


def between(low: float, high: float, digits: int = 3, sign: str = "") -> str:
    """An interval; an en dash where there is none."""
    return "–" if np.isnan(low) and np.isnan(high) else f"[{number(low, digits, sign)}, {number(high, digits, sign)}]"


def signed(value: float) -> str:
    """A difference."""
    return number(value, 4, "+")


def signed_between(low: float, high: float) -> str:
    """An interval of a difference."""
    return between(low, high, 4, "+")


def chance(value: float) -> str:
    """A p or a q."""
    return "–" if np.isnan(value) else f"{value:.1e}"


def share(value: float, of: int) -> str:
    """A share of so many; of one it is no share."""
    return percent(value) if of > 1 else f"{value:g} of {of}"


def percent(value: float) -> str:
    """A share in percent."""
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def short_name(contender: Mapping[str, object] | Sequence, several: Mapping[str, bool]) -> str:
    """ "rd.650M", with model, depth and pooling where a run has several of them.

    Args:
        contender: its columns by name, or the values of :data:`CONTENDER`.
        several: from :func:`several_of`.
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

"""Markdown tables, figures in them, and names of contenders: what all reports share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A pipe table; the first column to the left, the others to the right."""
    lines = [f"| {' | '.join(header)} |", "|---|" + "---:|" * (len(header) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def number(value: float, digits: int = 3) -> str:
    """A figure of a table; an en dash where there is none."""
    return "–" if np.isnan(value) else f"{value:.{digits}f}"


def between(low: float, high: float, digits: int = 3) -> str:
    """An interval; an en dash where there is none."""
    return "–" if np.isnan(low) and np.isnan(high) else f"[{number(low, digits)}, {number(high, digits)}]"


def signed(value: float) -> str:
    """A difference."""
    return "–" if np.isnan(value) else f"{value:+.4f}"


def signed_between(low: float, high: float) -> str:
    """An interval of a difference; an en dash where there is none."""
    return "–" if np.isnan(low) and np.isnan(high) else f"[{signed(low)}, {signed(high)}]"


def chance(value: float) -> str:
    """A p or a q."""
    return "–" if np.isnan(value) else f"{value:.1e}"


def share(value: float, of: int) -> str:
    """A share of so many; of one it is no share."""
    return percent(value) if of > 1 else f"{value:g} of {of}"


def percent(value: float) -> str:
    """A share."""
    return "–" if np.isnan(value) else f"{100 * value:.1f} %"


def short_name(contender: Mapping[str, object], several: Mapping[str, bool]) -> str:
    """ "rd.650M", with model, depth and pooling where a run has several of them."""
    name = str(contender["representation"])
    if contender["level"]:
        name += f".{contender['level']}"
    extras = [str(contender[key]) for key in ("model", "depth", "pooling") if several.get(key) and contender["model"]]
    if contender["labels"] != "true":
        extras.append("shuffled scores")
    return f"{name} ({', '.join(extras)})" if extras else name


def several_of(scores: pd.DataFrame) -> dict[str, bool]:
    own = scores[scores["model"] != ""]
    return {key: own[key].nunique() > 1 for key in ("model", "depth", "pooling")}


def groups_of(scores: pd.DataFrame) -> list[dict[str, object]]:
    """The model, depth and pooling of every family in a run."""
    keys = ["model", "depth", "pooling"]
    own = scores[(scores["model"] != "") & (scores["labels"] == "true")]
    return [dict(zip(keys, row, strict=True)) for row in own[keys].drop_duplicates().itertuples(index=False)]

"""The page: everything that it shows in one HTML file, which asks no server and no network for anything.

Numbers travel as base64 of little-endian arrays, text as JSON. Ids, descriptions and labels are other people's text:
the page gives them to the browser as text only, the JSON cannot end its element, and a content security policy lets
nothing run but the scripts that were put in here, known by their hashes, and nothing be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rd_hf.data.records import InputError
from rd_hf.maps.labels import Column
from rd_hf.maps.neighbours import Neighbours
from rd_hf.maps.projection import Projection
from rd_hf.maps.proteins import Proteins

# Characters of a description that a page keeps: a name and an organism, not a paper's abstract.
_LONGEST = 200
# For readers who see colours differently: Okabe and Ito's palette (2008), without its yellow, which is not seen on a
# light page; its black is white on a dark one. Markers tell apart what has the same colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "ink")
MARKERS = ("circle", "x", "triangle-up", "diamond", "cross", "square")


@dataclass(frozen=True, slots=True)
class Map:
    """What a page shows."""

    title: str
    proteins: Proteins  # those drawn
    projections: Sequence[Projection]  # one per level, smallest first
    neighbours: Mapping[str, Neighbours]  # of each level; empty where none were asked for
    columns: Sequence[Column]  # labels to colour by, the one that the page opens with first; may be empty
    method: str  # of the projection, in words
    descriptions: bool = True  # whether the proteins' descriptions go along


def _packed(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=np.dtype(kind).newbyteorder("<")).tobytes()).decode()


def page_data(content: Map) -> dict[str, Any]:
    """Return what the page's script reads; ``templates/data.js`` is the other half of this function.

    Coordinates are int16 steps of ``step`` (the frame is cut into 65,535), similarities uint16 steps of 2 / 65,535
    from -1, so that neither shows in a picture or in four digits.
    """
    proteins = content.proteins
    reach = max(float(np.abs(projection.points).max()) for projection in content.projections) or 1.0
    step = reach / 32767
    levels = []
    for projection in content.projections:
        level: dict[str, Any] = {
            "name": projection.level,
            "width": projection.width,
            "explained": projection.explained,
            "points": _packed(np.rint(projection.points / step), "int16"),
        }
        near = content.neighbours.get(projection.level)
        if near is not None:
            level["neighbours"] = _packed(near.indices, "uint16" if len(proteins.ids) <= 1 << 16 else "uint32")
            level["similarities"] = _packed(np.rint((np.clip(near.similarities, -1, 1) + 1) * 32767.5), "uint16")
        levels.append(level)
    k = next((near.indices.shape[1] for near in content.neighbours.values()), 0)
    return {
        "title": content.title,
        "model": proteins.model,
        "pooling": proteins.pooling,
        "total": proteins.total,
        "method": content.method,
        "k": k,
        "step": step,
        "levels": levels,
        "ids": proteins.ids,
        "descriptions": [_described(one, text) for one, text in zip(proteins.ids, proteins.descriptions, strict=True)]
        if content.descriptions
        else None,
        "records": _packed(proteins.records, "float64"),
        "lengths": _packed(proteins.lengths, "uint32"),
        "columns": [_column(column) for column in content.columns],
        "colours": COLOURS,
        "markers": MARKERS,
        "scales": number_scales(),
    }


def _column(column: Column) -> dict[str, Any]:
    numbers = None if column.numbers is None else _packed(column.numbers, "float64")
    packed = {"codes": _packed(column.codes, "int32"), "numbers": numbers}
    return {"name": column.name, "labels": column.labels, **packed, "scale": column.scale}


def number_scales() -> dict[str, list[str]]:
    """Colours of a scale of numbers, lowest first, for the light and the dark page.

    They are plotly's viridis (Smith and van der Walt 2015), whose lightness rises evenly for every kind of colour
    vision, each time without the end that the page's ground would swallow.
    """
    from plotly.colors import sequential

    colours = list(sequential.Viridis)
    return {"light": colours[:-1], "dark": colours[1:]}


def _described(name: str, description: str | None) -> str:
    """A description without the id that it begins with, cut where it is very long."""
    text = (description or "").strip()
    if name and text.startswith(name):
        text = text[len(name) :].strip()
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def inline_json(content: Any) -> Markup:
    """JSON that stands inside a ``<script>`` element: no character in it can end the element or begin a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


@cache
def _plotly() -> str:
    """plotly.js as the installed plotly carries it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise InputError('a map needs plotly: pip install "rd_hf[map]"') from error
    return str(get_plotlyjs())


def _inline_script(text: str) -> tuple[Markup, str]:
    """A script that may stand in the page, and its hash for the policy."""
    text = text.replace("\r\n", "\n")
    if "</script" in text.lower() or "<!--" in text:
        raise ValueError("a script that ends its own element cannot stand in a page")
    return Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def render_page(content: Map) -> str:
    """Return the page's HTML; InputError if plotly is not installed."""
    templates = files("rd_hf.maps") / "templates"
    plotly = _plotly()  # first: without it the extra is named
    own = [
        (templates / name).read_text(encoding="utf-8")
        for name in ("data.js", "elements.js", "drawing.js", "picture.js", "page.js")
    ]
    scripts = [_inline_script(text) for text in (plotly, *own)]
    environment = Environment(
        loader=PackageLoader("rd_hf.maps"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("page.html.jinja").render(
        title=content.title,
        style=Markup((templates / "page.css").read_text(encoding="utf-8")),
        data=inline_json(page_data(content)),
        scripts=[text for text, _ in scripts],
        hashes=[digest for _, digest in scripts],
    )

"""The colours and markers of a page, for readers who see colours differently."""

from __future__ import annotations

# Okabe and Ito's palette (2008), without its yellow, which is not seen on a light page; its black is white on a dark
# one. Markers tell apart what has the same colour.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "ink")
MARKERS = ("circle", "x", "triangle-up", "diamond", "cross", "square")


def number_scales() -> dict[str, list[str]]:
    """Colours of a scale of numbers, lowest first, for the light and the dark page.

    They are plotly's viridis (Smith and van der Walt 2015), whose lightness rises evenly for every kind of colour
    vision, each time without the end that the page's ground would swallow.
    """
    from plotly.colors import sequential

    colours = list(sequential.Viridis)
    return {"light": colours[:-1], "dark": colours[1:]}

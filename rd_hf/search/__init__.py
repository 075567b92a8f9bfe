"""Search and label transfer over nested embeddings: pay for the small level first.

``search(SearchSettings(...))`` is what ``rd-hf search`` runs: queries and a folder of embeddings in, a table of hits
out. Names are looked up on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rd_hf.search.job import search
    from rd_hf.search.settings import SearchSettings, SearchSummary

__all__ = ["SearchSettings", "SearchSummary", "search"]

_HOMES = {"SearchSettings": "settings", "SearchSummary": "settings", "search": "job"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

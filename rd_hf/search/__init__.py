"""Search and label transfer over nested embeddings: pay for the small level first.

``search(SearchSettings(...))`` is what ``rd-hf search`` runs: queries and a folder of embeddings in, a table of hits
out. The module itself can be called so, whichever of the two ``from rd_hf import search`` is taken for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import callable_as, lazy_names

if TYPE_CHECKING:
    from rd_hf.search.job import search
    from rd_hf.search.settings import SearchSettings, SearchSummary

__all__ = ["SearchSettings", "SearchSummary", "search"]

__getattr__ = lazy_names(
    __name__,
    {
        "SearchSettings": "rd_hf.search.settings",
        "SearchSummary": "rd_hf.search.settings",
        "search": "rd_hf.search.job",
    },
)
callable_as(__name__, "search")

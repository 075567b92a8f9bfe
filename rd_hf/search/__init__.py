"""Search and label transfer over nested embeddings: pay for the small level first.

``run_search(SearchSettings(...))`` is what ``rd-hf search`` runs: queries and a folder of embeddings in, a table of
hits out. It was called ``search``, as this module is: for a release that name is understood, and so is a call of the
module itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import callable_as, lazy_names

if TYPE_CHECKING:
    from rd_hf.search.job import run_search
    from rd_hf.search.settings import SearchSettings, SearchSummary

__all__ = ["SearchSettings", "SearchSummary", "run_search"]

__getattr__ = lazy_names(
    __name__,
    {
        "SearchSettings": "rd_hf.search.settings",
        "SearchSummary": "rd_hf.search.settings",
        "run_search": "rd_hf.search.job",
    },
    former={"search": "run_search"},
)
callable_as(__name__, "search")

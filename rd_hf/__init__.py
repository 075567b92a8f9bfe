"""Nested protein embeddings by reverse distillation, for the Hugging Face ecosystem.

Everything public is here by name and imported on first use, so that ``import rd_hf`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names
from rd_hf.version import __version__ as __version__

if TYPE_CHECKING:
    from rd_hf.carried import checkpoint
    from rd_hf.embedding import Embedder, EmbeddingOptions, JobSettings, JobSummary, run_job
    from rd_hf.families import esm2_config
    from rd_hf.fitting import (
        FitOptions,
        FitResult,
        FitSettings,
        FitSummary,
        draw_sample,
        fit_bases,
        install_bases,
        run_fit,
    )
    from rd_hf.hub import load_family, push_folder, push_model, save_checkpoint
    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
    from rd_hf.model.modeling_rd_esm import RDEsmModel
    from rd_hf.search import SearchSettings, SearchSummary, run_search

_HOMES = {
    "checkpoint": "rd_hf.carried",
    "RDEsmConfig": "rd_hf.model.configuration_rd_esm",
    "RDEsmForSequenceClassification": "rd_hf.model.heads_rd_esm",
    "RDEsmForTokenClassification": "rd_hf.model.heads_rd_esm",
    "RDEsmModel": "rd_hf.model.modeling_rd_esm",
    "esm2_config": "rd_hf.families",
    **dict.fromkeys(("Embedder", "EmbeddingOptions", "JobSettings", "JobSummary", "run_job"), "rd_hf.embedding"),
    **dict.fromkeys(("FitOptions", "FitResult", "FitSettings", "FitSummary"), "rd_hf.fitting"),
    **dict.fromkeys(("draw_sample", "fit_bases", "install_bases", "run_fit"), "rd_hf.fitting"),
    # The last is the room itself, however it is imported.
    **dict.fromkeys(("SearchSettings", "SearchSummary", "run_search", "search"), "rd_hf.search"),
    **dict.fromkeys(("load_family", "push_folder", "push_model", "save_checkpoint"), "rd_hf.hub"),
}

__all__ = [
    "Embedder",
    "EmbeddingOptions",
    "FitOptions",
    "FitResult",
    "FitSettings",
    "FitSummary",
    "JobSettings",
    "JobSummary",
    "RDEsmConfig",
    "RDEsmForSequenceClassification",
    "RDEsmForTokenClassification",
    "RDEsmModel",
    "SearchSettings",
    "SearchSummary",
    "__version__",
    "checkpoint",
    "draw_sample",
    "esm2_config",
    "fit_bases",
    "install_bases",
    "load_family",
    "push_folder",
    "push_model",
    "run_fit",
    "run_job",
    "run_search",
    "save_checkpoint",
]

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return __all__

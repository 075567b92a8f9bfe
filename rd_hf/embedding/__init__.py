"""Embedding: any number of proteins in, nested embeddings out, whatever happens on the way.

``Embedder`` is for ``datasets.map`` and for a few sequences in memory; ``run_job`` is what ``rd-hf embed`` runs:
files in, a folder of Parquet shards out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.embedding.embedder import Embedder
    from rd_hf.embedding.job import run_job
    from rd_hf.embedding.options import EmbeddingOptions
    from rd_hf.embedding.settings import JobSettings, JobSummary

__all__ = ["Embedder", "EmbeddingOptions", "JobSettings", "JobSummary", "run_job"]

__getattr__ = lazy_names(
    __name__,
    {
        "Embedder": "rd_hf.embedding.embedder",
        "EmbeddingOptions": "rd_hf.embedding.options",
        "JobSettings": "rd_hf.embedding.settings",
        "JobSummary": "rd_hf.embedding.settings",
        "run_job": "rd_hf.embedding.job",
    },
)

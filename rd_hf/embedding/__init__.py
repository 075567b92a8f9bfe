"""Embedding jobs: any number of proteins in, nested embeddings out.

``Embedder`` is for ``datasets.map`` and for a few sequences in memory; ``run_job`` is what ``scripts/embed.py``
runs: files in, a folder of Parquet shards out. Names are looked up on first use, so that ``--help`` and readers
of the options do not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rd_hf.embedding.options import EmbeddingOptions

if TYPE_CHECKING:
    from rd_hf.embedding.embedder import Embedder
    from rd_hf.embedding.job import JobSettings, JobSummary, run_job

__all__ = ["Embedder", "EmbeddingOptions", "JobSettings", "JobSummary", "run_job"]

_HOMES = {"Embedder": "embedder", "JobSettings": "job", "JobSummary": "job", "run_job": "job"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

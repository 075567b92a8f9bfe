"""The embedding job on a Ray cluster: the same folder, byte for byte where the digits allow, made by many machines.

``run_on_ray`` is what ``rd-hf embed --engine ray`` runs. Ray Data reads the inputs, one task each, into staged
Parquet files; the parts of the job are planned from those, exactly as the local job cuts them; a pool of actors, each
with the model loaded once, makes the parts; and this process alone puts them in their place and notes them.

Ray's own checkpoints (by an id column) are not used: they know of rows, not of files, and the folder's journal already
says which parts are whole, is checked by hash, and is the same for the local job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names

if TYPE_CHECKING:
    from rd_hf.embedding.ray.cluster import RaySettings
    from rd_hf.embedding.ray.job import run_on_ray

__all__ = ["RaySettings", "run_on_ray"]

__getattr__ = lazy_names(
    __name__, {"RaySettings": "rd_hf.embedding.ray.cluster", "run_on_ray": "rd_hf.embedding.ray.job"}
)

"""The embedding job on a Ray cluster: the same folder, byte for byte where the digits allow, made by many machines.

``run_on_ray`` is what ``rd-hf embed --engine ray`` runs. Ray Data reads the inputs, one task each, into staged
Parquet files; the parts of the job are planned from those, exactly as the local job cuts them; a pool of actors, each
with the model loaded once, makes the parts; and this process alone puts them in their place and notes them.

Ray's own checkpoints (by an id column) are not used: they know of rows, not of files, and the folder's journal already
says which parts are whole, is checked by hash, and is the same for the local job.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rd_hf.lazy import lazy_names
from rd_hf.options import check_options, option, real, whole

if TYPE_CHECKING:
    from rd_hf.embedding.ray.job import run_on_ray

__all__ = ["RaySettings", "run_on_ray"]


@dataclass(frozen=True, slots=True)
class RaySettings:
    """The cluster that a job runs on, and what it takes of it."""

    address: str | None = option(
        None,
        "of a Ray cluster: auto for the one this machine belongs to, or host:port (default: this machine alone, on "
        "which Ray is started and ended)",
        metavar="HOST:PORT",
    )
    workers: int | None = option(
        None, "most Ray workers at once (default: as many as the cluster holds)", kind=whole(1), metavar="N"
    )
    cpus: int = option(
        1,
        "processors of each worker, and its threads on them",
        kind=whole(1),
        flags=("--cpus-per-worker",),
        metavar="N",
    )
    gpus: float | None = option(
        None,
        "GPUs of each worker (default: one where the cluster has any, else none)",
        kind=real(0),
        flags=("--gpus-per-worker",),
        metavar="N",
    )
    deduplicate: bool = option(
        False,
        "compute a sequence that repeats anywhere in the input once (by a shuffle over the cluster), not only where it "
        "repeats within a file of the output",
    )

    def __post_init__(self) -> None:
        check_options(self)


__getattr__ = lazy_names(__name__, {"run_on_ray": "rd_hf.embedding.ray.job"})

"""This process among those that share a job, as ``accelerate launch`` or ``torchrun`` started them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

logger = logging.getLogger(__name__)


class LostProcessError(ValueError):
    """Another process of the job has ended, and with it the job."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The place of this process among the ``world`` of those of a job; ``local_rank`` picks its machine's GPU."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """Whether this process writes the folder's manifest."""
        return self.rank == 0

    def all_well(self, well: bool) -> bool:
        """Wait for every process, and return whether all are well; a LostProcessError if one has ended meanwhile."""
        if self.world == 1:
            return well
        import torch
        import torch.distributed as dist

        bad = torch.tensor([0 if well else 1], device=_state().device)
        try:
            dist.all_reduce(bad)
        except RuntimeError as error:
            raise LostProcessError("stopped, because another process of this job has ended: it says why") from error
        return int(bad) == 0


def processes() -> Processes:
    """Join the other processes of the launcher, if there are any; an ``Accelerator`` made afterwards is among them.

    A ValueError if accelerate does not see them.
    """
    world = os.environ.get("WORLD_SIZE", "").strip() or "1"
    if not world.isdecimal():
        raise ValueError(f"the environment variable WORLD_SIZE is {world!r}, not a number of processes: unset it")
    if int(world) <= 1:
        # accelerate launch gives an address to meet at wherever several processes are asked for, and starts one of
        # them where it finds no GPUs.
        if {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys() and "WORLD_SIZE" not in os.environ:
            logger.warning(
                "accelerate launch was asked for several processes and started one, as it does on CPUs: this one does "
                "all of the work; torchrun --nproc_per_node N starts N on CPUs"
            )
        return Processes()
    state = _state()
    if state.num_processes != int(world):
        raise ValueError(
            f"the launcher started {world} processes, but accelerate sees {state.num_processes}: "
            "start the job with accelerate launch (GPUs) or torchrun (CPUs), or as one process"
        )
    return Processes(state.process_index, state.num_processes, state.local_process_index)


def leave(group: Processes | None) -> None:
    """End the connection to the other processes, if there are any."""
    if group is not None and group.world > 1:
        import torch.distributed as dist

        dist.destroy_process_group()


@contextmanager
def left_at_the_end(group: Processes) -> Iterator[None]:
    """Leave the other processes as the work inside ends; not after an interruption, which they may not have had."""
    joined: Processes | None = group
    try:
        yield
    except KeyboardInterrupt:
        # Nobody waits for them.
        joined = None
        raise
    finally:
        leave(joined)


def _state() -> Any:
    import torch

    # It binds the group of the moment as a default argument. Imported later (transformers' models do), it would hold
    # our group for good, with threads that abort the process now and then as the interpreter ends.
    import torch.distributed.nn  # noqa: F401
    from accelerate import PartialState

    # NCCL refuses two processes on one GPU.
    here, gpus = os.environ.get("LOCAL_WORLD_SIZE", ""), torch.cuda.device_count() if torch.cuda.is_available() else 0
    shared = {"backend": "gloo"} if gpus and here.isdecimal() and int(here) > gpus else {}
    # The first to finish waits for the last: minutes or a day, so the usual half hour will not do. Unless it is given
    # a CPU, accelerate takes each process to be alone where there is no GPU.
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=30), **shared)

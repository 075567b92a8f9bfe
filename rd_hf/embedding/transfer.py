"""What goes to a device and comes back, without anybody waiting for it before it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device: to CUDA from pinned memory, so that the copy is only ordered here."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def all_moved(arguments: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a model is called with, on a device: tensors are moved, and the rest is as it was."""
    return {name: moved(one, device) if torch.is_tensor(one) else one for name, one in arguments.items()}


def fetched(tensor: torch.Tensor) -> Callable[[], np.ndarray]:
    """Order the copy of a tensor to the CPU; what is returned waits for it and gives an array of the same shape."""
    if tensor.device.type != "cuda":
        return tensor.cpu().numpy
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    # Blocking: whoever waits leaves its core to those who order more.
    arrived = torch.cuda.Event(blocking=True)
    arrived.record(torch.cuda.current_stream(tensor.device))

    def wait() -> np.ndarray:
        arrived.synchronize()
        return host.numpy()

    return wait


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the one that a thread means: each thread begins with the first."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

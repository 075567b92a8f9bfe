"""Whitening of the nested embedding, a block at a time, by statistics that are kept with the bases.

A level's block is what it appends to the smaller embedding; the first level's is its state. Each by itself is centred,
turned to its principal axes, divided by the deviations along them and multiplied by one weight, so that the first
dimensions of a whitened embedding are the whitened smaller embedding, bit for bit, and any cut between two levels keeps
the directions of most variance. How the statistics come about is in `rd_hf.bases.whitening`.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .weights_rd_esm import keep_float32


class RDEsmBlockWhitening(nn.Module):
    """(b - mean) map of one block, in float32 whichever dtype the backbones have.

    Args:
        width (`int`): d, width of the block.
    """

    mean: torch.Tensor
    map: torch.Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float32))
        # Principal axes over deviations, columns in order of falling variance.
        self.register_buffer("map", torch.eye(width, dtype=torch.float32))

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmBlockWhitening":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            keep_float32(self, name, buffer)
        return self

    def forward(self, block: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        """Whiten a block.

        Args:
            block (`torch.Tensor` of shape `(..., d)`): any float dtype.
            weight (`float`): what the whitened block is multiplied by.

        Returns:
            `torch.Tensor` of shape `(..., d)`, float32.
        """
        mean, turned = self.mean.to(block.device), self.map.to(block.device)
        with torch.autocast(device_type=block.device.type, enabled=False):
            # A copy of its own, so that the product is the same whatever stands beside the block.
            centred = block.to(mean.dtype, copy=True, memory_format=torch.contiguous_format) - mean
            return (centred @ turned) * weight


class RDEsmWhitening(nn.ModuleList):
    """One [`RDEsmBlockWhitening`] a level.

    Args:
        widths (`Sequence[int]`): d_i of each block.
        weights (`Sequence[float]`): of each block.
    """

    def __init__(self, widths: Sequence[int], weights: Sequence[float]) -> None:
        super().__init__(RDEsmBlockWhitening(width) for width in widths)
        self.widths, self.weights = list(widths), list(weights)

    def forward(self, embedding: torch.Tensor) -> torch.Tensor:
        """Whiten an embedding of any level.

        Args:
            embedding (`torch.Tensor` of shape `(..., width of the level)`): as the model returns it: of residues, or
                means of it, with which whitening commutes.

        Returns:
            `torch.Tensor` of the same shape, float32.

        Raises:
            ValueError: the width is that of no level.
        """
        parts: list[torch.Tensor] = []
        start, width = 0, embedding.shape[-1]
        for block, size, weight in zip(self, self.widths, self.weights):
            stop = start + size
            if stop > width:
                break
            parts.append(block(embedding[..., start:stop], weight))
            start = stop
        if start != width or not parts:
            raise ValueError(
                f"an embedding of {width} dimensions ends between two levels, and a block is whitened whole: whiten "
                f"the level, then cut"
            )
        return torch.cat(parts, dim=-1)

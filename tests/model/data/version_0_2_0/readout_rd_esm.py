"""The nested embedding out of the largest backbone's layers alone: an approximation for the cost of one backbone.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .projection_rd_esm import RDEsmProjection
from .weights_rd_esm import keep_float32


class RDEsmReadout(nn.Module):
    """An affine map from states of the largest backbone to e_(m-1), and the last step of the chain, fitted on it.

        e~   = mean(e_(m-1)) + (f - mean(f)) B,     f = [h_m, x_1, ..., x_n]
        e~_m = [e~, r V],                           r = (h_m - mean(h_m)) - (e~ - mean(e~)) W

    with x_j the state after a layer, under the backbone's final norm. All of it is computed in float32, whichever
    dtype the backbone has, and all of e~_m whichever level is wanted: levels are prefixes of it, bit for bit.

    Args:
        layers (`Sequence[int]`): those of x_1, ..., x_n; 0 is what the first layer is given.
        backbone_width (`int`): k, width of the backbone.
        prefix_width (`int`): p, width of e_(m-1).
        directions (`int`): width of the block that the last step appends.
    """

    state_means: torch.Tensor
    prefix_mean: torch.Tensor
    weights: torch.Tensor

    def __init__(self, layers: Sequence[int], backbone_width: int, prefix_width: int, directions: int) -> None:
        super().__init__()
        self.layers = tuple(layers)
        count, fp32 = 1 + len(self.layers), torch.float32
        self.register_buffer("state_means", torch.zeros(count, backbone_width, dtype=fp32))  # mean(f)
        self.register_buffer("prefix_mean", torch.zeros(prefix_width, dtype=fp32))  # mean(e_(m-1))
        self.register_buffer("weights", torch.zeros(count, backbone_width, prefix_width, dtype=fp32))  # B
        self.last = RDEsmProjection(prefix_width, backbone_width, directions)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmReadout":
        # As of a projection: values stay float32, and follow the device only.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            keep_float32(self, name, buffer)
        return self

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """e~_m of every position.

        Args:
            states: the final state, then those after `layers`, each `(..., k)` of any float dtype.

        Returns:
            `torch.Tensor` of shape `(..., p + directions)`, float32.
        """
        device = self.weights.device
        states = [state.to(device) for state in states]
        with torch.autocast(device_type=device.type, enabled=False):
            prefix = self.prefix_mean
            for state, mean, weights in zip(states, self.state_means, self.weights):
                # A layer at a time, so that no state is held twice; means come off before the product.
                prefix = prefix + (state.to(torch.float32) - mean) @ weights
        embedding: torch.Tensor = self.last(prefix, states[0])
        return embedding

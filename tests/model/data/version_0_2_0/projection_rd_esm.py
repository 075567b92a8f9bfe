"""One step of the chain: the residual block that a larger backbone adds to a smaller embedding.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Callable

import torch
from torch import nn

from .weights_rd_esm import keep_float32


class RDEsmProjection(nn.Module):
    """One step of the chain: appends the residual block of backbone i to the embedding of level i-1.

    All of it is linear algebra in float32, whichever dtype the backbones have: ESM-2's final states have
    channels whose mean is a hundred times their deviation, and bfloat16 would round away what is left after
    the mean is taken off.

    Args:
        prefix_width (`int`): p, width of the embedding e_(i-1).
        backbone_width (`int`): k, width of the hidden state h_i.
        directions (`int`): d, width of the block that is appended.
    """

    prefix_mean: torch.Tensor
    backbone_mean: torch.Tensor
    regression: torch.Tensor
    directions: torch.Tensor

    def __init__(self, prefix_width: int, backbone_width: int, directions: int) -> None:
        super().__init__()
        fp32 = torch.float32
        self.register_buffer("prefix_mean", torch.zeros(prefix_width, dtype=fp32))  # mean(e_(i-1))
        self.register_buffer("backbone_mean", torch.zeros(backbone_width, dtype=fp32))  # mean(h_i)
        self.register_buffer("regression", torch.zeros(prefix_width, backbone_width, dtype=fp32))  # W_i
        self.register_buffer("directions", torch.zeros(backbone_width, directions, dtype=fp32))  # V_i

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmProjection":
        # .to(bfloat16) and .half() reach buffers too; keep the values and follow the device only.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            keep_float32(self, name, buffer)
        return self

    def predict(self, prefix: torch.Tensor) -> torch.Tensor:
        """What the smaller level says of the larger state: mean(h_i) + (e_(i-1) - mean) W_i, `(..., k)`."""
        return self.backbone_mean + (prefix - self.prefix_mean) @ self.regression

    def forward(self, prefix: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """e_i = [e_(i-1), r_i V_i].

        Args:
            prefix (`torch.Tensor` of shape `(..., p)`): float32 embedding of the smaller level.
            state (`torch.Tensor` of shape `(..., k)`): hidden state of this level's backbone, any float dtype.

        Returns:
            `torch.Tensor` of shape `(..., p + d)`, float32.
        """
        # With several devices, each projection sits beside its backbone.
        device = self.regression.device
        prefix, state = prefix.to(device), state.to(device)
        with torch.autocast(device_type=device.type, enabled=False):
            # Means come off before the products, so that large channel means cost no precision.
            centred = state.to(self.backbone_mean.dtype) - self.backbone_mean
            residual = centred - (prefix.to(self.regression.dtype) - self.prefix_mean) @ self.regression
            return torch.cat((prefix, residual @ self.directions), dim=-1)

    def contribution(self, state: torch.Tensor) -> torch.Tensor:
        """(h_i - mean(h_i)) V_i: what the backbone brings to its block, before what the prefix says comes off.

        It is affine, as is all that follows, so that any weighted mean of it (over residues, over windows) is worth
        as much as its rows.

        Args:
            state (`torch.Tensor` of shape `(..., k)`): hidden state of this level's backbone, any float dtype.

        Returns:
            `torch.Tensor` of shape `(..., d)`, float32.
        """
        state = state.to(self.directions.device)
        with torch.autocast(device_type=state.device.type, enabled=False):
            return (state.to(self.backbone_mean.dtype) - self.backbone_mean) @ self.directions

    def append(self, prefix: torch.Tensor, contribution: torch.Tensor) -> torch.Tensor:
        """e_i of e_(i-1) and the contribution, or means of e_i of means of both: `forward` in another order.

        Args:
            prefix (`torch.Tensor` of shape `(..., p)`): float32 embedding of the smaller level.
            contribution (`torch.Tensor` of shape `(..., d)`): see `contribution`.

        Returns:
            `torch.Tensor` of shape `(..., p + d)`, float32; equal to `forward` up to rounding.
        """
        device = self.regression.device
        prefix, contribution = prefix.to(device), contribution.to(device)
        with torch.autocast(device_type=device.type, enabled=False):
            known = ((prefix.to(self.regression.dtype) - self.prefix_mean) @ self.regression) @ self.directions
            return torch.cat((prefix, contribution - known), dim=-1)

    def reconstruct(self, embedding: torch.Tensor) -> torch.Tensor:
        """Best reconstruction of h_i from e_i (Theorem 1): mean + (e_(i-1) - mean) W_i + (r_i V_i) V_i^T.

        Args:
            embedding (`torch.Tensor` of shape `(..., p + d)`): nested embedding of this level.

        Returns:
            `torch.Tensor` of shape `(..., k)`.
        """
        prefix, block = embedding.split([self.prefix_mean.shape[0], self.directions.shape[1]], dim=-1)
        return self.predict(prefix) + block @ self.directions.transpose(0, 1)

"""What is fitted, as modules: the steps of the chain, the one-pass readout, and the statistics to whiten blocks by.

All of it is linear algebra in float32, whichever dtype the backbones have: ESM-2's final states have channels whose
mean is a hundred times their deviation, and bfloat16 would round away what is left after the mean is taken off.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn


def check_finite(parts: Iterable[tuple[str, nn.Module]]) -> None:
    """Raise `ValueError` if any number of these, each with its name, is NaN or infinite."""
    for name, part in parts:
        for key, value in part.state_dict().items():
            if value.device.type != "meta" and not torch.isfinite(value).all():
                raise ValueError(f"{name} holds NaN or infinite numbers ({key}): fit it again, or fetch it again")


def keep_float32(module: nn.Module, name: str, before: torch.Tensor | None) -> None:
    """Undo a cast of a buffer to a narrower dtype, and keep a move to another device."""
    now = module._buffers[name]
    if now is not None and before is not None and now.dtype.itemsize < torch.float32.itemsize:
        module._buffers[name] = before.to(device=now.device, dtype=torch.float32)


class Float32Module(nn.Module):
    """A module whose buffers and parameters keep their values in float32, and follow the device only."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        # .to(bfloat16) and .half() reach buffers too.
        before = dict(self._buffers)
        weights = [
            (name, weight.data, None if weight.grad is None else weight.grad.data)
            for name, weight in self._parameters.items()
            if weight is not None
        ]
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            keep_float32(self, name, buffer)
        for name, data, grad in weights:
            now = self._parameters[name]
            if now is not None and now.dtype.itemsize < torch.float32.itemsize:
                # A gradient has its tensor's dtype at any time.
                now.grad = None
                now.data = data.to(device=now.device, dtype=torch.float32)
                now.grad = None if grad is None else grad.to(now.device)
        return self

    def _zeros(self, name: str, *shape: int) -> None:
        self.register_buffer(name, torch.zeros(shape, dtype=torch.float32))


class RDEsmProjection(Float32Module):
    """One step of the chain: appends the residual block of backbone i to the embedding of level i-1.

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
        self._zeros("prefix_mean", prefix_width)  # mean(e_(i-1))
        self._zeros("backbone_mean", backbone_width)  # mean(h_i)
        self._zeros("regression", prefix_width, backbone_width)  # W_i
        self._zeros("directions", backbone_width, directions)  # V_i

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
        """e_i of e_(i-1) and the contribution, or means of e_i of means of both.

        Returns:
            `torch.Tensor` of shape `(..., p + d)`, float32; equal to `forward` up to rounding.
        """
        device = self.regression.device
        prefix, contribution = prefix.to(device), contribution.to(device)
        with torch.autocast(device_type=device.type, enabled=False):
            known = ((prefix.to(self.regression.dtype) - self.prefix_mean) @ self.regression) @ self.directions
            return torch.cat((prefix, contribution - known), dim=-1)

    def reconstruct(self, embedding: torch.Tensor) -> torch.Tensor:
        """The paper's reconstruction of h_i from e_i, `(..., k)`: mean + (e_(i-1) - mean) W_i + (r_i V_i) V_i^T.

        With bases fitted by ordinary least squares it is the best linear one (Theorem 1). Principal component
        regression and ridge leave a part of the block that is linear in the prefix; there a linear decoder that is
        fitted on e_i does better, by as much as the fit's report says (`decoder_error`).

        Args:
            embedding (`torch.Tensor` of shape `(..., p + d)`): nested embedding of this level.
        """
        prefix, block = embedding.split([self.prefix_mean.shape[0], self.directions.shape[1]], dim=-1)
        return self.predict(prefix) + block @ self.directions.transpose(0, 1)


class RDEsmReadout(Float32Module):
    """The nested embedding of the largest backbone's layers alone: an approximation for the cost of one backbone.

    An affine map from its states to e_(m-1), and the last step of the chain, fitted on it:

        e~   = mean(e_(m-1)) + (f - mean(f)) B,     f = [h_m, x_1, ..., x_n]
        e~_m = [e~, r V],                           r = (h_m - mean(h_m)) - (e~ - mean(e~)) W

    with x_j the state after a layer, under the backbone's final norm. All of e~_m is computed whichever level is
    wanted: levels are prefixes of it, bit for bit.

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
        count = 1 + len(self.layers)
        self._zeros("state_means", count, backbone_width)  # mean(f)
        self._zeros("prefix_mean", prefix_width)  # mean(e_(m-1))
        self._zeros("weights", count, backbone_width, prefix_width)  # B
        self.last = RDEsmProjection(prefix_width, backbone_width, directions)

    def forward(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """e~_m of every position, `(..., p + directions)` float32.

        Args:
            states: the final state, then those after `layers`, each `(..., k)` of any float dtype.
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


class RDEsmBlockWhitening(Float32Module):
    """(b - mean) map of one block.

    Args:
        width (`int`): d, width of the block.
        grids (`bool`): whether it holds `spread`, of which grids for numbers of one byte are made: `(2, 2, 2, d)`, of
            residues and of means over a sequence's; as they are and whitened; each dimension's mean and deviation.
    """

    mean: torch.Tensor
    map: torch.Tensor
    spread: torch.Tensor

    def __init__(self, width: int, grids: bool = False) -> None:
        super().__init__()
        self._zeros("mean", width)
        if grids:
            self._zeros("spread", 2, 2, 2, width)
        # Principal axes over deviations, columns in order of falling variance.
        self.register_buffer("map", torch.eye(width, dtype=torch.float32))

    def forward(self, block: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        """Whiten a block, `(..., d)` of any float dtype, and multiply it by a weight: `(..., d)` float32."""
        mean, axes = self.mean.to(block.device), self.map.to(block.device)
        with torch.autocast(device_type=block.device.type, enabled=False):
            # A copy of its own, so that the product is the same whatever stands beside the block.
            centred = block.to(mean.dtype, copy=True, memory_format=torch.contiguous_format) - mean
            return (centred @ axes) * weight


class RDEsmWhitening(nn.ModuleList):
    """Whitens the nested embedding block by block: one [`RDEsmBlockWhitening`] per level.

    A level's block is what it appends to the smaller embedding; the first level's is its state. Each by itself is
    centred, rotated to its principal axes, divided by the deviations along them and multiplied by one weight, so that
    the first dimensions of a whitened embedding are the whitened smaller embedding, bit for bit, and any cut between
    two levels keeps the directions of most variance. `rd_hf.bases.whitening` fits the statistics.

    Args:
        widths (`Sequence[int]`): d_i of each block.
        weights (`Sequence[float]`): of each block.
        grids (`bool`): whether blocks hold what grids are made of.
    """

    def __init__(self, widths: Sequence[int], weights: Sequence[float], grids: bool = False) -> None:
        super().__init__(RDEsmBlockWhitening(width, grids) for width in widths)
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
        blocks: list[torch.Tensor] = []
        start, width = 0, embedding.shape[-1]
        for block, size, weight in zip(self, self.widths, self.weights):
            stop = start + size
            if stop > width:
                break
            blocks.append(block(embedding[..., start:stop], weight))
            start = stop
        if start != width or not blocks:
            raise ValueError(
                f"an embedding of {width} dimensions ends between two levels, and a block is whitened whole: whiten "
                f"the level, then cut"
            )
        return torch.cat(blocks, dim=-1)

"""The backbones' layers in fewer passes over memory, with the library's parameters and to its numbers within rounding.

transformers writes ESM-2's activation out, ``x * 0.5 * (1 + erf(x / sqrt(2)))``: five passes over the widest tensor of
a layer, 10 to 25 % of a forward pass on a CPU. Here it is one (``torch.nn.functional.gelu``, which takes erf from the
same definition and rounds once). On a CPU in float32, where no gradient is recorded, matrix product, bias, activation
and residual addition are one call of oneDNN, whose products also took 10 % less time than those of MKL on a processor
of another maker than MKL's (AMD EPYC, Zen 4).

Which of the library's modules are replaced is decided by what they compute, so that a release that computes something
else is left alone. A module keeps its parameters, their names and its hooks; only the class of this one instance is
another, and so no other model of the process is touched, and adapters, ``torch.compile``, ``pickle`` and ``deepcopy``
find what they found.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Callable
from functools import cache
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear, silu

from .rotary_rd_esm import turning, turns

# Multiplications from which on a call of oneDNN, which prepares its kernel anew for every number of rows (0.6 ms),
# takes less time than what it replaces.
_WORTH_FUSING = 2**24


class LeanIntermediate(nn.Module):
    """First half of a feed-forward block: `gelu(dense(x))`."""

    dense: nn.Module

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if fuses(self.dense, hidden_states):
            return _product(hidden_states, self.dense, "gelu")
        return gelu(self.dense(hidden_states))


class LeanOutput(nn.Module):
    """The end of an attention or feed-forward block: `dense(x)` and the state that it adds to."""

    dense: nn.Module
    dropout: nn.Module

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        if not self.dropout.training and fuses(self.dense, hidden_states):
            return _product_with(hidden_states, input_tensor, self.dense, "add")
        return self.dropout(self.dense(hidden_states)) + input_tensor


class LeanGatedFeedForward(nn.Module):
    """ESM-C's feed-forward block, SwiGLU (Shazeer 2020): `down_proj(silu(gate_proj(x)) * up_proj(x))`."""

    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    act_fn: nn.Module

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        within = (self.gate_proj, self.up_proj)
        activation: Any = type(self.act_fn)
        if all(fuses(product, hidden_states) for product in within) and _is_silu(activation):
            gate = _product(hidden_states, self.gate_proj, "swish")
            return self.down_proj(_product_with(hidden_states, gate, self.up_proj, "mul"))
        return self.down_proj(self.act_fn(self.gate_proj(hidden_states)) * self.up_proj(hidden_states))


# Classes of transformers by name, since only the models themselves are public, and what each is called with.
_LEAN: dict[str, tuple[type[nn.Module], int]] = {
    "EsmIntermediate": (LeanIntermediate, 1),
    "EsmSelfOutput": (LeanOutput, 2),
    "EsmOutput": (LeanOutput, 2),
    "EsmcMLP": (LeanGatedFeedForward, 1),
}


def make_lean(backbone: nn.Module) -> None:
    """Let the layers of this backbone compute the same in less time."""
    for module in backbone.modules():
        library: Any = type(module)
        lean: Any
        lean, arguments = _LEAN.get(library.__name__, (None, 0))
        if lean is not None and not _computes_the_same(library.forward, lean.forward, arguments):
            lean = None
        elif turns(library):
            lean = turning(library)
        if lean is not None:
            module.__class__ = lean
            if "_old_forward" in vars(module):
                # Placed by a device map: accelerate calls what it found, from a method of its own.
                module._old_forward = MethodType(lean.forward, module)  # type: ignore[assignment]


@cache
def _computes_the_same(theirs: Callable[..., Any], ours: Callable[..., Any], arguments: int) -> bool:
    """Whether two forward methods make the same of the outputs of the layers within."""
    names = ("dense", "dropout", "gate_proj", "up_proj", "down_proj")
    within = SimpleNamespace(**{name: nn.Identity() for name in names}, act_fn=nn.SiLU())
    states = [torch.linspace(-6, 6, 97, device="cpu", dtype=torch.float32).roll(step) for step in range(arguments)]
    try:
        expected = theirs(within, *states)
    except (AttributeError, TypeError):
        return False
    # Values up to 6, of which the library rounds each five times: a few units in the last place.
    return torch.allclose(ours(within, *states), expected, rtol=1e-6, atol=1e-6)


@cache
def _is_silu(activation: Callable[[], Any]) -> bool:
    """Whether modules of this class are SiLU (the library has a class of its own)."""
    states = torch.linspace(-6, 6, 97, device="cpu", dtype=torch.float32)
    return "silu" in getattr(activation, "__name__", "").lower() and torch.equal(activation()(states), silu(states))


def fuses(dense: nn.Module, states: torch.Tensor) -> bool:
    """Whether a layer's product may be one call with what follows it: no one else looks at what is in between."""
    return bool(
        # No adapter, no quantised layer, no tensor that stands for others; in a compiled or traced graph the
        # compiler fuses by itself.
        type(dense) is nn.Linear
        and type(states) is torch.Tensor
        and type(dense.weight) is nn.Parameter
        # While a model is trained its first pass may be without gradients too (checkpointing), and is made again.
        and not (torch.is_grad_enabled() or dense.training)
        and not torch.compiler.is_compiling()
        and states.device.type == "cpu"
        and states.dtype == dense.weight.dtype == torch.float32
        and states.numel() * dense.out_features >= _WORTH_FUSING
        and not (dense._forward_hooks or dense._forward_pre_hooks or "forward" in vars(dense))
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and torch.backends.mkldnn.enabled
        and _fusion_works()
    )


def _product(states: torch.Tensor, dense: nn.Module, activation: str) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, dense.weight, dense.bias, activation, [], "none")


def _product_with(states: torch.Tensor, other: torch.Tensor, dense: nn.Module, operation: str) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(states, other, dense.weight, dense.bias, operation)


@cache
def _fusion_works() -> bool:
    """Whether this build of torch has the calls that its own compiler makes, and they compute what is meant.

    They are no documented part of torch: one that is gone, or has come to mean something else, is not used.
    """
    dense = nn.utils.skip_init(nn.Linear, 3, 5, device="cpu", dtype=torch.float32)
    states = torch.linspace(-2, 2, 12, device="cpu", dtype=torch.float32).view(4, 3)
    other = torch.linspace(3, -3, 20, device="cpu", dtype=torch.float32).view(4, 5)
    with torch.no_grad():
        dense.weight.copy_(torch.linspace(-1, 1, 15).view(5, 3))
        dense.bias.copy_(torch.linspace(1, -1, 5))
        product = linear(states, dense.weight, dense.bias)
        try:
            pairs = [
                (_product(states, dense, "gelu"), gelu(product)),
                (_product(states, dense, "swish"), silu(product)),
                (_product_with(states, other, dense, "add"), product + other),
                (_product_with(states, other, dense, "mul"), product * other),
            ]
        except (AttributeError, RuntimeError, TypeError):
            return False
    # Sums of three products of numbers of order one.
    return all(torch.allclose(found, expected, rtol=1e-5, atol=1e-6) for found, expected in pairs)

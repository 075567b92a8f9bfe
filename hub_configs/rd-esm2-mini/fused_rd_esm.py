"""The backbones' layers in fewer passes over memory, with the library's parameters and to its numbers within rounding.

* **Activation.** transformers writes ESM-2's out, ``x * 0.5 * (1 + erf(x / sqrt(2)))``: five passes over the widest
  tensor of a layer, 10 to 25 % of a forward pass on a CPU. Here it is one (``torch.nn.functional.gelu``, which takes
  erf from the same definition and rounds once).
* **Products on a CPU**, in float32 and without gradients: matrix product, bias, activation and residual addition are
  one call of oneDNN, whose products also took 10 % less time than those of MKL on a processor of another maker than
  MKL's (AMD EPYC, Zen 4).
* **Rotary positions on a GPU** (Su et al. 2021). The library writes ``x * cos + rotate_half(x) * sin`` out, newer
  releases between two casts: 36 to 52 bytes per number in bfloat16 and 40 in float32. On an H200, at 650M in bfloat16,
  elementwise operations (this function's and the residual sums) took 219 of 490 ms of a forward pass, its matrix
  products 160. Here a product with ``cos`` is followed by one fused multiply-add for each half, 14 and 20 bytes; sums
  are float32 and are rounded once, as the library's are. On a CPU it gained .01 to .03 of a pass, and is left out.

The library's own ``forward``, as it is at that moment, runs wherever the difference could be seen: under a compiler, a
tracer, a mode or a transform of torch, where a function of the library or of torch was replaced, and (of products in
one call) where a module within has hooks or is not what the library put there. What is cached is cached per function
that was looked at. A module keeps its parameters, their names and its hooks; only the class of this one instance is
another, a subclass of the library's under its name, so that no other model of the process is touched.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import inspect
import os
from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType, FunctionType, MethodType, SimpleNamespace
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from torch.nn import functional
from torch.nn.functional import gelu, linear, silu

from .layers_rd_esm import InPlaceOf, in_place_of, runs_as_written

# Multiplications from which on a call of oneDNN, which prepares its kernel anew for every number of rows (0.6 ms),
# takes less time than what it replaces.
_WORTH_FUSING = 2**24
# What transformers calls the function, in every release and family that has one.
_ROTARY = "apply_rotary_pos_emb"
_SHIPPED = tuple(os.path.dirname(str(library.__file__)) + os.sep for library in (torch, transformers))


class _Fused(InPlaceOf):
    """A mixin before a class of the library: a block whose `forward` computes what `meaning` does, in fewer passes."""

    # What the library puts within, and how many tensors `forward` takes.
    members: ClassVar[dict[str, type[nn.Module]]]
    takes = 1

    @staticmethod
    def meaning(block: Any, *states: torch.Tensor) -> torch.Tensor:
        """What the block computes, by the modules within."""
        raise NotImplementedError

    def _may_replace(self, states: tuple[Any, ...], others: dict[str, Any]) -> bool:
        """Whether the library's `forward` would compute the same, and nobody sees by which operations."""
        return (
            runs_as_written()
            and not others
            and len(states) == self.takes
            and all(type(one) is torch.Tensor for one in states)
            and _computes(_parts(self.library.forward), type(self).meaning, self.takes)
        )


class FusedIntermediate(_Fused):
    """First half of a feed-forward block."""

    members = {"dense": nn.Linear}
    dense: nn.Module

    @staticmethod
    def meaning(block: Any, *states: torch.Tensor) -> torch.Tensor:
        return gelu(block.dense(states[0]))

    def forward(self, *states: Any, **others: Any) -> Any:
        if not self._may_replace(states, others):
            return super().forward(*states, **others)  # type: ignore[misc]
        if _is_one_call(self, states[0]):
            return _product(states[0], self.dense, "gelu")
        product = self.dense(states[0])
        if type(product) is torch.Tensor:
            return gelu(product)
        # Of a quantised layer, say: what stands for numbers is left to the library.
        return self.library.forward(SimpleNamespace(dense=lambda _: product), *states)


class FusedOutput(_Fused):
    """The end of an attention or feed-forward block, and the state that it adds to."""

    members = {"dense": nn.Linear, "dropout": nn.Dropout}
    takes = 2
    dense: nn.Module

    @staticmethod
    def meaning(block: Any, *states: torch.Tensor) -> torch.Tensor:
        return block.dropout(block.dense(states[0])) + states[1]

    def forward(self, *states: Any, **others: Any) -> Any:
        if self._may_replace(states, others) and _is_one_call(self, states[0]) and _has_its_shape(self.dense, *states):
            return _product_with(states[0], states[1], self.dense, "add")
        return super().forward(*states, **others)  # type: ignore[misc]


class FusedGatedFeedForward(_Fused):
    """ESM-C's feed-forward block, SwiGLU (Shazeer 2020)."""

    members = {"gate_proj": nn.Linear, "up_proj": nn.Linear, "down_proj": nn.Linear, "act_fn": nn.SiLU}
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    @staticmethod
    def meaning(block: Any, *states: torch.Tensor) -> torch.Tensor:
        return block.down_proj(block.act_fn(block.gate_proj(states[0])) * block.up_proj(states[0]))

    def forward(self, *states: Any, **others: Any) -> Any:
        if not (self._may_replace(states, others) and _is_one_call(self, states[0])):
            return super().forward(*states, **others)  # type: ignore[misc]
        gate = _product(states[0], self.gate_proj, "swish")
        return self.down_proj(_product_with(states[0], gate, self.up_proj, "mul"))


class FusedRotary(InPlaceOf):
    """A module that rotates queries and keys by their positions: on a GPU it calls `fused_rotary` to do so."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if runs_as_written() and args and _is_on_gpu(args[0]):
            library: Any = self.library.forward
            ours = _rotary_of(library)
            if ours is not None:
                # Made at each call, in some microseconds, so that all else that it names is what it is at that moment.
                around = {**library.__globals__, _ROTARY: ours}
                forward = FunctionType(
                    library.__code__, around, library.__name__, library.__defaults__, library.__closure__
                )
                forward.__kwdefaults__ = library.__kwdefaults__
                return forward(self, *args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]


# Classes of transformers by name, since only the models themselves are public.
_FUSED: dict[str, type[_Fused]] = {
    "EsmIntermediate": FusedIntermediate,
    "EsmSelfOutput": FusedOutput,
    "EsmOutput": FusedOutput,
    "EsmcMLP": FusedGatedFeedForward,
}


def fuse_layers(backbone: nn.Module) -> None:
    """Let the layers of this backbone compute the same in less time."""
    for module in backbone.modules():
        library: Any = type(module)
        fused: type[InPlaceOf] | None = _FUSED.get(library.__name__)
        if fused is None and _names_rotary(library.forward):
            fused = FusedRotary
        if fused is None or issubclass(library, InPlaceOf) or not _is_shipped(library.forward):
            continue
        module.__class__ = in_place_of(library, fused)  # type: ignore[arg-type]
        placed = vars(module).get("_old_forward")
        if getattr(placed, "__func__", None) is library.forward:
            # Placed by a device map: accelerate calls what it found, from a method of its own.
            module._old_forward = MethodType(type(module).forward, module)  # type: ignore[assignment]


def _is_shipped(*functions: Any) -> bool:
    """Whether functions are such that torch or transformers came with; not one that wraps them, whatever its name."""
    return all(type(one) in (FunctionType, BuiltinFunctionType) and _came_with_them(one) for one in functions)


@cache
def _came_with_them(function: Any) -> bool:
    return type(function) is BuiltinFunctionType or function.__code__.co_filename.startswith(_SHIPPED)


def _parts(function: Any) -> tuple[Any, ...]:
    """A shipped function, and in turn those that it calls by name, as they are now; None in place of any other."""
    if not _is_shipped(function):
        return (None,)
    parts = (function,)
    if type(function) is FunctionType:
        around = function.__globals__
        for name in function.__code__.co_names:
            if callable(called := around.get(name)):
                parts += _parts(called)
    return parts


@cache
def _computes(parts: tuple[Any, ...], meaning: Callable[..., torch.Tensor], takes: int) -> bool:
    """Whether a `forward`, with the functions that it calls, is the library's and makes the same of what is within."""
    if None in parts:
        return False
    # Each another, so that none may be left out or take another's place.
    within = SimpleNamespace(
        dense=lambda x: 1.5 * x + 0.25,
        dropout=lambda x: x - 0.5,
        gate_proj=lambda x: 0.75 * x,
        up_proj=lambda x: x + 1,
        down_proj=lambda x: 0.5 * x - 2,
        act_fn=nn.SiLU(),
    )
    states = [torch.linspace(-4, 4, 97, device="cpu", dtype=torch.float32).roll(step) for step in range(takes)]
    try:
        expected = parts[0](within, *states)
    except Exception:
        # Of a release that asks for something else.
        return False
    # Values up to 6, of which the library rounds each five times: a few units in the last place.
    return torch.allclose(meaning(within, *states), expected, rtol=1e-6, atol=1e-6)


def _is_one_call(block: Any, states: torch.Tensor) -> bool:
    """Whether a product of a block and what follows it may be one call: all within is as the library put it there,
    and nothing looks at what is in between."""
    members = block._modules
    return bool(
        not torch.is_grad_enabled()
        and _is_ordinary(states)
        and members.keys() == block.members.keys()
        and _is_worth_it(next(iter(members.values())), states)
        and all(_is_untouched(members[name], kind) for name, kind in block.members.items())
        and _torch_is_its_own()
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.enabled
        and _fusion_works()
    )


def _is_ordinary(tensor: Any, kind: Any = torch.Tensor) -> bool:
    """Whether a tensor is numbers in memory, float32, and stands for nothing else."""
    return bool(
        type(tensor) is kind and tensor.is_cpu and tensor.dtype is torch.float32 and tensor.layout is torch.strided
    )


def _is_untouched(member: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether a module within a block is just what the library made: nothing replaced, hung on, or drawn."""
    held = vars(member)
    if (
        # While a model is trained its first pass may be without gradients too (checkpointing), and is made again.
        member.training
        or "forward" in held
        or held.get("_compiled_call_impl") is not None
        or member._forward_hooks
        or member._forward_pre_hooks
        or member._backward_hooks
        or member._backward_pre_hooks
    ):
        return False
    own: Any = type(member)
    if not _is_shipped(own.__call__, own._call_impl, own.forward):
        return False
    if kind is nn.SiLU:
        return _is_silu(own, _parts(own.forward))
    return own is kind and (kind is not nn.Linear or _has_ordinary_weights(member))


def _has_ordinary_weights(dense: Any) -> bool:
    """Whether a linear layer's weights are its own, of the shapes it was made with."""
    held = dense._parameters
    weight, bias = held.get("weight"), held.get("bias")
    return bool(
        held.keys() == {"weight", "bias"}
        and _is_ordinary(weight, nn.Parameter)
        and weight.shape == (dense.out_features, dense.in_features)
        and (bias is None or (_is_ordinary(bias, nn.Parameter) and bias.shape == (dense.out_features,)))
    )


def _is_worth_it(dense: Any, states: torch.Tensor) -> bool:
    """Whether a product is possible, and large enough to gain."""
    return (
        type(dense) is nn.Linear
        and dense.in_features == states.shape[-1]
        and states.numel() * dense.out_features >= _WORTH_FUSING
    )


def _has_its_shape(dense: Any, states: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether what is added to a product is a tensor of its shape."""
    return _is_ordinary(other) and other.shape == (*states.shape[:-1], dense.out_features)


def _torch_is_its_own() -> bool:
    """Whether nothing hangs on all modules, and the functions that one call goes past are torch's own."""
    every = nn.modules.module
    try:
        return _is_shipped(functional.linear, functional.dropout, functional.silu) and not (
            every._global_forward_hooks
            or every._global_forward_pre_hooks
            or every._global_backward_hooks
            or every._global_backward_pre_hooks
        )
    except AttributeError:
        return False


@cache
def _is_silu(kind: Any, parts: tuple[Any, ...]) -> bool:
    """Whether modules of this class are SiLU (the library has a class of its own)."""
    states = torch.linspace(-6, 6, 97, device="cpu", dtype=torch.float32)
    return None not in parts and "silu" in kind.__name__.lower() and torch.equal(kind()(states), silu(states))


def _product(states: torch.Tensor, dense: Any, activation: str) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(states, dense.weight, dense.bias, activation, [], "none")


def _product_with(states: torch.Tensor, other: torch.Tensor, dense: Any, operation: str) -> torch.Tensor:
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


def _is_on_gpu(states: Any) -> bool:
    return type(states) is torch.Tensor and states.device.type == "cuda"


def _names_rotary(forward: Any) -> bool:
    return isinstance(forward, FunctionType) and _ROTARY in forward.__code__.co_names


def _rotary_of(forward: Any) -> Callable[..., Any] | None:
    """What replaces the rotary function that a `forward` of the library names, None for any other `forward`."""
    if not (_names_rotary(forward) and _is_shipped(forward)):
        return None
    theirs = forward.__globals__.get(_ROTARY)
    return _replacement(theirs) if _rotates_the_same(_parts(theirs)) else None


@cache
def _rotates_the_same(parts: tuple[Any, ...]) -> bool:
    """Whether a function, with those that it calls, is the library's and computes what ours does."""
    theirs = parts[0]
    if None in parts or _replacement(theirs) is None:
        return False
    angles = torch.linspace(0, 9, 10, device="cpu", dtype=torch.float32).view(1, 5, 2).repeat(1, 1, 2)
    states = [torch.linspace(-3, 3, 120, device="cpu", dtype=torch.float32).view(2, 3, 5, 4).roll(n, 2) for n in (0, 1)]
    cos, sin = angles.cos(), angles.sin()
    around = cos[:, None], sin[:, None]
    with torch.no_grad():
        if "k" in inspect.signature(theirs).parameters:
            expected = theirs(*states, cos, sin)
        else:
            expected = [theirs(one, *around) for one in states]
        found = [fused_rotary(one, *around) for one in states]
    # One rounding less than the library's three, of numbers up to 3.
    return all(torch.allclose(one, other, rtol=1e-6, atol=1e-6) for one, other in zip(found, expected, strict=True))


@cache
def _replacement(theirs: Callable[..., Any]) -> Callable[..., Any] | None:
    """What is called in place of the library's function, None where its arguments are others."""
    names = list(inspect.signature(theirs).parameters)
    if names == ["x", "cos", "sin"]:

        def one(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            if not _is_faster(x):
                return theirs(x, cos, sin)
            length = x.shape[-2]
            return fused_rotary(x, cos[:, :, :length], sin[:, :, :length])

        return one
    if names not in (["q", "k", "cos", "sin"], ["q", "k", "cos", "sin", "unsqueeze_dim"]):
        return None

    def both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not (_is_faster(q) and _is_faster(k)):
            return theirs(q, k, cos, sin, *([unsqueeze_dim] if len(names) == 5 else []))
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return fused_rotary(q, cos, sin), fused_rotary(k, cos, sin)

    return both


def _is_faster(states: torch.Tensor) -> bool:
    """Whether fewer passes are less time there, and compute the same: measured for float32 and 16 bits."""
    device, dtype = states.device.type, states.dtype
    return bool(
        _is_on_gpu(states)
        and dtype in (torch.float32, torch.bfloat16, torch.float16)
        and not torch.is_autocast_enabled(device)
        and _rotary_works(device, dtype)
    )


def fused_rotary(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair of numbers, half a head apart, rotated by the angle of its position.

    Args:
        states (`torch.Tensor` of shape `(batch, heads, length, head width)`).
        cos, sin (`torch.Tensor` that broadcast to it): of the angles, the same for both halves.

    Returns:
        `torch.Tensor` like `states`, computed in float32.
    """
    cos, sin = cos.float(), sin.float()
    first, second = slice(states.shape[-1] // 2), slice(states.shape[-1] // 2, None)
    wide = states * cos
    if torch.is_grad_enabled():
        # The same sums, each in memory of its own.
        halves = (
            torch.addcmul(wide[..., first], states[..., second].float(), sin[..., first], value=-1),
            torch.addcmul(wide[..., second], states[..., first].float(), sin[..., second]),
        )
        return torch.cat(halves, dim=-1).to(states.dtype)
    out = wide if wide.dtype == states.dtype else torch.empty_like(states)
    torch.addcmul(wide[..., first], states[..., second], sin[..., first], value=-1, out=out[..., first])
    torch.addcmul(wide[..., second], states[..., first], sin[..., second], out=out[..., second])
    return out


@cache
def _rotary_works(device: str, dtype: torch.dtype) -> bool:
    """Whether this build of torch adds and rounds in one call on that kind of device."""
    states = torch.linspace(-2, 2, 24, device=device, dtype=torch.float32).view(1, 2, 3, 4).to(dtype)
    angles = torch.linspace(0, 6, 6, device=device, dtype=torch.float32).view(3, 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    one, other = states.float().chunk(2, dim=-1)
    expected = (states.float() * cos + torch.cat((-other, one), dim=-1) * sin).to(dtype)
    try:
        with torch.no_grad():
            found = fused_rotary(states, cos, sin)
    except RuntimeError:
        return False
    # A unit in the last place of numbers up to 3, where what is rounded lies between two.
    return found.dtype == dtype and torch.allclose(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)

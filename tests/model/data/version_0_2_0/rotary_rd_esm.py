"""Rotary positions (Su et al. 2021) in three passes over memory a tensor, where transformers takes seven to nine.

The library writes ``x * cos + rotate_half(x) * sin`` out, newer releases between two casts: 36 to 52 bytes a number in
bfloat16 and 40 in float32. On an H200, at 650M in bfloat16, products, sums, copies and joins of single numbers (this
function's and the residual sums) took 219 of 490 ms of a forward pass, its matrix products 160. Here a product with
``cos`` is followed by one fused multiply-add for each half, 14 and 20 bytes; sums are float32 and are rounded once, as
the library's are.

A layer's own ``forward`` runs as it is written: of this one instance it sees another function under the name
``apply_rotary_pos_emb``. The class of the instance is a subclass of the library's, by its name, so that what looks for
the library's attention finds it.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from .pooling_rd_esm import is_tracing

# What transformers calls the function, in every release and family that has one.
_NAME = "apply_rotary_pos_emb"


class _Turning:
    """Before a class whose `forward` turns queries and keys by our function: how it is pickled and copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _again, (type(self).__mro__[2],), dict(self.__dict__)


@functools.cache
def turning(library: type[nn.Module]) -> type[nn.Module]:
    """A class of modules under its own name that turns in fewer passes."""
    around = {"__module__": library.__module__, "forward": _with_ours(library.forward)}  # type: ignore[arg-type]
    return type(library.__name__, (_Turning, library), around)


def _again(library: type[nn.Module]) -> nn.Module:
    """A module that was pickled or copied; its state follows."""
    return nn.Module.__new__(turning(library))  # type: ignore[arg-type]


@functools.cache
def turns(library: type[nn.Module]) -> bool:
    """Whether modules of this class turn queries and keys by a function that computes what ours does."""
    forward: Any = library.forward
    theirs = getattr(forward, "__globals__", {}).get(_NAME)
    if (
        issubclass(library, _Turning)
        or not isinstance(forward, FunctionType)
        or _NAME not in forward.__code__.co_names
        or theirs is None
    ):
        return False
    ours = _ours(theirs)
    if ours is None:
        return False
    angles = torch.linspace(0, 9, 10, device="cpu", dtype=torch.float32).view(1, 5, 2).repeat(1, 1, 2)
    states = [torch.linspace(-3, 3, 120, device="cpu", dtype=torch.float32).view(2, 3, 5, 4).roll(n, 2) for n in (0, 1)]
    cos, sin = angles.cos(), angles.sin()
    with torch.no_grad():
        if "k" in inspect.signature(theirs).parameters:
            pairs = list(zip(ours(*states, cos, sin), theirs(*states, cos, sin), strict=True))
        else:
            pairs = [(ours(states[0], cos[None], sin[None]), theirs(states[0], cos[None], sin[None]))]
        # One rounding less than the library's three, of numbers up to 3.
        return all(torch.allclose(found, expected, rtol=1e-6, atol=1e-6) for found, expected in pairs)


def _with_ours(forward: FunctionType) -> FunctionType:
    """The same function, for which one global name means another."""
    around = {**forward.__globals__, _NAME: _ours(forward.__globals__[_NAME])}
    # Or torch.compile would look for our function in the library's module.
    del around["__name__"]
    copy = FunctionType(forward.__code__, around, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


@functools.cache
def _ours(theirs: Callable[..., Any]) -> Callable[..., Any] | None:
    """What is called in place of the library's function, None where its arguments are others."""
    try:
        names = list(inspect.signature(theirs).parameters)
    except (TypeError, ValueError):
        return None
    if names == ["x", "cos", "sin"]:

        def one(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
            if not pays(x):
                return theirs(x, cos, sin)
            length = x.shape[-2]
            return turned(x, cos[:, :, :length], sin[:, :, :length])

        return one
    if names not in (["q", "k", "cos", "sin"], ["q", "k", "cos", "sin", "unsqueeze_dim"]):
        return None

    def both(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not (pays(q) and pays(k)):
            return theirs(q, k, cos, sin, *([unsqueeze_dim] if len(names) == 5 else []))
        cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
        return turned(q, cos, sin), turned(k, cos, sin)

    return both


def pays(states: torch.Tensor) -> bool:
    """Whether fewer passes are less time, and compute the same: measured for float32 anywhere, 16 bits on GPUs."""
    device, dtype = states.device.type, states.dtype
    return bool(
        type(states) is torch.Tensor
        and (dtype == torch.float32 or (device == "cuda" and dtype in (torch.bfloat16, torch.float16)))
        and device in ("cpu", "cuda")
        and not torch.is_autocast_enabled(device)
        # A graph is made of plain calls, and of what was found before.
        and (is_tracing() or _works(device, dtype))
    )


def turned(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair of numbers, half a head apart, turned by the angle of its position.

    Args:
        states (`torch.Tensor` of shape `(batch, heads, length, head width)`).
        cos, sin (`torch.Tensor` that broadcast to it): of the angles, the same for both halves.

    Returns:
        `torch.Tensor` like `states`, computed in float32.
    """
    cos, sin = cos.float(), sin.float()
    first, second = slice(states.shape[-1] // 2), slice(states.shape[-1] // 2, None)
    wide = states * cos
    if torch.is_grad_enabled() or is_tracing():
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


@functools.cache
def _works(device: str, dtype: torch.dtype) -> bool:
    """Whether this build of torch adds and rounds in one call on that kind of device."""
    states = torch.linspace(-2, 2, 24, device=device, dtype=torch.float32).view(1, 2, 3, 4).to(dtype)
    angles = torch.linspace(0, 6, 6, device=device, dtype=torch.float32).view(3, 2).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    one, other = states.float().chunk(2, dim=-1)
    expected = (states.float() * cos + torch.cat((-other, one), dim=-1) * sin).to(dtype)
    try:
        with torch.no_grad():
            found = turned(states, cos, sin)
    except RuntimeError:
        return False
    # A unit in the last place of numbers up to 3, where what is rounded lies between two.
    return found.dtype == dtype and torch.allclose(found, expected, rtol=4 * torch.finfo(dtype).eps, atol=1e-6)

"""Queries and keys are turned as the library turns them, in fewer passes, and by its own code where that must be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rd_hf.model import rotary_rd_esm
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.rotary_rd_esm import pays, turned, turns
from tests.conftest import random_model

IDS = torch.randint(4, 24, (2, 40), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 30:] = 0


@pytest.fixture(scope="module")
def lean() -> RDEsmModel:
    return random_model([64])


@pytest.fixture(scope="module")
def exact(lean: RDEsmModel) -> RDEsmModel:
    model = random_model([64], exact_activation=True)
    model.load_state_dict(lean.state_dict(), strict=True)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What was turned."""
    found = []

    def counted(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        found.append(states.dtype)
        return turned(states, cos, sin)

    monkeypatch.setattr(rotary_rd_esm, "turned", counted)
    return found


def states(model: RDEsmModel) -> torch.Tensor:
    return model(IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]


def attentions(model: RDEsmModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, rotary_rd_esm._Turning)]


@given(
    shape=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 9), st.integers(1, 12)), seed=st.integers(0)
)
@settings(max_examples=30, deadline=None)
def test_pairs_half_a_head_apart_are_turned_by_their_angle(shape: tuple[int, ...], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed % 2**32)
    batch, heads, length, half = shape
    # As attention sees them: heads behind positions in memory.
    given = torch.randn(batch, length, heads, 2 * half, generator=generator).transpose(1, 2)
    angles = 20 * torch.rand(batch, 1, length, half, generator=generator)
    both = torch.cat((angles, angles), dim=-1)
    with torch.no_grad():
        found = turned(given, both.cos(), both.sin())
    # Where gradients are recorded too, to the bit.
    assert torch.equal(turned(given, both.cos(), both.sin()), found)
    one, other = given.double().chunk(2, dim=-1)
    expected = torch.complex(one, other) * torch.polar(torch.ones(1, dtype=torch.float64), angles.double())
    # Cosines and sines of angles up to 20 that float32 rounds, of numbers of order one.
    torch.testing.assert_close(found.double(), torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_librarys_numbers_by_our_function(lean: RDEsmModel, exact: RDEsmModel, calls: list[torch.dtype]) -> None:
    # A query and a key in each of two layers.
    torch.testing.assert_close(states(lean), states(exact), atol=1e-5, rtol=0)
    assert calls == [torch.float32] * 4


@torch.no_grad()
def test_its_own_function_where_ours_does_not_pay(lean: RDEsmModel, calls: list[torch.dtype]) -> None:
    states(copy.deepcopy(lean).to(torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states(lean)
    assert calls == []


def test_gradients_are_those_of_turning_back() -> None:
    given = torch.randn(1, 2, 5, 4, requires_grad=True)
    angles = torch.rand(5, 2).repeat(1, 2)
    other = torch.randn(1, 2, 5, 4)
    (turned(given, angles.cos(), angles.sin()) * other).sum().backward()
    # A rotation's transpose is its inverse.
    torch.testing.assert_close(given.grad, turned(other, angles.cos(), -angles.sin()), atol=1e-6, rtol=0)


def test_a_module_is_the_librarys_to_everyone_else(lean: RDEsmModel, exact: RDEsmModel) -> None:
    ours, library = attentions(lean), {type(module).__name__: type(module) for module in exact.modules()}
    assert len(ours) == 2
    assert not attentions(exact)
    for module in ours:
        assert isinstance(module, library[type(module).__name__])
    lean, exact = copy.deepcopy(lean), copy.deepcopy(exact)
    for model in (lean, exact):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        pairs = [model(IDS, attention_mask=MASK, output_attentions=True).attentions for model in (lean, exact)]
    assert len(pairs[0]) == 2
    for found, expected in zip(*pairs, strict=True):
        # Shares of one.
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_turn_too(lean: RDEsmModel, copied: Callable[[RDEsmModel], RDEsmModel]) -> None:
    twin = copied(lean)
    assert len(attentions(twin)) == 2
    assert torch.equal(states(twin), states(lean))


def other_way(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    """Neighbours turned, as GPT-J does."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin for x in (q, k))


def more_arguments(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any, unsqueeze_dim: int = 1) -> Any:
    return q, k


@pytest.mark.parametrize("function", [other_way, more_arguments, print, None])
def test_what_computes_something_else_is_left_alone(function: Any) -> None:
    around: dict[str, Any] = {"nn": nn, "apply_rotary_pos_emb": function}
    source = (
        "class A(nn.Module):\n    def forward(self, q, k, c, s):\n        return apply_rotary_pos_emb(q, k, c, s)\n"
    )
    exec(source, around)
    assert not turns(around["A"])


def test_a_build_of_torch_that_cannot_is_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return states * cos

    def missing(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for 'Float'")

    assert pays(torch.ones(1, 1, 1, 2))
    for broken in (wrong, missing):
        rotary_rd_esm._works.cache_clear()
        monkeypatch.setattr(rotary_rd_esm, "turned", broken)
        assert not pays(torch.ones(1, 1, 1, 2))
    rotary_rd_esm._works.cache_clear()

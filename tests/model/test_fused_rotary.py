"""On a GPU queries and keys are turned as the library turns them, in fewer passes; elsewhere by its own function."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import pickle
from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import EsmConfig, EsmModel, PreTrainedModel
from transformers.models.esm import modeling_esm

from rd_hf.model import fused_rd_esm
from rd_hf.model.fused_rd_esm import FusedRotary, fuse_layers, fused_rotary
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model

IDS = torch.randint(4, 24, (2, 40), generator=torch.Generator().manual_seed(0))
MASK = torch.ones_like(IDS)
MASK[1, 30:] = 0


@pytest.fixture(scope="module")
def fused() -> RDEsmModel:
    return random_model([64])


@pytest.fixture(scope="module")
def exact(fused: RDEsmModel) -> RDEsmModel:
    model = random_model([64], exact_activation=True)
    model.load_state_dict(fused.state_dict(), strict=True)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What was turned by our function."""
    found = []

    def counted(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        found.append(states.dtype)
        return fused_rotary(states, cos, sin)

    assert fused_rd_esm._rotary_works("cpu", torch.float32)
    fused_rd_esm._rotates_the_same(fused_rd_esm._parts(modeling_esm.apply_rotary_pos_emb))
    monkeypatch.setattr(fused_rd_esm, "fused_rotary", counted)
    return found


@pytest.fixture
def as_on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests' tensors stand for a GPU's."""
    monkeypatch.setattr(fused_rd_esm, "_is_on_gpu", lambda states: type(states) is torch.Tensor)


def states(model: nn.Module) -> torch.Tensor:
    return model(IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]


def attentions(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, FusedRotary)]


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
        found = fused_rotary(given, both.cos(), both.sin())
    # Where gradients are recorded too, to the bit.
    assert torch.equal(fused_rotary(given, both.cos(), both.sin()), found)
    one, other = given.double().chunk(2, dim=-1)
    expected = torch.complex(one, other) * torch.polar(torch.ones(1, dtype=torch.float64), angles.double())
    # Cosines and sines of angles up to 20 that float32 rounds, of numbers of order one.
    torch.testing.assert_close(found.double(), torch.cat((expected.real, expected.imag), -1), atol=1e-5, rtol=0)


def test_gradients_are_those_of_turning_back() -> None:
    given = torch.randn(1, 2, 5, 4, requires_grad=True)
    angles = torch.rand(5, 2).repeat(1, 2)
    other = torch.randn(1, 2, 5, 4)
    (fused_rotary(given, angles.cos(), angles.sin()) * other).sum().backward()
    # A rotation's transpose is its inverse.
    torch.testing.assert_close(given.grad, fused_rotary(other, angles.cos(), -angles.sin()), atol=1e-6, rtol=0)


@torch.no_grad()
def test_on_a_gpu_the_librarys_numbers_by_our_function(
    fused: RDEsmModel, exact: RDEsmModel, calls: list[torch.dtype], as_on_gpu: None
) -> None:
    # A query and a key in each of two layers.
    torch.testing.assert_close(states(fused), states(exact), atol=1e-5, rtol=0)
    assert calls == [torch.float32] * 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states(fused)
    assert len(calls) == 4


@torch.no_grad()
def test_on_a_cpu_its_own_function(fused: RDEsmModel, calls: list[torch.dtype]) -> None:
    states(fused)
    assert len(attentions(fused)) == 2
    assert calls == []


def test_attention_is_the_librarys_to_everyone_else(fused: RDEsmModel, exact: RDEsmModel, as_on_gpu: None) -> None:
    library = {type(module).__name__: type(module) for module in exact.modules()}
    assert len(attentions(fused)) == 2
    assert not attentions(exact)
    for module in attentions(fused):
        assert isinstance(module, library[type(module).__name__])
    fused, exact = copy.deepcopy(fused), copy.deepcopy(exact)
    for model in (fused, exact):
        model.set_attn_implementation("eager")
    with torch.no_grad():
        pairs = [model(IDS, attention_mask=MASK, output_attentions=True).attentions for model in (fused, exact)]
    assert len(pairs[0]) == 2
    for found, expected in zip(*pairs, strict=True):
        # Shares of one.
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@torch.no_grad()
def test_copies_turn_too(fused: RDEsmModel, copied: Callable[[RDEsmModel], RDEsmModel], as_on_gpu: None) -> None:
    twin = copied(fused)
    assert len(attentions(twin)) == 2
    assert torch.equal(states(twin), states(fused))


# What a user may put in place of what the library has, before a model is loaded or after.


def louder(function: Callable[..., Any]) -> Callable[..., Any]:
    """Calls it, and changes what it returns."""

    def call(*args: Any, **kwargs: Any) -> Any:
        found = function(*args, **kwargs)
        return (1.5 * found[0], *found[1:]) if isinstance(found, tuple) else 1.5 * found

    return call


def patches() -> list[tuple[Any, str]]:
    attention = modeling_esm.EsmSelfAttention
    names = ["apply_rotary_pos_emb", "rotate_half", "eager_attention_forward", "gelu"]
    blocks = [attention, modeling_esm.EsmIntermediate, modeling_esm.EsmSelfOutput, modeling_esm.EsmOutput]
    rotary = [getattr(modeling_esm, "RotaryEmbedding", None), getattr(modeling_esm, "EsmRotaryEmbedding", None)]
    return [*((modeling_esm, name) for name in names), *((one, "forward") for one in [*blocks, *rotary] if one)]


def pair(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A new backbone of the library's, and a fused twin."""
    torch.manual_seed(seed)
    theirs = EsmModel(EsmConfig(**backbone_settings(32)), add_pooling_layer=False).eval()
    theirs.set_attn_implementation("eager")
    ours = copy.deepcopy(theirs)
    fuse_layers(ours)
    return theirs, ours


@pytest.mark.parametrize("when", ["before loading", "after loading"])
@pytest.mark.parametrize("patch", patches(), ids=lambda patch: f"{patch[0].__name__.rpartition('.')[2]}.{patch[1]}")
@torch.no_grad()
def test_what_is_patched_is_honoured_whatever_was_loaded_before(
    patch: tuple[Any, str], when: str, as_on_gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fused_rd_esm, "_WORTH_FUSING", 2**12)
    owner, name = patch
    earlier, before = pair()[1], pair(1)
    plain, unpatched = states(earlier), states(before[0])
    with mock.patch.object(owner, name, louder(getattr(owner, name))):
        theirs, ours = pair(1) if when == "before loading" else before
        assert not torch.allclose(states(theirs), unpatched)
        torch.testing.assert_close(states(ours), states(theirs), atol=1e-5, rtol=0)
    # And what is taken back too.
    assert torch.equal(states(earlier), plain)


@torch.no_grad()
def test_a_module_that_comes_anew_is_another(as_on_gpu: None) -> None:
    """As a library that patches transformers may import it again."""
    earlier = pair()[1]
    again = importlib.util.module_from_spec(importlib.util.find_spec(modeling_esm.__name__))
    with mock.patch.dict("sys.modules", {modeling_esm.__name__: again}):
        again.__loader__.exec_module(again)
        again.rotate_half = louder(again.rotate_half)
        theirs = again.EsmModel(earlier.config, add_pooling_layer=False).eval()
        theirs.load_state_dict(earlier.state_dict())
        ours = copy.deepcopy(theirs)
        fuse_layers(ours)
        torch.testing.assert_close(states(ours), states(theirs), atol=1e-5, rtol=0)
        assert not torch.allclose(states(ours), states(earlier))


def other_way(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
    """Neighbours turned, as GPT-J does."""
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return tuple(x * cos + torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) * sin for x in (q, k))


def more_arguments(q: Any, k: Any, cos: Any, sin: Any, position_ids: Any, unsqueeze_dim: int = 1) -> Any:
    return q, k


@pytest.mark.parametrize("function", [other_way, more_arguments])
def test_a_function_of_a_release_that_computes_something_else_is_left_alone(function: Callable[..., Any]) -> None:
    assert fused_rd_esm._rotates_the_same(fused_rd_esm._parts(modeling_esm.apply_rotary_pos_emb))
    assert not fused_rd_esm._rotates_the_same((function,))


def test_a_build_of_torch_that_cannot_is_not_asked_to(monkeypatch: pytest.MonkeyPatch, as_on_gpu: None) -> None:
    def wrong(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return states * cos

    def missing(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("not implemented for 'Float'")

    with contextlib.ExitStack() as stack:
        stack.callback(fused_rd_esm._rotary_works.cache_clear)
        assert fused_rd_esm._pays(torch.ones(1, 1, 1, 2))
        for broken in (wrong, missing):
            fused_rd_esm._rotary_works.cache_clear()
            monkeypatch.setattr(fused_rd_esm, "fused_rotary", broken)
            assert not fused_rd_esm._pays(torch.ones(1, 1, 1, 2))

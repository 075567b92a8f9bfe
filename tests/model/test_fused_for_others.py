"""Fused layers let everyone else see, replace and ask what they would of transformers' own model, at every batch size.

A backbone and its fused twin of the same weights are handled alike: something is hung on, put in place of or asked of
one, then of the other. What comes out, what was seen on the way and what was refused must be the same.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrizations, parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import EsmConfig, EsmModel, PreTrainedModel
from transformers.models.esm import modeling_esm

from rd_hf.model import fused_rd_esm
from rd_hf.model.fused_rd_esm import fuse_layers
from tests.conftest import backbone_settings

try:
    from transformers import EsmcConfig, EsmcModel
    from transformers.models.esmc import modeling_esmc
except ImportError:  # before 5.16
    EsmcModel = None  # type: ignore[assignment, misc]

WIDTH = 16
FAMILIES = ["esm"] if EsmcModel is None else ["esm", "esmc"]
# Proteins and their length: below what a call of oneDNN is worth (as patched here), and above.
SIZES = {"one short protein": (1, 3), "four proteins": (4, 12)}
OFTEN_LARGE = ["one short protein", "four proteins", "four proteins"]
# Of two ways to round float32, in a final state of order one; autocast rounds to eight bits at every step.
CLOSE, CLOSE_IN_AUTOCAST = 2e-5, 0.15

Act = Callable[[PreTrainedModel, str, list[Any]], Any]


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many products were one call with what follows; small ones are, here."""
    counts: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., torch.Tensor]:
        product = getattr(fused_rd_esm, name)

        def call(*args: Any) -> torch.Tensor:
            counts["one call"] += 1
            return product(*args)

        return call

    assert fused_rd_esm._fusion_works()
    monkeypatch.setattr(fused_rd_esm, "_WORTH_FUSING", 2**12)
    for name in ("_product", "_product_with"):
        monkeypatch.setattr(fused_rd_esm, name, counted(name))
    return counts


def twins(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A backbone as transformers computes it, and fused."""
    torch.manual_seed(0)
    if family == "esm":
        config = EsmConfig(**{**backbone_settings(WIDTH), "hidden_dropout_prob": 0.3})
        theirs = EsmModel(config, add_pooling_layer=False).eval()
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
        theirs = EsmcModel(EsmcConfig(hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, **heads)).eval()
    for weight in theirs.parameters():
        if weight.ndim > 1:
            weight.data.normal_(std=weight.shape[-1] ** -0.5)
    ours = copy.deepcopy(theirs)
    fuse_layers(ours)
    return theirs, ours


def blocks(family: str) -> tuple[list[str], list[str], list[str]]:
    """Linear layers, other modules that fused blocks hold, and these blocks themselves."""
    if family == "esm":
        layers = ["encoder.layer.0", "encoder.layer.1"]
        kinds = (
            ["attention.output.dense", "intermediate.dense", "output.dense", "attention.self.query"],
            ["attention.output.dropout", "output.dropout"],
            ["attention.output", "intermediate", "output"],
        )
    else:
        layers = ["layers.0", "layers.1"]
        kinds = (
            ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "self_attn.q_proj"],
            ["mlp.act_fn"],
            ["mlp"],
        )
    linear, other, whole = ([f"{layer}.{name}" for layer in layers for name in names] for names in kinds)
    return linear, other, whole


# What is hung on a module, or put in its place. Each is given the model, a module's name, and a list for what it sees.


def kept(tensor: torch.Tensor) -> Any:
    """What a hook takes down; within a transform a tensor is no numbers."""
    return tuple(tensor.shape) if torch._C._are_functorch_transforms_active() else tensor.detach().clone()


def hook_records(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: seen.append(kept(output)))


def hook_changes(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 1.5 * output + 0.1)


def hook_always(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    def see(module: nn.Module, inputs: Any, kwargs: Any, output: Any) -> None:
        seen.append((len(inputs), len(kwargs)))

    model.get_submodule(name).register_forward_hook(see, with_kwargs=True, always_call=True)


def hook_before_changes(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_forward_pre_hook(lambda module, inputs: (0.5 * inputs[0] - 0.1, *inputs[1:]))


def hook_before_records(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_forward_pre_hook(
        lambda module, inputs, kwargs: seen.append(kept(inputs[0])), with_kwargs=True
    )


def hook_backward(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_full_backward_hook(lambda module, inputs, outputs: seen.append(outputs[0]))


def hook_removed(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    model.get_submodule(name).register_forward_hook(lambda module, inputs, output: 2 * output).remove()


@contextlib.contextmanager
def hook_on_all(model: PreTrainedModel, name: str, seen: list[Any]) -> Iterator[None]:
    names = {module: found for found, module in model.named_modules()}

    def see(module: nn.Module, inputs: Any, output: Any) -> Any:
        if module in names:
            seen.append((names[module], type(module).__name__))
        return 1.1 * output if type(module) is nn.Linear else None

    with register_module_forward_hook(see):
        yield


@contextlib.contextmanager
def hook_before_all(model: PreTrainedModel, name: str, seen: list[Any]) -> Iterator[None]:
    with register_module_forward_pre_hook(lambda module, inputs: seen.append(type(module).__name__)):
        yield


def subclassed(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    module = model.get_submodule(name)

    class Loud(type(module)):  # type: ignore[misc]
        def forward(self, *args: Any) -> torch.Tensor:
            return 0.7 * super().forward(*args) + 0.2

    module.__class__ = Loud


def own_forward(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    module = model.get_submodule(name)
    forward = module.forward
    module.forward = lambda *args: 0.7 * forward(*args) + 0.2  # type: ignore[method-assign]


def replaced(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    parent, _, own = name.rpartition(".")

    class Around(nn.Module):
        def __init__(self, within: nn.Module) -> None:
            super().__init__()
            self.within = within

        def forward(self, *args: Any) -> torch.Tensor:
            return 0.7 * self.within(*args) + 0.2

    setattr(model.get_submodule(parent), own, Around(model.get_submodule(name)))


def left_out(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, nn.Identity())


def trained_alone(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    """Monte Carlo dropout by mode: Gal and Ghahramani 2016."""
    model.get_submodule(name).train()


def dropout_that_stays(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    """Monte Carlo dropout by class."""

    class Always(nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(input, self.p, training=True)

    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, Always(0.3).eval())


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def parametrised(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    parametrize.register_parametrization(model.get_submodule(name), "weight", Doubled())


def weight_normed(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    parametrizations.weight_norm(model.get_submodule(name))
    model.get_submodule(name).parametrizations.weight.original0.data.mul_(1.5)


def pruned(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    prune.l1_unstructured(model.get_submodule(name), "weight", amount=0.5)


def quantised(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    parent, _, own = name.rpartition(".")
    module = model.get_submodule(name)
    module.qconfig = torch.ao.quantization.default_dynamic_qconfig  # type: ignore[attr-defined]
    setattr(model.get_submodule(parent), own, torch.ao.nn.quantized.dynamic.Linear.from_float(module))


def adapted(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    torch.manual_seed(1)
    inject_adapter_in_model(LoraConfig(target_modules=[name], init_lora_weights=False, r=2), model)
    model.eval()


def weight_that_sees(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    """A weight that is told of each function that takes it, or takes what it made."""

    class Seen(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if getattr(func, "__name__", "") in ("linear", "dropout", "silu", "erf", "add"):
                seen.append(func.__name__)
            return super().__torch_function__(func, types, args, kwargs)

    module = model.get_submodule(name)
    module.weight = nn.Parameter(module.weight.detach().as_subclass(Seen))


def weight_tied(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    """Another weight of the same shape: nothing was kept of the first."""
    module = model.get_submodule(name)
    module.weight = nn.Parameter(module.weight.detach().flip(0))


def weight_of_another_shape(model: PreTrainedModel, name: str, seen: list[Any]) -> None:
    """An error of whoever did it."""
    module = model.get_submodule(name)
    module.weight = nn.Parameter(module.weight.detach()[:, :-1])


ANYWHERE: list[Act] = [
    *(hook_records, hook_changes, hook_always, hook_before_changes, hook_before_records, hook_backward, hook_removed),
    *(hook_on_all, hook_before_all, subclassed, own_forward, replaced, trained_alone),
]
ON_LINEAR: list[Act] = [
    *(parametrised, weight_normed, pruned, quantised, adapted),
    *(weight_that_sees, weight_tied, weight_of_another_shape),
]
ON_DROPOUT: list[Act] = [left_out, dropout_that_stays]

# Functions and classes of others, changed for all.


@contextlib.contextmanager
def changed(owner: Any, name: str, seen: list[Any]) -> Iterator[None]:
    before = getattr(owner, name)

    def after(*args: Any, **kwargs: Any) -> Any:
        found = before(*args, **kwargs)
        seen.append(name)
        return 0.9 * found + 0.1 if isinstance(found, torch.Tensor) else found

    with mock.patch.object(owner, name, after):
        yield


def rewritten(family: str) -> list[tuple[Any, str]]:
    common = [(nn.functional, "linear"), (nn.Linear, "forward"), (nn.Linear, "__call__"), (nn.Module, "_call_impl")]
    if family == "esm":
        classes = (modeling_esm.EsmIntermediate, modeling_esm.EsmOutput, modeling_esm.EsmSelfOutput)
        functions = [(modeling_esm, "gelu"), (modeling_esm, "rotate_half"), (modeling_esm, "apply_rotary_pos_emb")]
        common += [(nn.Dropout, "forward"), (nn.functional, "dropout"), *functions]
        return [*common, *((one, "forward") for one in classes)]
    return [*common, (nn.functional, "silu"), (modeling_esmc.EsmcMLP, "forward"), (modeling_esmc, "rotate_half")]


# What is asked of a model: each returns tensors, numbers or names.


def ids_of(size: str) -> torch.Tensor:
    return torch.randint(4, 24, SIZES[size], generator=torch.Generator().manual_seed(1))


def run(model: PreTrainedModel, size: str) -> torch.Tensor:
    return model(ids_of(size)).last_hidden_state


def of_embeddings(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """The layers as a function of their input."""
    if hasattr(model, "encoder"):
        return model(inputs_embeds=states).last_hidden_state
    handle = model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: states)
    with handle:
        return model(torch.full(states.shape[:2], 5)).last_hidden_state


def states_of(size: str, seed: int = 2) -> torch.Tensor:
    return torch.randn(*SIZES[size], WIDTH, generator=torch.Generator().manual_seed(seed))


def in_no_grad(model: PreTrainedModel, size: str) -> Any:
    with torch.no_grad():
        return run(model, size)


def in_inference_mode(model: PreTrainedModel, size: str) -> Any:
    with torch.inference_mode():
        return run(model, size).clone()


def with_gradients(model: PreTrainedModel, size: str) -> Any:
    found = run(model, size)
    found.square().sum().backward()
    scale = found.numel()
    return [found, *(weight.grad / scale for weight in model.parameters() if weight.grad is not None)]


def in_training(model: PreTrainedModel, size: str) -> Any:
    """The first pass of a checkpointed one: without gradients."""
    model.train()
    with torch.no_grad():
        return run(model, size)


def forward_mode(model: PreTrainedModel, size: str) -> Any:
    # torch has no such derivative of its fused attention.
    model.set_attn_implementation("eager")
    with torch.no_grad(), forward_ad.dual_level():
        dual = forward_ad.make_dual(states_of(size), states_of(size, 3))
        found = forward_ad.unpack_dual(of_embeddings(model, dual))
        return [found.primal, found.tangent]


def functional_jvp(model: PreTrainedModel, size: str) -> Any:
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return list(torch.func.jvp(partial(of_embeddings, model), (states_of(size),), (states_of(size, 3),)))


def functional_vmap(model: PreTrainedModel, size: str) -> Any:
    many = torch.stack([states_of(size, 3), states_of(size, 4)])
    with torch.no_grad():
        return torch.func.vmap(partial(of_embeddings, model), randomness="different")(many)


def functional_call(model: PreTrainedModel, size: str) -> Any:
    weights = {name: 1.1 * weight for name, weight in model.named_parameters()}
    with torch.no_grad():
        return torch.func.functional_call(model, weights, (ids_of(size),)).last_hidden_state


def flops(model: PreTrainedModel, size: str) -> Any:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(model, size)
    return {name: {str(kind): n for kind, n in found.items()} for name, found in counter.get_flop_counts().items()}


def operations(model: PreTrainedModel, size: str) -> Any:
    names = []

    class Log(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Log():
        found = run(model, size)
    return [found, *names]


def functions(model: PreTrainedModel, size: str) -> Any:
    names = []

    class Log(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(getattr(func, "__name__", str(func)))
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Log():
        found = run(model, size)
    # Properties are looked at before the library's code runs, too.
    return [found, *(name for name in names if name in ("linear", "dropout", "erf", "gelu", "silu", "mul", "add"))]


def traced(model: PreTrainedModel, size: str) -> Any:
    model.config.return_dict = False
    # A trace is made twice, and the graphs and their outputs compared.
    return torch.jit.trace(model, ids_of(size))(ids_of(size))[0]


def autocast(model: PreTrainedModel, size: str) -> Any:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        return run(model, size)


def in_double(model: PreTrainedModel, size: str) -> Any:
    with torch.no_grad():
        return run(model.double(), size)


def copied(model: PreTrainedModel, size: str) -> Any:
    with torch.no_grad():
        return run(copy.deepcopy(model), size)


QUICK: list[Callable[[PreTrainedModel, str], Any]] = [
    *(in_no_grad, in_inference_mode, with_gradients, in_training, forward_mode, functional_jvp, functional_vmap),
    *(functional_call, flops, operations, functions, autocast, in_double, copied),
]
# The first more often: here products are fused. (A trace takes a second.)
MODES = [*QUICK, *QUICK, *(2 * [in_no_grad, in_inference_mode]), traced]


def outcome(ask: Callable[[], Any]) -> Any:
    """What comes of a question, errors too."""
    torch.manual_seed(3)
    try:
        return ask()
    except Exception as error:
        return type(error).__name__


def assert_same(ours: Any, theirs: Any, limit: float) -> None:
    assert type(ours).__name__ == type(theirs).__name__
    if isinstance(theirs, torch.Tensor):
        ours, theirs = ours.as_subclass(torch.Tensor), theirs.as_subclass(torch.Tensor)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=limit, rtol=limit)
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, limit)
    else:
        assert ours == theirs


def check(family: str, acts: list[tuple[Act, str]], mode: Callable[..., Any], size: str) -> Any:
    """Treat a backbone and its fused twin alike, and compare; returns what came of it."""
    found = []
    for model in twins(family):
        seen: list[Any] = []

        def ask(model: PreTrainedModel = model, seen: list[Any] = seen) -> Any:
            with contextlib.ExitStack() as stack:
                for act, name in acts:
                    if (entered := act(model, name, seen)) is not None:
                        stack.enter_context(entered)
                return mode(model, size)

        found.append((outcome(ask), seen))
    theirs, ours = found
    assert_same(ours, theirs, CLOSE_IN_AUTOCAST if mode is autocast else CLOSE)
    return theirs[0]


@st.composite
def treatments(draw: st.DrawFn) -> tuple[str, list[tuple[Act, str]]]:
    """A family, and up to two things that are done to it."""
    family = draw(st.sampled_from(FAMILIES))
    linear, other, whole = blocks(family)
    pairs: list[st.SearchStrategy[tuple[Act, str]]] = [
        st.tuples(st.sampled_from(ANYWHERE), st.sampled_from([*linear, *other, *whole])),
        st.tuples(st.sampled_from([*ANYWHERE, *ON_LINEAR]), st.sampled_from(linear)),
        st.tuples(st.sampled_from([*ANYWHERE, *(ON_DROPOUT if family == "esm" else [])]), st.sampled_from(other)),
        st.sampled_from(rewritten(family)).map(
            lambda pair: (lambda model, name, seen, pair=pair: changed(*pair, seen), pair[1])
        ),
    ]
    return family, draw(st.lists(st.one_of(pairs), max_size=2))


def test_whatever_is_hung_on_replaced_or_asked(calls: Counter[str]) -> None:
    outcomes: Counter[str] = Counter()

    @given(treatment=treatments(), mode=st.sampled_from(MODES), size=st.sampled_from(OFTEN_LARGE))
    # An example is short as it is.
    @settings(max_examples=240, deadline=None, phases=[Phase.reuse, Phase.generate])
    def holds(treatment: Any, mode: Any, size: str) -> None:
        family, acts = treatment
        found = check(family, acts, mode, size)
        outcomes["drawn"] += 1
        outcomes["answered"] += not isinstance(found, str)

    holds()
    # Nor is this so because nothing is fused, or all is refused.
    assert outcomes["drawn"] >= 200
    assert outcomes["answered"] > 0.6 * outcomes["drawn"]
    assert calls["one call"] > 40


NAMED: dict[str, tuple[str, list[tuple[Act, str]], Callable[..., Any]]] = {
    "dropout by class that stays on": ("esm", [(dropout_that_stays, "encoder.layer.0.output.dropout")], in_no_grad),
    "dropout by mode that stays on": ("esm", [(trained_alone, "encoder.layer.1.output.dropout")], in_no_grad),
    "a hook on dropout changes": ("esm", [(hook_changes, "encoder.layer.0.attention.output.dropout")], in_no_grad),
    "a hook on dropout records": ("esm", [(hook_records, "encoder.layer.0.output.dropout")], in_inference_mode),
    "a hook on an activation changes": ("esmc", [(hook_changes, "layers.0.mlp.act_fn")], in_no_grad),
    "a hook on an activation records": ("esmc", [(hook_records, "layers.0.mlp.act_fn")], in_no_grad),
    "hooks on all modules": ("esm", [(hook_on_all, ""), (hook_before_all, "")], in_no_grad),
    "derivatives forward": ("esm", [], forward_mode),
    "derivatives forward, functional": ("esm", [], functional_jvp),
    "operations are counted": ("esm", [], flops),
    "operations are written down": ("esm", [], operations),
    "a trace in grad mode": ("esm", [], traced),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("size", SIZES)
def test_what_once_was_lost(name: str, size: str) -> None:
    family, acts, mode = NAMED[name]
    if family not in FAMILIES:
        pytest.skip("this release has no ESM-C")
    if mode is traced and hasattr(modeling_esm, "RotaryEmbedding"):
        pytest.skip("what this release keeps from one call to the next is another graph")
    assert not isinstance(check(family, acts, mode, size), str)

"""Fused backbones give the library's numbers in less time, and are its modules to everyone else."""

from __future__ import annotations

import copy
import io
import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import EsmConfig, EsmModel
from transformers.models.bert.modeling_bert import BertOutput
from transformers.models.esm import modeling_esm
from transformers.models.llama.modeling_llama import LlamaMLP

from rd_hf.model import fused_rd_esm
from rd_hf.model.fused_rd_esm import FusedGatedFeedForward, FusedIntermediate, FusedOutput, fuse_layers
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTHS = [64, 320]
# The mask and padding that a batch may have; long enough that the products of the wide backbone are fused.
IDS = torch.randint(4, 24, (2, 130), generator=torch.Generator().manual_seed(0))
IDS[:, 0], IDS[0, -1], IDS[1, 90], IDS[1, 91:], IDS[0, 7] = 0, 2, 2, 1, 32
MASK = IDS.ne(1).long()
# Of transformers' numbers, in a final state of order one: it rounds its activation five times.
CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.fixture(scope="module")
def fused() -> RDEsmModel:
    return random_model(WIDTHS)


@pytest.fixture(scope="module")
def exact(fused: RDEsmModel) -> RDEsmModel:
    model = random_model(WIDTHS, exact_activation=True)
    model.load_state_dict(fused.state_dict(), strict=True)
    return model


def states(model: nn.Module) -> torch.Tensor:
    """Final states of a backbone at residues, without gradient."""
    # (Not in inference mode: 4.57 keeps its rotary tables for later calls, with gradients or without.)
    with torch.no_grad():
        return model(IDS, attention_mask=MASK).last_hidden_state[MASK.bool()]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often a product was one call with what follows it, and how often it could not be."""
    counts: Counter[str] = Counter()
    decide = fused_rd_esm._is_one_call

    def counted(block: nn.Module, states: torch.Tensor) -> bool:
        answer = decide(block, states)
        counts["one call" if answer else "several"] += 1
        return answer

    monkeypatch.setattr(fused_rd_esm, "_is_one_call", counted)
    return counts


def test_fused_or_not_the_numbers_are_the_librarys(
    fused: RDEsmModel, exact: RDEsmModel, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(2):
        torch.testing.assert_close(states(fused.backbones[index]), states(exact.backbones[index]), **CLOSE)
    # Three products in each of two layers; those of the narrow backbone are too small to gain.
    assert calls == {"several": 6, "one call": 6}
    assert not torch.equal(states(fused.backbones[-1]), states(exact.backbones[-1]))
    monkeypatch.setattr(fused_rd_esm, "_fusion_works", lambda: False)
    torch.testing.assert_close(states(fused.backbones[-1]), states(exact.backbones[-1]), **CLOSE)


def test_exact_is_the_librarys_own_bits(exact: RDEsmModel) -> None:
    plain = EsmModel(exact.config.backbone_config(1), add_pooling_layer=False).eval()
    plain.load_state_dict(exact.backbones[-1].state_dict(), strict=True)
    assert torch.equal(states(exact.backbones[-1]), states(plain))


def are_fused(model: RDEsmModel) -> list[bool]:
    """Of each backbone, whether its layers are."""
    kinds: list[bool] = []
    model.visit_backbones(lambda _, backbone: kinds.append(isinstance(backbone.encoder.layer[0].output, FusedOutput)))
    return kinds


def test_exact_is_a_choice_at_loading_that_a_config_keeps(tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert "exact_activation" not in (tiny_checkpoint / "config.json").read_text()
    for settings in ({}, {"exact_activation": True}):
        for sequential in (False, True):
            model = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=sequential, **settings)
            assert are_fused(model) == [not settings] * 3
    model.config.save_pretrained(tmp_path)
    assert type(model.config).from_pretrained(tmp_path).exact_activation
    with pytest.raises(ValueError, match=r"exact_activation .* must be true or false, not 'yes'"):
        random_model([32], exact_activation="yes")


def test_gradients_are_the_librarys(fused: RDEsmModel, exact: RDEsmModel) -> None:
    for model in (fused, exact):
        model.zero_grad()
        model(IDS, MASK).last_hidden_state.square().mean().backward()
    pairs = list(zip(fused.named_parameters(), exact.parameters(), strict=True))
    reached = [(name, ours.grad, theirs.grad) for (name, ours), theirs in pairs if theirs.grad is not None]
    assert len(reached) > 60
    for name, ours, theirs in reached:
        # Sums over positions of products that each differ by a few units in the last place.
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), name
    fused.zero_grad()


def test_checkpointed_gradients_are_the_same(fused: RDEsmModel) -> None:
    model = copy.deepcopy(fused).train()
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(IDS, MASK).last_hidden_state.square().mean().backward()
        grads.append(model.backbones[-1].encoder.layer[0].intermediate.dense.weight.grad.clone())
    assert torch.equal(*grads)


def test_no_other_model_is_touched_and_classes_are_the_librarys_to_everyone_else(fused: RDEsmModel) -> None:
    other = EsmModel(EsmConfig(**backbone_settings(64)), add_pooling_layer=False)
    kinds = {type(module) for module in other.modules()}
    fuse_layers(random_model([64]).backbones[0])
    assert kinds == {type(module) for module in EsmModel(other.config, add_pooling_layer=False).modules()}
    twin = EsmModel(fused.config.backbone_config(1), add_pooling_layer=False)
    for ours, theirs in zip(fused.backbones[1].modules(), twin.modules(), strict=True):
        assert isinstance(ours, type(theirs))
        assert type(ours).__name__ == type(theirs).__name__
    layer = fused.backbones[1].encoder.layer[0]
    assert isinstance(layer.intermediate, FusedIntermediate)
    assert isinstance(layer.output, FusedOutput)
    assert isinstance(layer.attention.output, FusedOutput)


def test_names_and_weights_are_the_librarys(fused: RDEsmModel, tmp_path: Path) -> None:
    backbone = fused.backbones[-1]
    plain = EsmModel(fused.config.backbone_config(1), add_pooling_layer=False)
    assert list(backbone.state_dict()) == list(plain.state_dict())
    backbone.save_pretrained(tmp_path)
    saved, info = EsmModel.from_pretrained(tmp_path, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not any(isinstance(module, FusedIntermediate) for module in saved.modules())
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in backbone.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_fused_too(fused: RDEsmModel, copied: Callable[[RDEsmModel], RDEsmModel]) -> None:
    twin = copied(fused)
    assert are_fused(twin) == [True, True]
    assert torch.equal(states(twin.backbones[-1]), states(fused.backbones[-1]))
    exact = copied(random_model([32], exact_activation=True))
    assert are_fused(exact) == [False]


def test_a_backbone_by_itself_is_copied_fused_and_pickled_as_the_librarys(fused: RDEsmModel, exact: RDEsmModel) -> None:
    """Whoever loads the file need not have this project, nor the folder that its code came with."""
    backbone = fused.backbones[-1]
    assert torch.equal(states(copy.deepcopy(backbone)), states(backbone))
    file = io.BytesIO()
    torch.save(backbone, file)
    assert b"rd_hf" not in file.getvalue()
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert {type(module) for module in loaded.modules()} == {type(module) for module in exact.backbones[-1].modules()}
    assert torch.equal(states(loaded), states(exact.backbones[-1]))


def test_a_backbone_on_a_device_map_is_fused(fused: RDEsmModel, calls: Counter[str]) -> None:
    """accelerate calls the `forward` that it found, from one of its own on each module."""
    plain = EsmModel(fused.config.backbone_config(1), add_pooling_layer=False).eval()
    plain.load_state_dict(fused.backbones[1].state_dict())
    for module in plain.modules():
        if len(list(module.children())):
            add_hook_to_module(module, ModelHook())
    fuse_layers(plain)
    assert torch.equal(states(plain), states(fused.backbones[1]))
    assert calls["one call"] == 12


def test_hooks_and_adapters_see_what_they_saw(fused: RDEsmModel, exact: RDEsmModel) -> None:
    """What looks at a product, or adds to it, gets it before the activation."""
    seen: list[list[torch.Tensor]] = [[], []]
    for model, kept in ((fused, seen[0]), (exact, seen[1])):
        layer = copy.deepcopy(model.backbones[-1])
        layer.encoder.layer[1].intermediate.dense.register_forward_hook(
            lambda module, inputs, output, kept=kept: kept.append(output.clone())
        )
        states(layer)
    torch.testing.assert_close(seen[0][0], seen[1][0], **CLOSE)
    assert seen[0][0].min() < -0.2  # gelu has no such value
    adapted = []
    for model in (fused, exact):
        torch.manual_seed(0)
        config = LoraConfig(target_modules=["intermediate.dense", "output.dense"], init_lora_weights=False)
        adapted.append(get_peft_model(copy.deepcopy(model.backbones[-1]), config))
    assert (states(adapted[0]) - states(fused.backbones[-1])).abs().max() > 0.01
    torch.testing.assert_close(states(adapted[0]), states(adapted[1]), **CLOSE)
    merged = [model.merge_and_unload() for model in adapted]
    torch.testing.assert_close(states(merged[0]), states(merged[1]), **CLOSE)


def test_dropout_drops_in_training() -> None:
    model = random_model([64])
    output = model.backbones[0].encoder.layer[0].output
    output.dropout.p = 0.5
    with torch.no_grad():
        hidden, residual = torch.ones(1, 512, 256), torch.zeros(1, 512, 64)
        whole = output(hidden, residual)
        dropped = output.train()(hidden, residual)
    share = float((dropped == 0).float().mean())
    assert 0.4 < share < 0.6
    assert not (whole == 0).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes_are_not_fused_and_no_less_exact(fused: RDEsmModel, exact: RDEsmModel, dtype: torch.dtype) -> None:
    reference = states(copy.deepcopy(exact).double().backbones[-1])
    errors = [
        float((states(copy.deepcopy(model).to(dtype).backbones[-1]).double() - reference).abs().mean())
        for model in (fused, exact)
    ]
    # In bfloat16 one rounding of the activation instead of five; float64 is the reference itself.
    assert errors[0] <= 1.02 * errors[1] + 1e-12


def test_autocast_computes_in_the_dtype_it_says(fused: RDEsmModel, calls: Counter[str]) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states(fused.backbones[-1])
    assert calls["one call"] == 0


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiler_gets_one_graph_of_plain_operations(fused: RDEsmModel, backend: str) -> None:
    graphs: list[str] = []

    def look(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        graphs.append(str(graph.graph))
        return graph.forward if backend == "eager" else torch._dynamo.lookup_backend(backend)(graph, inputs)

    compiled = torch.compile(fused.backbones[-1], backend=look, fullgraph=True)
    torch.testing.assert_close(states(compiled), states(fused.backbones[-1]), **CLOSE)
    assert len(graphs) == 1
    # The library's: a compiler fuses by itself.
    assert "erf" in graphs[0]
    assert "mkldnn" not in graphs[0]


class _Otherwise(nn.Module):
    """What a user might make of it."""

    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(self.dense(hidden_states))


def test_a_module_of_a_users_own_is_left_alone() -> None:
    backbone = EsmModel(EsmConfig(**backbone_settings(32)), add_pooling_layer=False)
    changed = type("EsmIntermediate", (_Otherwise,), {})
    backbone.encoder.layer[0].intermediate = changed(backbone.encoder.layer[0].intermediate.dense)
    fuse_layers(backbone)
    assert type(backbone.encoder.layer[0].intermediate) is changed
    assert isinstance(backbone.encoder.layer[1].intermediate, FusedIntermediate)


@pytest.mark.parametrize(
    ("shipped", "fused", "same"),
    [
        (modeling_esm.EsmOutput, FusedOutput, True),
        (LlamaMLP, FusedGatedFeedForward, True),
        # A norm behind the sum; another activation; another number of tensors.
        (BertOutput, FusedOutput, False),
        (modeling_esm.EsmPooler, FusedIntermediate, False),
        (modeling_esm.EsmIntermediate, FusedOutput, False),
    ],
    ids=lambda one: getattr(one, "__name__", str(one)),
)
def test_what_a_release_may_make_of_a_block_is_looked_at(shipped: Any, fused: Any, same: bool) -> None:
    assert fused_rd_esm._computes(fused_rd_esm._parts(shipped.forward), fused.meaning, fused.takes) is same

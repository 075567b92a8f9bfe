"""Levels that are layers of one backbone: one copy of its weights, one pass, which ends at the deepest layer wanted."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from rd_hf.data.batching import collate, pack
from rd_hf.data.records import InputError
from rd_hf.embedding.algebra import contributions, extend
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.backbones import BackboneSource, family_config, parse_source
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION, encoder_class, stack_of
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.hub.layouts import ESM2_SAFETENSORS, ESMC, Layout, Size, write_repo
from tests.model.test_families import HAS_ESMC, random_bases

FAMILY = pytest.mark.parametrize(
    "layout",
    [
        pytest.param(ESM2_SAFETENSORS, id="ESM-2"),
        pytest.param(ESMC, id="ESM-C", marks=pytest.mark.skipif(not HAS_ESMC, reason="no ESM-C in this release")),
    ],
)
LAYERS = 6
SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MXBUZO"]


def chain(folder: Path, layout: Layout = ESM2_SAFETENSORS) -> RDEsmConfig:
    """Layers 2, 4 and all 6 of one backbone, 32 wide, behind a smaller one."""
    write_repo(folder / "small", ESM2_SAFETENSORS, Size(16))
    large = write_repo(folder / "large", layout, Size(32, LAYERS), seed=1)
    words = [f"S={folder / 'small'}", f"L2={large}#2", f"L4={large}#4", f"L6={large}"]
    return family_config(words, [8, 12, 16])


def build(
    folder: Path, layout: Layout = ESM2_SAFETENSORS, exact_activation: bool = False, **settings: Any
) -> RDEsmModel:
    config = chain(folder, layout)
    config.exact_activation = exact_activation
    return random_bases(load_family(config, **settings))


@contextmanager
def counted(model: nn.Module) -> Iterator[list[str]]:
    """Names of the backbones and layers that run, in order."""
    ran: list[str] = []
    handles = []
    for index, backbone in enumerate(model.backbones):
        for name, module in [("", backbone), *enumerate(stack_of(backbone))]:
            label = f"{index}.{name}" if name != "" else f"{index}"
            handles.append(module.register_forward_hook(lambda *_, label=label: ran.append(label)))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


def test_the_config_says_which_levels_share_a_backbone(tmp_path: Path) -> None:
    config = chain(tmp_path)
    assert config.backbone_groups == [[0], [1, 2, 3]]
    assert [entry.get("layer") for entry in config.levels] == [None, 2, 4, None]
    assert [entry.get("layers_of") for entry in config.levels] == [None, "L6", "L6", None]
    assert config.backbone_widths == [16, 32, 32, 32]
    assert config.nested_dims == {"S": 16, "L2": 24, "L4": 36, "L6": 52}
    assert config.num_hidden_layers == 2 + LAYERS
    assert config.up_to("L4").num_hidden_layers == 2 + 4
    again = RDEsmConfig.from_dict(config.to_dict())
    assert (again.levels, again.backbone_groups) == (config.levels, config.backbone_groups)


@FAMILY
def test_a_level_is_the_backbone_that_ends_there(tmp_path: Path, layout: Layout) -> None:
    """Not by its number of layers, which scales ESM-C's residuals, but by leaving layers out: bit for bit."""
    model = build(tmp_path, layout, exact_activation=True)
    ids, mask = collate(SEQUENCES)
    states = model(ids, mask, output_backbone_states=True).backbone_states
    family = FAMILIES["esmc" if layout.esmc else "esm"]
    hidden = transformers.AutoModel.from_pretrained(tmp_path / "large", **family.arguments).eval()
    whole = hidden(ids, attention_mask=mask, output_hidden_states=True)
    norm = hidden.get_submodule(family.final_norm)
    for state, depth in zip(states[1:], (2, 4), strict=False):
        assert torch.equal(state, norm(whole.hidden_states[depth]))
        config = copy.deepcopy(hidden.config)
        cut = encoder_class(config, depth).from_pretrained(tmp_path / "large", config=config, **family.arguments).eval()
        assert torch.equal(state, cut(ids, attention_mask=mask).last_hidden_state)
    assert torch.equal(states[3], whole.last_hidden_state)


@FAMILY
def test_one_pass_up_to_the_deepest_layer_wanted(tmp_path: Path, layout: Layout) -> None:
    model = build(tmp_path, layout)
    ids, mask = collate(SEQUENCES)
    whole = model(ids, mask).last_hidden_state
    for level, layers in (("S", 0), ("L2", 2), ("L4", 4), ("L6", LAYERS)):
        with counted(model) as ran:
            part = model(ids, mask, level=level).last_hidden_state
        wanted = ["0.0", "0.1", "0"] + ([*(f"1.{layer}" for layer in range(layers)), "1"] if layers else [])
        assert ran == wanted
        assert torch.equal(part, whole[..., : model.config.nested_dims[level]])


@FAMILY
@pytest.mark.parametrize("form", ["bases", "full"])
def test_a_level_loads_its_layers_only(tmp_path: Path, layout: Layout, form: str) -> None:
    model = build(tmp_path, layout)
    folder = save_checkpoint(model, tmp_path / form, backbones=form == "full")
    ids, mask = collate(SEQUENCES)
    whole = model(ids, mask).last_hidden_state
    for level, layers in (("L2", 2), ("L4", 4)):
        part = RDEsmModel.from_pretrained(folder, level=level)
        assert torch.equal(part(ids, mask).last_hidden_state, whole[..., : part.config.nested_dims[level]])
        assert [len(stack_of(backbone)) for backbone in part.backbones] == [2, layers]
    part = RDEsmModel.from_pretrained(folder, level="L4", sequential=True)
    assert torch.equal(part(ids, mask).last_hidden_state, whole[..., :36])
    # Saved from there it stands alone.
    part = RDEsmModel.from_pretrained(folder, level="L4")
    save_checkpoint(part, tmp_path / "again", backbones=True)
    again = RDEsmModel.from_pretrained(tmp_path / "again")
    assert torch.equal(again(ids, mask).last_hidden_state, whole[..., :36])
    (tmp_path / "again" / "model.backbone-L6.safetensors").stat()


def test_weights_are_there_once(tmp_path: Path) -> None:
    """In memory and on disk: bytes counted."""
    model = build(tmp_path)
    alone = load_family(family_config([f"S={tmp_path / 'small'}", f"L6={tmp_path / 'large'}"]))
    assert sum(p.nbytes for p in model.parameters()) == sum(p.nbytes for p in alone.parameters())
    folder = save_checkpoint(model, tmp_path / "full", backbones=True)
    assert sorted(path.name for path in folder.glob("model.backbone-*")) == [
        "model.backbone-L6.safetensors",
        "model.backbone-S.safetensors",
    ]
    stored = sum(
        tensor.nbytes
        for key, tensor in load_file(folder / "model.backbone-L6.safetensors").items()
        if not key.endswith("inv_freq")
    )
    assert stored == sum(parameter.nbytes for parameter in model.backbones[1].parameters())


@FAMILY
def test_packed_rows_are_padded_ones(tmp_path: Path, layout: Layout) -> None:
    model = build(tmp_path, layout, attn_implementation=PACKED_ATTENTION)
    ids, mask = collate(SEQUENCES)
    padded = model(ids, mask).last_hidden_state
    row = model(**pack(SEQUENCES)).last_hidden_state[0]
    start = 0
    for place, sequence in enumerate(SEQUENCES):
        length = len(sequence) + 2
        # Sums in another order: units in the last place, after six layers.
        torch.testing.assert_close(row[start : start + length], padded[place, :length], atol=5e-5, rtol=5e-5)
        start += length


@FAMILY
def test_it_compiles_as_one_graph(tmp_path: Path, layout: Layout) -> None:
    # (A compiler is given the library's own activation, which rounds otherwise.)
    model = build(tmp_path, layout, exact_activation=True)
    ids, mask = collate(SEQUENCES)
    torch._dynamo.reset()
    # It looks within at layer 2, and ends at layer 4.
    compiled = torch.compile(lambda i, m: model(i, m, level="L4"), fullgraph=True, backend="eager")
    assert torch.equal(compiled(ids, mask).last_hidden_state, model(ids, mask, level="L4").last_hidden_state)


@FAMILY
def test_nothing_stays_in_the_model(tmp_path: Path, layout: Layout) -> None:
    """Copies, pickles and hidden states on request work as before; a pass leaves no tensor behind."""
    model = build(tmp_path, layout)
    ids, mask = collate(SEQUENCES)
    whole = model(ids, mask)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(ids, mask).last_hidden_state, whole.last_hidden_state)
        assert torch.equal(twin(ids, mask, level="L2").last_hidden_state, whole.nested("L2"))
    assert not any(
        isinstance(value, torch.Tensor) for layer in stack_of(model.backbones[1]) for value in vars(layer).values()
    )
    hidden = model(ids, mask, output_hidden_states=True).hidden_states
    # Embedding output and each layer, of both backbones.
    assert [state.shape[-1] for state in hidden] == [16] * 3 + [32] * (LAYERS + 1)
    lower = model(ids, mask, level="L2", output_hidden_states=True).hidden_states
    assert len(lower) == 3 + 3
    for one, other in zip(lower[:-1], hidden, strict=False):
        assert torch.equal(one, other)


def test_gradients_flow_through_every_level_with_checkpointing(tmp_path: Path) -> None:
    model = build(tmp_path)
    ids, mask = collate(SEQUENCES)
    grads = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        model.zero_grad()
        model(ids, mask).last_hidden_state.square().sum().backward()
        grads.append([p.grad.clone() for p in stack_of(model.backbones[1]).parameters()])
    for one, other in zip(*grads, strict=True):
        # Releases before 5.10 recompute in one piece and add the shares of levels and layers in another order: some
        # hundreds of units in the last place of sums of thousands of products.
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_a_smaller_level_is_extended_with_the_layers_above(tmp_path: Path) -> None:
    model = build(tmp_path)
    save_checkpoint(model, tmp_path / "full", backbones=True)
    part = RDEsmModel.from_pretrained(tmp_path / "full", above="L2")
    assert [type(backbone).__name__ for backbone in part.backbones] == ["Identity", "EsmModel"]
    ids, mask = collate(SEQUENCES)
    whole = model(ids, mask)
    (brought,) = contributions(part, [{"input_ids": ids, "attention_mask": mask}], "L2", "L6")
    # `append` takes another order of the same sums.
    torch.testing.assert_close(
        extend(part, whole.nested("L2"), brought, "L2", "L6"), whole.last_hidden_state, atol=1e-5, rtol=1e-5
    )
    with pytest.raises(ValueError, match="loaded with those of L2, L4, L6 only"):
        part(ids, mask)


def test_a_device_map_places_the_bases_of_all_layers(tmp_path: Path) -> None:
    model = build(tmp_path)
    folder = save_checkpoint(model, tmp_path / "full", backbones=True)
    ids, mask = collate(SEQUENCES)
    for device_map in ("cpu", "auto", {"": "cpu"}):
        placed = RDEsmModel.from_pretrained(folder, device_map=device_map)
        assert {key for key in placed.hf_device_map if key.startswith("projections")} == {
            f"projections.{index}" for index in range(3)
        }
        assert torch.equal(placed(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state)
    # The layers alone: of a model that is wholly on disk, 5.10 does not run even the library's own.
    parts = {f"backbones.1.{name}": "cpu" for name, _ in model.backbones[1].named_children()}
    parts |= {"backbones.0": "cpu", "backbones.1.encoder": "disk"}
    spilled = RDEsmModel.from_pretrained(folder, device_map=parts, offload_folder=tmp_path / "disk")
    assert torch.equal(spilled(ids, mask).last_hidden_state, model(ids, mask).last_hidden_state)
    assert torch.equal(spilled(ids, mask, level="L2").last_hidden_state, model(ids, mask, level="L2").last_hidden_state)


def test_a_backbone_that_was_changed_is_saved_with_its_layers(tmp_path: Path) -> None:
    model = build(tmp_path)
    model.save_pretrained(tmp_path / "bases", backbones=None)
    assert (tmp_path / "bases" / "config.json").exists()
    with torch.no_grad():
        stack_of(model.backbones[1])[1].attention.self.query.weight.add_(1)
    with pytest.raises(ValueError, match=r"the backbone of level L6 is no longer that of .* \(encoder\.layer\.1"):
        model.save_pretrained(tmp_path / "other", backbones=False)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a=lab/esm#3", BackboneSource("a", "lab/esm", layer=3)),
        ("a=lab/esm@v1#3", BackboneSource("a", "lab/esm", "v1", layer=3)),
        ("a=lab/rd@v1:650M#3", BackboneSource("a", "lab/rd", "v1", level="650M", layer=3)),
    ],
)
def test_words(word: str, expected: BackboneSource) -> None:
    assert parse_source(word) == expected


def test_an_adapter_trains_within_shared_layers(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = build(tmp_path, ESMC if HAS_ESMC else ESM2_SAFETENSORS)
    ids, mask = collate(SEQUENCES)
    before = model(ids, mask).last_hidden_state
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query", "q_proj"], r=2))
    assert torch.equal(adapted(input_ids=ids, attention_mask=mask).last_hidden_state, before)
    optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
    for _ in range(2):  # the first step moves only one of the two factors from zero
        optimiser.zero_grad()
        adapted(input_ids=ids, attention_mask=mask).last_hidden_state.square().mean().backward()
        optimiser.step()
    moved = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    # Both factors in both backbones, in every layer.
    assert len(moved) == 2 * (2 + LAYERS)
    merged = adapted.merge_and_unload().eval()
    after = merged(ids, mask).last_hidden_state
    assert not torch.equal(after, before)
    merged.save_pretrained(tmp_path / "merged", backbones=True)
    assert torch.equal(RDEsmModel.from_pretrained(tmp_path / "merged")(ids, mask).last_hidden_state, after)


def test_another_commit_is_that_of_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = chain(tmp_path)
    model = load_family(config, revisions={"L2": "v2"})
    assert [entry["revision"] for entry in model.config.levels] == [None] * 4  # of folders there is none
    seen = []
    monkeypatch.setattr("rd_hf.hub.checkpoint.resolve_commit", lambda repo, revision, **_: seen.append(revision))
    load_family(config, revisions={"L2": "v2"})
    assert seen == [None, "v2", "v2", "v2"]


def test_layers_of_a_familys_level(mini_checkpoint: Path) -> None:
    words = [f"L{n}={mini_checkpoint}:2.7M#{n}" for n in (2, 4)] + [f"L6={mini_checkpoint}:2.7M"]
    model = load_family(family_config(words, "all"))
    assert len(model.backbones) == 1
    ids, mask = collate(SEQUENCES)
    states = model(ids, mask, output_backbone_states=True).backbone_states
    family = RDEsmModel.from_pretrained(mini_checkpoint)
    assert torch.equal(states[-1], family(ids, mask, output_backbone_states=True).backbone_states[-1])


def test_what_cannot_be_is_said_in_a_sentence(tmp_path: Path) -> None:
    chain(tmp_path)
    small, large = f"S={tmp_path / 'small'}", tmp_path / "large"
    for words, match in (
        ([small, f"a={large}#7"], r"a=.*#7: it has 6 layers, so that #1 to #6 can be levels"),
        ([small, f"a={large}#0"], "#0 is no number of a layer, which count from 1"),
        ([small, f"a={large}#last"], "#last is no number of a layer"),
        ([small, f"{large}#3"], "a layer is a level by itself, which needs a name"),
        ([small, f"a={large}:8M"], "a=.*:8M: that is no reverse-distilled family"),
        ([f"a={large}#2", small, f"b={large}"], "a and b are layers of one backbone .*: name them one after the other"),
        ([f"a={large}#2", f"b={large}"], r"level b \(32 wide\) does not grow beyond a \(32 wide\): .* give --keep"),
    ):
        with pytest.raises(InputError, match=match) as raised:
            family_config(words)
        assert "\n" not in str(raised.value)

"""The model's contract: nested bit for bit, in every dtype and attention, however it is called and cast."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
from transformers import EsmModel

from rd_hf.model.modeling_rd_esm import RDEsmModel, RDEsmModelOutput, ResiduePooling
from tests.conftest import random_model

# cls, residues with a mask among them, eos; the second row padded.
IDS = torch.tensor([[0, 20, 15, 11, 32, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])
MASK = IDS.ne(1).long()


@torch.no_grad()
def by_definition(model: RDEsmModel, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Algorithm 3 in float64 from the backbones' own states: the embedding of each level."""
    states = [backbone(ids, attention_mask=mask).last_hidden_state.double() for backbone in model.backbones]
    embeddings = [states[0]]
    for state, step in zip(states[1:], model.projections, strict=True):
        prefix = embeddings[-1]
        predicted = step.backbone_mean.double() + (prefix - step.prefix_mean.double()) @ step.regression.double()
        residual = state - predicted
        embeddings.append(torch.cat((prefix, residual @ step.directions.double()), dim=-1))
    return embeddings


def test_it_is_algorithm_3(tiny_model: RDEsmModel) -> None:
    output = tiny_model(IDS, MASK)
    for level, expected in zip(tiny_model.config.level_names, by_definition(tiny_model, IDS, MASK), strict=True):
        # float32 sums of at most 64 products of numbers of order one: 64 * 2^-24 of their size.
        torch.testing.assert_close(output.nested(level).double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_nested_bit_for_bit_at_every_position(tiny_checkpoint: Path, dtype: torch.dtype, attention: str) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=dtype, attn_implementation=attention)
    whole = model(IDS, MASK)
    assert whole.last_hidden_state.dtype == dtype
    for level, width in model.config.nested_dims.items():
        alone = model(IDS, MASK, level=level).last_hidden_state
        assert alone.shape == (2, 10, width)
        # Residues, cls, eos, mask and padding alike.
        assert torch.equal(whole.nested(level), alone)
        assert torch.equal(whole.last_hidden_state[..., :width], alone)
        loaded = RDEsmModel.from_pretrained(tiny_checkpoint, level=level, dtype=dtype, attn_implementation=attention)
        assert torch.equal(loaded(IDS, MASK).last_hidden_state, alone)
    first = model.backbones[0](IDS, attention_mask=MASK).last_hidden_state
    assert torch.equal(whole.nested("L0"), first)


def test_nested_is_a_view(tiny_model: RDEsmModel) -> None:
    output = tiny_model(IDS)
    assert output.nested("L1").data_ptr() == output.last_hidden_state.data_ptr()
    with pytest.raises(ValueError, match="holds L0"):
        tiny_model(IDS, level="L0").nested("L1")


def test_only_the_backbones_that_are_needed_run(tiny_model: RDEsmModel) -> None:
    ran: list[int] = []
    for index, backbone in enumerate(tiny_model.backbones):
        backbone.register_forward_hook(lambda *_, index=index: ran.append(index))
    output = tiny_model(IDS, level="L1", output_backbone_states=True)
    assert ran == [0, 1]
    assert [state.shape[-1] for state in output.backbone_states] == [32, 48]
    with pytest.raises(ValueError, match="unknown level '3B': this model has L0, L1, L2"):
        tiny_model(IDS, level="3B")


def test_a_missing_mask_is_made_from_the_padding(tiny_model: RDEsmModel) -> None:
    assert torch.equal(tiny_model(IDS).last_hidden_state, tiny_model(IDS, MASK).last_hidden_state)


def test_a_batch_is_its_rows(tiny_model: RDEsmModel) -> None:
    # Without <mask>: releases before 5.5 scale token dropout over the padded row, which is no matter of this model.
    ids = torch.where(IDS == 32, 5, IDS)
    batch = tiny_model(ids).last_hidden_state
    for row, length in enumerate(MASK.sum(dim=1)):
        alone = tiny_model(ids[row : row + 1, :length]).last_hidden_state[0]
        # Products of another shape are summed in another order: some tens of units in the last place of float32.
        torch.testing.assert_close(batch[row, :length], alone, rtol=1e-5, atol=2e-5)


def test_compiled_it_is_one_graph_with_the_same_bits() -> None:
    # (A compiler is given the library's own activation, which rounds otherwise.)
    model = random_model([32, 48, 64], exact_activation=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(IDS, MASK).last_hidden_state, model(IDS, MASK).last_hidden_state)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_to_machine_code_it_rounds_otherwise_and_nothing_more() -> None:
    model = random_model([16, 24], layers=1)
    compiled = torch.compile(model)
    with torch.no_grad():
        # Fused kernels keep intermediate sums in registers: tens of units in the last place.
        torch.testing.assert_close(
            compiled(IDS, MASK).last_hidden_state, model(IDS, MASK).last_hidden_state, atol=2e-5, rtol=1e-5
        )


def test_hidden_states_attentions_and_tuples(tiny_checkpoint: Path) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation="eager")
    plain = model(IDS)
    output = model(IDS, output_hidden_states=True, output_attentions=True, output_backbone_states=True)
    assert isinstance(output, RDEsmModelOutput)
    # Embedding and two layers, of three backbones.
    assert [state.shape[-1] for state in output.hidden_states] == [32] * 3 + [48] * 3 + [64] * 3
    assert len(output.attentions) == 6
    assert output.attentions[0].shape == (2, 4, 10, 10)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state)
    as_tuple = model(IDS, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert torch.equal(as_tuple[0], plain.last_hidden_state)


def test_gradients_reach_every_backbone_and_no_basis(tiny_model: RDEsmModel) -> None:
    tiny_model(IDS, MASK).last_hidden_state.square().sum().backward()
    for backbone in tiny_model.backbones:
        assert backbone.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0
    assert not list(tiny_model.projections.parameters())


@pytest.mark.parametrize("cast", ["to", "half", "bfloat16", "load"])
def test_bases_and_rotary_frequencies_stay_float32(tiny_checkpoint: Path, cast: str) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16 if cast == "load" else torch.float32)
    reference = RDEsmModel.from_pretrained(tiny_checkpoint)
    if cast == "to":
        model.to(torch.bfloat16)
    elif cast != "load":
        getattr(model, cast)()
    assert model.dtype == (torch.float16 if cast == "half" else torch.bfloat16)
    kept = 0
    for (name, buffer), (_, original) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        if name.startswith("projections.") or "inv_freq" in name:
            kept += 1
            assert buffer.dtype == torch.float32
            assert torch.equal(buffer, original)
    assert kept >= 8 + 3


def test_autocast_leaves_the_bases_in_float32(tiny_model: RDEsmModel) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = tiny_model(IDS, MASK, output_backbone_states=True)
        prefix = states.backbone_states[0].float()
        block = tiny_model.projections[0](prefix, states.backbone_states[1])
    assert block.dtype == torch.float32
    outside = tiny_model.projections[0](prefix, states.backbone_states[1])
    assert torch.equal(block, outside)


def test_it_compiles_into_one_graph(tiny_model: RDEsmModel) -> None:
    # The "eager" back end traces as any other does, and compiles nothing: a graph break would raise.
    compiled = torch.compile(tiny_model, fullgraph=True, backend="eager")
    with torch.no_grad():
        output = compiled(IDS, MASK).last_hidden_state
        # (A compiler is given the library's own activation, which rounds otherwise.)
        torch.testing.assert_close(output, tiny_model(IDS, MASK).last_hidden_state, atol=2e-5, rtol=1e-5)


def test_bases_reconstruct_what_they_hold(tiny_model: RDEsmModel) -> None:
    step = tiny_model.projections[0]
    prefix, state = torch.randn(5, 32), torch.randn(5, 48)
    step.directions.copy_(torch.linalg.qr(torch.randn(48, 16))[0])
    embedding = step(prefix, state)
    predicted = step.predict(prefix)
    projected = (state - predicted) @ step.directions @ step.directions.T
    # Two chains of float32 products of numbers of order one.
    torch.testing.assert_close(step.reconstruct(embedding), predicted + projected, rtol=1e-5, atol=2e-5)


def test_a_model_without_backbones_says_what_it_lacks(tiny_model: RDEsmModel) -> None:
    config = copy.deepcopy(tiny_model.config)
    config.backbones_in_checkpoint = False
    with pytest.raises(ValueError, match="holds bases only"):
        RDEsmModel(config)(IDS)
    assert len(RDEsmModel(config, build_backbones=True).backbones) == 3


def test_embeddings_are_those_of_the_largest_backbone(tiny_model: RDEsmModel) -> None:
    assert tiny_model.get_input_embeddings() is tiny_model.backbones[-1].get_input_embeddings()
    assert isinstance(tiny_model.backbones[-1], EsmModel)


def test_token_embeddings_are_not_resized_and_nothing_is_half_done(tiny_model: RDEsmModel) -> None:
    before = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    for arguments in ((40,), (33,), ()):
        with pytest.raises(NotImplementedError, match="cannot be resized: all backbones share ESM-2's vocabulary"):
            tiny_model.resize_token_embeddings(*arguments)
    after = tiny_model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
    assert tiny_model.config.vocab_size == 33


def test_pooling_takes_residues_only_and_no_account_of_width() -> None:
    embeddings = torch.randn(2, 10, 64)
    pooled = ResiduePooling()({"token_embeddings": embeddings, "input_ids": IDS})["sentence_embedding"]
    # Row 0: positions 1 to 8 without the mask at 4; row 1: 1 to 4.
    for row, positions in enumerate(([1, 2, 3, 5, 6, 7, 8], [1, 2, 3, 4])):
        # A float32 sum of at most seven numbers, against float64.
        torch.testing.assert_close(
            pooled[row].double(), embeddings[row, positions].double().mean(0), rtol=1e-5, atol=1e-6
        )
    narrow = ResiduePooling()({"token_embeddings": embeddings[..., :7], "input_ids": IDS})["sentence_embedding"]
    assert torch.equal(pooled[:, :7], narrow)


def test_one_backbone_alone_is_a_family_too(tmp_path: Path) -> None:
    model = random_model([32])
    model.save_pretrained(tmp_path)
    again = RDEsmModel.from_pretrained(tmp_path)
    assert torch.equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)

"""Sequences longer than the model takes at once: windows and their merging, and what the model does when asked."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel

from rd_hf.data.batching import collate, pack
from rd_hf.embedding import Embedder
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.pooling_rd_esm import MAX_RESIDUES, cut, merge_weights, taper
from tests.conftest import random_model

# The same float32 products in batches of another shape.
TOLERANCE = 2e-5


def protein(length: int, seed: int = 0) -> str:
    return "".join(random.Random(seed).choices("ACDEFGHIKLMNPQRSTVWY", k=length))


def call(model: RDEsmModel, sequences: list[str], **settings: Any) -> Any:
    ids, mask = collate(sequences)
    with torch.no_grad():
        return model(ids, mask, **settings)


@given(st.integers(1, 500), st.integers(1, 100), st.data())
@settings(deadline=None)
def test_pieces_cover_a_sequence_and_their_shares_add_up_to_one(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    pieces = cut(0, length, size, overlap)
    assert pieces[0].start == 0
    assert pieces[-1].stop == length
    assert all(piece.length == min(size, length) for piece in pieces)
    for before, after in itertools.pairwise(pieces):
        assert before.start < after.start
        assert before.stop - after.start >= overlap
    shares = np.zeros(length)
    for piece, share in zip(pieces, merge_weights(pieces, overlap), strict=True):
        shares[piece.start : piece.stop] += share.numpy()
    np.testing.assert_allclose(shares, 1, atol=1e-6)  # float32 shares


def test_a_residue_weighs_most_where_it_has_context_on_both_sides() -> None:
    assert taper(7, 2).tolist() == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 2 / 3, 1 / 3])
    assert taper(3, 0).tolist() == [1, 1, 1]


# -- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> RDEsmModel:
    """Takes 40 residues at once."""
    return random_model([16, 24], max_residues=40)


def test_the_model_refuses_what_is_longer_and_says_who_takes_it(tiny_model: RDEsmModel) -> None:
    call(tiny_model, [protein(MAX_RESIDUES)], level="L0")
    words = r"has 1023 residues, and the model takes 1022 at once: load it with long_input='window'.*'whole'"
    for train in (False, True):
        with pytest.raises(ValueError, match=words):
            call(tiny_model.train(train), ["MKT", protein(MAX_RESIDUES + 1)])


@pytest.mark.parametrize("attention", ["rd_esm_packed"])
def test_the_limit_is_of_a_sequence_not_of_a_row(attention: str, small: RDEsmModel) -> None:
    ids, mask = collate(["MKTAYIAKQR"])
    wide, none = torch.nn.functional.pad(ids, (0, 90), value=1), torch.nn.functional.pad(mask, (0, 90))
    with torch.no_grad():
        # Products of another shape.
        torch.testing.assert_close(
            small(wide, none).last_hidden_state[:, :12], small(ids, mask).last_hidden_state, atol=TOLERANCE, rtol=0
        )
    packed = random_model([16, 24], max_residues=40)
    packed.set_attn_implementation(attention)
    packed(**pack([protein(30), protein(40), protein(35)]))
    with pytest.raises(ValueError, match="has 41 residues, and the model takes 40 at once"):
        packed(**pack([protein(30), protein(41)]))
    packed(**pack([protein(30), protein(41)]), long_input="whole")


def test_whole_is_one_pass(small: RDEsmModel) -> None:
    free = random_model([16, 24])
    assert torch.equal(
        call(small, [protein(70)], long_input="whole").last_hidden_state, call(free, [protein(70)]).last_hidden_state
    )


def test_a_window_of_the_model_is_a_window_of_the_jobs(small: RDEsmModel) -> None:
    """Rows of any length in one batch: residues and cls as the engine merges them, short rows as they are."""
    sequences = [protein(length, seed=length) for length in (95, 7, 41, 40, 230, 3)]
    output = call(small, sequences, long_input="window", output_backbone_states=True, output_hidden_states=True)
    options = EmbeddingOptions(pooling="residue", max_length=40, overlap=10)
    expected = Engine(small, "L1", options).embed([Request(sequence) for sequence in sequences])
    first = Engine(small, "L1", EmbeddingOptions(pooling="cls", max_length=40, overlap=10)).embed(
        [Request(sequence) for sequence in sequences]
    )
    for row, (rows, cls) in enumerate(zip(expected, first, strict=True)):
        found = output.last_hidden_state[row]
        np.testing.assert_allclose(found[1 : 1 + len(rows)], rows, atol=TOLERANCE)
        np.testing.assert_allclose(found[0], cls, atol=TOLERANCE)
        assert not found[len(rows) + 2 :].any()
    # The first level is its backbone's state, and a backbone's final state the last of its hidden ones.
    assert torch.equal(output.nested("L0"), output.backbone_states[0])
    torch.testing.assert_close(output.hidden_states[-1], output.backbone_states[1])
    alone = call(small, [sequences[4]], long_input="window", level="L0").last_hidden_state[0]
    np.testing.assert_allclose(alone, output.nested("L0")[4], atol=TOLERANCE)


def test_windows_nest_bit_for_bit_and_take_gradients(small: RDEsmModel) -> None:
    whole = call(small, [protein(95)], long_input="window")
    assert torch.equal(
        whole.nested("L0"), call(small, [protein(95)], long_input="window", level="L0").last_hidden_state
    )
    ids, mask = collate([protein(95)])
    small(ids, mask, long_input="window").last_hidden_state.square().sum().backward()
    assert all(
        parameter.grad is not None
        for name, parameter in small.named_parameters()
        if "contact_head" not in name and "position_embeddings" not in name
    )
    small.zero_grad()


def test_windows_are_cut_of_padding_on_either_side(small: RDEsmModel) -> None:
    ids, mask = collate([protein(60), protein(95)])
    turned = torch.stack([torch.roll(ids[0], 35), ids[1]]), torch.stack([torch.roll(mask[0], 35), mask[1]])
    with torch.no_grad():
        right = small(ids, mask, long_input="window").last_hidden_state
        left = small(*turned, long_input="window").last_hidden_state
        assert torch.equal(torch.roll(left[0], -35, dims=0), right[0])
        with pytest.raises(ValueError, match=r"row 2 of input_ids has 95 tokens.*begin with <cls>"):
            small(*collate_without_ends([protein(3), protein(95)]), long_input="window")
        with pytest.raises(ValueError, match="attentions of windows are not those of a sequence"):
            small(ids, mask, long_input="window", output_attentions=True)


def collate_without_ends(sequences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = collate(sequences)
    return ids[:, 1:-1], mask[:, 2:]


def by_auto(folder: Path, **settings: Any) -> RDEsmModel:
    model: RDEsmModel = AutoModel.from_pretrained(folder, trust_remote_code=True, **settings)
    return model


def by_config(folder: Path, **settings: Any) -> RDEsmModel:
    model: RDEsmModel = RDEsmModel.from_pretrained(folder, config=RDEsmConfig.from_pretrained(folder), **settings)
    return model


@pytest.mark.parametrize("load", [by_auto, RDEsmModel.from_pretrained, by_config])
@pytest.mark.parametrize("sequential", [False, True])
def test_it_is_said_when_loading_and_kept_when_saved(
    load: Callable[..., RDEsmModel], sequential: bool, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load(tiny_checkpoint, long_input="window", max_residues=30, sequential=sequential)
    assert (model.config.long_input, model.config.max_residues) == ("window", 30)
    call(model, [protein(45)])
    model.config.save_pretrained(tmp_path)
    again = RDEsmConfig.from_pretrained(tmp_path)
    assert (again.long_input, again.max_residues) == ("window", 30)


def test_old_configs_take_the_default_and_new_ones_do_not_name_it(tiny_checkpoint: Path) -> None:
    config = RDEsmConfig.from_pretrained(tiny_checkpoint)
    assert (config.long_input, config.max_residues) == ("error", EmbeddingOptions().max_length)
    assert not {"long_input", "max_residues"} & set(config.to_dict())


@pytest.mark.parametrize("settings", [{"long_input": "truncate"}, {"max_residues": 0}, {"max_residues": True}])
def test_other_choices_are_refused(settings: dict[str, Any], tiny_checkpoint: Path, small: RDEsmModel) -> None:
    words = f"{next(iter(settings))} in an RDEsmConfig .* must be"
    with pytest.raises(ValueError, match=words):
        RDEsmModel.from_pretrained(tiny_checkpoint, **settings)
    with pytest.raises(ValueError, match=words):
        RDEsmConfig(levels=small.config.levels, **settings)
    if "long_input" in settings:
        with pytest.raises(ValueError, match=words):
            call(small, [protein(41)], **settings)


def test_a_compiled_model_refuses_too() -> None:
    model = random_model([16], layers=1, max_residues=40)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        compiled(*collate([protein(30)]))
        with pytest.raises(Exception, match="has 41 residues"):
            compiled(*collate([protein(41)]))


def test_a_traced_model_takes_any_length() -> None:
    """Its graph holds no refusal; an exported one is in test_modeling_outputs.py."""
    model = random_model([16], layers=1, max_residues=40)
    with torch.no_grad():
        traced = torch.jit.trace(model, collate([protein(30)]), check_trace=False)
        assert traced(*collate([protein(41)]))[0].shape == (1, 43, 16)


# -- other tools --------------------------------------------------------------------------------------------------


def test_sentence_transformers_gives_what_embedder_gives(mini_checkpoint: Path) -> None:
    package = pytest.importorskip("sentence_transformers", exc_type=ImportError)
    sequences = [protein(1100), protein(1023, seed=1), "MKTAYIAKQRQISFVKSHFSRQ"]
    given = {"model_kwargs": {"level": "0.3M"}, "device": "cpu"}
    model = package.SentenceTransformer(str(mini_checkpoint), trust_remote_code=True, **given)
    embedder = Embedder(mini_checkpoint, level="0.3M", device="cpu")
    np.testing.assert_allclose(model.encode(sequences), embedder.embed(sequences)["embedding"], atol=TOLERANCE)


def test_a_job_asks_for_more_by_its_own_max_length(tiny_checkpoint: Path) -> None:
    sequence = protein(1100)
    found = Embedder(tiny_checkpoint, device="cpu", max_length=2000).embed([sequence])["embedding"][0]
    whole = RDEsmModel.from_pretrained(tiny_checkpoint, long_input="whole")
    expected = call(whole, [sequence]).last_hidden_state[0, 1:-1].mean(dim=0)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)

"""One pass: every level out of the largest backbone's layers, nested exactly, whatever the model is run with."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, EsmModel

from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])
LAYERS = [0, 1, 2]
DIMS = {"L0": 32, "L1": 48, "L2": 64}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three levels of four layers, with a readout of the last one's layers 0, 1 and 2."""
    folder = tmp_path_factory.mktemp("one-pass")
    random_model([32, 48, 64], layers=4, readout={"layers": LAYERS}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> RDEsmModel:
    return RDEsmModel.from_pretrained(checkpoint, one_pass=True)


def by_the_equations(whole: RDEsmModel, ids: torch.Tensor) -> torch.Tensor:
    """e~_m in float64, from the library's own hidden states, as the module's docstring defines it."""
    backbone, readout = whole.backbones[-1], whole.readout
    mask = ids.ne(1).long()
    output = backbone(ids, attention_mask=mask, output_hidden_states=True)
    norm = backbone.encoder.emb_layer_norm_after
    states = [output.last_hidden_state, *(norm(output.hidden_states[layer]) for layer in LAYERS)]
    features = torch.cat(states, dim=-1).double()
    weights = readout.weights.double().flatten(0, 1)
    prefix = readout.prefix_mean + (features - readout.state_means.double().flatten()) @ weights
    last = readout.last
    residual = (states[0].double() - last.backbone_mean) - (prefix - last.prefix_mean) @ last.regression.double()
    return torch.cat((prefix, residual @ last.directions.double()), dim=-1)


@torch.no_grad()
def test_it_is_what_the_equations_say(checkpoint: Path, model: RDEsmModel) -> None:
    expected = by_the_equations(RDEsmModel.from_pretrained(checkpoint), IDS)
    # float32 against float64, sums of 256 products of order one.
    torch.testing.assert_close(model(IDS).last_hidden_state.double(), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("level", DIMS)
def test_levels_are_nested_bit_for_bit_however_they_are_asked_for(
    checkpoint: Path, dtype: torch.dtype, level: str
) -> None:
    whole = RDEsmModel.from_pretrained(checkpoint, one_pass=True, dtype=dtype)
    part = RDEsmModel.from_pretrained(checkpoint, one_pass=True, dtype=dtype, level=level)
    expected = whole(IDS).nested(level)
    assert (expected.dtype, expected.shape[-1]) == (dtype, DIMS[level])
    assert torch.equal(whole(IDS, level=level).last_hidden_state, expected)
    assert torch.equal(part(IDS).last_hidden_state, expected)
    assert part.config.hidden_size == DIMS[level]
    whole.to(torch.bfloat16)
    assert whole.readout.weights.dtype == whole.readout.last.regression.dtype == torch.float32


@torch.no_grad()
def test_the_exact_levels_are_as_without_a_readout(checkpoint: Path) -> None:
    exact, plain = RDEsmModel.from_pretrained(checkpoint), random_model([32, 48, 64], layers=4)
    plain.projections = exact.projections
    plain.backbones = exact.backbones
    assert torch.equal(exact(IDS).last_hidden_state, plain(IDS).last_hidden_state)
    smaller = RDEsmModel.from_pretrained(checkpoint, level="L1")
    assert (smaller.config.readout, hasattr(smaller, "readout")) == (None, False)


def test_it_holds_loads_and_runs_the_largest_backbone_only(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[int] = []
    original = EsmModel.from_pretrained.__func__

    def counted(cls: type, *args: Any, **kwargs: Any) -> Any:
        loaded.append(kwargs["config"].hidden_size)
        return original(cls, *args, **kwargs)

    monkeypatch.setattr(EsmModel, "from_pretrained", classmethod(counted))
    # A level below too: it is read out of the same layers.
    model = RDEsmModel.from_pretrained(checkpoint, one_pass=True, level="L0")
    assert loaded == [64]
    held = [module for module in model.modules() if isinstance(module, EsmModel)]
    assert [module.config.hidden_size for module in held] == [64]
    ran = []
    held[0].register_forward_hook(lambda *_: ran.append(1))
    held[0].encoder.layer[0].register_forward_hook(lambda *_: ran.append(1))
    model(IDS)
    assert len(ran) == 2
    with pytest.raises(ValueError, match="loaded with those of L2 only"):
        model.visit_backbones(lambda index, backbone: None)


@torch.no_grad()
def test_packed_equals_padded_and_sequential_equals_resident(checkpoint: Path, model: RDEsmModel) -> None:
    packed = RDEsmModel.from_pretrained(checkpoint, one_pass=True, attn_implementation=PACKED_ATTENTION)
    lengths = IDS.ne(1).sum(dim=1)
    row = torch.cat([ids[:length] for ids, length in zip(IDS, lengths, strict=True)])[None]
    ends = torch.tensor([0, *lengths.cumsum(0).tolist()], dtype=torch.int32)
    found = packed(row, cu_seq_lens_q=ends).last_hidden_state[0]
    padded = model(IDS).last_hidden_state
    wanted = torch.cat([states[:length] for states, length in zip(padded, lengths, strict=True)])
    # Another order of the same float32 sums, and weights of order one behind them.
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    sequential = RDEsmModel.from_pretrained(checkpoint, one_pass=True, sequential=True)
    assert torch.equal(sequential(IDS).last_hidden_state, padded)
    assert len(sequential.backbones) == 0


@torch.no_grad()
def test_it_compiles_into_one_graph(model: RDEsmModel) -> None:
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    # (A compiler is given the library's own activation, which rounds otherwise.)
    found = compiled(IDS, IDS.ne(1).long()).last_hidden_state
    torch.testing.assert_close(found, model(IDS).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_it_survives_pickling_and_copies_of_its_output(model: RDEsmModel) -> None:
    again = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(again(IDS).last_hidden_state, model(IDS).last_hidden_state)


@torch.no_grad()
def test_a_user_loads_it_through_auto_model_in_both_forms(checkpoint: Path, model: RDEsmModel, tmp_path: Path) -> None:
    whole = RDEsmModel.from_pretrained(checkpoint)
    whole.save_pretrained(tmp_path / "again")
    for folder in (checkpoint, tmp_path / "again"):
        found = AutoModel.from_pretrained(str(folder), trust_remote_code=True, one_pass=True, level="L1")
        assert torch.equal(found(IDS).last_hidden_state, model(IDS).nested("L1"))
    assert json.loads((tmp_path / "again" / "config.json").read_text())["readout"] == {"layers": LAYERS}
    with pytest.raises(ValueError, match="loaded for one pass"):
        model.save_pretrained(tmp_path / "part")


def test_wrong_things_get_a_sentence(checkpoint: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="fitted without a one-pass readout: fit it with rd-hf fit --one-pass"):
        RDEsmModel.from_pretrained(tiny_checkpoint, one_pass=True)
    with pytest.raises(ValueError, match="leave out above="):
        RDEsmModel.from_pretrained(checkpoint, one_pass=True, above="L0")
    levels = RDEsmConfig.from_pretrained(checkpoint).levels
    for layers in ([4], [-1], "0", [1, 0], [True]):
        with pytest.raises(ValueError, match=r"readout\.layers"):
            RDEsmConfig(levels=levels, readout={"layers": layers})
    with pytest.raises(ValueError, match="family of one level"):
        RDEsmConfig(levels=levels[:1], readout={"layers": [0]})


def test_a_readout_that_is_not_finite_is_refused_by_name(checkpoint: Path, tmp_path: Path) -> None:
    broken = RDEsmModel.from_pretrained(checkpoint)
    broken.readout.weights[0, 0, 0] = torch.nan
    broken.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"the one-pass readout holds NaN or infinite numbers \(weights\)"):
        RDEsmModel.from_pretrained(tmp_path, one_pass=True)

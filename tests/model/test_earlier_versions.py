"""Checkpoints that earlier versions wrote load with this one and compute what they did.

`data/version_0_1_0` was written by version 0.1.0 with transformers 5.24: `save_checkpoint` of a random family of
three levels in the full form, in shards of 6 kB, with the remote code of its day (two files), poolers that nothing
used, and ESM-2's own tokenizer. `expected.safetensors` is what it computed for `IDS`. `data/version_0_2_0` was written
in the same way by version 0.2.0, with a whitening, a readout and its 21 files of code.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer

from rd_hf.embedding import Embedder
from rd_hf.families import Member, esmc_backbone
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model

OLD = Path(__file__).parent / "data" / "version_0_1_0"
VERSION_0_2_0 = OLD.with_name("version_0_2_0")
IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])


@torch.no_grad()
def output(model: Any, **settings: Any) -> Any:
    return model(IDS, **settings)


@pytest.mark.parametrize("level", ["L0", "L1", "L2"])
@pytest.mark.parametrize("sequential", [False, True], ids=["held", "sequential"])
def test_it_gives_the_same_bits_as_the_code_that_came_with_it(level: str, sequential: bool) -> None:
    old = AutoModel.from_pretrained(OLD, trust_remote_code=True, level=level)
    # That code ran the backbones as transformers has them.
    new = RDEsmModel.from_pretrained(OLD, level=level, sequential=sequential, exact_activation=True)
    assert type(old).__module__.startswith("transformers_modules")
    assert torch.equal(output(new).last_hidden_state, output(old).last_hidden_state)
    assert output(new).nested_dims == output(old).nested_dims
    expected = load_file(OLD / "expected.safetensors")["output"][..., : new.config.nested_dims[level]]
    # Another machine's kernels arrange the same float32 sums differently: units in the last place.
    torch.testing.assert_close(output(new).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("one_pass", [False, True], ids=["exact", "one-pass"])
def test_0_2_0_gives_the_same_bits_as_the_code_that_came_with_it(one_pass: bool) -> None:
    # As transformers has the backbones: fast paths of two versions round differently.
    how = {"one_pass": one_pass, "exact_activation": True}
    old = AutoModel.from_pretrained(VERSION_0_2_0, trust_remote_code=True, **how)
    new = RDEsmModel.from_pretrained(VERSION_0_2_0, **how)
    assert type(old).__module__.startswith("transformers_modules")
    expected = load_file(VERSION_0_2_0 / "expected.safetensors")
    assert torch.equal(output(new).last_hidden_state, output(old).last_hidden_state)
    # Noted with the fast path, on another machine: the same float32 sums, arranged differently.
    name = "one_pass" if one_pass else "output"
    torch.testing.assert_close(output(new).last_hidden_state, expected[name], atol=1e-5, rtol=1e-5)
    if not one_pass:
        whitened = output(new).nested("L2", whiten=True)
        assert torch.equal(whitened, output(old).nested("L2", whiten=True))
        torch.testing.assert_close(whitened, expected["whitened"], atol=1e-5, rtol=1e-5)


def test_saved_again_it_is_of_this_version(tmp_path: Path) -> None:
    model = RDEsmModel.from_pretrained(OLD)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(output(again).last_hidden_state, output(model).last_hidden_state)
    assert (tmp_path / "bases_rd_esm.py").exists()


def test_its_tokenizer_still_does_for_clean_sequences_and_is_refused_for_others() -> None:
    tokenizer = AutoTokenizer.from_pretrained(OLD, trust_remote_code=True)
    model = RDEsmModel.from_pretrained(OLD)
    (expected,) = Embedder(OLD, device="cpu").embed(["MKTAYIAKQR"])["embedding"]
    with torch.no_grad():
        rows = model(**tokenizer("MKTAYIAKQR", return_tensors="pt")).last_hidden_state[0, 1:-1]
        # A mean of ten float32 numbers, added up in another order.
        torch.testing.assert_close(rows.mean(dim=0), torch.from_numpy(expected), atol=1e-6, rtol=1e-5)
        with pytest.raises(ValueError, match="hold <unk>"):
            model(**tokenizer("mktayiakqr", return_tensors="pt"))


def with_old_code(folder: Path) -> Path:
    """A checkpoint of this version beside the code of 0.1.0, as its package would load it."""
    for path in folder.glob("*_rd_esm.py"):
        path.unlink()
    for path in OLD.glob("*_rd_esm.py"):
        shutil.copy(path, folder)
    return folder


def test_the_code_of_0_1_0_loads_esm2_as_this_version_writes_it(tmp_path: Path) -> None:
    model = random_model([32, 48])
    model.save_pretrained(tmp_path)
    old = AutoModel.from_pretrained(with_old_code(tmp_path), trust_remote_code=True)
    assert not hasattr(old, "level_states")
    exact = RDEsmModel.from_pretrained(tmp_path, exact_activation=True)
    assert torch.equal(output(old).last_hidden_state, output(exact).last_hidden_state)


def test_the_code_of_0_1_0_refuses_what_it_would_take_for_something_else(tmp_path: Path) -> None:
    """Layers it would take for whole backbones; another family's sizes for ESM-2's."""
    settings = backbone_settings(32)
    layers = [
        {"name": "L1", "backbone": settings, "layer": 1, "layers_of": "L2"},
        {"name": "L2", "backbone": settings},
    ]
    model = RDEsmModel(RDEsmConfig(levels=layers, residual_directions=[8]))
    model.save_pretrained(tmp_path / "layers")
    with pytest.raises(ValueError, match="the backbone of level L1 lacks num_hidden_layers"):
        AutoModel.from_pretrained(with_old_code(tmp_path / "layers"), trust_remote_code=True)
    if "esmc" not in transformers.CONFIG_MAPPING:
        return
    esmc = esmc_backbone(Member("", "", 32, 2, 4, inner=64))
    RDEsmModel(RDEsmConfig(levels=[{"name": "C", "backbone": esmc}])).save_pretrained(tmp_path / "esmc")
    with pytest.raises(ValueError, match=r"the backbone of C .* its weights are not those that config\.json describes"):
        AutoModel.from_pretrained(with_old_code(tmp_path / "esmc"), trust_remote_code=True)

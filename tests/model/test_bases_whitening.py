"""Whitening that travels with the bases: nested to the last bit, saved and loaded, absent where nobody put it."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from rd_hf.bases.whitening import Whitening, fit_whitening, moments_of_rows
from rd_hf.fitting import install_whitening
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])
DIMS = {"L0": 32, "L1": 48, "L2": 64}
BLOCKS, WEIGHTS = [32, 16, 16], [0.25, 1.0, 0.5]


def statistics() -> Whitening:
    """Of made-up rows, with weights."""
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 64)) @ generator.standard_normal((64, 64)) + 2
    return fit_whitening(moments_of_rows(torch.from_numpy(rows), BLOCKS), WEIGHTS)


@pytest.fixture
def model() -> RDEsmModel:
    """Three levels with statistics to whiten by."""
    model = random_model([32, 48, 64])
    install_whitening(model, statistics(), of="proteins")
    return model


@torch.inference_mode()
def whitened(model: RDEsmModel, level: str = "L2") -> torch.Tensor:
    return model(IDS, level=level).nested(level, whiten=True)


def test_it_is_the_fitted_whitening(model: RDEsmModel) -> None:
    with torch.inference_mode():
        plain = model(IDS).last_hidden_state
    expected = statistics()(plain.double())
    # Float32 against float64, on numbers of order ten.
    assert torch.allclose(whitened(model).double(), expected, rtol=1e-4, atol=1e-4)
    assert model.config.whitening == {"weights": WEIGHTS, "of": "proteins"}


@pytest.mark.parametrize("level", DIMS)
def test_a_smaller_level_is_the_prefix_bit_for_bit(model: RDEsmModel, level: str) -> None:
    with torch.inference_mode():
        output = model(IDS)
    whole = output.nested("L2", whiten=True)
    assert torch.equal(output.nested(level, whiten=True), whole[..., : DIMS[level]])
    assert torch.equal(whitened(model, level), whole[..., : DIMS[level]])
    assert torch.equal(model.whiten(output.nested(level)), whole[..., : DIMS[level]])
    with pytest.raises(ValueError, match="ends between two levels"):
        model.whiten(whole[..., :40])


@pytest.mark.parametrize("form", [True, False], ids=["full", "bases"])
def test_saved_and_loaded(tmp_path: Path, model: RDEsmModel, form: bool) -> None:
    expected, folder = whitened(model), tmp_path / "model"
    for entry, backbone in zip(model.config.levels, model.backbones, strict=True):
        backbone.save_pretrained(tmp_path / entry["name"])
        entry["repo_id"] = str(tmp_path / entry["name"])
    for _ in range(2):  # over its own files, too
        model.save_pretrained(folder, backbones=form)
    for level, width in DIMS.items():
        loaded = RDEsmModel.from_pretrained(folder, level=level)
        assert torch.equal(whitened(loaded, level), expected[..., :width])
        assert loaded.config.whitening["weights"] == WEIGHTS[: len(loaded.config.levels)]


def test_it_stays_float32_however_the_model_is_cast(model: RDEsmModel) -> None:
    model.to(torch.bfloat16)
    assert {buffer.dtype for buffer in model.whitening.buffers()} == {torch.float32}
    assert whitened(model).dtype == torch.float32


def test_copies_and_files_of_an_output_can_whiten(model: RDEsmModel) -> None:
    with torch.inference_mode():
        output = model(IDS)
        expected = output.nested("L1", whiten=True)
        for again in (copy.copy(output), copy.deepcopy(output), pickle.loads(pickle.dumps(output))):
            assert torch.equal(again.nested("L1", whiten=True), expected)


def test_it_compiles_whole(model: RDEsmModel) -> None:
    expected = whitened(model)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.inference_mode():
        # (A compiler is given the library's own activation, which rounds otherwise; whitening divides.)
        torch.testing.assert_close(compiled(IDS).nested("L2", whiten=True), expected, atol=1e-4, rtol=1e-4)


def test_without_statistics_nothing_is_there_and_asking_is_a_sentence(tmp_path: Path) -> None:
    model = random_model([32, 48])
    model.save_pretrained(tmp_path)
    assert "whitening" not in json.loads((tmp_path / "config.json").read_text())
    assert not any("whitening" in name for name in model.state_dict())
    with torch.inference_mode():
        output = model(IDS)
    with pytest.raises(ValueError, match="fit again with `rd-hf fit`"):
        output.nested("L0", whiten=True)
    with pytest.raises(ValueError, match="holds no statistics"):
        model.whiten(output.last_hidden_state)


def test_weights_missing_from_the_file_are_an_error_and_no_random_start(tmp_path: Path) -> None:
    random_model([32, 48]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "whitening": {"weights": [1, 1]}}))
    with pytest.raises(ValueError, match=r"4 are missing \(whitening"):
        RDEsmModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrong", ["zca", {}, {"weights": [1]}, {"weights": [1, -1]}, {"weights": "11"}])
def test_a_config_that_says_something_else_is_refused(wrong: object) -> None:
    levels = random_model([32, 48]).config.levels
    if wrong == {}:
        assert RDEsmConfig(levels=levels, whitening={}).whitening is None
        return
    with pytest.raises(ValueError, match="whitening"):
        RDEsmConfig(levels=levels, whitening=wrong)  # type: ignore[arg-type]


def test_a_whitening_of_other_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"blocks \[32, 16, 16\] does not fit a model whose blocks are \[32, 16\]"):
        install_whitening(random_model([32, 48]), statistics())

"""What a config.json of others can make a loader do: nothing but describe a model, of a size that its files have."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from rd_hf.model import checkpoint_rd_esm
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.files_rd_esm import WeightFiles, find_weights, former_files
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.trust import earlier_code
from tests.conftest import random_model

IDS = torch.tensor([[0, 20, 15, 11, 5, 2]])
Change = Callable[..., Path]


@pytest.fixture
def changed(tiny_checkpoint: Path, tmp_path: Path) -> Change:
    """The tiny family with another config.json: fields of it, and of the backbone of its second level."""

    def change(backbone: dict[str, Any] | None = None, **fields: Any) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(tiny_checkpoint, folder)
        config = json.loads((folder / "config.json").read_text())
        config.update(fields)
        config["levels"][1]["backbone"].update(backbone or {})
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return change


# For an attention called "owner/kernel" transformers fetches compiled code.
FOREIGN = {
    "attn_implementation": "evil/kernel",
    "_attn_implementation": "evil/kernel",
    "_attn_implementation_internal": "evil/kernel",
    "experts_implementation": "evil/kernel",
    "kernel_config": {"a": "evil/kernel"},
    "transformers_weights": "../elsewhere.safetensors",
    "name_or_path": "/etc",
    "_name_or_path": "/etc",
    "_check_levels": 5,
    "__class__": "x",
}
FOREIGN_IN_A_BACKBONE = {
    **{name: value for name, value in FOREIGN.items() if name != "_check_levels"},
    **{"dtype": "os", "torch_dtype": "os", "auto_map": {"AutoModel": "evil/code--modeling.Model"}, "num_labels": 10**9},
    **{"chunk_size_feed_forward": 1, "output_hidden_states": True, "return_dict": False, "tie_word_embeddings": 5},
}


@pytest.mark.parametrize("load", [RDEsmModel.from_pretrained, AutoModel.from_pretrained])
def test_who_runs_a_model_decides_how_it_is_computed(load: Any, changed: Change, tiny_checkpoint: Path) -> None:
    own = {"trust_remote_code": True} if load is not RDEsmModel.from_pretrained else {}
    folder = changed(FOREIGN_IN_A_BACKBONE, **FOREIGN)
    with torch.no_grad():
        for settings in ({}, {"attn_implementation": "eager"}):
            model, expected = (load(place, **own, **settings) for place in (folder, tiny_checkpoint))
            assert model.config._attn_implementation == settings.get("attn_implementation", "sdpa")
            assert [b.config._attn_implementation for b in model.backbones] == [model.config._attn_implementation] * 3
            assert model.config.name_or_path == str(folder)
            assert torch.equal(model(IDS).last_hidden_state, expected(IDS).last_hidden_state)


@pytest.mark.parametrize("name", sorted(FOREIGN))
def test_each_such_field_is_left_aside(name: str, changed: Change, tiny_checkpoint: Path) -> None:
    config, plain = map(RDEsmConfig.from_pretrained, (changed(**{name: FOREIGN[name]}), tiny_checkpoint))
    assert vars(config) == vars(plain)


def test_weights_that_are_to_be_quantised_are_refused(changed: Change) -> None:
    folder = changed(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    for load in (RDEsmConfig.from_pretrained, RDEsmModel.from_pretrained):
        with pytest.raises(ValueError, match=r"its config\.json has a quantization_config.*remove it"):
            load(folder)


def test_a_field_of_a_backbone_that_is_not_known_is_named(changed: Change) -> None:
    heard: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rd_hf.model.configuration_rd_esm.logger.warning", heard.append)
        RDEsmConfig.from_pretrained(changed({"layer_types": ["x"], "vocab_list": None, "use_cache": True}))
    assert len(heard) == 1
    assert "backbone of level L1 has fields in config.json that this version does not know" in heard[0]
    assert "layer_types" in heard[0]
    assert not {"vocab_list", "use_cache"} & set(heard[0].replace(";", ",").split(", "))


# -- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"num_hidden_layers": 10**9}, r"num_hidden_layers .* must be at most 1,024"),
        ({"num_hidden_layers": 1000}, r"backbone of L1 .* says that it has 1,000 layers, and its weights are \d+"),
        ({"intermediate_size": 10**12}, r"says intermediate_size 1,000,000,000,000, and none of its weights"),
        ({"hidden_size": 4 * 10**12}, r"the bases of .* 3 have another shape|the bases of .* \d have another shape"),
        ({"max_position_embeddings": 10**13}, r"max_position_embeddings .* at most 1,048,576"),
        ({"position_embedding_type": "absolute", "max_position_embeddings": 10**6}, "max_position_embeddings|missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_size_that_the_files_do_not_have_is_refused_before_anything_is_built(
    backbone: dict[str, Any], words: str, changed: Change
) -> None:
    config = {"residual_directions": [16, 16]} if "hidden_size" in backbone else {}
    with pytest.raises(ValueError, match=words):
        RDEsmModel.from_pretrained(changed(backbone, **config))


def test_more_levels_than_the_bases_hold_are_refused(changed: Change) -> None:
    folder = changed()
    config = RDEsmConfig.from_pretrained(folder)
    config.levels.append({**config.levels[-1], "name": "L3"})
    config.residual_directions.append(64)
    config.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"the bases of .* 4 are missing \(projections\.2"):
        RDEsmModel.from_pretrained(folder)


# -- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["https://evil.example/x", "", "a/b/c", "a\0b", "~/x", "/etc/nothing", "a/../b", "a..b/c", "../../x"]
)
def test_what_is_neither_folder_nor_hub_id_is_not_asked_for(name: str) -> None:
    with pytest.raises(OSError, match=r"is no folder that exists, and no Hub id \(owner/name\)"):
        find_weights(name)


@pytest.mark.parametrize("place", ["{folder}", "..", "~/backbone", "https://evil.example/x"])
def test_a_checkpoint_of_the_hub_names_no_folder_of_this_machine(
    place: str, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RDEsmConfig.from_pretrained(tiny_checkpoint)
    config.backbones_in_checkpoint = False
    config.levels[0]["repo_id"] = place.format(folder=tiny_checkpoint)
    monkeypatch.setattr(checkpoint_rd_esm, "commit_of", lambda *_: "0" * 40)
    with pytest.raises(ValueError, match=r"me/nested on the Hub takes the backbone of level L0 from .*no Hub id"):
        RDEsmModel.from_pretrained("me/nested", config=config, level="L0")


# -- damaged headers, earlier saves -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *("[]", "5", '{"a": 5}', '{"a": {}}', '{"a": {"shape": [1], "dtype": "F32"}}', "[" * 100_000, '{"a"'),
        '{"a": {"shape": [-1], "dtype": "F32", "data_offsets": [0, 4]}}',
        '{"a": {"shape": [1], "dtype": 5, "data_offsets": [0, 4]}}',
        '{"a": {"shape": ["x"], "dtype": "F32", "data_offsets": [0, 4]}}',
    ],
)
def test_a_header_that_lists_no_tensors_is_said_to_be_damaged(header: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(ValueError, match=r"cut short or is no safetensors file \(.*model\.safetensors.*fetch it again"):
        WeightFiles(str(tmp_path), ("model.safetensors",), True).shapes()


def test_saving_again_leaves_no_index_of_shards_that_are_gone(tmp_path: Path) -> None:
    model = random_model([32, 48])
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert (tmp_path / "model.safetensors.index.projections.json").exists()
    model.save_pretrained(tmp_path)
    assert sorted(name for name in os.listdir(tmp_path) if "safetensors" in name) == [
        *("model.backbone-L0.safetensors", "model.backbone-L1.safetensors", "model.projections.safetensors"),
        "model.safetensors.index.json",
    ]


def test_saving_again_takes_away_the_code_of_other_versions_and_nobody_elses(tmp_path: Path) -> None:
    model = random_model([32, 48])
    model.save_pretrained(tmp_path)
    current = sorted(path.name for path in tmp_path.glob("*_rd_esm.py"))
    former = {name for code in earlier_code().values() for name in code} - set(current)
    assert "lean_rd_esm.py" in former
    for name in former:
        (tmp_path / name).write_text("from .configuration_rd_esm import RDEsmConfig\n")
    (tmp_path / "mine_rd_esm.py").write_text("from .modeling_rd_esm import RDEsmModel\n")
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*_rd_esm.py")) == sorted([*current, "mine_rd_esm.py"])


def test_saving_again_replaces_weights_that_were_damaged_since(tmp_path: Path) -> None:
    model = random_model([32, 48])
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.backbone-L1.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="cut short"):
        RDEsmModel.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert path.read_bytes() == whole


def test_a_name_in_an_earlier_config_leads_to_no_file_elsewhere(changed: Change, tmp_path: Path) -> None:
    folder = changed()
    (folder / "model.backbone-..").mkdir()
    weights = shutil.copy(folder / "model.backbone-L0.safetensors", tmp_path / "others.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config["levels"] += [{"name": "../../../others"}, {"name": 5}, "x", {}]
    (folder / "config.json").write_text(json.dumps(config))
    assert os.path.samefile(weights, folder / "model.backbone-../../../others.safetensors")
    assert not [name for name in former_files(str(folder)) if "/" in name]

"""A backbone that is taken out of a model is a plain ESM-2.

Models here compute as transformers does (`exact_activation=True`), so that its own classes over the same weights give
the same bits; tests/model/test_fused_rd_esm.py has what is saved of the others.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModel, EsmModel

from rd_hf.hub import load_family, save_checkpoint
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, random_model
from tests.hub.conftest import publish_backbone

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both forms, and one whose shards are many."""
    folder = tmp_path_factory.mktemp("family")
    levels = []
    for index, width in enumerate((16, 24)):
        publish_backbone(folder / f"L{index}", width, index)
        levels.append({"name": f"L{index}", "backbone": backbone_settings(width), "repo_id": str(folder / f"L{index}")})
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(folder / "config")
    model = load_family(folder / "config")
    return {
        "bases": save_checkpoint(model, folder / "bases", backbones=False),
        "full": save_checkpoint(model, folder / "full", backbones=True),
        "shards": save_checkpoint(model, folder / "shards", backbones=True, max_shard_size=20_000),
    }


def load(checkpoints: dict[str, Path], source: str) -> RDEsmModel:
    if source == "made":
        return random_model([16, 24], exact_activation=True)
    if source == "remote code":
        return AutoModel.from_pretrained(checkpoints["full"], trust_remote_code=True, exact_activation=True)
    return RDEsmModel.from_pretrained(checkpoints[source], exact_activation=True)


@torch.no_grad()
def state(backbone: EsmModel) -> torch.Tensor:
    return backbone(IDS, attention_mask=torch.ones_like(IDS)).last_hidden_state


def saved(backbone: EsmModel, folder: Path) -> EsmModel:
    backbone.save_pretrained(folder)
    plain, info = EsmModel.from_pretrained(folder, add_pooling_layer=False, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return plain


def pushed(backbone: EsmModel, folder: Path) -> EsmModel:
    """What would go up, put in a folder instead."""
    kept: list[EsmModel] = []
    backbone._upload_modified_files = lambda working, *args, **kwargs: kept.append(  # type: ignore[method-assign]
        EsmModel.from_pretrained(working, add_pooling_layer=False)
    )
    with pytest.MonkeyPatch.context() as patch:
        made = lambda *args, **kwargs: SimpleNamespace(repo_id="me/x")  # noqa: E731
        patch.setattr("huggingface_hub.HfApi.create_repo", made)
        for module in ("transformers.utils.hub", "transformers.modeling_utils"):
            patch.setattr(f"{module}.create_repo", made, raising=False)
        backbone.push_to_hub("me/x")
    return kept[0]


def loaded_into_a_bare_one(backbone: EsmModel, folder: Path) -> EsmModel:
    bare = EsmModel(backbone.config, add_pooling_layer=False).eval()
    bare.load_state_dict(backbone.state_dict(), strict=True)
    return bare


def adapted(backbone: EsmModel, folder: Path) -> EsmModel:
    """An adapter that was made on it goes onto the plain ESM-2, and the other way round."""
    torch.manual_seed(0)
    plain = copy.deepcopy(backbone)
    with_adapter = get_peft_model(backbone, LoraConfig(target_modules=["query"], init_lora_weights=False))
    with_adapter.save_pretrained(folder / "adapter")
    expected = state(with_adapter)
    base = saved(plain, folder / "base")
    onto = PeftModel.from_pretrained(base, folder / "adapter")
    assert torch.equal(state(onto), expected)
    return onto.unload()


WAYS: dict[str, Callable[[EsmModel, Path], EsmModel]] = {
    "save_pretrained": saved,
    "deepcopy, save_pretrained": lambda backbone, folder: saved(copy.deepcopy(backbone), folder),
    "pickle, save_pretrained": lambda backbone, folder: saved(pickle.loads(pickle.dumps(backbone)), folder),
    "push_to_hub": pushed,
    "load_state_dict": loaded_into_a_bare_one,
    "peft": adapted,
}


# Every source by the two plain ways, and one source by all of them.
PAIRS = [
    (source, way)
    for source in ("bases", "shards", "made", "remote code")
    for way in ("save_pretrained", "load_state_dict")
]
PAIRS += [("full", way) for way in WAYS]


@pytest.mark.parametrize(("source", "way"), PAIRS)
def test_a_backbone_taken_out_is_a_plain_esm2(
    checkpoints: dict[str, Path], source: str, way: str, tmp_path: Path
) -> None:
    for index in range(2):
        backbone = load(checkpoints, source).backbones[index]
        expected = state(backbone)
        assert torch.equal(state(WAYS[way](backbone, tmp_path / str(index))), expected)


def test_one_that_is_visited_is_one_too(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    model = RDEsmModel.from_pretrained(checkpoints["full"], sequential=True)
    model.visit_backbones(lambda levels, backbone: saved(backbone, tmp_path / str(levels[0])))


def test_it_is_built_as_it_is_loaded(checkpoints: dict[str, Path]) -> None:
    """Neither has poolers, so that the state_dict of one is that of the other."""
    config = AutoConfig.from_pretrained(checkpoints["full"], trust_remote_code=True)
    loaded = RDEsmModel.from_pretrained(checkpoints["full"])
    for built in (AutoModel.from_config(config, trust_remote_code=True), RDEsmModel(loaded.config)):
        built.load_state_dict(loaded.state_dict(), strict=True)
        loaded.load_state_dict(built.state_dict(), strict=True)
        assert torch.equal(built.eval()(IDS).last_hidden_state, loaded(IDS).last_hidden_state)


def test_the_plain_esm2_goes_back_in(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """What was saved is a backbone that a config may name."""
    model = RDEsmModel.from_pretrained(checkpoints["full"])
    levels = copy.deepcopy(model.config.levels)
    for entry, backbone in zip(levels, model.backbones, strict=True):
        backbone.save_pretrained(tmp_path / entry["name"])
        entry["repo_id"] = str(tmp_path / entry["name"])
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(tmp_path)
    again = load_family(tmp_path)
    for kept, loaded in zip(model.backbones, again.backbones, strict=True):
        assert torch.equal(state(kept), state(loaded))

"""Arguments of transformers that a checkpoint of several models cannot honour are refused, not dropped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from rd_hf.hub import load_family
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings
from tests.hub.conftest import publish_backbone

REFUSED: list[dict[str, Any]] = [
    {"variant": "fp16"},
    {"use_safetensors": False},
    {"key_mapping": {"a": "b"}},
    {"weights_only": False},
    {"gguf_file": "model.gguf"},
    {"state_dict": {"a": torch.zeros(1)}},
    {"use_kernels": True},
]
# What says the same as leaving it out.
TAKEN: list[dict[str, Any]] = [
    {"variant": None},
    {"use_safetensors": None},
    {"use_safetensors": True},
    {"key_mapping": None},
    {"weights_only": True},
    {"ignore_mismatched_sizes": False},
]


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: next(iter(given)))
@pytest.mark.parametrize("level", [None, "L0"])
def test_what_would_be_dropped_is_refused(tiny_checkpoint: Path, given: dict[str, Any], level: str | None) -> None:
    name = next(iter(given))
    with pytest.raises(ValueError, match=rf"^{name}=.* cannot be given.*(leave it out|file|dtype=|others)"):
        RDEsmModel.from_pretrained(tiny_checkpoint, level=level, **given)


def test_through_automodel_too_and_what_asks_for_nothing_is_taken(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="variant='fp16' cannot be given"):
        AutoModel.from_pretrained(tiny_checkpoint, trust_remote_code=True, variant="fp16")
    RDEsmModel.from_pretrained(tiny_checkpoint, **{name: value for given in TAKEN for name, value in given.items()})


def test_safetensors_alone_can_be_asked_for(tmp_path: Path) -> None:
    """Of backbones whose repo has `.bin` files only."""
    publish_backbone(tmp_path / "L0", 16, 0)
    torch.save(load_file(tmp_path / "L0" / "model.safetensors"), tmp_path / "L0" / "pytorch_model.bin")
    (tmp_path / "L0" / "model.safetensors").unlink()
    levels = [{"name": "L0", "backbone": backbone_settings(16), "repo_id": str(tmp_path / "L0")}]
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(tmp_path / "config")
    load_family(tmp_path / "config").save_pretrained(tmp_path / "bases", backbones=False)
    RDEsmModel.from_pretrained(tmp_path / "bases")
    with pytest.raises(OSError, match=r"the backbone of L0 .*holds none of model.safetensors, [^,]*index.json:"):
        RDEsmModel.from_pretrained(tmp_path / "bases", use_safetensors=True)


@pytest.mark.parametrize("given", [{"variant": "fp16"}, {"safe_serialization": False}])
def test_another_format_to_save_in_is_refused(tiny_model: RDEsmModel, given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        tiny_model.save_pretrained(tmp_path / "saved", **given)
    assert not (tmp_path / "saved").exists()

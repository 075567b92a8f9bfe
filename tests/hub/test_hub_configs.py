"""hub_configs/: generated, and true to the architectures they name."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import EsmForMaskedLM

from rd_hf.families import ESM2, esm2_config
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from tests.conftest import REPOSITORY

# Parameters in millions as published, language model head included.
MILLIONS = {"8M": 7.5, "35M": 33.5, "150M": 148, "650M": 651, "3B": 2840, "15B": 15100}


def test_they_are_what_the_command_writes() -> None:
    command = [sys.executable, "scripts/make_hub_configs.py", "--check"]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("level", [member.name for member in ESM2[1:]])
def test_a_folder_loads_as_the_family_up_to_its_level(level: str) -> None:
    config = RDEsmConfig.from_pretrained(REPOSITORY / "hub_configs" / f"rd-esm2-{level}")
    members = ESM2[: [member.name for member in ESM2].index(level) + 1]
    assert config.level_names == [member.name for member in members]
    assert list(config.nested_dims.values()) == [member.width for member in members]
    assert [entry["repo_id"] for entry in config.levels] == [member.repo_id for member in members]
    assert not config.backbones_in_checkpoint
    assert not any(
        path.suffix == ".safetensors" for path in (REPOSITORY / "hub_configs" / f"rd-esm2-{level}").iterdir()
    )


@pytest.mark.parametrize("index", range(len(ESM2)), ids=[member.name for member in ESM2])
def test_the_backbones_have_esm2s_sizes(index: int) -> None:
    config = esm2_config("15B").backbone_config(index)
    with torch.device("meta"):
        model = EsmForMaskedLM(config)
    total = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    encoder = sum(parameter.numel() for parameter in model.esm.parameters()) / 1e6
    print(f"{ESM2[index].name}: {total:,.2f} M parameters, {encoder:,.2f} M of them in the encoder")
    # The published numbers have two or three digits.
    assert total == pytest.approx(MILLIONS[ESM2[index].name], rel=0.004)
    assert config.hidden_size % config.num_attention_heads == 0

"""hub_configs/: generated, and true to the architectures they name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import EsmConfig, EsmForMaskedLM

from rd_hf.families import ESM2, ESMC, FAMILIES, Member, esm2_config
from rd_hf.hub.describe import describe_model
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from tests.conftest import REPOSITORY

# What the repos themselves say: data/SOURCES.md.
REPOS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "esm2_repos.json").read_text())
# Parameters in millions as published, language model head included.
MILLIONS = {"8M": 7.5, "35M": 33.5, "150M": 148, "650M": 651, "3B": 2840, "15B": 15100}


def make_hub_configs(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "scripts/make_hub_configs.py", *arguments],
        cwd=REPOSITORY,
        env={"PYTHONPATH": str(REPOSITORY), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )


def test_they_are_what_the_command_writes() -> None:
    done = make_hub_configs("--check")
    assert done.returncode == 0, done.stderr


def test_copies_of_code_that_is_gone_are_removed(tmp_path: Path) -> None:
    gone = tmp_path / "rd-esm2-mini" / "lean_rd_esm.py"
    gone.parent.mkdir()
    gone.write_text("")
    assert str(gone) in make_hub_configs("--output", str(tmp_path), "--check").stderr
    make_hub_configs("--output", str(tmp_path))
    assert not gone.exists()


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


@pytest.mark.parametrize("level", [member.name for member in ESM2[1:]])
def test_a_lossless_folder_is_as_wide_as_its_backbones_together(level: str) -> None:
    config = RDEsmConfig.from_pretrained(REPOSITORY / "hub_configs" / f"rd-esm2-{level}-lossless")
    assert config.is_lossless
    assert config.hidden_size == sum(config.backbone_widths)
    plain = RDEsmConfig.from_pretrained(REPOSITORY / "hub_configs" / f"rd-esm2-{level}")
    assert not plain.is_lossless
    assert config.levels == plain.levels


@pytest.mark.skipif("esmc" not in transformers.CONFIG_MAPPING, reason="this release of transformers has no ESM-C")
@pytest.mark.parametrize(("index", "total"), [(0, 332_997_184), (1, 575_036_992), (2, 6_352_005_184)])
def test_esmc_has_its_published_sizes(index: int, total: int) -> None:
    """A quarter of the bytes of the tensors in each repo's safetensors, in float32."""
    with torch.device("meta"):
        model = transformers.EsmcForMaskedLM(FAMILIES["esmc"].config("6B").backbone_config(index))
    assert sum(parameter.numel() for parameter in model.parameters()) == total
    counts = [0, *(level.parameters for level in describe_model("rd-esmc-6B").levels)]
    assert counts[index + 1] - counts[index] == sum(parameter.numel() for parameter in model.esmc.parameters())
    # The header of a safetensors file is small.
    assert ESMC[index].download == pytest.approx(4 * total, rel=1e-4)


def test_chains_of_other_families() -> None:
    for name, widths, dims in (
        ("rd-esmc-600M", [960, 1152], [960, 1152]),
        ("rd-esmc-6B", [960, 1152, 2560], [960, 1152, 2560]),
        ("rd-esm2-650M-esmc-600M", [1280, 1152], [1280, 2432]),
    ):
        config = RDEsmConfig.from_pretrained(REPOSITORY / "hub_configs" / name)
        assert (config.backbone_widths, list(config.nested_dims.values())) == (widths, dims)
        assert config.vocab_size == (64 if name.startswith("rd-esmc") else 33)
        assert not config.backbones_in_checkpoint


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


@pytest.mark.parametrize("level", [member.name for member in ESM2[1:]])
def test_every_field_is_what_the_pinned_repo_says(level: str) -> None:
    """A backbone's settings are those of its repo's config.json, and what they leave out is the library's default."""
    config = json.loads((REPOSITORY / "hub_configs" / f"rd-esm2-{level}" / "config.json").read_text())
    for entry in config["levels"]:
        repo = REPOS[entry["repo_id"]]
        assert entry["revision"] == repo["commit"]
        published = repo["config"]
        assert {name: published[name] for name in entry["backbone"]} == entry["backbone"]
        default = EsmConfig().to_dict()
        # Where it comes from, and what concerns no encoder.
        aside = {"_name_or_path", "architectures", "model_type", "torch_dtype", "transformers_version", "use_cache"}
        for name in published.keys() - entry["backbone"].keys() - aside:
            assert published[name] == default.get(name, published[name]), name


@pytest.mark.parametrize("member", ESM2, ids=[member.name for member in ESM2])
def test_a_download_is_as_large_as_its_files(member: Member) -> None:
    assert member.download == REPOS[member.repo_id]["weights_bytes"]

"""Checkpoint folders: both forms, what loading touches, where things go, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, EsmConfig, EsmModel

from rd_hf.families import ESM2, esm2_backbone
from rd_hf.hub import load_family, save_checkpoint
from rd_hf.hub.card import render_card
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import REPOSITORY, backbone_settings, random_model
from tests.hub.conftest import publish_backbone

IDS = torch.tensor([[0, 20, 15, 11, 32, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])
WIDTHS = [32, 48, 64]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Backbones as published, in local folders, and a config that names them."""
    folder = tmp_path_factory.mktemp("family")
    for index, width in enumerate(WIDTHS):
        publish_backbone(folder / f"L{index}", width, index)
    levels = [
        {"name": f"L{index}", "backbone": backbone_settings(width), "repo_id": str(folder / f"L{index}")}
        for index, width in enumerate(WIDTHS)
    ]
    (folder / "config").mkdir()
    fields = {"model_type": "rd_esm", "levels": levels, "backbones_in_checkpoint": False}
    (folder / "config" / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.fixture(scope="module")
def model(family: Path) -> RDEsmModel:
    model = load_family(family / "config")
    torch.manual_seed(0)
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    return model


@pytest.fixture(scope="module")
def bases_only(model: RDEsmModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(model, tmp_path_factory.mktemp("bases"), backbones=False)


@pytest.fixture(scope="module")
def full(bases_only: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(
        RDEsmModel.from_pretrained(bases_only), tmp_path_factory.mktemp("full"), backbones=True, max_shard_size=60_000
    )


@pytest.fixture(params=["bases_only", "full"])
def checkpoint(request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(request.param)
    return folder


@torch.no_grad()
def output(model: RDEsmModel) -> torch.Tensor:
    return model(IDS).last_hidden_state


def rotary(model: RDEsmModel) -> list[torch.Tensor]:
    return [
        next(buffer for name, buffer in backbone.named_buffers() if "inv_freq" in name) for backbone in model.backbones
    ]


def test_without_bases_yet_they_are_zero_and_the_backbones_are_there(family: Path) -> None:
    model = load_family(family / "config", level="L1")
    assert len(model.backbones) == 2
    assert not any(buffer.any() for buffer in model.projections.buffers())
    alone = EsmModel.from_pretrained(family / "L0", add_pooling_layer=False)
    states = alone(IDS, attention_mask=IDS.ne(1).long()).last_hidden_state
    # The library's activation rounds five times, on states of order one, in each of the layers.
    torch.testing.assert_close(output(model)[..., :32], states, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_forms_load_what_was_saved(model: RDEsmModel, checkpoint: Path, dtype: torch.dtype) -> None:
    again = RDEsmModel.from_pretrained(checkpoint, dtype=dtype)
    reference = output(model) if dtype == torch.float32 else output(load_family(checkpoint, dtype=dtype))
    assert torch.equal(output(again), reference)
    # ESM-2 was trained with these rounded to float16: neither computed afresh nor rounded again.
    for trained, width, loaded in zip(rotary(model), WIDTHS, rotary(again), strict=True):
        computed = 1.0 / 10000 ** (torch.arange(0, width // 4, 2).float() / (width // 4))
        assert torch.equal(loaded, trained)
        assert torch.equal(loaded, computed.half().float())
        assert loaded.dtype == torch.float32
    assert not torch.equal(computed.half().float(), computed)


@pytest.mark.parametrize("form", ["bases", "full"])
def test_the_dtype_is_the_one_asked_for_and_else_the_one_saved(bases_only: Path, tmp_path: Path, form: str) -> None:
    half = load_family(bases_only, dtype=torch.bfloat16)
    folder = save_checkpoint(half, tmp_path / form, backbones=form == "full")
    saved, asked = torch.bfloat16, torch.float32
    for settings, expected in (({}, saved), ({"dtype": "auto"}, saved), ({"dtype": asked}, asked)):
        for load in (RDEsmModel.from_pretrained, partial(AutoModel.from_pretrained, trust_remote_code=True)):
            assert load(folder, **settings).dtype == expected


def test_the_full_form_reads_only_the_files_of_its_level(full: Path, tmp_path: Path) -> None:
    for path in full.iterdir():
        if not path.name.startswith(("model.backbone-L2", "model.backbone-L1")):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert len(RDEsmModel.from_pretrained(tmp_path, level="L0").backbones) == 1
    with pytest.raises(OSError, match="the backbone of L1"):
        RDEsmModel.from_pretrained(tmp_path, level="L1")


def test_files_stay_below_the_size_that_was_asked_and_the_index_covers_them(full: Path) -> None:
    index = json.loads((full / "model.safetensors.index.json").read_text())
    keys: set[str] = set()
    for path in full.glob("*.safetensors"):
        tensors = load_file(path)
        keys |= set(tensors)
        largest = max(tensor.nbytes for tensor in tensors.values())
        assert path.stat().st_size < max(60_000, largest) + 8192 or path.name == "model.projections.safetensors"
        assert len({key.split(".")[1] for key in tensors if key.startswith("backbones.")}) <= 1
        assert all(index["weight_map"][key] == path.name for key in tensors)
    assert keys == set(index["weight_map"])


def test_saving_the_other_form_over_one_leaves_nothing_of_it(model: RDEsmModel, full: Path, tmp_path: Path) -> None:
    whole = RDEsmModel.from_pretrained(full)
    whole.save_pretrained(tmp_path, backbones=True)
    for entry, original in zip(whole.config.levels, model.config.levels, strict=True):
        entry["repo_id"] = original["repo_id"]
    # Saved into the folder that its tensors may still be mapped from.
    RDEsmModel.from_pretrained(tmp_path).save_pretrained(tmp_path, backbones=True)
    assert torch.equal(output(RDEsmModel.from_pretrained(tmp_path)), output(whole))
    whole.save_pretrained(tmp_path, backbones=False)
    assert [path.name for path in tmp_path.glob("model*.safetensors*")] == ["model.safetensors"]
    assert not list(tmp_path.glob(".saving-*"))


def test_bases_alone_are_not_saved_where_nobody_could_find_the_backbones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="L0 names no repo_id"):
        random_model([32, 48]).save_pretrained(tmp_path, backbones=False)


def test_nothing_that_is_loaded_is_initialised_first(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    for name in ("normal_", "uniform_", "trunc_normal_", "kaiming_uniform_", "xavier_uniform_"):
        plain = getattr(torch.Tensor if hasattr(torch.Tensor, name) else torch.nn.init, name)

        def watched(tensor: torch.Tensor, *args: Any, plain: Any = plain, name: str = name, **kwargs: Any) -> Any:
            if tensor.device.type != "meta" and tensor.numel():
                drawn.append(f"{name} {tuple(tensor.shape)}")
            return plain(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor if hasattr(torch.Tensor, name) else torch.nn.init, name, watched)
    RDEsmModel.from_pretrained(checkpoint)
    assert drawn == []


def test_it_builds_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = RDEsmModel(random_model(WIDTHS).config)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}, {"backbones": "cpu", "projections.0": "cpu"}])
def test_device_maps_on_one_device(model: RDEsmModel, checkpoint: Path, device_map: Any) -> None:
    again = RDEsmModel.from_pretrained(checkpoint, device_map=device_map)
    assert torch.equal(output(again), output(model))
    assert {str(device) for device in again.hf_device_map.values()} == {"cpu"}


def test_a_model_larger_than_memory_goes_to_disk_in_part(model: RDEsmModel, checkpoint: Path, tmp_path: Path) -> None:
    """device_map="auto" with a small CPU: later layers lie on disk, bases and outputs where they are computed."""
    sizes = [sum(parameter.nbytes for parameter in backbone.parameters()) for backbone in model.backbones]
    again = RDEsmModel.from_pretrained(
        checkpoint,
        device_map="auto",
        max_memory={"cpu": f"{(sizes[0] + sizes[1]) * 11 // 10000}KB"},
        offload_folder=tmp_path,
    )
    placed = {name: str(device) for name, device in again.hf_device_map.items()}
    assert placed["backbones.0"] == "cpu"
    assert "disk" in placed.values()
    assert {placed[f"projections.{index}"] for index in (0, 1)} == {"cpu"}
    assert torch.equal(output(again), output(model))


def test_a_device_map_without_a_backbone_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"no entry for backbones\.2"):
        RDEsmModel.from_pretrained(checkpoint, device_map={"backbones.0": "cpu", "backbones.1": "cpu"})


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.fixture
def copied(full: Path, tmp_path: Path) -> Path:
    """A full checkpoint of one's own to spoil."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for path in full.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_a_truncated_file_is_named(copied: Path) -> None:
    path = copied / "model.backbone-L1-00001-of-00005.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the backbone of L1 in .*: a weights file is cut short"):
        RDEsmModel.from_pretrained(copied)
    path = copied / "model.projections.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"the bases of .*: a weights file is cut short"):
        RDEsmModel.from_pretrained(copied)


def test_weights_of_other_sizes_are_named(copied: Path) -> None:
    path = copied / "model.projections.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "projections.1.directions": torch.zeros(64, 3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 have another shape \(projections.1.directions"):
        RDEsmModel.from_pretrained(copied)
    del tensors["projections.0.regression"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 are missing \(projections.0.regression"):
        RDEsmModel.from_pretrained(copied)


def test_a_basis_with_nan_is_named_with_its_level(copied: Path) -> None:
    path = copied / "model.projections.safetensors"
    tensors = load_file(path)
    tensors["projections.1.regression"][3, 4] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"the basis of level L2 holds NaN or infinite numbers \(regression\)"):
        RDEsmModel.from_pretrained(copied)
    RDEsmModel.from_pretrained(copied, level="L1")


def test_swapped_backbones_are_named(copied: Path, bases_only: Path, tmp_path: Path) -> None:
    fields = json.loads((bases_only / "config.json").read_text())
    first, second = fields["levels"][:2]
    first["repo_id"], second["repo_id"] = second["repo_id"], first["repo_id"]
    for path in bases_only.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes()) if path.is_file() else None
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"the backbone of L0: its weights are not those .* another shape"):
        RDEsmModel.from_pretrained(tmp_path)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["model.projections.safetensors", "pytorch_model.bin"])
def test_a_pickle_is_not_opened(copied: Path, tmp_path: Path, name: str) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "unpickled"))
    (copied / "model.projections.safetensors").unlink()
    (copied / name).write_bytes(bomb)
    with pytest.raises((ValueError, OSError), match="the bases of"):
        RDEsmModel.from_pretrained(copied)
    assert not (tmp_path / "unpickled").exists()


def test_a_link_out_of_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    path = copied / "model.projections.safetensors"
    (tmp_path / "elsewhere.safetensors").write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(ValueError, match="is a link out of its folder"):
        RDEsmModel.from_pretrained(copied)


def test_an_absent_folder_and_a_folder_without_weights_are_named(tmp_path: Path, bases_only: Path) -> None:
    with pytest.raises(OSError, match="no such folder"):
        RDEsmModel.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text((bases_only / "config.json").read_text())
    with pytest.raises(OSError, match=r"the bases of .* cannot be loaded"):
        RDEsmModel.from_pretrained(tmp_path)


def test_the_two_hub_files_are_all_that_is_needed(full: Path) -> None:
    """A process in which the package cannot be imported, offline."""
    code = (
        "import sys, torch; sys.modules['rd_hf'] = None\n"
        "from transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True, level='L1')\n"
        "print(tuple(model(torch.tensor([[0, 20, 2]])).last_hidden_state.shape))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(full)],
        cwd=full,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(full.parent / "home"), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "(1, 3, 48)", done.stderr
    travels = sorted(path.name for path in (REPOSITORY / "rd_hf" / "model").glob("*_rd_esm.py"))
    assert sorted(path.name for path in full.glob("*.py")) == travels
    for name in travels:
        assert (full / name).read_bytes() == (REPOSITORY / "rd_hf" / "model" / name).read_bytes()


def test_bases_at_esm2s_real_widths_are_small_and_exact(tmp_path: Path) -> None:
    """8M to 650M at their real widths (one layer each, random): under 25 MB, equal bit for bit after loading."""
    members = ESM2[:4]
    levels = []
    for member in members:
        settings = {**esm2_backbone(member), "num_hidden_layers": 1}
        EsmModel(EsmConfig(**settings), add_pooling_layer=False).save_pretrained(tmp_path / member.name)
        levels.append({"name": member.name, "backbone": settings, "repo_id": str(tmp_path / member.name)})
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(tmp_path / "config")
    model = load_family(tmp_path / "config")
    for buffer in model.projections.buffers():
        buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
    folder = save_checkpoint(model, tmp_path / "bases", backbones=False)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"bases up to 650M: {size:,} bytes")
    assert size < 25e6
    assert torch.equal(output(RDEsmModel.from_pretrained(folder)), output(model))


@pytest.mark.parametrize(
    ("revision", "full", "said"),
    [
        ("0" * 40, False, "at the commit that the bases were fitted with;"),
        (None, False, "at the commit that stands beside it below, or where none does as that repo is on the day;"),
        (None, True, "reads the files of the levels up to that one only"),
    ],
)
def test_the_card_says_where_backbones_come_from_and_what_long_sequences_are(
    revision: str | None, full: bool, said: str
) -> None:
    entry = {"name": "S", "backbone": backbone_settings(32), "repo_id": "lab/s", "revision": revision}
    config = RDEsmConfig(levels=[entry], backbones_in_checkpoint=full, max_residues=1500)
    card = " ".join(render_card(config, repo_id="me/x", full=full).split())
    assert said in card
    assert "more than 1,500 residues is embedded in overlapping windows by `SentenceTransformer`" in card
    assert 'unless loaded with `long_input="window"`' in card

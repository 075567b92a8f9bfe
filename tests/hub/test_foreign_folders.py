"""Saving a model into a folder that holds another's files: what is not a reverse-distilled model's is never lost."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import EsmConfig, EsmModel

from rd_hf.bases.moments import save_tensors
from rd_hf.commands.fit import main as fit
from rd_hf.files import FolderError
from rd_hf.hub.checkpoint import load_family, save_checkpoint
from rd_hf.model import modeling_rd_esm as modeling
from rd_hf.model.files_rd_esm import is_own
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA, backbone_settings, random_model
from tests.embedding.test_folder import snapshot


def another_model(folder: Path) -> Path:
    """A folder as another project leaves it, with weights under names that this one writes too."""
    EsmModel(EsmConfig(**backbone_settings(32))).save_pretrained(folder)
    (folder / "model.safetensors").replace(folder / "model.fp16.safetensors")
    save_file({"encoder.weight": torch.ones(3)}, folder / "model.safetensors")
    (folder / "README.md").write_text("# Somebody's card\n")
    (folder / "training_args.bin").write_bytes(b"arguments")
    return folder


FOREIGN = {
    "config.json": '{"model_type": "esm"}',
    "model.safetensors": None,
    "model.projections.safetensors": None,
    "model.safetensors.index.json": '{"weight_map": {"encoder.weight": "model.safetensors"}}',
    "modeling_rd_esm.py": "print('somebody else')\n",
}


def put(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    content = FOREIGN.get(name, "somebody's")
    if content is None:
        save_file({"encoder.weight": torch.ones(3)}, folder / name)
    else:
        (folder / name).write_text(content)
    return folder


def test_another_models_folder_is_refused_unchanged_by_every_way_of_saving(tmp_path: Path) -> None:
    folder, model = another_model(tmp_path / "theirs"), random_model([32, 48])
    before = snapshot(folder)
    for save in (
        lambda: model.save_pretrained(folder),
        lambda: model.save_pretrained(folder, backbones=True, max_shard_size="20KB"),
        lambda: save_checkpoint(model, folder, backbones=True),
    ):
        with pytest.raises(ValueError, match=r"config.json is no file of a reverse-distilled model"):
            save()
        assert snapshot(folder) == before


@pytest.mark.parametrize("name", FOREIGN)
def test_a_foreign_file_that_would_be_replaced_is_refused_unchanged(name: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "theirs", name)
    before = snapshot(folder)
    with pytest.raises(ValueError, match=f"{name} is no file of a reverse-distilled model"):
        random_model([32, 48]).save_pretrained(folder, backbones=True)
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    "name",
    ["vocab.txt", "README.md", "modules.json", "sentence_bert_config.json", "fit_report.json", "tokenizer_config.json"],
)
def test_what_only_a_whole_checkpoint_would_replace(name: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "theirs", name)
    before = snapshot(folder)
    with pytest.raises(ValueError, match=f"{name} is no file of a reverse-distilled model"):
        save_checkpoint(random_model([32, 48]), folder, backbones=True)
    assert snapshot(folder) == before
    random_model([32, 48]).save_pretrained(folder)
    assert (folder / name).read_text() == before[name].decode(), "the model alone writes no such file"


def test_files_beside_the_model_stay_and_its_own_are_replaced(tmp_path: Path) -> None:
    """A Trainer's checkpoint-N folder, a user's copy of weights, weights of another model under a name of its own."""
    folder, model = tmp_path / "checkpoint-5", random_model([32, 48])
    model.save_pretrained(folder, backbones=True, max_shard_size="20KB")
    others: dict[str, Any] = {}
    for name in ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.md", "generation.json"):
        (folder / name).write_text(name)
    save_file({"encoder.weight": torch.ones(3)}, folder / "model.fp16.safetensors")
    (folder / "model.backup.safetensors").write_bytes((folder / "model.projections.safetensors").read_bytes())
    names = ("training_args.bin", "optimizer.pt", "trainer_state.json", "notes.md", "generation.json")
    others = {
        name: (folder / name).read_bytes() for name in (*names, "model.fp16.safetensors", "model.backup.safetensors")
    }
    shards = len(list(folder.glob("model.backbone-*-of-*.safetensors")))
    assert shards > 2
    model.save_pretrained(folder, backbones=True)
    assert {name: (folder / name).read_bytes() for name in others} == others
    assert not list(folder.glob("model.backbone-*-of-*")), "shards of the earlier save are gone"
    loaded = RDEsmModel.from_pretrained(folder)
    assert torch.equal(loaded.state_dict()["projections.0.directions"], model.state_dict()["projections.0.directions"])
    for level, backbone in zip(model.config.levels, model.backbones, strict=True):
        level["repo_id"] = str(tmp_path / level["name"])
        backbone.save_pretrained(level["repo_id"])
    model.save_pretrained(folder, backbones=False)
    assert {path.name for path in folder.glob("model*.safetensors")} == {
        *("model.safetensors", "model.fp16.safetensors", "model.backup.safetensors")
    }
    assert not list(folder.glob("*.index*.json"))


@pytest.mark.parametrize("path", sorted(Path(modeling.__file__).parent.glob("*_rd_esm.py")), ids=lambda path: path.name)
def test_every_file_of_the_remote_code_is_known_by_what_it_holds(path: Path, tmp_path: Path) -> None:
    """Alone, as a save that was killed leaves it; and without its words, beside a config of ours."""
    assert is_own(str(path))
    random_model([32, 48]).save_pretrained(tmp_path)
    (tmp_path / path.name).write_text("# another version\n")
    assert is_own(str(tmp_path / path.name))


def test_weights_have_the_umasks_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        save_checkpoint(random_model([32, 48]), tmp_path / "model", backbones=True)
        save_tensors(tmp_path / "model" / "more.safetensors", {"a": torch.zeros(1)})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()} == {0o640}


def test_a_card_of_ones_own_stays_beside_a_model_of_ours(tmp_path: Path) -> None:
    folder = save_checkpoint(random_model([32, 48]), tmp_path / "model", backbones=True)
    (folder / "README.md").write_text("# Mine\n")
    save_checkpoint(random_model([32, 48], seed=1), folder, backbones=True)
    assert (folder / "README.md").read_text() == "# Mine\n"


@pytest.mark.parametrize("kind", ["another model", "thesis.txt", "model.safetensors", ".fit/settings.json"])
def test_a_fit_refuses_anothers_folder_before_the_first_change(
    kind: str, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    if kind == "another model":
        another_model(folder)
    else:
        (folder / kind).parent.mkdir(parents=True)
        (folder / kind).write_text("{}")
    before = snapshot(folder)
    status = fit(["--config", str(tiny_checkpoint), "--input", str(EXAMPLE_FASTA), "--output", str(folder)])
    said = capsys.readouterr().err
    assert status == 1
    assert f"{folder} holds other files" in said
    assert said.count("\n") == 1
    assert snapshot(folder) == before


def test_a_disk_that_fills_during_a_save_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    model = load_family(random_saved(tmp_path))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(FolderError, match=r"model is full .*: free some space and give the same command again"):
            save_checkpoint(model, tmp_path / "model", backbones=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "model").iterdir())


def random_saved(folder: Path) -> Path:
    random_model([32, 48]).save_pretrained(folder / "source")
    assert json.loads((folder / "source" / "config.json").read_text())["model_type"] == "rd_esm"
    return folder / "source"

"""Whose code a checkpoint may name: no command runs, or publishes, a class that is not this project's."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from rd_hf.__main__ import main
from rd_hf.evaluation.families import Family
from rd_hf.hub.checkpoint import save_checkpoint
from rd_hf.hub.push import PushedModelDiffersError, compare_with_hub, plan_push
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.trust import earlier_code, missing_code, refuse_foreign_code, strange_code, this_code
from tests.conftest import EXAMPLE_FASTA, random_model

VERSION_0_1_0 = Path(__file__).parent / "model" / "data" / "version_0_1_0"
EVIL = "evil/code--modeling_rd_esm.RDEsmModel"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(random_model([32, 48]), tmp_path_factory.mktemp("trust") / "model", backbones=True)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint of one's own to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def put(folder: Path, file: str, **fields: Any) -> None:
    path = folder / file
    found = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps([*found, fields] if isinstance(found, list) else found | fields))


def test_what_this_package_and_earlier_versions_write_is_accepted(saved: Path, mini_checkpoint: Path) -> None:
    for folder in (saved, mini_checkpoint, VERSION_0_1_0):
        refuse_foreign_code(folder)
    assert strange_code(saved) == missing_code(saved) == []
    assert strange_code(VERSION_0_1_0) == missing_code(VERSION_0_1_0) == []
    assert set(earlier_code()["0.1.0"]) == {"configuration_rd_esm.py", "modeling_rd_esm.py"}
    assert set(this_code()) == {path.name for path in saved.glob("*.py")}


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"auto_map": {"AutoModel": EVIL}}),
        ("config.json", {"auto_map": {"AutoConfig": "configuration_rd_esm.RDEsmConfig", "AutoModel": "evil.Model"}}),
        ("config.json", {"auto_map": {"AutoTokenizer": [None, "evil/code--tokenizer.Tokenizer"]}}),
        ("config.json", {"custom_pipelines": {"feature-extraction": {"impl": "evil/code--pipeline.Pipeline"}}}),
        ("config.json", {"bases": {"auto_map": {"AutoModel": EVIL}}}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil/code--tokenizer.Tokenizer", None]}}),
        ("tokenizer_config.json", {"auto_map": ["evil/code--tokenizer.Tokenizer", None]}),
        ("processor_config.json", {"auto_map": {"AutoProcessor": "evil/code--processing.Processor"}}),
        ("modules.json", {"idx": 2, "name": "2", "path": "2_Evil", "type": "evil.Module"}),
        ("modules.json", {"idx": 2, "name": "2", "path": "2_Evil", "type": "subprocess.Popen"}),
    ],
    ids=str,
)
def test_an_entry_that_names_other_code_is_refused_with_its_file(
    folder: Path, file: str, fields: dict[str, Any]
) -> None:
    put(folder, file, **fields)
    with pytest.raises(ValueError, match=rf"{file} names code that is not this project's"):
        refuse_foreign_code(folder)
    with pytest.raises(ValueError, match=rf"{file} names code that is not this project's"):
        plan_push(folder, "me/model")


COMMANDS = {
    "info": ("info", "MODEL"),
    "push": ("push", "--model", "MODEL", "--repo-id", "me/model"),
    "dry run": ("push", "--model", "MODEL", "--repo-id", "me/model", "--dry-run"),
    "release": ("release", "--config", "MODEL", "--repo-id", "me/model", "--plan"),
    "embed": ("embed", "--model", "MODEL", "--input", "FASTA", "--output", "OUT"),
    "fit": ("fit", "--config", "MODEL", "--input", "FASTA", "--output", "OUT"),
    "fit on levels": ("fit", "--backbones", "L0=MODEL", "L1=MODEL", "--input", "FASTA", "--output", "OUT"),
    "convert": ("convert", "--model", "MODEL", "--input", "a.npy", "--ids", "ids.txt", "--output", "OUT"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_it_before_anything_runs(
    folder: Path, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put(folder, "config.json", auto_map={"AutoConfig": "configuration_rd_esm.RDEsmConfig", "AutoModel": EVIL})
    words = {"MODEL": str(folder), "L0=MODEL": f"L0={folder}", "L1=MODEL": f"L1={folder}", "FASTA": str(EXAMPLE_FASTA)}
    words["OUT"] = str(tmp_path / "out")
    assert main([words.get(word, word) for word in COMMANDS[command]]) == 1
    said = capsys.readouterr().err
    assert f"config.json names code that is not this project's (auto_map AutoModel: {EVIL})" in said
    assert said.count("\n") == 1


def test_evaluations_refuse_it_too_and_never_ask_whether_to_run_a_backbones_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder, "config.json", auto_map={"AutoModel": EVIL})
    with pytest.raises(ValueError, match="names code that is not this project's"):
        Family.load(str(folder))
    # An ESM-2 whose config names code: transformers' own class runs, and nobody is asked at a terminal.
    backbone = random_model([32]).backbones[0]
    backbone.save_pretrained(tmp_path / "esm")
    put(tmp_path / "esm", "config.json", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    (tmp_path / "esm" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    assert Family.load(str(tmp_path / "esm")).widths == [32]
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["modeling_rd_esm.py", "helpers_rd_esm.py"])
def test_code_that_no_version_wrote_is_not_published_and_elsewhere_named(
    folder: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A changed file, and one of a name that this project does not have."""
    with (folder / name).open("a") as file:
        file.write("import os\n")
    with pytest.raises(ValueError, match=rf"{name} is not as any version of rd_hf wrote it, and would run"):
        plan_push(folder, "me/model")
    refuse_foreign_code(folder)
    assert f"{name}: not as any version of rd_hf wrote it, and not used" in caplog.text


def test_files_of_two_versions_do_not_go_together(folder: Path) -> None:
    shutil.copy(VERSION_0_1_0 / "configuration_rd_esm.py", folder)
    assert strange_code(folder) == ["configuration_rd_esm.py"]
    (folder / "configuration_rd_esm.py").unlink()
    with pytest.raises(ValueError, match=r"lacks configuration_rd_esm.py, without which nobody could load it"):
        plan_push(folder, "me/model")


def test_line_ends_as_git_checks_them_out_are_no_change(folder: Path) -> None:
    path = folder / "modeling_rd_esm.py"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert strange_code(folder) == []


@pytest.mark.parametrize("spoil", ["nothing", "code", "pointer", "weights"])
def test_the_check_after_a_push_runs_nothing_that_was_fetched(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """The "Hub" here is a folder, which the loaders take as well; its code would write down the token that it sees."""
    pushed = Path(shutil.copytree(folder, tmp_path / "pushed"))
    monkeypatch.setattr("rd_hf.hub.push.snapshot_download", lambda repo_id, **_: repo_id, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    loot = tmp_path / "loot"
    if spoil == "code":
        with (pushed / "modeling_rd_esm.py").open("a") as file:
            file.write(f"import os; open({str(loot)!r}, 'w').write(os.environ['HF_TOKEN'])\n")
    if spoil == "pointer":
        put(pushed, "config.json", auto_map={"AutoModel": EVIL})
    if spoil == "weights":
        random_model([32, 48], seed=1).save_pretrained(pushed)
    held: list[weakref.ref[torch.nn.Module]] = []
    load = RDEsmModel._load_backbone

    def watched(model: RDEsmModel, *args: Any, **settings: Any) -> Any:
        gc.collect()
        assert not any(one() is not None for one in held), "one backbone at a time"
        backbone = load(model, *args, **settings)
        held.append(weakref.ref(backbone))
        return backbone

    monkeypatch.setattr(RDEsmModel, "_load_backbone", watched)
    if spoil == "nothing":
        assert compare_with_hub(folder, str(pushed), "main") == ["L0", "L1"]
        assert len(held) >= 4
    else:
        with pytest.raises(PushedModelDiffersError, match="should not be used"):
            compare_with_hub(folder, str(pushed), "main")
    assert not loot.exists()
    assert os.environ["HF_TOKEN"] == "hf_secret"


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_models_own_push_publishes_no_pointer_either(folder: Path, file: str, tmp_path: Path) -> None:
    """model.push_to_hub(), which goes by what was saved and what lies beside the model."""
    put(folder, file, auto_map={"AutoTokenizer": ["evil/code--tokenizer.Tokenizer", None]})
    model = RDEsmModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=rf"{file} names code in another repo \(evil/code--tokenizer.Tokenizer\)"):
        model._upload_modified_files(tmp_path / "saved", "me/model", {})

"""`rd-hf info`: what a model is, and what each level costs, held against models that are really built and run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rd_hf.__main__ import main
from rd_hf.hub.describe import describe_model
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import REPOSITORY, environment
from tests.hub.server import FakeHub


def test_sizes_are_those_of_the_model_that_loads(tiny_checkpoint: Path) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint)
    facts = describe_model(str(tiny_checkpoint))
    assert {level.level: level.width for level in facts.levels} == model.config.nested_dims
    largest = facts.levels[-1]
    assert largest.parameters == sum(parameter.numel() for parameter in model.parameters())
    bases = sum(buffer.nbytes for buffer in model.projections.buffers())
    assert largest.memory_bytes == sum(parameter.nbytes for parameter in model.parameters()) + bases
    assert largest.largest_bytes == sum(parameter.nbytes for parameter in model.backbones[-1].parameters()) + bases
    small = RDEsmModel.from_pretrained(tiny_checkpoint, level="L1")
    assert facts.levels[1].parameters == sum(parameter.numel() for parameter in small.parameters())
    assert facts.file_bytes == sum(file.stat().st_size for file in tiny_checkpoint.glob("*.safetensors"))


@pytest.mark.parametrize("level", ["L0", "L1", "L2"])
def test_flop_are_those_that_torch_counts(tiny_checkpoint: Path, level: str) -> None:
    tokens = 7
    model = RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation="eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.full((1, tokens), 5), level=level)
    # By kind of product: those of two activations (bmm) are the attention, which the figure leaves out.
    counted = counter.get_flop_counts()["Global"]
    linear = sum(count for kind, count in counted.items() if str(kind) in {"aten.mm", "aten.addmm"})
    facts = {one.level: one for one in describe_model(str(tiny_checkpoint)).levels}
    assert linear == tokens * facts[level].flop_per_residue


def test_a_model_in_words(mini_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(mini_checkpoint)]) == 0
    said = capsys.readouterr().out
    report = json.loads((mini_checkpoint / "fit_report.json").read_text())
    for line, fitted in zip(said.splitlines()[2:5], report, strict=True):
        assert line.split()[:2] == [fitted["level"], str(fitted["nested_width"])]
        assert f" {fitted['heldout']['r2']:.4f} " in line if fitted["heldout"] else " - " in line
    assert "fitted on 1,800 sequences" in said


def test_a_named_family_needs_no_network_and_no_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["info", "rd-esm2-650M", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["form"] == "not fitted"
    assert [level["backbone"] for level in facts["levels"]][-1] == "facebook/esm2_t33_650M_UR50D"
    # 24 x layers x width^2, summed over the backbones (Lin et al. 2023, table S1), and the bases' few per cent.
    by_hand = 24 * sum(layers * width**2 for layers, width in ((6, 320), (12, 480), (30, 640), (33, 1280)))
    assert facts["levels"][-1]["flop_per_residue"] == pytest.approx(by_hand, rel=0.02)
    # What lies in the working folder under that name comes first.
    (tmp_path / "rd-esm2-650M").mkdir()
    assert main(["info", "rd-esm2-650M"]) == 1
    assert "holds neither a model" in capsys.readouterr().err


def test_of_a_hub_model_the_description_alone_is_fetched(mini_checkpoint: Path, tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    for name in ("config.json", "fit_report.json"):
        (repo / name).write_bytes((mini_checkpoint / name).read_bytes())
    (repo / "model.projections.safetensors").write_bytes(b"x" * 100_000)
    with FakeHub() as hub:
        commit = hub.add("me/mini", repo)
        done = subprocess.run(
            [sys.executable, "-m", "rd_hf", "info", "me/mini"],
            capture_output=True,
            text=True,
            check=False,
            env={
                **environment(),
                **{"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")},
                **{"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "PATH": os.environ["PATH"]},
            },
        )
        asked = {request.path.rpartition("/")[2] for request in hub.log if "/resolve/" in request.path}
    assert done.returncode == 0, done.stderr
    assert f"me/mini @ {commit[:12]}: full" in done.stdout
    assert "0.9369" in done.stdout
    assert asked <= {"config.json", "fit_report.json"}


def test_a_folder_of_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fasta, out, model = tmp_path / "a.fasta", tmp_path / "out", REPOSITORY / "hub_configs" / "rd-esm2-mini"
    fasta.write_text(">a\nMKTAYIAKQR\n>b\nMKTAYIAKQR\n>c\nM*K\n")
    assert main(["embed", "--model", str(model), "--input", str(fasta), "--output", str(out), "--level", "1.2M"]) == 0
    capsys.readouterr()
    assert main(["info", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"{out}: complete" in said
    assert "embedding: 1.2M, 128 wide" in said
    assert "3 records, 2 written, 1 rejected" in said
    assert "rd_hf 0." in said


def test_what_is_neither_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        f"rd-hf info: error: {tmp_path} holds neither a model (config.json) nor embeddings (_manifest.json)\n"
    )


def test_a_readout_is_told_with_what_it_is_worth(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"readout": {"layers": [0, 1]}}))
    assert main(["info", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "one pass (--one-pass): every level out of L2's backbone alone, its last state and layers 0, 1\n" in said
    report = [{"level": "L0", "one_pass": {"level_r2": 0.96407}}, {"level": "L1", "one_pass": None}]
    (tmp_path / "fit_report.json").write_text(json.dumps(report))
    assert describe_model(str(tmp_path)).one_pass == {"layers": [0, 1], "r2": {"L0": 0.96407}}
    assert main(["info", str(tmp_path)]) == 0
    assert "and layers 0, 1; R2 held-out L0 0.9641\n" in capsys.readouterr().out
    assert describe_model(str(tiny_checkpoint)).one_pass is None

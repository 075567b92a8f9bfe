"""``run_fit``: what ``rd-hf fit`` runs, from Python; and what its settings refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from rd_hf import FitOptions, FitSettings, draw_sample, fit_bases, run_fit
from rd_hf.commands.fit import build_parser, main
from rd_hf.fitting import Sample
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    random_model([16, 24], layers=1).save_pretrained(folder)
    return folder


def settings(family: Path, fasta: Path, output: Path, **more: Any) -> FitSettings:
    return FitSettings((str(fasta),), output, config=str(family), options=FitOptions(num_sequences=30), **more)


def test_it_is_the_command(family: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "--config",
        family,
        "--input",
        fasta,
        "--num-sequences",
        30,
        "--output",
        tmp_path / "typed",
        "--keep",
        "all",
    ]
    assert main([str(word) for word in words]) == 0
    printed = capsys.readouterr().out.replace("typed", "called")
    samples: list[Sample] = []
    said: list[str] = []
    asked = settings(family, fasta, tmp_path / "called", keep=("all",))
    summary = run_fit(asked, report=said.append, on_sample=samples.append)
    assert capsys.readouterr().out == "", "a library prints no results"
    assert f"{samples[0]}\n{summary}\n" == printed
    assert said == []
    assert [report.nested_width for report in summary.reports] == [16, 40]
    for path in (tmp_path / "typed").iterdir():
        same = path.read_bytes() == (tmp_path / "called" / path.name).read_bytes()
        assert same or path.name == "README.md", path.name

    assert str(run_fit(asked)) == f"{tmp_path / 'called'} holds a finished fit; nothing is left to do"
    with pytest.raises(ValueError, match="holds a finished fit of other residual directions: choose another"):
        run_fit(settings(family, fasta, tmp_path / "called"))


def test_a_fit_leaves_no_readout_of_the_model_that_it_started_from(family: Path, fasta: Path, tmp_path: Path) -> None:
    first = run_fit(settings(family, fasta, tmp_path / "first", one_pass=()))
    assert "R2 of block" in str(first)
    assert json.loads((tmp_path / "first" / "config.json").read_text())["readout"] == {"layers": [0]}
    second = run_fit(settings(tmp_path / "first", fasta, tmp_path / "second"))
    assert "R2 of block" not in str(second)
    assert "readout" not in json.loads((tmp_path / "second" / "config.json").read_text())
    with pytest.raises(ValueError, match="fitted without a one-pass readout"):
        RDEsmModel.from_pretrained(tmp_path / "second", one_pass=True)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "either config or backbones, and not both"),
        ({"config": "c", "backbones": ("a", "b")}, "either config or backbones, and not both"),
        ({"config": "c", "group_tokens": 9}, "--group-tokens 9 must be at least --batch-tokens 4,096"),
        ({"config": "c", "group_tokens": 9000, "form": "full"}, "--form full could save: save bases only"),
        ({"config": "c", "keep": ("5", "x")}, "--keep x is neither a number of directions nor 'all'"),
        ({"config": "c", "keep": ("all", "5")}, "--keep all is neither a number of directions nor 'all'"),
        ({"config": "c", "revision_of": ("3B",)}, "--revision-of 3B: write it as LEVEL=COMMIT"),
        ({"config": "c", "dtype": "float16"}, "dtype must be one of float32, bfloat16, not 'float16'"),
        ({"config": "c", "one_pass": (-1,)}, "one_pass must be a whole number of at least 0, not -1"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitSettings(("p.fasta",), "model", **more)


def test_old_names_still_stand_for_groups_of_batches(fasta: Path, tmp_path: Path) -> None:
    sample = draw_sample([str(fasta)], FitOptions(num_sequences=1, max_length=10, heldout_fraction=0))
    with pytest.warns(FutureWarning, match="group_batches"), pytest.raises(ValueError, match="10 residues are too few"):
        fit_bases(random_model([16, 24]), sample, FitOptions(), tmp_path, Accelerator(cpu=True), window_batches=2)
    parser = build_parser()
    words = ["--config", "c", "--input", "d", "--output", "o"]
    assert parser.parse_args([*words, "--window-tokens", "9000"]).group_tokens == 9000
    assert parser.parse_args(words).group_tokens is None
    assert "--window-tokens" not in parser.format_help()

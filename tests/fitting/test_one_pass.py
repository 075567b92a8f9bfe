"""``fit --one-pass``: a readout beside the exact chain, which stays what it is without; layers, limits and resuming."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rd_hf.commands.fit import main
from rd_hf.families import esm2_config
from rd_hf.fitting import FitOptions, draw_sample, fit_bases, install_bases
from rd_hf.fitting.job import MOMENTS_LIMIT, choose_layers, moments_bytes
from rd_hf.fitting.sample import plan_batches, tuning_positions
from rd_hf.hub import load_family
from rd_hf.hub.checkpoint import write_card
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA, random_model
from tests.fitting.test_fitting import bases_of

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    random_model([32, 48, 64], layers=4).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fitted(family: Path, fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted") / "model"
    status = main(
        ["--config", str(family), "--input", str(fasta), "--output", str(folder), "--one-pass", "2", "0", "4"]
    )
    assert status == 0
    return folder


def test_the_exact_chain_is_what_it_is_without(family: Path, fitted: Path, fasta: Path, tmp_path: Path) -> None:
    assert main(["--config", str(family), "--input", str(fasta), "--output", str(tmp_path / "plain")]) == 0
    plain, beside = bases_of(tmp_path / "plain"), bases_of(fitted)
    for key, value in plain.items():
        # The same sums, taken in batches of other sequences.
        torch.testing.assert_close(beside[key], value, rtol=1e-4, atol=1e-4)
    assert "readout" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "one_pass" not in (tmp_path / "plain" / "fit_report.json").read_text()
    assert "## One pass" not in (tmp_path / "plain" / "README.md").read_text()


def test_the_saved_model_computes_what_the_fit_said(fitted: Path) -> None:
    config = json.loads((fitted / "config.json").read_text())
    # The final state is read always.
    assert config["readout"] == {"layers": [0, 2]}
    model = RDEsmModel.from_pretrained(fitted, one_pass=True)
    exact = RDEsmModel.from_pretrained(fitted)
    with torch.inference_mode():
        near, true = model(IDS), exact(IDS)
    assert torch.equal(near.nested("L0"), model(IDS, level="L0").last_hidden_state)
    assert near.last_hidden_state.shape == true.last_hidden_state.shape
    # What the fit whitens by is of exact embeddings.
    assert exact.whitening is not None
    with pytest.raises(ValueError, match="whiten"):
        model.whiten(near.last_hidden_state)
    part = RDEsmModel.from_pretrained(fitted, one_pass=True, level="L1")
    with torch.inference_mode():
        assert torch.equal(part(IDS).last_hidden_state, near.nested("L1"))
    report = json.loads((fitted / "fit_report.json").read_text())
    assert [entry["one_pass"]["strength"] is None for entry in report] == [False, False, True]
    for entry in report[:2]:
        assert 0.2 < entry["one_pass"]["level_r2"] < 1
        assert entry["one_pass"]["cosine"] > entry["one_pass"]["level_r2"]


def test_the_card_says_how_near_each_level_comes(fitted: Path) -> None:
    text = (fitted / "README.md").read_text()
    report = json.loads((fitted / "fit_report.json").read_text())
    assert "one_pass=True" in text
    assert "its layers 0, 2 and its final state" in text
    for entry in report[:2]:
        figures = entry["one_pass"]
        row = [entry["level"], *(f"{figures[name]:.3f}" for name in ("state_r2", "block_r2", "level_r2", "cosine"))]
        assert f"| {' | '.join(row)} |" in text
    assert write_card(fitted) == text


def test_figures_are_those_of_the_embeddings_themselves(family: Path, fasta: Path, tmp_path: Path) -> None:
    """R^2 of each level by running both models over the held-out sequences."""
    options = FitOptions(num_sequences=60, heldout_fraction=0.3, one_pass=(1, 2))
    sample = draw_sample([str(fasta)], options)
    model = load_family(family)
    result = fit_bases(model, sample, options, tmp_path / "state", Accelerator(cpu=True))
    install_bases(model, result, options, sample, [str(fasta)])
    model.save_pretrained(tmp_path / "model")
    exact, near = (RDEsmModel.from_pretrained(tmp_path / "model", one_pass=one_pass) for one_pass in (False, True))
    from rd_hf.data.residues import encode

    rows: list[list[torch.Tensor]] = [[], []]
    with torch.inference_mode():
        for position in sorted(sample.heldout):
            ids = torch.from_numpy(encode(sample.sequences[position]))[None].long()
            for found, one in zip(rows, (exact, near), strict=True):
                found.append(one(ids, level="L1").last_hidden_state[0, 1:-1].double())
    true, read = (torch.cat(found) for found in rows)
    r2 = 1 - (true - read).square().sum() / (true - true.mean(dim=0)).square().sum()
    assert result.reports[1].one_pass is not None
    # Computed in float32 here and from float64 moments there.
    assert result.reports[1].one_pass.level_r2 == pytest.approx(float(r2), abs=1e-4)


def test_no_held_out_sequence_chooses_the_ridge(fasta: Path) -> None:
    sample = draw_sample([str(fasta)], FitOptions(heldout_fraction=0.25))
    tuning = tuning_positions(sample, seed=0)
    assert len(tuning) == 9
    assert not tuning & sample.heldout
    batches = plan_batches(sample, 4096, tuning)
    parts = {part: {p for name, batch in batches if name == part for p in batch} for part, _ in batches}
    assert parts["tuning"] == tuning
    assert parts["heldout"] == sample.heldout
    assert not parts["training"] & (tuning | sample.heldout)
    assert sum(map(len, parts.values())) == len(sample.sequences)


def test_a_fit_that_was_stopped_goes_on_to_the_same_readout(
    family: Path,
    fasta: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rd_hf.bases import moments

    options = FitOptions(one_pass=(0, 2), batch_tokens=1024)
    sample = draw_sample([str(fasta)], options)
    model = load_family(family)
    whole = fit_bases(model, sample, options, tmp_path / "whole", Accelerator(cpu=True))
    update, count = moments.JointMoments.update, 0

    def stopping(self: moments.JointMoments, states: list[torch.Tensor]) -> None:
        nonlocal count
        count += 1
        if count == 9:
            raise KeyboardInterrupt
        update(self, states)

    monkeypatch.setattr(moments.JointMoments, "update", stopping)
    with pytest.raises(KeyboardInterrupt):
        fit_bases(model, sample, options, tmp_path / "cut", Accelerator(cpu=True), checkpoint_seconds=0)
    other = FitOptions(one_pass=(1, 2), batch_tokens=1024)
    with pytest.raises(ValueError, match="of other one-pass layers"):
        fit_bases(model, sample, other, tmp_path / "cut", Accelerator(cpu=True))
    resumed = fit_bases(model, sample, options, tmp_path / "cut", Accelerator(cpu=True))
    assert whole.readout is not None
    assert resumed.readout is not None
    assert resumed.readout.strengths == whole.readout.strengths
    # Moments merged in another order: rounding of float64 sums, enlarged by a ridge of down to 1e-7.
    torch.testing.assert_close(resumed.readout.weights, whole.readout.weights, rtol=0, atol=1e-5)


# --- which layers ---------------------------------------------------------------------------------------------


def test_a_handful_is_spread_evenly_and_fits_the_limit() -> None:
    assert choose_layers(esm2_config("650M")) == (0, 8, 16, 24)
    assert choose_layers(esm2_config("3B")) == (0, 9, 18, 27)
    huge = choose_layers(esm2_config("15B"))
    assert huge == (0, 24)
    assert moments_bytes(esm2_config("15B"), len(huge)) <= MOMENTS_LIMIT < moments_bytes(esm2_config("15B"), 3)


def test_layers_are_sorted_and_the_last_stands_for_the_final_state() -> None:
    assert choose_layers(esm2_config("35M"), [12, 3, 0, 3]) == (0, 3)
    assert choose_layers(esm2_config("35M"), [12]) == ()


@pytest.mark.parametrize(
    ("level", "asked", "message"),
    [
        ("35M", [13], "--one-pass 13: the backbone of 35M has layers 0 to 12"),
        ("35M", [-1], "has layers 0 to 12"),
        (
            "650M",
            list(range(33)),
            r"33 layers of 650M \(1,280 wide\) needs moments of 60 GiB, and the limit is 16",
        ),
    ],
)
def test_absurd_layers_are_refused_with_the_numbers(level: str, asked: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_layers(esm2_config(level), asked)


def test_the_command_refuses_before_the_pass(family: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--config", str(family), "--input", str(EXAMPLE_FASTA), "--output", str(tmp_path / "o")]
    assert main([*arguments, "--one-pass", "9"]) != 0
    assert re.search(r"--one-pass 9: the backbone of L2 has layers 0 to 4", capsys.readouterr().err)

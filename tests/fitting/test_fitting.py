"""Fitting: the sample, the single read of it, processes, kills, and how wrong input is refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.commands.fit import main
from rd_hf.data.batching import collate
from rd_hf.data.records import InputError
from rd_hf.files import Workspace
from rd_hf.fitting import FitOptions, backbone_states, draw_sample, fit_bases, install_bases
from tests.conftest import REPOSITORY, TWO_PROCESSES, environment, kill, random_model

FIT = str(REPOSITORY / "scripts" / "fit_bases.py")


def run(*arguments: str | Path, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """fit_bases.py as a user runs it, as one process or two."""
    return subprocess.run(
        command(*arguments, processes=processes), capture_output=True, text=True, check=False, env=environment()
    )


def command(*arguments: str | Path, processes: int = 1) -> list[str]:
    """The command line that a user would give."""
    launcher = TWO_PROCESSES if processes == 2 else (sys.executable,)
    return [*launcher, FIT, *map(str, arguments)]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The error of a command that fails, here in this process: one sentence, no traceback."""
    capsys.readouterr()
    assert main([str(word) for word in arguments]) == 1
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip().splitlines()[-1]


def bases_of(folder: Path) -> dict[str, torch.Tensor]:
    """Projection buffers of a saved model, whichever files hold them."""
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {key: value for key, value in load_file(path).items() if key.startswith("projections.")}
    return tensors


def assert_same_bases(first: Path, second: Path, relative: float) -> None:
    a, b = bases_of(first), bases_of(second)
    assert a.keys() == b.keys()
    assert len(a) == 8
    for key, value in a.items():
        assert float((value - b[key]).norm() / value.norm()) <= relative, key


# --- the sample -----------------------------------------------------------------------------------------------


def test_the_sample_is_of_distinct_clean_sequences(fasta: Path) -> None:
    sample = draw_sample([str(fasta)], FitOptions(heldout_fraction=0.25))
    assert len(sample.sequences) == len(set(sample.sequences)) == 120
    assert (sample.records, sample.duplicates, sample.rejected) == (122, 1, 1)
    assert len(sample.heldout) == 30
    assert sample.residues(heldout=True) + sample.residues(heldout=False) == sum(map(len, sample.sequences))


@given(number=st.integers(1, 119), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=15)
def test_a_draw_depends_on_the_seed_alone_and_keeps_input_order(fasta: Path, number: int, seed: int) -> None:
    options = FitOptions(num_sequences=number, seed=seed)
    first, second = draw_sample([str(fasta)], options), draw_sample([str(fasta)], options)
    assert first == second
    everything = draw_sample([str(fasta)], FitOptions()).ids
    places = [everything.index(record_id) for record_id in first.ids]
    assert len(places) == number
    assert places == sorted(places)


def test_every_sequence_is_drawn_alike(fasta: Path) -> None:
    drawn: Counter[str] = Counter()
    for seed in range(200):
        drawn.update(draw_sample([str(fasta)], FitOptions(num_sequences=30, seed=seed)).ids)
    # Expected 50 draws each with deviation 6: five deviations either way.
    assert min(drawn.values()) > 20
    assert max(drawn.values()) < 80
    assert len(drawn) == 120


def test_sequences_are_cut_at_the_maximal_length(fasta: Path) -> None:
    sample = draw_sample([str(fasta)], FitOptions(max_length=50))
    assert max(map(len, sample.sequences)) == 50


def test_a_table_with_a_sequence_column_will_do(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("name,Sequence\na,MKTAYIAK\nb,MKTAYIAKQR\n")
    assert draw_sample([str(table)], FitOptions(heldout_fraction=0)).sequences == ["MKTAYIAK", "MKTAYIAKQR"]


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"num_sequences": 0}, "num_sequences must be a whole number of at least 1, not 0"),
        ({"heldout_fraction": 1.0}, "heldout_fraction must be a finite number of at least 0 and below 1, not 1.0"),
        ({"batch_tokens": 0}, "batch_tokens must be a whole number of at least 1, not 0"),
        ({"block_weights": (1.0, -1.0)}, "block_weights must be a finite number of at least 0, not -1.0"),
        ({"regression": "lasso"}, "regression must be one of pcr, ols, ridge, not 'lasso'"),
    ],
)
def test_impossible_options_are_refused(settings_: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitOptions(**settings_)  # type: ignore[arg-type]


# --- the read -------------------------------------------------------------------------------------------------


def test_the_read_is_the_chain_over_residues_of_single_sequences(fasta: Path, tmp_path: Path) -> None:
    """No cls, eos or padding gets in, held-out sequences stay out, and batching does not matter."""
    model = random_model([32, 48, 64])
    options = FitOptions(num_sequences=60, heldout_fraction=0.2)
    sample = draw_sample([str(fasta)], options)
    result = fit_bases(model, sample, options, tmp_path / "state", Accelerator(cpu=True))

    moments = {heldout: JointMoments((32, 48, 64)) for heldout in (False, True)}
    for position, sequence in enumerate(sample.sequences):
        states = backbone_states(model, [[sequence]])[0]
        assert states[0].shape[0] == len(sequence)
        moments[position in sample.heldout].update(states)
    bases, reports = fit_chain(moments[False], model.config.level_names, [16, 16], heldout=moments[True])
    assert result.training_residues == sample.residues(heldout=False)
    for ours, other in zip(result.bases, bases, strict=True):
        # The backbones' float32 differs by 1e-6 between padded and single runs, and averages out over residues.
        assert float((ours.regression - other.regression).norm() / other.regression.norm()) < 1e-5
    for report, other_report in zip(result.reports[1:], reports[1:], strict=True):
        assert report.heldout is not None
        assert other_report.heldout is not None
        assert report.heldout.r2 == pytest.approx(other_report.heldout.r2, abs=1e-5)


def test_installed_bases_make_blocks_of_the_reported_variance(fasta: Path, tmp_path: Path) -> None:
    """The model applies what was fitted: residual blocks on the fitting residues have the fitted spectrum."""
    model = random_model([32, 48, 64])
    options = FitOptions(heldout_fraction=0.0, residual_directions=(20, 64))
    sample = draw_sample([str(fasta)], options)
    result = fit_bases(model, sample, options, tmp_path / "state", Accelerator(cpu=True))
    install_bases(model, result, options, sample, [str(fasta)])
    assert model.config.nested_dims == {"L0": 32, "L1": 52, "L2": 116}
    assert model.config.bases["num_residues"] == sample.residues(heldout=False)
    rows = []
    with torch.no_grad():
        for sequence in sample.sequences:
            embedding = backbone_states(model, [[sequence]])[0]
            nested = embedding[0]
            for projection, state in zip(model.projections, embedding[1:], strict=True):
                nested = projection(nested, state)
            rows.append(nested.double())
    block = torch.cat(rows)[:, 32:52]
    # Buffers and projections are float32.
    torch.testing.assert_close(
        block.var(dim=0),
        torch.tensor(result.reports[1].residual_eigenvalues[:20], dtype=torch.float64),
        rtol=1e-3,
        atol=1e-6,
    )
    assert float(block.mean(dim=0).abs().max()) < 1e-3


def test_nan_in_a_backbone_names_level_and_record(fasta: Path, tmp_path: Path) -> None:
    model = random_model([32, 48, 64])
    with torch.no_grad():
        model.backbones[1].encoder.emb_layer_norm_after.bias[3] = float("nan")
    options = FitOptions(num_sequences=20)
    sample = draw_sample([str(fasta)], options)
    with pytest.raises(ValueError, match=r"NaN.*level L1.*record '"):
        fit_bases(model, sample, options, tmp_path / "state", Accelerator(cpu=True))


def test_a_fit_keeps_what_its_blocks_are_whitened_by(fasta: Path, tmp_path: Path) -> None:
    """Whitened, the fitting residues have no covariance within a block, and variances of its weight squared."""
    model = random_model([32, 48, 64])
    options = FitOptions(num_sequences=60, heldout_fraction=0.0)
    sample = draw_sample([str(fasta)], options)
    result = fit_bases(model, sample, options, tmp_path / "state", Accelerator(cpu=True))
    install_bases(model, result, options, sample, [str(fasta)])
    assert "block_weights" not in model.config.bases
    weights = model.config.whitening["weights"]
    assert max(weights) == 1
    with torch.inference_mode():
        rows = [
            model(*collate([sequence])).nested("L2", whiten=True)[0, 1:-1].double() for sequence in sample.sequences
        ]
    whitened = torch.cat(rows)
    for block, weight in zip(whitened.split([32, 16, 16], dim=1), weights, strict=True):
        covariance = torch.cov(block.T) / weight**2
        # Shrinkage towards equal variances leaves directions of least variance below one.
        assert covariance.diagonal().max() < 1.01
        assert covariance.diagonal()[0] == pytest.approx(1, abs=0.05)
        assert (covariance - covariance.diagonal().diag()).abs().max() < 0.01
        assert block.mean(dim=0).abs().max() < 0.01 * weight
    spreads = torch.cat([block.spread for block in model.whitening], dim=-1)
    for kind, values in enumerate((whitened, torch.stack([own.mean(dim=0) for own in rows]))):
        # Of float32 states, in other batches than the fit's.
        assert torch.allclose(spreads[kind, 1, 0].double(), values.mean(dim=0), atol=1e-4)
        assert torch.allclose(spreads[kind, 1, 1].double(), values.std(dim=0), rtol=1e-3)
    wrong = FitOptions(num_sequences=60, block_weights=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"2 block weights for 3 levels \(L0, L1, L2\)"):
        fit_bases(model, sample, wrong, tmp_path / "other", Accelerator(cpu=True))


def test_a_second_fit_in_the_same_place_is_refused_while_the_first_runs(fasta: Path, tmp_path: Path) -> None:
    state = tmp_path / "model" / ".fit"
    state.mkdir(parents=True)
    options = FitOptions(num_sequences=20)
    sample = draw_sample([str(fasta)], options)
    family = random_model([32, 48, 64])
    first = Workspace(state, "a fit")
    first.claim()
    with pytest.raises(ValueError, match=r"model is in use by another run of a fit: wait for it, or choose another"):
        fit_bases(family, sample, options, state, Accelerator(cpu=True))
    first.leave()
    assert fit_bases(family, sample, options, state, Accelerator(cpu=True)).training_residues > 0


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tiny_checkpoint: Path, fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted fit in one process."""
    output = tmp_path_factory.mktemp("fitted") / "model"
    done = run("--config", tiny_checkpoint, "--input", fasta, "--output", output, "--batch-tokens", "1024")
    assert done.returncode == 0, done.stderr
    return output


def test_the_command_leaves_a_whole_model_a_report_and_a_figure(fitted: Path) -> None:
    names = {path.name for path in fitted.iterdir()}
    assert {"config.json", "fit_report.json", "fit_report.png", "modeling_rd_esm.py", "vocab.txt"} <= names
    assert ".fit" not in names
    report = json.loads((fitted / "fit_report.json").read_text())
    assert [level["nested_width"] for level in report] == [32, 48, 64]
    config = json.loads((fitted / "config.json").read_text())
    assert config["nested_dims"] == {"L0": 32, "L1": 48, "L2": 64}
    assert config["bases"]["regression"] == "pcr"
    assert report[1]["heldout"]["residues"] == config["bases"]["num_heldout_residues"] > 0


def test_two_processes_give_the_bases_of_one(fitted: Path, tiny_checkpoint: Path, fasta: Path, tmp_path: Path) -> None:
    arguments = ("--config", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "two", "--batch-tokens", "1024")
    done = run(*arguments, processes=2)
    assert done.returncode == 0, done.stderr
    assert "process 1 of 2" in done.stderr
    assert done.stdout.count("saved to") == 1
    # Batches are the same; only the order of float64 additions differs.
    assert_same_bases(fitted, tmp_path / "two", relative=1e-6)


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1)])
def test_a_killed_fit_resumes_to_the_same_bases(
    fitted: Path,
    tiny_checkpoint: Path,
    fasta: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: int,
    after: int,
) -> None:
    """SIGKILL in the middle; the continuation may even use another number of processes."""
    output = tmp_path / "model"
    arguments = ["--config", tiny_checkpoint, "--input", fasta, "--output", output, "--batch-tokens", "1024"]
    victim = subprocess.Popen(
        command(*arguments, "--checkpoint-seconds", "0", processes=before),
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    state = output / ".fit" / "moments-0000-0000.safetensors"
    while not state.exists():
        assert victim.poll() is None, "the fit ended before it could be killed"
        time.sleep(0.001)
    kill(victim)
    assert victim.returncode == -signal.SIGKILL
    assert not (output / "fit_report.json").exists()
    held = len(load_file(state)["done"])
    assert held >= 1

    other = refusal(capsys, *arguments, "--seed", "3")
    assert "was of other sequences" in other or "was of other heldout" in other

    done = run(*arguments, processes=after)
    assert done.returncode == 0, done.stderr
    assert_same_bases(fitted, output, relative=1e-6)
    if before == after:
        # As many processes add the same sums in the same order.
        weights = sorted(path.name for path in fitted.glob("*.safetensors"))
        assert weights
        assert all((output / name).read_bytes() == (fitted / name).read_bytes() for name in weights)
    assert main([*map(str, arguments)]) == 0
    assert "nothing is left to do" in capsys.readouterr().out


# --- wrong input ----------------------------------------------------------------------------------------------


def test_no_such_fasta(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(
        capsys, "--config", tiny_checkpoint, "--input", tmp_path / "nothing.fasta", "--output", tmp_path / "out"
    )
    assert "nothing.fasta: no such file" in said


def test_a_fasta_without_sequences(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.fasta").write_text("nothing here\n")
    said = refusal(
        capsys, "--config", tiny_checkpoint, "--input", tmp_path / "empty.fasta", "--output", tmp_path / "out"
    )
    assert "holds no FASTA record" in said


def test_records_without_usable_sequences(tmp_path: Path) -> None:
    (tmp_path / "bad.fasta").write_text(">a\n\n>b\nMK1\n")
    with pytest.raises(InputError, match="none of 2 records"):
        draw_sample([str(tmp_path / "bad.fasta")], FitOptions())


def test_fewer_residues_than_the_first_level_is_wide(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "short.fasta").write_text(">a\nMKTAYIAKQRQISFVKSHFSRQ\n")
    said = refusal(
        capsys, "--config", tiny_checkpoint, "--input", tmp_path / "short.fasta", "--output", tmp_path / "out"
    )
    assert "22 residues are too few to fit on: level L0 is 32 wide" in said


def edited(checkpoint: Path, folder: Path, **changes: object) -> Path:
    """A copy of a checkpoint with other values in its config.json."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def test_levels_whose_widths_do_not_grow(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = json.loads((tiny_checkpoint / "config.json").read_text())["levels"]
    folder = edited(tiny_checkpoint, tmp_path / "bad", levels=levels[::-1], residual_directions=None)
    said = refusal(capsys, "--config", folder, "--input", fasta, "--output", tmp_path / "out")
    assert "level L1 (48 wide) does not grow beyond L2 (64 wide)" in said


def test_a_checkpoint_of_another_model_type(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(tiny_checkpoint, tmp_path / "bert", model_type="bert", auto_map=None)
    message = refusal(capsys, "--config", folder, "--input", fasta, "--output", tmp_path / "out")
    assert "bert" in message
    assert "rd_esm" in message


def test_an_unknown_level_name(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(tiny_checkpoint, tmp_path / "unknown", level="15B")
    message = refusal(capsys, "--config", folder, "--input", fasta, "--output", tmp_path / "out")
    assert "unknown level '15B': this model has L0, L1, L2" in message


def test_nan_in_the_weights(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = edited(tiny_checkpoint, tmp_path / "nan")
    (path,) = [p for p in folder.glob("*.safetensors") if any("backbones.2." in key for key in load_file(p))]
    weights = load_file(path)
    (key,) = [key for key in weights if key.endswith("encoder.emb_layer_norm_after.weight")]
    weights[key][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    message = refusal(capsys, "--config", folder, "--input", fasta, "--output", tmp_path / "out")
    assert "backbone 3 returned NaN" in message
    assert "level L2" in message


@pytest.mark.parametrize("keep", [["0"], ["5"], ["5", "65"], ["5", "6", "7"]])
def test_impossible_numbers_of_directions(
    tiny_checkpoint: Path, fasta: Path, tmp_path: Path, keep: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--config", tiny_checkpoint, "--input", fasta, "--output", tmp_path / "out", "--keep", *keep)
    said = refusal(capsys, *arguments)
    assert "--keep" in said, "in words of the flag"
    assert "residual_directions" not in said

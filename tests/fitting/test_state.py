"""What an unfinished fit leaves: taken up by its own command alone, free for any other while it holds nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from rd_hf.commands.fit import main
from rd_hf.fitting import FitOptions, draw_sample, fit_bases
from rd_hf.fitting.fit import backbone_states
from rd_hf.fitting.state import weights_sha256
from rd_hf.model.layers_rd_esm import rotary_modules
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA, random_model
from tests.test_files import leftover

WIDTHS = [16, 24]


@pytest.fixture
def unfinished(fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """A fit that stops after its first batches, and a function that goes on with it, or with another model."""
    options = FitOptions(num_sequences=20, batch_tokens=512)
    sample = draw_sample([str(fasta)], options)

    def fit(model: RDEsmModel, **other: object) -> object:
        again = FitOptions(num_sequences=20, batch_tokens=512, **other)  # type: ignore[arg-type]
        return fit_bases(model, sample, again, tmp_path / ".fit", Accelerator(cpu=True), checkpoint_seconds=0)

    def stopped(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return backbone_states(*arguments)  # type: ignore[arg-type]

    calls: list[int] = []
    monkeypatch.setattr("rd_hf.fitting.fit.backbone_states", stopped)
    with pytest.raises(KeyboardInterrupt):
        fit(random_model(WIDTHS, layers=1))
    assert list((tmp_path / ".fit").glob("moments-*"))
    return fit


def changed(how: str) -> RDEsmModel:
    """The model of a fit, with a backbone that is not quite the same."""
    model = random_model(WIDTHS, layers=1)
    words = model.backbones[1].embeddings.word_embeddings.weight
    with torch.no_grad():
        if how == "rows in another order":
            words[4:24] = words[4:24].flip(0).clone()
        elif how == "two numbers exchanged":
            words[5, 3], words[5, 4] = words[5, 4].clone(), words[5, 3].clone()
        elif how == "one last digit":
            words[5, 3] = torch.nextafter(words[5, 3], torch.tensor(torch.inf))
        elif how == "frequencies":
            rotary_modules(model.backbones[1])[0].inv_freq.add_(1e-3)
        elif how == "layer_norm_eps":
            model.config.levels[1]["backbone"]["layer_norm_eps"] = 1e-3
        elif how == "commit":
            model.config.levels[1]["revision"] = "0" * 40
    return model


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("rows in another order", "weights of the backbone of L1"),
        ("two numbers exchanged", "weights of the backbone of L1"),
        ("one last digit", "weights of the backbone of L1"),
        ("frequencies", "weights of the backbone of L1"),
        ("layer_norm_eps", r"layer_norm_eps of the backbone of L1 \(1e-05 then, 0.001 now\)"),
        ("commit", r"commit of the backbone of L1 \(None then, 0+ now\)"),
    ],
)
def test_other_backbones_are_not_mixed_in_and_are_named(
    how: str, words: str, unfinished: Callable[..., object]
) -> None:
    with pytest.raises(ValueError, match=f"was of other {words}: repeat the command that began it"):
        unfinished(changed(how))
    assert unfinished(changed("not at all")) is not None


def test_a_state_of_another_version_is_refused_in_a_sentence(unfinished: Callable[..., object], tmp_path: Path) -> None:
    path = tmp_path / ".fit" / "settings.json"
    older = json.loads(path.read_text())
    del older["format"], older["backbones"]
    path.write_text(json.dumps({**older, "backbone weights": "0" * 64}))
    with pytest.raises(ValueError, match=r"begun by another version of rd_hf.*: continue it with that version, or del"):
        unfinished(changed("not at all"))
    path.unlink()
    with pytest.raises(ValueError, match=r"holds moments and not what they are of \(settings.json\): delete it"):
        unfinished(changed("not at all"))


def test_a_digest_is_of_every_byte_and_of_any_dtype() -> None:
    model = random_model(WIDTHS, layers=1).backbones[0]
    assert weights_sha256(model) == weights_sha256(random_model(WIDTHS, layers=1).backbones[0])
    assert weights_sha256(model) != weights_sha256(model.to(torch.bfloat16))


def test_a_backbone_that_says_the_same_of_all_residues_is_named_at_once(fasta: Path, tmp_path: Path) -> None:
    options = FitOptions(num_sequences=20, batch_tokens=512)
    sample = draw_sample([str(fasta)], options)
    for empty in (0, 1):
        model = random_model(WIDTHS, layers=1)
        with torch.no_grad():
            for parameter in model.backbones[empty].parameters():
                parameter.zero_()
        with pytest.raises(ValueError, match=f"backbone of level L{empty} gives the same hidden state for all"):
            fit_bases(model, sample, options, tmp_path / str(empty), Accelerator(cpu=True))
        assert not list((tmp_path / str(empty)).glob("moments-*")), "before the pass"


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    random_model(WIDTHS, layers=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def done(family: Path, fasta: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("done") / "model"
    assert fit(family, fasta, output) == 0
    return output


def fit(family: Path, fasta: Path, output: Path, *more: str) -> int:
    words = ["--config", family, "--input", fasta, "--num-sequences", 30, "--output", output, "--quiet", *more]
    return main([str(word) for word in words])


def test_a_state_without_moments_is_taken_over_by_any_fit(
    family: Path, fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rd_hf.fitting.fit.backbone_states", killed)
        assert fit(family, fasta, output) == 130
    assert (output / ".fit" / "settings.json").exists()
    assert fit(family, fasta, output, "--seed", "5") == 0
    assert json.loads((output / "config.json").read_text())["bases"]["seed"] == 5
    assert not (output / ".fit").exists()


def test_a_fit_that_was_killed_while_it_saved_goes_on(
    family: Path, fasta: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("rd_hf.fitting.job.save_checkpoint", killed)
        assert fit(family, fasta, output) == 130
    kept = leftover(output)
    assert fit(family, fasta, output) == 0
    assert not kept.exists()
    assert sorted(path.name for path in output.iterdir()) == sorted(path.name for path in done.iterdir())


def test_what_lies_in_the_state_of_a_finished_fit_does_not_make_it_unfinished(
    family: Path, fasta: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "model"
    shutil.copytree(done, output)
    before = (output / "config.json").read_bytes()
    (output / ".fit").mkdir()
    (output / ".fit" / "0123.tmp").write_text("half")
    assert fit(family, fasta, output, "--seed", "7") == 1
    assert "holds a finished fit of other seed: choose another --output, or delete it" in capsys.readouterr().err
    assert (output / "config.json").read_bytes() == before
    (output / ".fit" / "0123.tmp").unlink()
    assert fit(family, fasta, output) == 0
    assert not (output / ".fit").exists(), "killed before it was removed"


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--num-sequences", "29"), "num_sequences"),
        (("--heldout-fraction", "0.2"), "heldout_fraction"),
        (("--regression", "ols"), "regression"),
        (("--max-length", "50"), "max_length"),
        (("--batch-tokens", "512"), "batch_tokens"),
        (("--block-weights", "1", "2"), "block_weights"),
        (("--one-pass", "0"), "one-pass layers"),
        (("--keep", "3"), "residual directions"),
        (("--input", str(EXAMPLE_FASTA)), "data"),
    ],
)
def test_a_finished_fit_is_known_by_all_that_decides_it(
    more: tuple[str, ...], what: str, family: Path, fasta: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command given again finds it done; any other is refused, and the model stays as it is."""
    before = {path.name: path.read_bytes() for path in done.iterdir()}
    assert fit(family, fasta, done) == 0
    assert fit(family, fasta, done, *more) == 1
    assert f"{done} holds a finished fit of other {what}: choose another --output" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in done.iterdir()} == before


def test_a_finished_fit_of_other_backbones_is_refused(
    fasta: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_model([16, 32], layers=1).save_pretrained(tmp_path / "other")
    assert fit(tmp_path / "other", fasta, done) == 1
    assert "holds a finished fit of other backbones" in capsys.readouterr().err


def test_all_sequences_are_more_than_some_of_them(
    family: Path, fasta: Path, done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--config", family, "--input", fasta, "--output", done, "--quiet"]
    assert main([str(word) for word in words]) == 1
    assert "holds a finished fit of other num_sequences" in capsys.readouterr().err
    whole = ["--config", family, "--input", fasta, "--output", tmp_path / "whole", "--quiet"]
    assert main([str(word) for word in whole]) == 0
    assert main([str(word) for word in [*whole, "--num-sequences", 10**6]]) == 0, "there are no more of them"


def test_numbers_of_directions_are_judged_before_the_data_are_read(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.fasta").write_text("no record: reading it is an error\n")
    for flag, words in (
        (("--keep", "10", "20"), "--keep needs one number for each level after the first (1), got [10, 20]"),
        (("--block-weights", "1"), "1 block weights for 2 levels (L0, L1): give one a level"),
    ):
        assert fit(family, tmp_path / "no.fasta", tmp_path / "out", *flag) == 1
        assert capsys.readouterr().err == f"rd-hf fit: error: {words}\n"

"""What a fit does on a GPU, with the device simulated: packed rows, tokens by memory, halves, one kind of device."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from rd_hf.bases.moments import product_dtype
from rd_hf.commands.fit import main
from rd_hf.data.batching import collate
from rd_hf.embedding.engine import GPU_BATCH_TOKENS, bytes_per_token, default_batch_tokens
from rd_hf.embedding.layouts import Packed
from rd_hf.fitting import FitOptions, FitResult, Sample, backbone_states, draw_sample, fit, fit_bases, job, state
from rd_hf.fitting.state import means_of, segment_means
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import random_model

WIDTHS = [16, 24]
# States of a batch put together otherwise differ by float32's rounding through two layers, of numbers around 1.
ROUNDING = 1e-5


@pytest.fixture
def sample(fasta: Path) -> Sample:
    return draw_sample([str(fasta)], FitOptions(num_sequences=25))


def fitted(sample: Sample, folder: Path, model: RDEsmModel | None = None, **options: Any) -> FitResult:
    asked = FitOptions(num_sequences=25, **options)
    return fit_bases(model or random_model(WIDTHS), sample, asked, folder, Accelerator(cpu=True), show_progress=False)


def packing() -> RDEsmModel:
    model = random_model(WIDTHS)
    model.set_attn_implementation(PACKED_ATTENTION)
    return model


def assert_alike(one: FitResult, other: FitResult) -> None:
    assert one.training_residues == other.training_residues
    for name in ("prefix_mean", "backbone_mean", "regression", "directions"):
        for a, b in zip(one.bases, other.bases, strict=True):
            torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-4)
    assert one.reports[1].heldout is not None
    assert other.reports[1].heldout is not None
    assert one.reports[1].heldout.r2 == pytest.approx(other.reports[1].heldout.r2, abs=ROUNDING)


@pytest.mark.parametrize("layers", [(), (0, 1)])
def test_states_of_packed_rows_are_those_of_padded_ones(sample: Sample, layers: tuple[int, ...]) -> None:
    batches = [sample.sequences[:5], sample.sequences[5:6], sample.sequences[6:12]]
    padded, packed = (backbone_states(model, batches, layers) for model in (random_model(WIDTHS), packing()))
    for ours, theirs, batch in zip(packed, padded, batches, strict=True):
        assert len(ours) == len(theirs) == len(WIDTHS) + len(layers)
        for a, b in zip(ours, theirs, strict=True):
            assert len(a) == sum(map(len, batch))
            torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING)
        # And those of residues: of each sequence alone, without its cls and eos.
        model = random_model(WIDTHS)
        with torch.inference_mode():
            alone = [model(collate([own])[0], output_backbone_states=True).backbone_states for own in batch]
        for level in range(len(WIDTHS)):
            expected = torch.cat([states[level][0, 1:-1] for states in alone])
            torch.testing.assert_close(ours[level], expected, rtol=0, atol=ROUNDING)


def test_a_fit_in_packed_rows_is_the_fit_in_padded_ones(sample: Sample, tmp_path: Path) -> None:
    padded, packed = fitted(sample, tmp_path / "padded"), fitted(sample, tmp_path / "packed", packing())
    assert_alike(padded, packed)
    assert (padded.run["rows"], packed.run["rows"]) == ("padded", "packed")
    assert packed.run == {
        **{"batch_tokens": 4096, "compile": "off", "device": "cpu"},
        **{"rows": "packed", "products": "float64"},
    }


def test_the_command_packs_where_that_pays(fasta: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(WIDTHS, layers=1).save_pretrained(tmp_path / "family")
    monkeypatch.setattr(job, "packing_pays", lambda model: True)
    words = ["--config", tmp_path / "family", "--input", fasta, "--num-sequences", 25, "--output", tmp_path / "out"]
    assert main([str(word) for word in [*words, "--quiet"]]) == 0
    record = json.loads((tmp_path / "out" / "config.json").read_text())["bases"]
    assert (record["rows"], record["batch_tokens"]) == ("packed", 4096)


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets how many bytes a GPU has free, on which the choice of a batch believes a model to be."""

    def free(size: int) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (size, size))

        def chosen(model: RDEsmModel, *more: Any) -> int:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RDEsmModel, "device", torch.device("cuda"))
                return default_batch_tokens(model, *more)

        monkeypatch.setattr(state, "default_batch_tokens", chosen)

    return free


def test_a_batch_is_what_half_of_the_free_memory_holds(
    sample: Sample, tmp_path: Path, on_gpu: Callable[[int], None]
) -> None:
    model = random_model(WIDTHS)
    held, sums = 2 * 4 * sum(WIDTHS), 8 * 5 * sum(WIDTHS) ** 2
    on_gpu(2 * 10_000 * (bytes_per_token(model) + held) + sums)
    result = fitted(sample, tmp_path / "auto")
    # A power of two within what fits.
    assert result.run["batch_tokens"] == 8192
    assert_alike(result, fitted(sample, tmp_path / "given", batch_tokens=8192))
    on_gpu(1 << 50)
    assert fitted(sample, tmp_path / "much").run["batch_tokens"] == GPU_BATCH_TOKENS
    assert fitted(sample, tmp_path / "own", batch_tokens=777).run["batch_tokens"] == 777


def test_an_unfinished_fit_goes_on_with_the_batches_that_it_was_begun_with(
    sample: Sample, tmp_path: Path, on_gpu: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much memory is free by then; to the bits of a fit that nobody stopped."""
    calls: list[int] = []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return backbone_states(*arguments)

    on_gpu(0)
    whole = fitted(sample, tmp_path / "whole")
    asked, here = FitOptions(num_sequences=25), Accelerator(cpu=True)
    with monkeypatch.context() as patch:
        patch.setattr(fit, "backbone_states", stopped)
        with pytest.raises(KeyboardInterrupt):
            fit_bases(random_model(WIDTHS), sample, asked, tmp_path / "half", here, checkpoint_seconds=0)
    on_gpu(1 << 50)
    resumed = fitted(sample, tmp_path / "half")
    assert resumed.run["batch_tokens"] == whole.run["batch_tokens"] == 4096
    for a, b in zip(resumed.bases, whole.bases, strict=True):
        assert torch.equal(a.directions, b.directions)
        assert torch.equal(a.backbone_mean, b.backbone_mean)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda patch: patch.setattr(state, "product_dtype", lambda _: torch.float32), "products"),
        (lambda patch: patch.setattr(state, "layout_of", lambda _: Packed()), "rows"),
    ],
)
def test_what_one_fit_has_one_of_is_not_changed_half_way(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None], words: str
) -> None:
    fitted(sample, tmp_path / "fit")
    change(monkeypatch)
    with pytest.raises(ValueError, match=f"was of other {words}: repeat the command that began it"):
        fitted(sample, tmp_path / "fit")


def test_a_fit_that_was_begun_on_a_cpu_does_not_go_on_on_a_gpu(sample: Sample, tmp_path: Path) -> None:
    fitted(sample, tmp_path / "fit")
    path = tmp_path / "fit" / "settings.json"
    settings = json.loads(path.read_text())
    assert settings["device"] == "cpu"
    path.write_text(json.dumps({**settings, "device": "cuda"}))
    with pytest.raises(ValueError, match="was of other device: repeat the command that began it"):
        fitted(sample, tmp_path / "fit")


@pytest.mark.parametrize("group_batches", [1, 3])
def test_where_memory_is_short_a_batch_is_computed_in_halves(
    sample: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_batches: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    sizes: list[int] = []

    def limited(model: RDEsmModel, batches: Any, *more: Any) -> Any:
        if sum(map(len, batches)) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        sizes.append(sum(map(len, batches)))
        return backbone_states(model, batches, *more)

    whole = fitted(sample, tmp_path / "whole")
    monkeypatch.setattr(fit, "backbone_states", limited)
    asked = FitOptions(num_sequences=25)
    halved = fit_bases(
        random_model(WIDTHS), sample, asked, tmp_path / "half", Accelerator(cpu=True), group_batches=group_batches
    )
    assert_alike(halved, whole)
    assert max(sizes) <= 3
    assert "computed in halves; --batch-tokens sets less" in caplog.text
    monkeypatch.setattr(fit, "backbone_states", lambda *_: (_ for _ in ()).throw(MemoryError("none at all")))
    with pytest.raises(MemoryError, match="none at all"):
        fitted(sample, tmp_path / "none")


def test_means_of_sequences_at_once_are_those_one_by_one() -> None:
    lengths = [5, 1, 300, 7]
    states = 100 + torch.randn(sum(lengths), 24)
    found = segment_means(states, torch.tensor(lengths))
    # float32 sums of numbers around 100.
    torch.testing.assert_close(found, means_of(states, lengths).double(), rtol=0, atol=1e-4)
    for one, rows in zip(found, states.split(lengths), strict=True):
        torch.testing.assert_close(one, rows.double().mean(dim=0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), torch.float64), ((8, 9), torch.float32), ((7, 5), torch.float32)]
)
def test_products_are_float32_where_float64_is_slow(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert product_dtype(torch.device("cuda")) == expected
    assert product_dtype(torch.device("cpu")) == torch.float64

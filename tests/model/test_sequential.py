"""One backbone at a time: the same bits, and never two in memory."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import EsmModel

from rd_hf.data.batching import collate
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.fitting import FitOptions, draw_sample, fit_bases
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import EXAMPLE_FASTA

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "ACDEFGHIKLMNPQRSTVWY" * 2, "MSDKIIHLTDDSFDTDVLKADG", "MW", "GHIKLMNP" * 12]


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many backbones were in memory each time that one had just been loaded."""
    alive: weakref.WeakSet[EsmModel] = weakref.WeakSet()
    counts: list[int] = []
    original = EsmModel.from_pretrained.__func__

    def watched(cls: type, *args: Any, **kwargs: Any) -> Any:
        loaded = original(cls, *args, **kwargs)
        backbone = loaded[0] if isinstance(loaded, tuple) else loaded
        # Rotary frequencies are read through a model of one head, which is no backbone.
        if backbone.config.num_attention_heads > 1:
            alive.add(backbone)
            counts.append(len(alive))
        return loaded

    monkeypatch.setattr(EsmModel, "from_pretrained", classmethod(watched))
    return counts


def batches() -> list[dict[str, torch.Tensor]]:
    return [dict(zip(("input_ids", "attention_mask"), collate([s]), strict=True)) for s in SEQUENCES]


@pytest.mark.parametrize("level", ["L0", "L1", "L2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_window_gives_the_bits_of_the_resident_model(
    tiny_checkpoint: Path, held: list[int], dtype: torch.dtype, level: str
) -> None:
    resident = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=dtype)
    held.clear()
    model = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=dtype, sequential=True)
    assert (model.dtype, model.device.type, len(model.backbones)) == (dtype, "cpu", 0)
    with torch.inference_mode():
        window = model.forward_window(batches(), level, output_backbone_states=True)
        for batch, output in zip(batches(), window, strict=True):
            expected = resident(**batch, level=level, output_backbone_states=True)
            assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
            for a, b in zip(output.backbone_states, expected.backbone_states, strict=True):
                assert torch.equal(a, b)
            assert output.nested_dims == expected.nested_dims
        assert torch.equal(model(**batches()[0], level=level).last_hidden_state, window[0].last_hidden_state)
    del resident
    # Once the resident model's three are set aside, each was alone when it had been loaded.
    assert max(held) <= 3 + 1
    assert len(held) >= 1 + 2 * (1 + model.config.level_index(level))


def test_never_two_backbones_in_memory(tiny_checkpoint: Path, held: list[int]) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=True)
    model.forward_window(batches())
    model.forward_window(batches())
    assert held == [1] * 7  # one look at the dtype, then three per group


def test_a_cast_reaches_backbones_that_are_still_to_come(tiny_checkpoint: Path) -> None:
    cast = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=True).to(torch.bfloat16)
    loaded = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    assert cast.dtype == torch.bfloat16
    assert torch.equal(cast(**batches()[0]).last_hidden_state, loaded(**batches()[0]).last_hidden_state)


def test_a_map_of_devices_makes_no_sense_with_it(tiny_checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="one backbone at a time"):
        RDEsmModel.from_pretrained(tiny_checkpoint, sequential=True, device_map="auto")


@pytest.mark.parametrize(("group_tokens", "pooling"), [(1, "mean"), (100, "residue"), (100_000, "mean")])
def test_embeddings_are_the_resident_models(
    tiny_checkpoint: Path, held: list[int], group_tokens: int, pooling: str
) -> None:
    options = EmbeddingOptions(pooling=pooling, batch_tokens=60, max_length=50, overlap=10)
    requests = [Request(sequence) for sequence in SEQUENCES]
    expected = Engine(RDEsmModel.from_pretrained(tiny_checkpoint), "L2", options).embed(requests)
    held.clear()
    model = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=True)
    engine = Engine(model, "L2", options, group_tokens=group_tokens)
    for a, b in zip(engine.embed(requests), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    windows = (len(held) - 1) // 3
    assert windows == {1: engine.work.batches, 100_000: 1}.get(group_tokens, windows)


def test_a_window_that_does_not_fit_is_halved_and_said(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=True)
    said: list[str] = []
    options = EmbeddingOptions(batch_tokens=60)
    engine = Engine(model, "L2", options, report=said.append, group_tokens=1000)
    original = RDEsmModel.forward_window

    def small(self: RDEsmModel, window: list[dict[str, torch.Tensor]], *args: Any) -> Any:
        if sum(batch["input_ids"].numel() for batch in window) > 130:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return original(self, window, *args)

    monkeypatch.setattr(RDEsmModel, "forward_window", small)
    requests = [Request(sequence) for sequence in SEQUENCES]
    found = engine.embed(requests)
    assert any("batches in a group" in line for line in said)
    expected = Engine(RDEsmModel.from_pretrained(tiny_checkpoint), "L2", options).embed(requests)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("group_batches", [3, 1000])
def test_a_fit_is_the_resident_models(
    tiny_checkpoint: Path, tmp_path: Path, held: list[int], group_batches: int
) -> None:
    options = FitOptions(num_sequences=20, max_length=100, batch_tokens=600)
    sample = draw_sample([str(EXAMPLE_FASTA)], options)
    fitted = []
    for name, sequential in (("resident", False), ("sequential", True)):
        model = RDEsmModel.from_pretrained(tiny_checkpoint, sequential=sequential)
        fitted.append(
            fit_bases(
                model, sample, options, tmp_path / name, Accelerator(cpu=True),
                group_batches=group_batches if sequential else 1,
            )
        )  # fmt: skip
        if not sequential:
            del model
            gc.collect()
            held.clear()
    assert max(held) == 1
    for a, b in zip(fitted[0].bases, fitted[1].bases, strict=True):
        for name in ("prefix_mean", "backbone_mean", "regression", "directions"):
            assert torch.equal(getattr(a, name), getattr(b, name))

"""Whether sequences share a row or have one each, a job's embeddings are the same."""

from __future__ import annotations

from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rd_hf.embedding import checkpoint, layouts
from rd_hf.embedding.engine import Engine, Request
from rd_hf.embedding.layouts import Packed, Padded, layout_of
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.embedding.test_engine import TOLERANCE, LimitedMemory, proteins


@pytest.fixture
def packing_model(tiny_model: RDEsmModel) -> RDEsmModel:
    tiny_model.set_attn_implementation(PACKED_ATTENTION)
    return tiny_model


@given(st.lists(st.integers(1, 60), min_size=1, max_size=30), st.integers(1, 200))
def test_a_packed_batch_is_full_to_the_last_sequence_that_fits(lengths: list[int], budget: int) -> None:
    batches = Packed().plan(lengths, budget)
    order = [position for batch in batches for position in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths, reverse=True)
    for batch, following in pairwise([*batches, None]):
        held = Packed().tokens([lengths[position] for position in batch])
        assert held == sum(lengths[position] + 2 for position in batch)
        assert held <= budget or len(batch) == 1
        if following:
            assert held + lengths[following[0]] + 2 > budget


@pytest.mark.parametrize(
    "settings",
    [
        *({"pooling": pooling} for pooling in ("mean", "max", "cls", "residue")),
        {"pooling": "positions", "positions": (1,)},
        {"long": "window", "max_length": 40, "overlap": 10},
        {"long": "window", "max_length": 40, "overlap": 10, "pooling": "cls"},
        {"long": "truncate", "max_length": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("batch_tokens", [1, 300])
def test_packed_is_padded(packing_model: RDEsmModel, settings: dict[str, Any], batch_tokens: int) -> None:
    requests = [Request(sequence, settings.get("positions", ())) for sequence in proteins(25, 120)]
    options = EmbeddingOptions(batch_tokens=batch_tokens, **settings)
    packed, padded = Engine(packing_model, "L2", options), Engine(packing_model, "L2", options)
    padded.layout = Padded()
    assert isinstance(packed.layout, Packed)
    for found, expected in zip(packed.embed(requests), padded.embed(requests), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)
    assert packed.work.padding == 0
    assert packed.work.residues == padded.work.residues
    if batch_tokens > 1:
        assert packed.work.batches < padded.work.batches


def test_what_larger_levels_bring_can_be_packed_too(packing_model: RDEsmModel) -> None:
    requests = [Request(sequence) for sequence in proteins(12, 60)]
    packed, padded = (Engine(packing_model, "L2", EmbeddingOptions(batch_tokens=200), above="L0") for _ in range(2))
    padded.layout = Padded()
    for found, expected in zip(packed.embed(requests), padded.embed(requests), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_running_out_of_memory_halves_a_packed_batch(packing_model: RDEsmModel) -> None:
    requests = [Request(sequence) for sequence in proteins(40, 60)]
    options = EmbeddingOptions(batch_tokens=1000)
    said: list[str] = []
    limited: Any = LimitedMemory(packing_model, 150, MemoryError())
    engine = Engine(limited, "L2", options, report=said.append)
    results = engine.embed(requests)
    for result, expected in zip(results, Engine(packing_model, "L2", options).embed(requests), strict=True):
        np.testing.assert_allclose(result, expected, atol=TOLERANCE)
    assert "out of memory with" in said[0]
    assert engine.tokens <= 150
    assert 0 < limited.batches[-1] <= 150


def test_sequences_share_a_row_where_the_attention_keeps_them_apart_and_is_fast(
    tiny_model: RDEsmModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(layout_of(tiny_model), Padded)
    tiny_model.set_attn_implementation(PACKED_ATTENTION)
    assert isinstance(layout_of(tiny_model), Packed)
    # Flash attention does, of the package or of a kernel that a user named.
    for attention in ("flash_attention_2", "kernels-community/flash-attn3"):
        monkeypatch.setattr(tiny_model.config, "_attn_implementation_internal", attention)
        assert isinstance(layout_of(tiny_model), Packed)
    tiny_model.set_attn_implementation(PACKED_ATTENTION)
    # On a GPU only by its kernel: one product a sequence would leave it idle.
    monkeypatch.setattr(RDEsmModel, "device", torch.device("cuda"))
    for takes, expected in ((lambda *_: False, Padded), (lambda *_: True, Packed)):
        monkeypatch.setattr(layouts, "fused_kernel_takes", takes)
        assert isinstance(layout_of(tiny_model), expected)
    # Every level's heads count.
    monkeypatch.setattr(layouts, "fused_kernel_takes", lambda device, dtype, width: width != 12)
    assert isinstance(layout_of(tiny_model), Padded)


@pytest.mark.parametrize(
    ("pays", "asked", "expected"), [(True, None, "Packed"), (True, "sdpa", "Padded"), (False, None, "Padded")]
)
def test_a_job_packs_where_it_pays_and_nothing_else_was_asked_for(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, pays: bool, asked: str | None, expected: str
) -> None:
    monkeypatch.setattr(layouts, "packing_pays", lambda model: pays)
    checkpoint.load_model.cache_clear()
    model = checkpoint.load_model(str(tiny_checkpoint), None, f"{pays}{asked}", None, "float32", asked, "cpu")
    checkpoint.load_model.cache_clear()
    assert type(layout_of(model)).__name__ == expected


def test_rows_of_a_packed_batch_are_each_sequences_own() -> None:
    lengths = [3, 1, 2]
    ends = list(accumulate((length + 2 for length in lengths), initial=0))
    states = torch.arange(ends[-1], dtype=torch.float32).view(1, -1, 1)
    rows = Packed().rows(states, lengths)
    for own, length, start in zip(rows, lengths, ends, strict=False):
        # Its cls, then its residues.
        assert own[:, 0].tolist() == list(range(start, start + length + 1))
    means = Packed().pooled(states, lengths, "mean")
    assert means[:, 0].tolist() == [start + (length + 1) / 2 for start, length in zip(ends, lengths, strict=False)]


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
def test_sequences_of_a_packed_batch_are_pooled_together_to_the_bits_of_each_alone(pooling: str) -> None:
    """Also where lengths differ much, and where a neighbour holds what is not finite."""
    lengths = [90, 88, 40, 3, 1, 41, 2]
    states = torch.randn(1, sum(lengths) + 2 * len(lengths), 5) * torch.logspace(-3, 3, 5)
    starts = Packed().starts(lengths)
    states[0, starts[2] : starts[3]] = torch.nan
    found = Packed().pooled(states, lengths, pooling)
    for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        alone = layouts.pool(states[:, start : start + length + 2], [length], pooling)[0]
        assert torch.equal(found[row], alone) or (row == 2 and found[row].isnan().all()), row

"""Batching, pooling, windows and memory: what comes out must not depend on how it was computed."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from rd_hf.data.batching import collate
from rd_hf.embedding.engine import Engine, Request, embed_requests, prepare
from rd_hf.embedding.layouts import pool
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.model.modeling_rd_esm import RDEsmModel

# Float32 sums in another order: a few units in the last place of values around one, after two layers.
TOLERANCE = 1e-5


def proteins(count: int, longest: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices("LAGVSERTIDPKQNFYMHWC", k=generator.randint(1, longest))) for _ in range(count)]


def states(model: RDEsmModel, sequence: str, level: str = "L2") -> np.ndarray:
    """Every position of one sequence, alone, straight from the model: (length + 2, width)."""
    input_ids, mask = collate([sequence])
    with torch.inference_mode():
        return model(input_ids, attention_mask=mask, level=level).last_hidden_state[0].numpy()


@pytest.mark.parametrize("batch_tokens", [1, 100, 1000, 100_000])
@pytest.mark.parametrize(
    ("pooling", "reference"),
    [
        ("mean", lambda rows: rows[1:-1].mean(axis=0)),
        ("max", lambda rows: rows[1:-1].max(axis=0)),
        ("cls", lambda rows: rows[0]),
        ("residue", lambda rows: rows[1:-1]),
    ],
)
def test_a_batch_gives_what_each_sequence_gives_alone(
    tiny_model: RDEsmModel, batch_tokens: int, pooling: str, reference: object
) -> None:
    sequences = proteins(30, 120)
    engine = Engine(tiny_model, "L2", EmbeddingOptions(pooling=pooling, batch_tokens=batch_tokens))
    for sequence, result in zip(sequences, engine.embed([Request(s) for s in sequences]), strict=True):
        expected = reference(states(tiny_model, sequence))  # type: ignore[operator]
        np.testing.assert_allclose(result, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_smaller_levels_are_the_first_dimensions(tiny_model: RDEsmModel) -> None:
    sequences = [Request(sequence) for sequence in proteins(10, 60)]
    wide = Engine(tiny_model, "L2", EmbeddingOptions()).embed(sequences)
    narrow = Engine(tiny_model, "L0", EmbeddingOptions()).embed(sequences)
    for large, small in zip(wide, narrow, strict=True):
        # The prefix is copied bit for bit, but its mean is a product whose order of summing follows the width.
        np.testing.assert_allclose(large[:32], small, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_never_sees_cls_eos_or_padding(dtype: torch.dtype) -> None:
    values = torch.randn(2, 7, 3).to(dtype)
    values[:, 0] = values[0, 6] = values[1, 3:] = 1000.0
    lengths = [5, 2]
    for row, length in enumerate(lengths):
        rows = values[row, 1 : length + 1].float()
        # One float32 rounding a product: bfloat16 states are pooled in float32 too.
        torch.testing.assert_close(pool(values, lengths, "mean")[row], rows.mean(dim=0), atol=1e-6, rtol=1e-6)
        assert torch.equal(pool(values, lengths, "max")[row], rows.amax(dim=0))
    assert pool(values, lengths, "mean").dtype == torch.float32


def test_repeated_sequences_are_computed_once_and_handed_to_all(tiny_model: RDEsmModel) -> None:
    first, second = proteins(2, 40)
    engine = Engine(tiny_model, "L2", EmbeddingOptions())
    results = embed_requests(engine, [Request(s) for s in (first, second, first, first)])
    assert engine.work.residues == len(first) + len(second)
    assert np.array_equal(results[0], results[2])
    assert np.array_equal(results[0], results[3])


def test_positions_of_one_sequence_share_one_pass(tiny_model: RDEsmModel) -> None:
    sequence = proteins(1, 1)[0] * 20
    options = EmbeddingOptions(pooling="positions")
    engine = Engine(tiny_model, "L2", options)
    asked = [(1, 20), (7,), (20, 7, 7)]
    results = embed_requests(engine, [prepare(sequence, positions, options) for positions in asked])
    assert engine.work.residues == 20
    rows = states(tiny_model, sequence)
    for positions, result in zip(asked, results, strict=True):
        # Position p counts from 1, and row 0 of the states is cls: no shift is left.
        np.testing.assert_allclose(result, rows[list(positions)], atol=TOLERANCE)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls", "residue", "positions"])
def test_windows_of_a_long_sequence_are_merged_with_their_shares(tiny_model: RDEsmModel, pooling: str) -> None:
    long, short = proteins(1, 1)[0] + "".join(proteins(20, 40, seed=1)), "MKTAYIAKQR"
    size, overlap = 50, 20
    # Written out residue by residue, from the module's words: nothing of the package but the model.
    count = -(-(len(long) - overlap) // (size - overlap))
    total, weight = np.zeros((len(long), 64)), np.zeros(len(long))
    first = np.zeros(64)
    for index in range(count):
        start = round(index * (len(long) - size) / (count - 1))
        rows = states(tiny_model, long[start : start + size])
        first += rows[0] / count
        for place in range(size):
            share = min(1.0, (min(place, size - 1 - place) + 1) / (overlap + 1))
            total[start + place] += share * rows[place + 1]
            weight[start + place] += share
    merged = total / weight[:, None]
    positions = (1, 40, len(long))
    expected = {
        "mean": merged.mean(axis=0),
        "max": merged.max(axis=0),
        "cls": first,
        "residue": merged,
        "positions": merged[[position - 1 for position in positions]],
    }[pooling]
    options = EmbeddingOptions(pooling=pooling, max_length=size, overlap=overlap, batch_tokens=300)
    wanted = positions if pooling == "positions" else ()
    requests = [prepare(long, wanted, options), prepare(short, (1,), options)]
    result = Engine(tiny_model, "L2", options).embed(requests)[0]
    np.testing.assert_allclose(result, expected, atol=TOLERANCE)


def test_truncation_embeds_the_first_residues(tiny_model: RDEsmModel) -> None:
    long = "".join(proteins(10, 40))
    options = EmbeddingOptions(long="truncate", max_length=50, overlap=0, pooling="residue")
    result = Engine(tiny_model, "L2", options).embed([Request(long)])[0]
    np.testing.assert_allclose(result, states(tiny_model, long[:50])[1:-1], atol=TOLERANCE)


class LimitedMemory:
    """A model that fails as a device does when a batch has more tokens than fit."""

    def __init__(self, model: RDEsmModel, fits: int, error: Exception) -> None:
        self.model, self.fits, self.error = model, fits, error
        self.device, self.dtype, self.config, self.modules = model.device, model.dtype, model.config, model.modules
        self.batches: list[int] = []

    def forward_window(self, window: list[dict[str, torch.Tensor]], level: str) -> object:
        (batch,) = window
        self.batches.append(batch["input_ids"].numel())
        if batch["input_ids"].numel() > self.fits:
            raise self.error
        return self.model.forward_window(window, level)


OUT_OF_MEMORY = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError(),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=["cuda", "cpu", "python"])
def test_running_out_of_memory_shrinks_the_batches_and_says_so(tiny_model: RDEsmModel, error: Exception) -> None:
    requests = [Request(sequence) for sequence in proteins(40, 60)]
    options = EmbeddingOptions(batch_tokens=1000)
    said: list[str] = []
    limited = LimitedMemory(tiny_model, 150, error)
    engine = Engine(limited, "L2", options, report=said.append)  # type: ignore[arg-type]
    results = engine.embed(requests)
    for result, expected in zip(results, Engine(tiny_model, "L2", options).embed(requests), strict=True):
        np.testing.assert_allclose(result, expected, atol=TOLERANCE)
    assert "out of memory with" in said[0]
    assert engine.tokens <= 150
    # What was learnt is kept: the next call fails no more.
    limited.batches.clear()
    engine.embed(requests)
    assert max(limited.batches) <= 150


def test_a_sequence_that_does_not_fit_alone_is_given_up_on_and_the_rest_is_done(tiny_model: RDEsmModel) -> None:
    options = EmbeddingOptions(max_length=100, overlap=10, batch_tokens=400)
    limited = LimitedMemory(tiny_model, 80, OUT_OF_MEMORY[1])
    engine = Engine(limited, "L2", options, report=lambda text: None)  # type: ignore[arg-type]
    long, fits = "MKTAYIAKQR" * 25, "MKTAYIAKQR" * 7
    results = engine.embed([Request(long), Request(fits)])
    assert isinstance(results[0], str)
    assert "does not fit in this device's memory even alone" in results[0]
    np.testing.assert_allclose(results[1], states(tiny_model, fits)[1:-1].mean(axis=0), atol=TOLERANCE)


def test_other_errors_are_not_taken_for_a_lack_of_memory(tiny_model: RDEsmModel) -> None:
    limited = LimitedMemory(tiny_model, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        Engine(limited, "L2", EmbeddingOptions()).embed([Request("MK")])  # type: ignore[arg-type]


def test_hardly_anything_is_padding_even_among_few_sequences(tiny_model: RDEsmModel) -> None:
    engine = Engine(tiny_model, "L0", EmbeddingOptions(batch_tokens=2048))
    engine.embed([Request(sequence) for sequence in proteins(100, 500)])
    # Rows of a batch differ by a sixteenth at most, so the mean cannot be above half of that by much.
    assert engine.work.padding / engine.work.tokens < 0.04

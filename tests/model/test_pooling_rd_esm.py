"""The table of poolings: over a batch and over one sequence alike, each as its record says, and none by default."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from rd_hf.model.bases_rd_esm import RDEsmProjection
from rd_hf.model.pooling_rd_esm import POOLINGS, pooling_named

LENGTHS = (7, 3, 12)
ONE_ROW = [name for name, pooling in POOLINGS.items() if pooling.one_row]


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    """Cls, residues, eos and padding of three sequences; all that is no residue is large."""
    generator = torch.Generator().manual_seed(0)
    made = torch.full((3, 14, 5), 1e4)
    for row, length in zip(made, LENGTHS, strict=True):
        row[: length + 1] = torch.randn(length + 1, 5, generator=generator)
    return made


@pytest.fixture(scope="module")
def keep() -> torch.Tensor:
    places = torch.arange(14)
    return torch.stack([(places >= 1) & (places <= length) for length in LENGTHS])


@pytest.mark.parametrize("name", ONE_ROW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batch_is_pooled_as_its_sequences_are(
    name: str, dtype: torch.dtype, states: torch.Tensor, keep: torch.Tensor
) -> None:
    pooling, states = pooling_named(name), states.to(dtype)
    assert pooling.pool_batch is not None
    pooled = pooling.pool_batch(states, keep)
    assert (pooled.shape, pooled.dtype) == ((3, 5), torch.float32)
    for own, row, length in zip(pooled, states.float(), LENGTHS, strict=True):
        assert torch.equal(own, pooling.pool_rows(row[0], row[1 : length + 1], ()))


def test_what_each_gives(states: torch.Tensor) -> None:
    first, rows = states[0, 0], states[0, 1:8]
    expected = {
        "mean": rows.double().sum(dim=0).float() / 7,
        "max": rows.max(dim=0).values,
        "cls": first,
        "residue": rows,
        "positions": rows[[6, 0, 6]],
    }
    assert list(POOLINGS) == list(expected)
    for name, pooling in POOLINGS.items():
        assert torch.equal(pooling.pool_rows(first, rows, (7, 1, 7)), expected[name])
        assert (pooling.name, pooling.pool_batch is not None) == (name, pooling.one_row)


@pytest.mark.parametrize("name", ONE_ROW)
def test_affine_is_what_commutes_with_the_bases(name: str, states: torch.Tensor) -> None:
    projection = RDEsmProjection(5, 5, 3)
    generator = torch.Generator().manual_seed(1)
    for buffer in projection.buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=generator))
    pooling = pooling_named(name)

    def pooled(values: torch.Tensor) -> torch.Tensor:
        return pooling.pool_rows(values[0], values[1:], ())

    rows = states[0, :8]
    # float32 sums of eight numbers of order one, in another order.
    commutes = torch.allclose(projection(pooled(rows), pooled(rows)), pooled(projection(rows, rows)), atol=1e-4)
    assert commutes == pooling.affine


@pytest.mark.parametrize("name", ["median", "", "Mean"])
def test_an_unknown_one_is_an_error_that_lists_the_others(name: str) -> None:
    with pytest.raises(ValueError, match="pooling must be one of mean, max, cls, residue, positions, not"):
        pooling_named(name)


def test_the_table_does_not_wait_for_torch() -> None:
    code = "import sys, rd_hf.model.pooling_rd_esm; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)

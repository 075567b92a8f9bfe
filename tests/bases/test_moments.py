"""JointMoments: what a single read of the data must keep of it, whichever way the read was cut."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.bases.moments import JointMoments, NonFiniteStatesError, load_tensors, save_tensors

WIDTHS = (3, 5, 4)
# Sums in float64 over at most a few thousand terms of size one: rounding is of the order 1e-13.
EXACT = {"rtol": 1e-10, "atol": 1e-9}


def states(residues: int, seed: int = 0, offset: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(residues, sum(WIDTHS), generator=generator, dtype=torch.float64)
    mixed = mixed @ torch.randn(sum(WIDTHS), sum(WIDTHS), generator=generator, dtype=torch.float64) + offset
    return list(mixed.split(WIDTHS, dim=1))


def numpy_scatter(parts: list[torch.Tensor]) -> np.ndarray:
    z = torch.cat(parts, dim=1).numpy()
    return np.cov(z, rowvar=False, bias=True) * len(z)


def moments_of(parts: list[torch.Tensor], cuts: list[int] | None = None) -> JointMoments:
    moments = JointMoments(WIDTHS)
    bounds = [0, *sorted(cuts or []), len(parts[0])]
    for start, stop in itertools.pairwise(bounds):
        moments.update([part[start:stop] for part in parts])
    return moments


def assert_same(a: JointMoments, b: JointMoments) -> None:
    assert a.count == b.count
    torch.testing.assert_close(a.mean(), b.mean(), **EXACT)
    torch.testing.assert_close(a.scatter(), b.scatter(), **EXACT)


def test_levels_wider_than_a_tile_are_covered_to_the_last_column() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(300, width, generator=generator, dtype=torch.float64) + 2 for width in (170, 200)]
    moments = JointMoments((170, 200))
    moments.update(parts)
    np.testing.assert_allclose(moments.scatter(), numpy_scatter(parts), **EXACT)


def test_mean_and_scatter_are_numpys() -> None:
    parts = states(500)
    moments = moments_of(parts)
    assert moments.count == 500
    np.testing.assert_allclose(moments.mean(), torch.cat(parts, 1).mean(0), **EXACT)
    np.testing.assert_allclose(moments.scatter(), numpy_scatter(parts), **EXACT)


def test_parts_of_the_scatter_are_the_scatters() -> None:
    moments = moments_of(states(100))
    scatter, (_, first, second, end) = moments.scatter(), moments.offsets
    torch.testing.assert_close(moments.scatter_between(1, 1), scatter[first:second, first:second], **EXACT)
    torch.testing.assert_close(moments.scatter_between(0, 1, 3), scatter[:first, first:end], **EXACT)
    torch.testing.assert_close(moments.scatter_diagonal(), scatter.diagonal(), **EXACT)


def test_scatter_is_exactly_symmetric() -> None:
    scatter = moments_of(states(100)).scatter()
    assert torch.equal(scatter, scatter.T)


def test_blocks_longer_than_one_product_are_cut_without_a_trace() -> None:
    parts = states(9000)
    np.testing.assert_allclose(moments_of(parts).scatter(), numpy_scatter(parts), rtol=1e-10, atol=1e-7)


@given(cuts=st.lists(st.integers(0, 200), max_size=6), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=30)
def test_any_way_of_batching_gives_the_same_moments(cuts: list[int], seed: int) -> None:
    parts = states(200, seed)
    assert_same(moments_of(parts, cuts), moments_of(parts))


@given(cut=st.integers(0, 200), offset=st.sampled_from([0.0, 5.0, -1000.0]))
@settings(deadline=None, max_examples=30)
def test_merging_two_halves_is_a_single_read(cut: int, offset: float) -> None:
    parts = states(200, offset=offset)
    first, second = (moments_of([p[s] for p in parts]) for s in (slice(0, cut), slice(cut, None)))
    first.merge(second)
    assert_same(first, moments_of(parts))


def test_merging_leaves_the_other_untouched() -> None:
    first, second = moments_of(states(50, 1)), moments_of(states(60, 2))
    before = second.scatter()
    first.merge(second)
    assert second.count == 60
    assert torch.equal(second.scatter(), before)


def test_recentring_changes_neither_mean_nor_scatter() -> None:
    moments, same = moments_of(states(300)), moments_of(states(300))
    moments.recentre(torch.full((sum(WIDTHS),), 2.5, dtype=torch.float64))
    assert_same(moments, same)


def test_a_channel_far_from_zero_keeps_its_digits() -> None:
    """ESM-2's final states have channels whose mean is a hundred times their deviation."""
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(4000, width, generator=generator, dtype=torch.float64) for width in WIDTHS]
    parts[1][:, 2] = 1e6 + 1e-2 * parts[1][:, 2]
    # Inputs themselves resolve 1e-2 at 1e6 to 1e-8 relative; naive sums of squares would keep no digit of it.
    column = 3 + 2
    variance = moments_of(parts).scatter()[column, column]
    assert variance == pytest.approx(float(parts[1][:, 2].var(unbiased=False) * 4000), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_states_are_summed_in_double(dtype: torch.dtype) -> None:
    parts = [part.to(dtype) for part in states(300)]
    moments = moments_of(parts)
    assert moments.scatter().dtype == torch.float64
    np.testing.assert_allclose(moments.scatter(), numpy_scatter([p.double() for p in parts]), **EXACT)


# Of what deviations allow, sqrt(S_ii S_jj): float32 rounds each product by 6e-8 of itself, and their sums once more.
SINGLE = 1e-6


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e4], ids="{:g} deviations from zero".format)
@pytest.mark.parametrize("first", [1, 40, 3000], ids="first batch {}".format)
def test_float32_products_cost_float32_precision_only(offset: float, first: int) -> None:
    """However far means lie from zero, and however few residues the first batch has."""
    parts = states(3000, offset=0.0)
    deviations = torch.cat(parts, dim=1).std(dim=0).split(WIDTHS)
    # float32 states, as backbones give them: the reference is of the same numbers.
    parts = [(part + offset * own).float() for part, own in zip(parts, deviations, strict=True)]
    moments = JointMoments(WIDTHS, product_dtype=torch.float32)
    for rows in (slice(0, first), slice(first, None)):
        moments.update([part[rows] for part in parts])
    exact = torch.from_numpy(numpy_scatter([part.double() for part in parts]))
    scale = exact.diagonal().sqrt()
    assert float(((moments.scatter() - exact) / torch.outer(scale, scale)).abs().max()) < SINGLE


def test_nan_is_refused_naming_the_level_and_nothing_is_added() -> None:
    moments = moments_of(states(20))
    bad = states(5)
    bad[1][3, 0] = float("nan")
    before = moments.scatter()
    with pytest.raises(NonFiniteStatesError, match="backbone 2") as error:
        moments.update(bad)
    assert error.value.level == 1
    assert moments.count == 20
    assert torch.equal(moments.scatter(), before)


def test_other_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="widths"):
        JointMoments(WIDTHS).update([torch.zeros(2, 3), torch.zeros(2, 5)])
    with pytest.raises(ValueError, match="do not add"):
        JointMoments(WIDTHS).merge(JointMoments((2, 2)))


def test_saved_moments_load_as_they_were(tmp_path: Path) -> None:
    moments = moments_of(states(40))
    save_tensors(tmp_path / "m.safetensors", moments.state())
    loaded = JointMoments.from_state(load_tensors(tmp_path / "m.safetensors"))
    assert loaded.count == 40
    assert loaded.widths == WIDTHS
    assert torch.equal(loaded.scatter(), moments.scatter())
    loaded.update(states(10, 3))
    moments.update(states(10, 3))
    assert torch.equal(loaded.scatter(), moments.scatter())


@pytest.mark.parametrize("offset", [1, 3, 5, 7])
def test_moments_go_on_to_the_same_bits_wherever_a_file_was_read_into(offset: int) -> None:
    """Products round by where their operands lie: torch's own memory begins at 64 bytes, a file's buffer anywhere."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        place = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)[offset:].view(tensor.shape)
        return place.copy_(tensor)

    moments = moments_of(states(40))
    loaded = JointMoments.from_state({name: moved(value) for name, value in moments.state().items()})
    assert loaded._products.data_ptr() % 64 == 0
    assert loaded._sum.data_ptr() % 64 == 0
    for seed in range(5):
        loaded.update(states(11, seed))
        moments.update(states(11, seed))
    assert torch.equal(loaded.scatter(), moments.scatter())


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_tensors(path, moments_of(states(40)).state())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"m\.safetensors cannot be read"):
        load_tensors(path)

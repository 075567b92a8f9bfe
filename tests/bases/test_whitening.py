"""Whitening a block at a time: against scikit-learn's, in closed form against data, and nested to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas
from sklearn.decomposition import PCA

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.whitening import (
    Whitening,
    chain_whitening,
    fit_whitening,
    moments_of_rows,
    oracle_shrinkage,
)
from tests.bases.test_chain import KEEP, NAMES, apply, family, moments_of

BLOCKS = [12, 8, 13]


def rows(count: int, seed: int = 0) -> torch.Tensor:
    """Correlated rows of the blocks' widths, with means, in float32 as embeddings are."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((count, sum(BLOCKS))) @ np.random.default_rng(5).standard_normal((33, 33))
    return torch.from_numpy((mixed * np.geomspace(10, 0.1, 33) + 3).astype(np.float32))


def test_each_block_is_whitened_as_scikit_learn_does() -> None:
    data = rows(500)
    found = fit_whitening(moments_of_rows(data, BLOCKS), shrinkage=0.0)(data.double())
    start = 0
    for width in BLOCKS:
        block = slice(start, start + width)
        expected = PCA(whiten=True).fit_transform(data[:, block].double().numpy())
        # Axes are the same up to their sign.
        assert np.allclose(np.abs(found[:, block].numpy()), np.abs(expected), rtol=1e-6, atol=1e-6)
        start += width


def test_without_rotation_each_direction_is_divided_by_its_own_deviation() -> None:
    data = rows(500).double()
    found = fit_whitening(moments_of_rows(data, BLOCKS), rotate=False, shrinkage=0.0)(data)
    assert torch.allclose(found, (data - data.mean(0)) / data.std(0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("count", [40, 400, 40_000])
def test_shrinkage_is_scikit_learns_up_to_what_it_leaves_out(count: int) -> None:
    """It has the formula without 2 / d, and the covariance over n."""
    data = rows(count).double()[:, :20]
    found = oracle_shrinkage(torch.cov(data.T), count)
    assert found == pytest.approx(oas(data.numpy())[1], rel=0.15)
    assert 0 < found < 1


def test_the_moments_of_states_give_the_whitening_of_every_block() -> None:
    levels = family(4000)
    moments = moments_of(levels)
    bases, _ = fit_chain(moments, NAMES, KEEP)
    found = chain_whitening(moments, bases, [1, 1, 1])
    assert found.widths == BLOCKS
    embedding = apply(levels, bases)[-1]
    expected = fit_whitening(moments_of_rows(embedding, BLOCKS))
    for one, other in zip(found.means, expected.means, strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    # Scatters of some thousand terms, cancelled once: ten digits of the largest variance are left.
    for one, other in zip(found.maps, expected.maps, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-7 * float(other.abs().max()))


def test_the_spread_of_every_dimension_is_that_of_residues_and_of_means_over_them() -> None:
    levels = family(4000)
    sequences = [level.unflatten(0, (100, 40)).mean(dim=1) for level in levels]
    moments = moments_of(levels)
    bases, _ = fit_chain(moments, NAMES, KEEP)
    found = chain_whitening(moments, bases, [1, 2, 3], sequence_means=moments_of(sequences))
    spreads = torch.cat(found.spreads, dim=-1)
    for kind, rows in enumerate((apply(levels, bases)[-1], apply(sequences, bases)[-1])):
        for whitened, values in enumerate((rows, found(rows))):
            mean, deviation = spreads[kind, whitened]
            # Scatters of some thousand terms, cancelled once.
            assert torch.allclose(mean, values.mean(dim=0), atol=1e-7)
            assert torch.allclose(deviation, values.std(dim=0), rtol=1e-6)
    assert chain_whitening(moments, bases).spreads == ()
    assert [len(spread[0, 0, 0]) for spread in found.up_to(2).spreads] == BLOCKS[:2]


def test_weights_scale_their_blocks_and_nothing_else() -> None:
    data = rows(200)
    blocks = moments_of_rows(data, BLOCKS)
    plain, weighted = fit_whitening(blocks)(data), fit_whitening(blocks, [0.25, 1.0, 3.0])(data)
    scale = torch.tensor(np.repeat([0.25, 1.0, 3.0], BLOCKS), dtype=torch.float32)
    assert torch.allclose(weighted, plain * scale, rtol=1e-5, atol=1e-5)


def test_full_shrinkage_turns_and_centres_only() -> None:
    data = rows(200).double()
    (block,) = moments_of_rows(data[:, :12], [12])
    found = fit_whitening([block], shrinkage=1.0)(data[:, :12])
    centred, mean_variance = data[:, :12] - block.mean, block.covariance.diagonal().mean()
    assert torch.allclose(found @ found.T * mean_variance, centred @ centred.T, rtol=1e-9, atol=1e-6)


def test_a_direction_without_variance_becomes_zero_and_not_infinite() -> None:
    data = rows(100)
    data[:, 3] = 7.0
    data[:, 20:] = 0.0
    found = fit_whitening(moments_of_rows(data, BLOCKS))(data)
    assert torch.isfinite(found).all()
    assert found[:, 20:].abs().max() == 0


def white(data: torch.Tensor) -> torch.Tensor:
    """Rows whitened by themselves, straight from a singular value decomposition; shrinkage as in the module."""
    centred = data - data.mean(0)
    _, singular, axes = torch.linalg.svd(centred, full_matrices=False)
    variances = singular**2 / (len(data) - 1)
    shrinkage = oracle_shrinkage(torch.cov(data.T), len(data))
    return centred @ axes.T / ((1 - shrinkage) * variances + shrinkage * variances.mean()).sqrt()


def test_weights_are_a_least_squares_fit_to_each_backbones_inner_products() -> None:
    """Over all pairs of residues, with matrices of all pairs: what the moments give without a pair."""
    levels = family(300)
    moments = moments_of(levels)
    bases, _ = fit_chain(moments, NAMES, KEEP)
    found = chain_whitening(moments, bases).weights
    blocks = apply(levels, bases)[-1].split(BLOCKS, dim=1)
    expected, prefix = [1.0], white(blocks[0])
    for block, state in zip(blocks[1:], levels[1:], strict=True):
        own, judge = white(block), white(state.double())
        pairs = torch.stack([(rows @ rows.T).flatten() for rows in (prefix, own)], dim=1)
        alpha, beta = torch.linalg.lstsq(pairs, (judge @ judge.T).flatten()[:, None]).solution.flatten().tolist()
        expected.append((beta / alpha) ** 0.5)
        prefix = torch.cat((prefix, expected[-1] * own), dim=1)
    assert found == pytest.approx([weight / max(expected) for weight in expected], rel=1e-6)


def test_a_prefix_that_says_nothing_of_the_larger_state_gets_little_weight() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, signal = (torch.randn(5000, width, generator=generator, dtype=torch.float64) for width in (12, 20))
    alike = torch.cat((noise, 0.1 * signal[:, :8]), dim=1)
    weights = []
    for large in (signal, alike):
        moments = moments_of([noise, large])
        bases, _ = fit_chain(moments, NAMES[:2], [8])
        first, second = chain_whitening(moments, bases).weights
        weights.append(first / second)
    assert weights[0] < 0.2
    assert weights[1] > 0.5


def test_a_larger_level_changes_no_weight_below_it() -> None:
    levels = family(3000)
    moments = moments_of(levels)
    bases, _ = fit_chain(moments, NAMES, KEEP)
    whole = chain_whitening(moments, bases)
    part = chain_whitening(moments_of(levels[:2]), bases[:1])
    assert part.weights[1] / part.weights[0] == pytest.approx(whole.weights[1] / whole.weights[0], rel=1e-9)
    assert max(whole.weights) == 1
    given = chain_whitening(moments, bases, [3, 2, 1])
    assert given.weights == (3, 2, 1)
    for one, other, own, weight in zip(given.maps, whole.maps, whole.weights, given.weights, strict=True):
        assert torch.allclose(one / weight, other / own)


@settings(max_examples=25, deadline=None)
@given(
    leading=st.lists(st.integers(1, 5), max_size=2),
    seed=st.integers(0, 1000),
    weights=st.lists(st.floats(0, 4), min_size=3, max_size=3),
    rotate=st.booleans(),
)
def test_the_prefix_is_the_whitened_smaller_embedding_bit_for_bit(
    leading: list[int], seed: int, weights: list[float], rotate: bool
) -> None:
    whitening = fit_whitening(moments_of_rows(rows(60, seed), BLOCKS), weights, rotate)
    data = rows(int(np.prod(leading)), seed + 1).reshape(*leading, 33)
    whole = whitening(data)
    for count, width in ((1, 12), (2, 20), (3, 33)):
        assert torch.equal(whitening(data[..., :width]), whole[..., :width])
        assert torch.equal(whitening.up_to(count)(data[..., :width]), whole[..., :width])


def test_the_whitened_mean_is_the_mean_of_the_whitened() -> None:
    data = rows(300).double()
    whitening = fit_whitening(moments_of_rows(data, BLOCKS), [1, 2, 3])
    assert torch.allclose(whitening(data).mean(0), whitening(data.mean(0)), atol=1e-9)


def test_what_does_not_fit_is_said() -> None:
    blocks = moments_of_rows(rows(50), BLOCKS)
    with pytest.raises(ValueError, match="2 weights for 3 blocks"):
        fit_whitening(blocks, [1, 2])
    with pytest.raises(ValueError, match="finite and not below 0"):
        fit_whitening(blocks, [1, -1, float("nan")])
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_whitening(blocks, shrinkage=1.5)
    with pytest.raises(ValueError, match="does not end at a block"):
        fit_whitening(blocks)(rows(5)[:, :13])
    with pytest.raises(ValueError, match="two are needed"):
        moments_of_rows(rows(1), BLOCKS)
    assert isinstance(fit_whitening(blocks), Whitening)

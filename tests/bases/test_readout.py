"""The one-pass readout from moments is the one from data: against scikit-learn, by the equations, in its figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.readout import STRENGTHS, choose_strengths, embedding_map, fit_readout
from tests.bases.test_chain import KEEP, NAMES, WIDTHS, apply, family, moments_of

# What is known of the smaller levels: two layers as wide as the largest backbone, each a noisy look at them.
EXTRA = 2


def layered(residues: int, seed: int) -> list[torch.Tensor]:
    """A family's levels and two layers of the largest backbone, one channel of which never changes."""
    levels = family(residues, seed)
    rng, mixing = np.random.default_rng(seed + 100), np.random.default_rng(77)
    known = torch.cat(levels[:2], dim=1).numpy()
    for _ in range(EXTRA):
        layer = np.tanh(known @ mixing.standard_normal((known.shape[1], WIDTHS[-1])) * 0.1)
        layer = layer + 0.1 * rng.standard_normal(layer.shape) + 5
        layer[:, 3] = 2.0
        levels.append(torch.from_numpy(layer))
    return levels


def features_of(levels: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(levels[2:], dim=1)


FIT, TUNE, HELD = layered(1500, 0), layered(400, 1), layered(600, 2)
BOTH = [torch.cat(pair) for pair in zip(FIT, TUNE, strict=True)]


@pytest.fixture(scope="module")
def bases() -> list[Basis]:
    return fit_chain(moments_of(BOTH).first_levels(3), NAMES, KEEP)[0]


def test_moments_of_the_first_levels_and_of_two_groups_of_levels_are_those_of_the_data() -> None:
    whole = moments_of(FIT)
    two = [torch.cat(FIT[:2], dim=1), torch.cat(FIT[2:], dim=1)]
    for view, levels in ((whole.first_levels(3), FIT[:3]), (whole.as_two(2), two)):
        own = moments_of(levels)
        assert (view.widths, view.count) == (own.widths, own.count)
        torch.testing.assert_close(view.scatter(), own.scatter(), rtol=1e-10, atol=1e-8)
        torch.testing.assert_close(view.mean(), own.mean(), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(view.scatter_between(1, 1), own.scatter_between(1, 1), rtol=1e-10, atol=1e-8)
    rebuilt = JointMoments.of(own.widths, own.count, own.mean(), own.scatter())
    torch.testing.assert_close(rebuilt.scatter(), own.scatter(), rtol=1e-12, atol=1e-10)


def test_the_embedding_is_affine_in_the_states(bases: list[Basis]) -> None:
    mapped = embedding_map(bases[:-1], WIDTHS[:2])
    embedding = apply(FIT[:2], bases[:-1])[-1]
    states = torch.cat(FIT[:2], dim=1).double()
    torch.testing.assert_close(
        (states - states.mean(dim=0)) @ mapped, embedding - embedding.mean(dim=0), rtol=1e-9, atol=1e-9
    )


def test_it_is_scikit_learns_ridge_a_block_and_its_figures_are_those_on_data(bases: list[Basis]) -> None:
    readout, figures = fit_readout(moments_of(FIT), moments_of(TUNE), bases, NAMES, heldout=moments_of(HELD))
    embedding, held = apply(BOTH[:2], bases[:-1])[-1].numpy(), apply(HELD[:2], bases[:-1])[-1].numpy()
    scaler = StandardScaler().fit(features_of(BOTH))
    x, x_held = scaler.transform(features_of(BOTH)), scaler.transform(features_of(HELD))
    predicted = np.empty_like(held)
    blocks = [slice(0, WIDTHS[0]), slice(WIDTHS[0], WIDTHS[0] + KEEP[0])]
    for block, strength in zip(blocks, readout.strengths, strict=True):
        predicted[:, block] = Ridge(strength * len(x)).fit(x, embedding[:, block]).predict(x_held)
    own = readout.embedding_mean + (features_of(HELD).double() - readout.feature_mean) @ readout.weights
    # The same normal equations, solved by another route.
    np.testing.assert_allclose(own, predicted, rtol=1e-6, atol=1e-7)

    for figure, block in zip(figures, blocks, strict=False):
        level = slice(0, block.stop)
        weighted = "variance_weighted"
        assert figure.block_r2 == pytest.approx(r2_score(held[:, block], predicted[:, block], multioutput=weighted))
        assert figure.level_r2 == pytest.approx(r2_score(held[:, level], predicted[:, level], multioutput=weighted))
        mean = embedding.mean(axis=0)[level]
        exact, near = held[:, level] - mean, predicted[:, level] - mean
        cosine = (exact * near).sum() / np.sqrt((exact**2).sum() * (near**2).sum())
        assert figure.cosine == pytest.approx(cosine)
    # The copied level is a state as it is.
    assert figures[0].state_r2 == pytest.approx(figures[0].block_r2, abs=1e-9)
    assert (figures[-1].level, figures[-1].strength) == (NAMES[-1], None)


def test_the_last_step_is_the_chains_own_on_what_was_read_out(bases: list[Basis]) -> None:
    readout, figures = fit_readout(moments_of(FIT), moments_of(TUNE), bases, NAMES, heldout=moments_of(HELD))
    near = [
        readout.embedding_mean + (features_of(s).double() - readout.feature_mean) @ readout.weights
        for s in (BOTH, HELD)
    ]
    (basis,), reports = fit_chain(
        moments_of([near[0], BOTH[2]]), NAMES[1:], KEEP[1:], heldout=moments_of([near[1], HELD[2]])
    )
    for name, value in vars(basis).items():
        # Signs and directions are fixed, spectra well apart.
        torch.testing.assert_close(getattr(readout.last, name), value, rtol=1e-5, atol=1e-6)
    assert reports[-1].heldout is not None
    assert figures[-1].reconstruction_error == pytest.approx(reports[-1].heldout.reconstruction_error, rel=1e-6)


def test_with_all_directions_nothing_of_the_largest_model_is_lost(bases: list[Basis]) -> None:
    """However poor the readout: [e~, r V] with as many directions as the backbone is wide gives its state back."""
    all_kept, _ = fit_chain(moments_of(BOTH).first_levels(3), NAMES, (KEEP[0], WIDTHS[-1]))
    _, figures = fit_readout(moments_of(FIT), moments_of(TUNE), all_kept, NAMES, heldout=moments_of(HELD))
    assert figures[-1].reconstruction_error == pytest.approx(0, abs=1e-9)
    _, fewer = fit_readout(moments_of(FIT), moments_of(TUNE), bases, NAMES, heldout=moments_of(HELD))
    assert (fewer[-1].reconstruction_error or 0) > 0.001


def test_the_strength_is_the_best_on_the_tuning_residues_and_they_take_no_part_in_that_fit(bases: list[Basis]) -> None:
    targets = embedding_map(bases[:-1], WIDTHS[:2])
    block = slice(0, targets.shape[1])
    # Few residues to fit on, so that the choice matters.
    few = [level[:150] for level in FIT]
    (chosen,) = choose_strengths(moments_of(few), moments_of(TUNE), targets, [block], 2)
    goal = [(torch.cat(s[:2], dim=1).double() @ targets).numpy() for s in (few, TUNE)]
    scaler = StandardScaler().fit(features_of(few))
    x, x_tune = scaler.transform(features_of(few)), scaler.transform(features_of(TUNE))
    errors = {
        strength: np.square(Ridge(strength * len(x)).fit(x, goal[0]).predict(x_tune) - goal[1]).sum()
        for strength in STRENGTHS
    }
    assert chosen == min(errors, key=lambda strength: errors[strength])
    assert STRENGTHS[0] < chosen


def test_the_exact_chain_is_that_of_all_residues(bases: list[Basis]) -> None:
    """Fitted together in the end: whether some chose the ridge changes nothing."""
    merged = JointMoments.from_state(moments_of(FIT).first_levels(3).state())
    merged.merge(moments_of(TUNE).first_levels(3))
    for one, other in zip(fit_chain(merged, NAMES, KEEP)[0], bases, strict=True):
        torch.testing.assert_close(one.regression, other.regression, rtol=1e-8, atol=1e-9)


def test_without_held_out_residues_there_are_no_figures_and_without_tuning_a_sentence(bases: list[Basis]) -> None:
    _, figures = fit_readout(moments_of(FIT), moments_of(TUNE), bases, NAMES)
    assert [figure.level_r2 for figure in figures] == [None] * 3
    with pytest.raises(ValueError, match="two sequences or more"):
        fit_readout(moments_of(FIT), JointMoments(moments_of(FIT).widths), bases, NAMES)
    with pytest.raises(ValueError, match="one level only"):
        fit_readout(moments_of(FIT), moments_of(TUNE), [], NAMES[:1])

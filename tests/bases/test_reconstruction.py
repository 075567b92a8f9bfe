"""What a linear decoder makes of an embedding, from moments: against scikit-learn's regressions on the data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from rd_hf.bases.chain import FitReport, fit_chain
from rd_hf.bases.regression import RegressionKind
from tests.bases.test_chain import KEEP, NAMES, apply, family, moments_of

KINDS: tuple[RegressionKind, ...] = ("pcr", "ols", "ridge")


def fitted(kind: RegressionKind) -> tuple[list[list[torch.Tensor]], list[list[torch.Tensor]], list[FitReport]]:
    """Levels and embeddings, each of residues that were fitted on and of others, and the reports."""
    levels = [family(3000), family(800, seed=1)]
    # A penalty that matters beside 3,000 residues.
    bases, reports = fit_chain(moments_of(levels[0]), NAMES, KEEP, kind, 30.0, heldout=moments_of(levels[1]))
    return levels, [apply(of, bases) for of in levels], reports[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_figures_are_those_of_least_squares_on_the_data(kind: RegressionKind) -> None:
    levels, embeddings, reports = fitted(kind)
    for index, report in enumerate(reports):
        narrow = embeddings[0][index].shape[1]
        decoder = LinearRegression().fit(embeddings[0][index + 1], levels[0][index + 1])
        of_block = LinearRegression().fit(embeddings[0][index], embeddings[0][index + 1][:, narrow:])
        for of, through, figures in zip(levels, embeddings, (report.training, report.heldout), strict=True):
            assert figures is not None
            state, embedding, prefix = of[index + 1], through[index + 1], through[index]
            r2 = r2_score(state, decoder.predict(embedding), multioutput="variance_weighted")
            # Two float64 routes to one minimum; the scatters square the data's condition.
            assert figures.decoder_error == pytest.approx(1 - r2, abs=1e-8)
            # About the block's own mean on these residues, as R^2 is.
            r2 = r2_score(embedding[:, narrow:], of_block.predict(prefix), multioutput="variance_weighted")
            assert figures.block_r2 == pytest.approx(r2, abs=1e-7)


def test_theorem_1_is_reached_by_least_squares() -> None:
    *_, reports = fitted("ols")
    for report in reports:
        assert report.training is not None
        # The share explained is first order in W's rounding, float64's epsilon times the condition of C: 1e-7 here.
        assert report.training.decoder_error == pytest.approx(report.training.reconstruction_error, rel=1e-6)
        # The residual of least squares is uncorrelated with what it was regressed on.
        assert abs(report.training.block_r2) < 1e-12


@pytest.mark.parametrize("kind", ["pcr", "ridge"])
def test_other_regressions_leave_a_linear_part_in_the_block(kind: RegressionKind) -> None:
    *_, reports = fitted(kind)
    for report in reports:
        assert report.training is not None
        assert report.training.block_r2 > 1e-4
        assert report.training.decoder_error < report.training.reconstruction_error * (1 - 1e-5)


def test_with_every_direction_kept_a_decoder_loses_nothing() -> None:
    levels = family(3000)
    _, reports = fit_chain(moments_of(levels), NAMES, [state.shape[1] for state in levels[1:]])
    for report in reports[1:]:
        assert report.training is not None
        assert report.training.decoder_error == pytest.approx(0, abs=1e-9)


def test_a_channel_that_never_varies_changes_nothing() -> None:
    small, large = family(2000)[:2]
    still = torch.full((2000, 1), 7.0, dtype=torch.float64)
    _, (_, plain) = fit_chain(moments_of([small, large]), NAMES[:2], [8])
    _, (_, beside) = fit_chain(moments_of([small, torch.cat((large, still), dim=1)]), NAMES[:2], [8])
    assert plain.training is not None
    assert beside.training is not None
    np.testing.assert_allclose(beside.training.decoder_error, plain.training.decoder_error, rtol=1e-9)
    np.testing.assert_allclose(beside.training.block_r2, plain.training.block_r2, rtol=1e-9)

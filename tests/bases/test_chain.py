"""The chain from moments is the chain from data: against SVDs in numpy, the published package, and theory."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from rd_hf.bases.chain import Basis, FitReport, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.data.batching import token_budget_batches
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import clean_sequence
from rd_hf.fitting import backbone_states
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.bases.reference import reference_chain
from tests.conftest import EXAMPLE_FASTA

WIDTHS, KEEP, NAMES = (12, 20, 33), (8, 13), ("small", "middle", "large")


def family(residues: int, seed: int = 0, mixing_seed: int = 9) -> list[torch.Tensor]:
    """Levels that share signal: each is partly a function of the one before, with means and noise of its own."""
    rng, mixing = np.random.default_rng(seed), np.random.default_rng(mixing_seed)
    h = rng.standard_normal((residues, WIDTHS[0])) * 3.0 ** -np.arange(WIDTHS[0]) + 4
    levels = [h]
    for width in WIDTHS[1:]:
        fresh = rng.standard_normal((residues, 10)) @ (mixing.standard_normal((10, width)) * 0.3)
        h = np.tanh(h @ mixing.standard_normal((h.shape[1], width)) * 0.2) + fresh - 2
        levels.append(h + 0.05 * rng.standard_normal(h.shape))
    return [torch.from_numpy(level) for level in levels]


def moments_of(levels: list[torch.Tensor]) -> JointMoments:
    moments = JointMoments([level.shape[1] for level in levels])
    moments.update(levels)
    return moments


def apply(levels: list[torch.Tensor], bases: list[Basis]) -> list[torch.Tensor]:
    """[e_1, ..., e_m] of data, by the defining equations."""
    embedding, embeddings = levels[0].double(), [levels[0].double()]
    for basis, state in zip(bases, levels[1:], strict=True):
        residual = (state.double() - basis.backbone_mean) - (embedding - basis.prefix_mean) @ basis.regression
        embedding = torch.cat((embedding, residual @ basis.directions), dim=1)
        embeddings.append(embedding)
    return embeddings


@pytest.fixture(scope="module")
def real_states(mini_checkpoint: Path) -> list[torch.Tensor]:
    """Mini-family states of at least 20,000 residues of real proteins."""
    model = RDEsmModel.from_pretrained(mini_checkpoint)
    sequences, residues = [], 0
    for record in read_fasta(EXAMPLE_FASTA):
        sequences.append(clean_sequence(record.sequence))
        residues += len(sequences[-1])
        if residues >= 20_000:
            break
    batches = token_budget_batches([len(s) for s in sequences], 4096)
    parts = backbone_states(model, [[sequences[i] for i in batch] for batch in batches])
    return [torch.cat(level) for level in zip(*parts, strict=True)]


def test_on_real_embeddings_it_is_the_chain_of_numpy_svds(real_states: list[torch.Tensor]) -> None:
    widths = [state.shape[1] for state in real_states]
    keep = [wide - narrow for narrow, wide in itertools.pairwise(widths)]
    assert real_states[0].shape[0] >= 20_000
    bases, reports = fit_chain(moments_of(real_states), NAMES, keep)
    reference = reference_chain([state.numpy() for state in real_states], keep)
    embeddings = apply(real_states, bases)
    for basis, report, step, embedding in zip(bases, reports[1:], reference, embeddings[1:], strict=True):
        assert report.selected_components == step.selected
        w = basis.regression.numpy()
        # Moments square the condition number; float64 leaves far more than the five digits asked for.
        assert np.linalg.norm(w - step.coefficients) / np.linalg.norm(step.coefficients) < 1e-5
        block = embedding[:, -step.block.shape[1] :].numpy()
        # Where two eigenvalues are close their directions may turn into each other; then the planes must agree.
        error = np.linalg.norm(block - step.block) / np.linalg.norm(step.block)
        cosines = np.linalg.svd(basis.directions.numpy().T @ step.directions, compute_uv=False)
        assert error < 1e-4 or cosines.min() > 0.9999


def test_one_step_is_the_published_packages(real_states: list[torch.Tensor]) -> None:
    module = pytest.importorskip("reverse_distillation.scaler.rd")
    small, large = (state.numpy() for state in real_states[:2])
    scaler = module.rdScaler("8M", "35M", regressor_type="pcr", pca_type="incremental")
    # Its sizes are those of ESM-2; the mathematics is not.
    scaler.n_features_in, scaler.n_features_out = small.shape[1], large.shape[1]
    scaler.pca = module.IncrementalPCAWrapper(n_components=large.shape[1] - small.shape[1])
    scaler.fit(small, large, show_r2=False)
    theirs = scaler.step(*real_states[:2]).numpy()

    (basis,), (_, report) = fit_chain(moments_of(real_states[:2]), NAMES[:2], [large.shape[1] - small.shape[1]])
    ours = apply(real_states[:2], [basis])[1].numpy()
    assert report.selected_components == scaler.regressor.n_significant_pcs_
    used = scaler.regressor.input_components_[:, : scaler.regressor.n_significant_pcs_]
    w = used @ scaler.regressor.regressor.coef_.T
    # It works in float32 throughout: its SVD of 20,000 rows is good to about 1e-4.
    assert np.linalg.norm(basis.regression.numpy() - w) / np.linalg.norm(w) < 1e-3
    block, other = ours[:, small.shape[1] :], theirs[:, small.shape[1] :]
    signs = np.sign((block * other).sum(0))
    assert np.linalg.norm(block - other * signs) / np.linalg.norm(other) < 1e-2
    assert np.array_equal(theirs[:, : small.shape[1]], small)


def test_accumulating_differs_from_fitting_on_the_raw_level() -> None:
    """The second step regresses on [h_1, block], not on h_2: its input has zero mean beyond the first width."""
    bases, _ = fit_chain(moments_of(family(3000)), NAMES, KEEP)
    assert torch.equal(bases[1].prefix_mean[WIDTHS[0] :], torch.zeros(KEEP[0], dtype=torch.float64))
    assert bases[1].regression.shape == (WIDTHS[0] + KEEP[0], WIDTHS[2])


def test_directions_are_orthonormal_ordered_and_of_fixed_sign() -> None:
    levels = family(3000)
    bases, reports = fit_chain(moments_of(levels), NAMES, KEEP)
    embeddings = apply(levels, bases)
    for basis, report, embedding in zip(bases, reports[1:], embeddings[1:], strict=True):
        v = basis.directions
        torch.testing.assert_close(v.T @ v, torch.eye(v.shape[1], dtype=torch.float64))
        variances = embedding[:, -report.directions :].var(dim=0)
        torch.testing.assert_close(variances, variances.sort(descending=True).values)
        np.testing.assert_allclose(variances, report.residual_eigenvalues[: report.directions], rtol=1e-8)
        assert (v[v.abs().argmax(0), torch.arange(v.shape[1])] > 0).all()


@pytest.mark.parametrize("kind", ["pcr", "ols", "ridge"])
def test_reported_figures_are_those_of_the_data(kind: str) -> None:
    """R^2 and reconstruction from moments equal scikit-learn's on the embeddings, in and out of sample."""
    train, held = family(3000), family(800, seed=1)
    bases, reports = fit_chain(moments_of(train), NAMES, KEEP, kind, heldout=moments_of(held))  # type: ignore[arg-type]
    for levels, side in ((train, "training"), (held, "heldout")):
        embeddings = apply(levels, bases)
        for index, (basis, report) in enumerate(zip(bases, reports[1:], strict=True)):
            figures = getattr(report, side)
            state, prefix = levels[index + 1], embeddings[index]
            predicted = basis.backbone_mean + (prefix - basis.prefix_mean) @ basis.regression
            residual = state - predicted
            rebuilt = predicted + residual @ basis.directions @ basis.directions.T
            assert figures.residues == len(state)
            approx = {"rel": 1e-8, "abs": 1e-8}
            assert figures.r2 == pytest.approx(r2_score(state, predicted, multioutput="variance_weighted"), **approx)
            assert figures.r2_uniform == pytest.approx(r2_score(state, predicted), **approx)
            error = float(((state - rebuilt) ** 2).sum() / ((state - state.mean(0)) ** 2).sum())
            assert figures.reconstruction_error == pytest.approx(error, **approx)
            kept = float(((residual @ basis.directions) ** 2).sum() / (residual**2).sum())
            assert figures.residual_variance_kept == pytest.approx(kept, **approx)


def test_theorem_1_no_other_block_of_that_width_reconstructs_better() -> None:
    levels = family(3000)
    (basis, _), (_, report, _) = fit_chain(moments_of(levels), NAMES, KEEP, "ols")
    small, large = (level - level.mean(0) for level in levels[:2])
    best = report.training.reconstruction_error * float((large**2).sum())

    def error(block: torch.Tensor) -> float:
        features = torch.cat((small, block), dim=1)
        return float(((large - features @ torch.linalg.lstsq(features, large).solution) ** 2).sum())

    generator = torch.Generator().manual_seed(0)
    random = torch.linalg.qr(torch.randn(WIDTHS[1], KEEP[0], generator=generator, dtype=torch.float64)).Q
    top = torch.from_numpy(PCA(KEEP[0]).fit(large.numpy()).components_.T)
    # 1e-9: rounding of two different float64 routes to the same minimum.
    assert error((large - small @ basis.regression) @ basis.directions) == pytest.approx(best, rel=1e-9)
    assert error(large @ random) > best
    assert error(large @ top) > best


def test_keeping_every_direction_loses_nothing() -> None:
    levels = family(3000)
    _, reports = fit_chain(moments_of(levels), NAMES, WIDTHS[1:])
    assert [report.nested_width for report in reports] == [12, 32, 65]
    for report in reports[1:]:
        assert report.training is not None
        assert abs(report.training.reconstruction_error) < 1e-12


def test_a_prefix_of_the_directions_is_the_fit_that_keeps_fewer() -> None:
    levels = moments_of(family(3000)[:2])
    (wide,), _ = fit_chain(levels, NAMES[:2], [15])
    (narrow,), _ = fit_chain(levels, NAMES[:2], [4])
    assert torch.equal(wide.directions[:, :4], narrow.directions)
    assert torch.equal(wide.regression, narrow.regression)


def test_nearly_collinear_levels_and_constant_channels_fit() -> None:
    levels = family(2000)[:2]
    twin = torch.cat((levels[0], 1e-6 * levels[1][:, :3], torch.full((2000, 2), 7.0, dtype=torch.float64)), dim=1)
    bases, reports = fit_chain(moments_of([levels[0], twin]), NAMES[:2], [5], "ols")
    assert torch.isfinite(bases[0].regression).all()
    assert reports[1].training is not None
    assert reports[1].training.r2 == pytest.approx(1.0, abs=1e-6)


def test_fewer_residues_than_the_first_level_is_wide_are_refused() -> None:
    with pytest.raises(ValueError, match=r"12 residues are too few.*small.*12 wide"):
        fit_chain(moments_of(family(12)), NAMES, KEEP)


def test_a_report_is_plain_data() -> None:
    _, reports = fit_chain(moments_of(family(500)), NAMES, KEEP)
    first = reports[0].to_dict()
    assert first["nested_width"] == 12
    assert first["training"] is None
    assert FitReport(**{**first}).level == "small"
    assert len(reports[2].eigenvalues) == WIDTHS[0] + KEEP[0]

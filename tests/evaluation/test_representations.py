"""Every contender is an affine map of the same states: against the model itself, scikit-learn and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.data.batching import collate
from rd_hf.evaluation.assays import Assay
from rd_hf.evaluation.embeddings import PooledStates
from rd_hf.evaluation.families import Family, fitting_moments, residue_states
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.representations import (
    Representation,
    chain_maps,
    family_maps,
    pca_chain_maps,
    pca_maps,
    random_maps,
)

FITTING = ["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKA", "GSHMLEDPVDAFKLMRQ", "ACDEFGHIKLMNPQRSTVWY" * 3]


@pytest.fixture(scope="module")
def moments(tiny_family: Family) -> JointMoments:
    return fitting_moments(tiny_family, FITTING, cache=None)


@pytest.fixture(scope="module")
def maps(tiny_family: Family, moments: JointMoments) -> dict[tuple[str, str], Representation]:
    found = family_maps(tiny_family, moments, tuple(KINDS))
    return {(representation.kind, representation.level): representation for representation in found}


def fitting_states(family: Family) -> np.ndarray:
    """Residue states of the fitting sequences, one sequence at a time: (residues, K) float64."""
    rows = []
    for sequence in FITTING:
        states, mask = residue_states(family, [sequence])
        rows.append(states[mask])
    return torch.cat(rows).double().numpy()


def test_every_level_of_every_kind_is_there(maps: dict[tuple[str, str], Representation]) -> None:
    widths = {key: representation.width for key, representation in maps.items()}
    assert widths == {
        **{("raw", "L0"): 32, ("raw", "L1"): 48, ("raw", "L2"): 64},
        **{
            (kind, level): width
            for kind in ("rd", "pca", "pca_chain", "random")
            for level, width in (("L1", 48), ("L2", 64))
        },
        **{(kind, level): width for kind in ("concat", "rd_all") for level, width in (("L1", 80), ("L2", 144))},
    }


def test_reverse_distilled_features_are_the_models_own_pooled_embeddings(
    tiny_family: Family, assay: Assay, pooled: PooledStates, maps: dict[tuple[str, str], Representation]
) -> None:
    input_ids, attention_mask = collate(assay.sequences[:8])
    for level in ("L1", "L2"):
        with torch.no_grad():
            embedding = tiny_family.model(input_ids, attention_mask, level=level).last_hidden_state
        expected = embedding[:, 1:-1].mean(dim=1).numpy()  # all variants are of one length: no padding
        found = maps["rd", level](pooled.mean[:8])
        # Pooling before or after float32 projections; states are of order 1.
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_raw_and_concatenated_features_are_the_states_themselves(
    pooled: PooledStates, maps: dict[tuple[str, str], Representation]
) -> None:
    np.testing.assert_array_equal(maps["raw", "L1"](pooled.mean), pooled.mean[:, 32:80].astype(np.float64))
    np.testing.assert_array_equal(maps["concat", "L1"](pooled.mean), pooled.mean[:, :80].astype(np.float64))


def test_pca_agrees_with_scikit_learn_on_the_stacked_states(
    tiny_family: Family, moments: JointMoments, pooled: PooledStates
) -> None:
    states = fitting_states(tiny_family)
    for representation, end in zip(pca_maps(tiny_family.names, moments), (80, 144), strict=True):
        reference = PCA(representation.width, svd_solver="full").fit(states[:, :end])
        # Past the rank of the data directions are free, so compare the leading ones, whose sign is free too.
        leading = min(20, representation.width)
        found = representation(pooled.mean)[:, :leading]
        expected = reference.transform(pooled.mean.astype(np.float64)[:, :end])[:, :leading]
        signs = np.sign((found * expected).sum(axis=0))
        # Eigenvectors of float32 states, one batch against three: components of order 1.
        np.testing.assert_allclose(found * signs, expected, rtol=0, atol=1e-3)


def test_a_chain_of_pcas_is_scikit_learns_one_after_the_other(tiny_family: Family, moments: JointMoments) -> None:
    states = fitting_states(tiny_family)
    previous = states[:, :32]
    for found, (low, high) in zip(pca_chain_maps(tiny_family.names, moments), ((32, 80), (80, 144)), strict=True):
        pair = np.hstack((previous, states[:, low:high]))
        previous = PCA(high - low, svd_solver="full").fit_transform(pair)
        # Signs, and directions of equal variance, are free: what both span is compared, by its projector's trace.
        ours = found(states)
        assert ours.shape == previous.shape
        np.testing.assert_allclose(ours.var(axis=0)[:10], previous.var(axis=0)[:10], rtol=1e-4)
        shared = np.linalg.svd(np.linalg.qr(ours[:, :10])[0].T @ np.linalg.qr(previous[:, :10])[0], compute_uv=False)
        # Float32 states, in other batches.
        np.testing.assert_allclose(shared, 1, atol=1e-3)


def test_fitted_maps_depend_on_fitting_sequences_alone(tiny_family: Family, moments: JointMoments) -> None:
    # No assay goes into pca_maps or fit_chain: the maps are finished before the first assay is embedded, and
    # reading one leaves them as they were.
    before = [representation.digest for representation in pca_maps(tiny_family.names, moments)]
    residue_states(tiny_family, ["W" * 50])
    assert [representation.digest for representation in pca_maps(tiny_family.names, moments)] == before
    other = fitting_moments(tiny_family, FITTING[:2], cache=None)
    assert [representation.digest for representation in pca_maps(tiny_family.names, other)] != before


def test_keeping_all_directions_loses_nothing(
    pooled: PooledStates, maps: dict[tuple[str, str], Representation]
) -> None:
    # An invertible map: least squares gives the states back.
    embedding = np.hstack((maps["rd_all", "L2"](pooled.mean), np.ones((len(pooled.mean), 1))))
    back, *_ = np.linalg.lstsq(embedding, pooled.mean.astype(np.float64), rcond=None)
    # Conditioning of the random family's regressions times float64 rounding.
    np.testing.assert_allclose(embedding @ back, pooled.mean, rtol=0, atol=1e-6)


def test_a_chain_map_equals_the_chain_step_by_step(tiny_family: Family, moments: JointMoments) -> None:
    bases, _ = fit_chain(moments, tiny_family.names, [16, 16])
    z = fitting_states(tiny_family)[:30]
    h1, h2, h3 = z[:, :32], z[:, 32:80], z[:, 80:]
    embedding = h1
    for basis, state in zip(bases, (h2, h3), strict=True):
        predicted = (embedding - basis.prefix_mean.numpy()) @ basis.regression.numpy()
        residual = state - basis.backbone_mean.numpy() - predicted
        embedding = np.hstack((embedding, residual @ basis.directions.numpy()))
    composed = chain_maps("rd", tiny_family.names, tiny_family.widths, bases)[-1]
    # One composed matrix against two steps, float64.
    np.testing.assert_allclose(composed(z), embedding, rtol=0, atol=1e-9)


def test_random_projection_is_seeded() -> None:
    names, widths = ["a", "b"], [4, 6]
    first, again, other = (random_maps(names, widths, seed)[0].digest for seed in (0, 0, 1))
    assert first == again != other

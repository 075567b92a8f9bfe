"""Two dimensions: scikit-learn's principal components, rotated to stay where they were."""

from __future__ import annotations

import dataclasses
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rd_hf.data.records import InputError
from rd_hf.maps import projection as module
from rd_hf.maps.projection import align, principal_components, project
from rd_hf.maps.proteins import Proteins, read_proteins
from tests.maps.conftest import clusters, write_folder


@pytest.fixture
def proteins(tmp_path: Path) -> Proteins:
    return read_proteins(write_folder(tmp_path / "e", clusters(300, 12)[0] + 5))


@pytest.mark.parametrize(("count", "width"), [(300, 12), (5, 40)])
def test_principal_components_are_those_of_scikit_learn(
    count: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    monkeypatch.setattr(module, "_CHUNK", 64)
    values = clusters(count, width)[0] + 100
    points, explained = principal_components(values)
    reference = decomposition.PCA(2, svd_solver="full").fit(values.astype(np.float64))
    expected = reference.transform(values.astype(np.float64))
    expected *= np.sign((points * expected).sum(axis=0))
    # The eigenvalues of a covariance against the singular values of the data, both in float64: half the digits.
    np.testing.assert_allclose(points, expected, atol=1e-7 * np.abs(expected).max())
    assert explained == pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-9)


def test_values_that_do_not_vary_are_one_point() -> None:
    points, explained = principal_components(np.ones((4, 6), np.float32))
    assert not points.any()
    assert explained == 0


@settings(max_examples=50, deadline=None)
@given(angle=st.floats(0, 6.28), mirrored=st.booleans(), seed=st.integers(0, 1000))
def test_alignment_undoes_any_turn_and_reflection(angle: float, mirrored: bool, seed: int) -> None:
    reference = np.random.default_rng(seed).standard_normal((20, 2))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if mirrored:
        turn = turn @ np.diag([1, -1])
    np.testing.assert_allclose(align(reference @ turn, reference), reference, atol=1e-12)


def test_no_other_turn_is_nearer() -> None:
    generator = np.random.default_rng(0)
    reference, points = generator.standard_normal((2, 50, 2))
    found = align(points, reference)
    # Only turned: distances stay.
    np.testing.assert_allclose(found @ found.T, points @ points.T, atol=1e-12)
    best = ((found - reference) ** 2).sum()
    for angle in np.linspace(0, 2 * np.pi, 721):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        for other in (turn, turn @ np.diag([1, -1])):
            assert ((points @ other - reference) ** 2).sum() >= best - 1e-9


def test_levels_share_a_frame_and_an_orientation(proteins: Proteins) -> None:
    found = project(proteins)
    assert [one.level for one in found] == ["S", "M", "L"]
    assert [one.width for one in found] == [4, 8, 12]
    for one in found:
        np.testing.assert_allclose(one.points.mean(axis=0), 0, atol=1e-9)
        assert (one.points**2).sum(axis=1).mean() == pytest.approx(1)
        assert one.explained is not None
        assert 0 < one.explained <= 1
    for before, after in itertools.pairwise(found):
        # Aligned: no turn brings them nearer, which for two dimensions means a symmetric, positive product.
        product = after.points.T @ before.points
        np.testing.assert_allclose(product, product.T, atol=1e-8)
        assert np.linalg.eigvalsh(product).min() >= 0


def test_a_level_that_adds_nothing_moves_nothing(proteins: Proteins) -> None:
    vectors = proteins.vectors.copy()
    vectors[:, 4:8] = 0
    # A level that adds a mirrored, reordered copy has the same picture: only its axes' names change.
    vectors[:, 8:12] = -vectors[:, 3::-1]
    small, middle, large = project(dataclasses.replace(proteins, vectors=vectors))
    np.testing.assert_allclose(middle.points, small.points, atol=1e-9)
    np.testing.assert_allclose(large.points, small.points, atol=1e-6)


def test_the_same_folder_gives_the_same_picture(proteins: Proteins) -> None:
    for first, second in zip(project(proteins), project(proteins), strict=True):
        assert np.array_equal(first.points, second.points)


def test_umap_without_umap_says_what_to_install(proteins: Proteins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(InputError, match=r"pip install .rd_hf\[umap\]."):
        project(proteins, "umap")
    with pytest.raises(ValueError, match="method must be one of pca, umap"):
        project(proteins, "t-sne")


@pytest.mark.slow
def test_umap_keeps_clusters_and_repeats_itself(tmp_path: Path) -> None:
    pytest.importorskip("umap.umap_")
    generator = np.random.default_rng(1)
    which = generator.integers(0, 3, 120)
    # Three clusters that every level holds apart: each direction comes again in every four dimensions.
    vectors = np.tile(4 * np.eye(3, 4)[which], 3) + generator.standard_normal((120, 12))
    found = project(read_proteins(write_folder(tmp_path / "e", vectors.astype(np.float32))), "umap")
    assert [one.explained for one in found] == [None] * 3
    for one in found:
        centres = np.array([one.points[which == cluster].mean(axis=0) for cluster in range(3)])
        nearest = ((one.points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
        assert (nearest == which).mean() > 0.9
    repeated = project(read_proteins(tmp_path / "e"), "umap")
    assert np.array_equal(repeated[-1].points, found[-1].points)

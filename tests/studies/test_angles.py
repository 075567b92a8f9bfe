"""Principal angles between levels: by hand where they are known, and of the command on a family."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies.angles import main
from studies.consistency import angle_rows, summary

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.representations import chain_maps
from tests.conftest import EXAMPLE_FASTA
from tests.studies.test_ablations import NAMES, WIDTHS, moments_of, states


def rows_of(z: np.ndarray, dimensions: tuple[int, ...]) -> pd.DataFrame:
    moments: JointMoments = moments_of(z)
    bases, _ = fit_chain(moments, NAMES, [after - before for before, after in pairwise(WIDTHS)])
    return angle_rows(NAMES, moments, chain_maps("rd", NAMES, WIDTHS, bases), dimensions)


def test_angles_are_arcs_of_the_canonical_correlations() -> None:
    z = states(3)
    rows = rows_of(z, (4,))
    small, large = (z[:, low:high] - z[:, low:high].mean(0) for low, high in ((0, 6), (6, 15)))
    scores = [np.linalg.svd(state, full_matrices=False)[0][:, :4] for state in (small, large)]
    # Left singular vectors are orthonormal: their inner products are the correlations of what they span.
    expected = np.linalg.svd(scores[0].T @ scores[1], compute_uv=False)
    found = rows[(rows["representation"] == "raw") & (rows["smaller"] == "S")]
    np.testing.assert_allclose(np.cos(np.radians(found["degrees"])), expected, atol=1e-9)
    np.testing.assert_allclose(found["shared"], expected**2, atol=1e-9)


def test_nested_levels_agree_and_components_of_unlike_models_do_not() -> None:
    # The larger models' own directions are the strongest, so that components turn to them.
    z = np.hstack([states(1)[:, :6], 4 * np.random.default_rng(7).standard_normal((500, 9)), states(2)[:, 15:]])
    found = summary(rows_of(z, (4,))).set_index(["representation", "smaller"])
    # Rounding of float64, as angles near 0 have it.
    assert found.loc["rd", "largest"].max() < 1e-5
    assert found.loc["rd", "shared"].min() == pytest.approx(1)
    assert found.loc[("pca", "S"), "largest"] > 60
    assert found.loc[("raw", "S"), "largest"] > 60


def test_dimensions_that_the_smaller_level_has_not_are_left_out() -> None:
    rows = rows_of(states(1), (4, 6, 8))
    assert set(rows.loc[rows["smaller"] == "S", "dimensions"]) == {4}
    assert set(rows.loc[rows["smaller"] == "M", "dimensions"]) == {4, 6, 8}


def test_the_command_writes_its_report(mini_checkpoint: Path, tmp_path: Path) -> None:
    given = ["--model", str(mini_checkpoint), "--input", str(EXAMPLE_FASTA), "--num-sequences", "20"]
    assert main([*given, "--dimensions", "8", "--output", str(tmp_path)]) == 0
    report = (tmp_path / "report.md").read_text()
    assert "| reverse-distilled: first dimensions | 0.3M, 1.2M | 8 | 0.0 | 1.000 |" in report
    assert (tmp_path / "angles.png").read_bytes().startswith(b"\x89PNG")
    assert set(pd.read_parquet(tmp_path / "angles.parquet")["representation"]) == {"rd", "pca", "raw"}

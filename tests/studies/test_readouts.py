"""Other readouts: what is read is the product's own readout where it should be, and products are products."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from studies.forms import read_map
from studies.readout import main
from studies.readouts import Products

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.readout import fit_readout
from tests.conftest import EXAMPLE_FASTA
from tests.evaluation.conftest import ASSAY_FILE

# Three levels, and two layers of the last.
WIDTHS, GROWTH = (5, 7, 9, 9, 9), (3, 4)


def rows_of(seed: int, count: int = 600) -> np.ndarray:
    mixing, generator = np.random.default_rng(0), np.random.default_rng(seed)
    common = generator.standard_normal((count, 6))
    parts = [common @ mixing.standard_normal((6, width)) for width in WIDTHS]
    return np.hstack([part + generator.standard_normal(part.shape) + 3.0 for part in parts])


def moments_of(rows: np.ndarray, widths: tuple[int, ...] = WIDTHS) -> JointMoments:
    moments = JointMoments(widths)
    moments.update(torch.from_numpy(rows).split(widths, dim=1))
    return moments


FITTING, TUNING = rows_of(1), rows_of(2, 200)
BOTH = np.vstack([FITTING, TUNING])


def embedded(own_prefix: bool) -> np.ndarray:
    matrix, offset = read_map(moments_of(FITTING), moments_of(TUNING), range(5), GROWTH, own_prefix)
    assert not matrix[:12].any(), "smaller backbones play no part"
    return BOTH @ matrix.numpy() + offset.numpy()


def test_todays_readout_is_the_packages() -> None:
    bases, _ = fit_chain(moments_of(BOTH).first_levels(3), ["S", "M", "L"], GROWTH)
    readout, _ = fit_readout(moments_of(FITTING), moments_of(TUNING), bases, ["S", "M", "L"])
    features = torch.from_numpy(BOTH[:, 12:])
    prefix = readout.embedding_mean + (features - readout.feature_mean) @ readout.weights
    last, state = readout.last, features[:, :9]
    block = (state - last.backbone_mean - (prefix - last.prefix_mean) @ last.regression) @ last.directions
    # Two routes to the same moments in float64.
    np.testing.assert_allclose(embedded(False), torch.cat((prefix, block), dim=1).numpy(), atol=1e-7)


def test_in_chain_coordinates_the_prefix_that_was_read_is_taken_off() -> None:
    bases, _ = fit_chain(moments_of(BOTH).first_levels(3), ["S", "M", "L"], GROWTH)
    plain = [replace(basis, regression=torch.zeros_like(basis.regression)) for basis in bases]
    readout, _ = fit_readout(moments_of(FITTING), moments_of(TUNING), plain, ["S", "M", "L"])
    features = BOTH[:, 12:] - BOTH[:, 12:].mean(axis=0)
    first, along = np.split(features @ readout.weights.numpy(), [5], axis=1)
    # The state is read as it is, and the chain's own prediction goes off.
    expected = along - first @ bases[0].regression.numpy() @ bases[0].directions.numpy()
    found = embedded(True)
    np.testing.assert_allclose(found[:, 5:8], expected, atol=1e-8)
    assert np.abs(found[:, 5:8] - embedded(False)[:, 5:8]).max() > 1e-3


def test_products_are_of_components_and_tell_what_no_state_does() -> None:
    features = FITTING[:, 12:]
    products = Products.fit(moments_of(features, (27,)), 3)
    centred = (features - features.mean(axis=0)) / features.std(axis=0)
    scores = np.linalg.svd(centred, full_matrices=False)[0][:, :3] * len(centred) ** 0.5
    found = products(torch.from_numpy(features)).numpy()
    pairs = [(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)]
    for column, (left, right) in zip(found.T, pairs, strict=True):
        expected = scores[:, left] * scores[:, right]
        # Signs of components are free, so that those of their products are.
        np.testing.assert_allclose(column * np.sign(column @ expected), expected, atol=1e-8)
    # A smallest level that is a square of the largest's components is read with them, and not without.
    errors = {}
    for count in (0, 6):
        widths, parts = (*WIDTHS, *([count] if count else [])), []
        for rows in (FITTING, TUNING):
            squares = products(torch.from_numpy(rows[:, 12:])).numpy()
            parts.append(np.hstack([squares[:, :5], rows[:, 5:], squares[:, :count]]))
        matrix, offset = read_map(*(moments_of(rows, widths) for rows in parts), range(len(widths)), GROWTH)
        rows = np.vstack(parts)
        error = rows @ matrix.numpy()[:, :5] + offset.numpy()[:5] - rows[:, :5]
        errors[count] = np.square(error).sum() / np.square(rows[:, :5] - rows[:, :5].mean(axis=0)).sum()
    assert errors[6] < 1e-6
    assert errors[0] > 0.5


def test_the_command_reports_cosines_and_scores(mini_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "assays"
    folder.mkdir()
    lines = ASSAY_FILE.read_text().splitlines()
    for name, stop in (("small", 61), ("other", 81)):
        (folder / f"{name}.csv").write_text("\n".join(lines[:stop]) + "\n")
    given = ["--model", mini_checkpoint, "--assays", folder, "--input", EXAMPLE_FASTA, "--num-sequences", "30"]
    given += ["--variants", "40", "--development", "1", "--jobs", "1", "--components", "3", "5"]
    given += ["--output", tmp_path / "out"]
    assert main([str(word) for word in given]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert set(results["assay"]) == {"small"}
    assert "| exact | 1.000 | 1.000 | 1.000 |" in report
    for kind in ("today's", "chain", "quadratic, 3", "quadratic, 5"):
        mean = results[results["representation"] == kind]["spearman"].mean()
        assert f"| {kind} |" in report
        assert f"| {mean:.3f} |" in report
    widths = results.groupby("level")["width"].first()
    assert [widths[level] for level in ("0.3M", "1.2M", "2.7M")] == [64, 128, 192]

"""Ablations: the paper's recipe is fit_chain's, every variant does what its name says, R^2 is counted by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies.ablate import main
from studies.ablations import STUDIES, Recipe, apply_recipe, fit_recipe, recipes

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.representations import chain_maps
from tests.evaluation.conftest import ASSAY_FILE, FOLDS_FILE

NAMES, WIDTHS = ["S", "M", "L"], [6, 9, 13]
WHOLE = (0, 1, 2)


def states(seed: int, rows: int = 500) -> np.ndarray:
    """A family's states: larger levels hold the smaller ones' directions, mixed, and some of their own."""
    mixing = np.random.default_rng(0)
    generator = np.random.default_rng(seed)
    common = generator.standard_normal((rows, 8))
    parts = []
    for width, seen in zip(WIDTHS, (4, 6, 8), strict=True):
        signal = common[:, :seen] @ mixing.standard_normal((seen, width))
        parts.append(signal + 0.3 * generator.standard_normal((rows, width)) + 5.0)
    return np.hstack(parts)


def moments_of(z: np.ndarray) -> JointMoments:
    moments = JointMoments(WIDTHS)
    moments.update(torch.from_numpy(z).split(WIDTHS, dim=1))
    return moments


FITTING, HELDOUT = states(1), states(2)


@pytest.fixture(scope="module")
def moments() -> JointMoments:
    return moments_of(FITTING)


@pytest.mark.parametrize("regression", ["pcr", "ols", "ridge"])
def test_the_papers_recipe_is_fit_chain(moments: JointMoments, regression) -> None:
    expected, reports = fit_chain(moments, NAMES, [3, 4], regression, heldout=moments_of(HELDOUT))
    recipe = Recipe("regression", regression, WHOLE, regression=regression)
    found = fit_recipe(moments, recipe)
    for mine, theirs in zip(found, expected, strict=True):
        for name in ("prefix_mean", "backbone_mean", "regression", "directions"):
            # Two routes to the same eigenproblem in float64.
            torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), rtol=1e-8, atol=1e-8)
    fitted = apply_recipe(recipe, found, NAMES, WIDTHS, moments_of(HELDOUT))
    assert reports[-1].heldout is not None
    assert fitted.r2 == pytest.approx(reports[-1].heldout.r2, abs=1e-10)
    assert fitted.reconstruction_error == pytest.approx(reports[-1].heldout.reconstruction_error, abs=1e-10)


@pytest.mark.parametrize("recipe", recipes(3, [200], tuple(STUDIES)), ids=lambda r: f"{r.study}-{r.name}")
def test_heldout_figures_are_those_of_the_residuals_themselves(moments: JointMoments, recipe: Recipe) -> None:
    bases = fit_recipe(moments, recipe)
    fitted = apply_recipe(recipe, bases, NAMES, WIDTHS, moments_of(HELDOUT))
    parts = np.split(HELDOUT, np.cumsum(WIDTHS)[:-1], axis=1)
    embedding = parts[recipe.levels[0]]
    for level, basis in zip(recipe.levels[1:], bases, strict=True):
        predicted = (embedding - basis.prefix_mean.numpy()) @ basis.regression.numpy()
        residual = parts[level] - basis.backbone_mean.numpy() - predicted
        embedding = np.hstack((embedding, residual @ basis.directions.numpy()))
    variance = np.sum((parts[2] - parts[2].mean(axis=0)) ** 2)
    left = residual - residual @ basis.directions.numpy() @ basis.directions.numpy().T
    # Sums over residues against closed forms in float64.
    assert fitted.r2 == pytest.approx(1 - np.sum(residual**2) / variance, abs=1e-9)
    assert fitted.reconstruction_error == pytest.approx(np.sum(left**2) / variance, abs=1e-9)
    np.testing.assert_allclose(fitted.representation(HELDOUT), embedding, rtol=0, atol=1e-9)


def test_variants_do_what_they_are_named_for(moments: JointMoments) -> None:
    judged = moments_of(HELDOUT)

    def fitted(recipe: Recipe):
        return apply_recipe(recipe, fit_recipe(moments, recipe), NAMES, WIDTHS, judged)

    by_order = [fitted(Recipe("order", order, WHOLE, order=order)) for order in ("descending", "random", "ascending")]
    errors = [variant.reconstruction_error for variant in by_order]
    assert errors == sorted(errors)
    everything = fitted(Recipe("share", "100%", WHOLE, share=1.0))
    assert everything.representation.width == sum(WIDTHS)
    assert everything.reconstruction_error == pytest.approx(0, abs=1e-12)
    half = fitted(Recipe("share", "50%", WHOLE, share=0.5))
    assert half.representation.width < sum(WIDTHS)
    direct = fitted(Recipe("chain", "direct", (0, 2)))
    assert direct.representation.width == WIDTHS[2]
    assert not direct.representation.matrix[6:15].any()  # the middle level plays no part


def test_a_raw_basis_is_fitted_on_the_smaller_backbone_alone(moments: JointMoments) -> None:
    raw = fit_recipe(moments, Recipe("basis", "raw", WHOLE, raw_basis=True))
    middle, large = FITTING[:, 6:15], FITTING[:, 15:]
    pair = JointMoments(WIDTHS[1:])
    pair.update([torch.from_numpy(middle), torch.from_numpy(large)])
    (expected,), _ = fit_chain(pair, NAMES[1:], [4])
    torch.testing.assert_close(raw[1].regression, expected.regression, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(raw[1].directions, expected.directions, rtol=1e-8, atol=1e-8)
    assert chain_maps("rd", NAMES, WIDTHS, raw)[-1].width == WIDTHS[2]


def test_mistakes_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from chain, regression"):
        recipes(3, [], ("colour",))
    with pytest.raises(ValueError, match="nothing to ablate"):
        recipes(1, [], ("chain",))


def test_the_command_reports_every_study(tiny_checkpoint: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    fitting = tmp_path / "fitting.fasta"
    letters = list("ACDEFGHIKLMNPQRSTVWY")
    records = ["".join(generator.choice(letters, 40)) for _ in range(20)]
    fitting.write_text("".join(f">{number}\n{sequence}\n" for number, sequence in enumerate(records)))
    arguments = ["--model", tiny_checkpoint, "--assays", ASSAY_FILE, "--folds", FOLDS_FILE, "--input", fitting]
    arguments += ["--output", tmp_path / "out", "--jobs", "1", "--sizes", "8", "--study", "chain", "sequences", "basis"]
    assert main([str(argument) for argument in arguments]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    for study in ("chain", "sequences", "basis"):
        assert f"## {study}: {STUDIES[study]}" in report
    for variant in ("full chain", "direct from the smallest", "raw", "all", "8"):
        rows = results[results["representation"].str.endswith(f": {variant}")]
        assert f"| {rows['spearman'].mean():.3f} |" in report
    assert main([*map(str, arguments), "--study", "colour"]) == 1

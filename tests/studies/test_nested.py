"""Nested forms: today's is fit_chain's, the others are what they are called, and the choice sees its assays alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies import form_report
from studies.forms import READ_OUT, REFERENCES, TODAY, Covariance, Step, chain_steps, contenders, forms, read_out
from studies.nested import main
from studies.options import NestedOptions

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.representations import chain_maps
from tests.conftest import EXAMPLE_FASTA
from tests.evaluation.conftest import ASSAY_FILE
from tests.evaluation.test_homology import domains_of, fasta

# Three backbones; one layer of the second, and one of the third, before its final state.
WIDTHS, WHOLE, DIRECTIONS = (6, 9, 9, 13, 13), (0, 2, 4), 4
PROTEINS = 40


def moments_of(z: np.ndarray) -> JointMoments:
    moments = JointMoments(WIDTHS)
    moments.update(torch.from_numpy(z).split(WIDTHS, dim=1))
    return moments


def states(seed: int) -> np.ndarray:
    """25 residues of each protein: what all levels have in common, and noise that is partly the protein's."""
    mixing, generator = np.random.default_rng(0), np.random.default_rng(seed)
    common = generator.standard_normal((PROTEINS * 25, 8))
    parts = []
    for width in WIDTHS:
        own = np.repeat(generator.standard_normal((PROTEINS, width)), 25, axis=0) * np.linspace(0.1, 1, width)
        parts.append(common @ mixing.standard_normal((8, width)) + generator.standard_normal(own.shape) + own + 5.0)
    return np.hstack(parts)


Z = states(1)
MEANS = Z.reshape(PROTEINS, 25, -1).mean(axis=1)
RESIDUES, PROTEIN_MEANS = Covariance.of(moments_of(Z)), Covariance.of(moments_of(MEANS))


@pytest.fixture(scope="module")
def step() -> Step:
    return chain_steps(moments_of(Z), ["S", "M", "L"], WHOLE, {1: (3,), 2: (DIRECTIONS,)})[1]


@pytest.fixture(scope="module")
def blocks(step: Step) -> dict[str, torch.Tensor]:
    return forms(step, RESIDUES, PROTEIN_MEANS)


def centred(rows: np.ndarray) -> np.ndarray:
    return rows - rows.mean(axis=0)


def correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Canonical correlations: singular values between orthonormal bases of what the columns span."""
    return np.linalg.svd(np.linalg.qr(centred(left))[0].T @ np.linalg.qr(centred(right))[0], compute_uv=False)


def test_todays_form_is_the_chain(step: Step) -> None:
    final = np.hstack([Z[:, :6], Z[:, 15:24], Z[:, 37:]])
    moments = JointMoments([6, 9, 13])
    moments.update(torch.from_numpy(final).split([6, 9, 13], dim=1))
    bases, _ = fit_chain(moments, ["S", "M", "L"], [3, DIRECTIONS])
    expected = chain_maps("rd", ["S", "M", "L"], [6, 9, 13], bases)[-1](final)
    found = {how.kind: how for how in contenders(step, RESIDUES, PROTEIN_MEANS)}
    assert step.name == "L: 9 + 4"
    # Two routes to the same eigenproblem in float64.
    np.testing.assert_allclose(found[TODAY](Z), expected, atol=1e-8)
    np.testing.assert_allclose(found["raw"](Z), Z[:, 37:])
    assert found["all directions"].width == 9 + 13
    candidates = [how for name, how in found.items() if name not in REFERENCES]
    assert {how.width for how in candidates} == {13}
    assert all(np.array_equal(how.matrix[:, :9], step.prefix.numpy()) for how in candidates)


def test_forms_are_what_they_are_called(step: Step, blocks: dict[str, torch.Tensor]) -> None:
    rows = {name: Z @ block.numpy() for name, block in blocks.items()}
    prefix, layers, state = Z @ step.prefix.numpy(), Z[:, 24:37], Z[:, 37:]
    np.testing.assert_array_equal(layers, Z @ step.layers.numpy())
    # Least squares leave nothing linear in the prefix, to rounding; principal components do.
    for name in ("canonical, state", "canonical, layers", "reduced rank, layers"):
        assert correlations(prefix, rows[name]).max() < 1e-6
    assert correlations(prefix, rows[TODAY]).max() > 1e-3
    # The leading canonical correlations of the residual with the layers are those of the block.
    rest = centred(state) - centred(prefix) @ np.linalg.lstsq(centred(prefix), centred(state), rcond=None)[0]
    whole = correlations(rest, layers)[:DIRECTIONS]
    # A share of the mean variance in each variance (oracle shrinkage) moves them by less.
    np.testing.assert_allclose(correlations(rows["canonical, layers"], layers), whole, atol=0.01)

    def explained(block: np.ndarray) -> float:
        scaled = centred(layers) / layers.std(axis=0)
        return float(np.square(np.linalg.qr(centred(block))[0].T @ scaled).sum())

    for name in ("canonical, layers", "canonical, state"):
        assert explained(rows["reduced rank, layers"]) > explained(rows[name])

    def held(name: str) -> float:
        return float(np.square(centred(MEANS @ blocks[name].numpy())).sum())

    # By more than rounding: today's directions hold less of the means' variance, and those at random least.
    assert held("means") > 1.001 * held(TODAY)
    assert held("means") > 1.1 * held("random")
    for name, of in (("turned", TODAY), ("means, turned", "means")):
        np.testing.assert_allclose(correlations(rows[name], rows[of]), 1.0, atol=1e-9)
        assert np.abs(np.corrcoef(rows[name].T, rows[of].T)[:DIRECTIONS, DIRECTIONS:]).max() < 0.999


def test_shares_of_variance_do_not_depend_on_the_scale_of_a_channel(step: Step) -> None:
    scale = np.ones(Z.shape[1])
    scale[37:] = np.geomspace(0.1, 10, 13)
    stretched = Covariance.of(moments_of(Z * scale))
    own = forms(step, RESIDUES, PROTEIN_MEANS)["standardised"].numpy()
    other = forms(step, stretched, PROTEIN_MEANS)["standardised"].numpy()
    # The noise edge of principal components is the prefix's, so that the regression scales with the channel.
    np.testing.assert_allclose(correlations(Z @ own, (Z * scale) @ other), 1.0, atol=1e-9)


def test_a_prefix_that_is_read_out_is_near_and_nests(step: Step) -> None:
    how = read_out(step, moments_of(Z), moments_of(states(2)), WHOLE)
    both = np.vstack([Z, states(2)])
    features, prefix = centred(np.hstack([both[:, 37:], both[:, 24:37]])), centred(both @ step.prefix.numpy())
    expected = features @ np.linalg.lstsq(features, prefix, rcond=None)[0]
    found = how(both)
    assert (how.kind, how.width) == (READ_OUT, 13)
    assert not how.matrix[:24, :9].any(), "smaller backbones play no part in what is read"
    # Ridge beside least squares; the chain of both sets of residues beside that of one.
    assert correlations(found[:, :6], expected[:, :6]).min() > 0.99
    np.testing.assert_allclose(found[:, 9:].mean(axis=0), 0.0, atol=1e-8)


def table(values: dict[str, tuple[float, float]]) -> pd.DataFrame:
    """Scores of forms on development assays and on others, with a little of each assay's own."""
    rows = [
        (form, step, f"{kind}{number}", 10, pair[kind == "other"] + 0.01 * number, kind == "development")
        for form, pair in values.items()
        for step in ("A", "B")
        for kind in ("development", "other")
        for number in range(4)
    ]
    return pd.DataFrame(rows, columns=["form", "step", "assay", "width", "score", "development"])


def test_the_choice_is_of_the_development_assays_and_of_exact_prefixes_alone() -> None:
    scores = table(
        {
            TODAY: (0.5, 0.5),
            "means": (0.6, 0.1),
            "random": (0.4, 0.9),
            READ_OUT: (0.9, 0.7),
            **dict.fromkeys(REFERENCES, (1.0, 0.8)),
        }
    )
    assert form_report.choose(scores) == "means"
    report = form_report.render_forms(scores, None, ["A note."], {})
    assert "| **means** | 0.615 | 0.115 | 0.115 | 0.115 | -0.4000 | [-0.4000, -0.4000] | 0.0 % |" in report
    assert f"| {READ_OUT} | A | {TODAY} | +0.2000 |" in report


def test_the_command_chooses_and_reports(mini_checkpoint: Path, tmp_path: Path) -> None:
    folder, domains = tmp_path / "assays", tmp_path / "domains"
    folder.mkdir()
    domains.mkdir()
    lines = ASSAY_FILE.read_text().splitlines()
    for name, stop in (("small", 71), ("middle", 91), ("few", 31)):
        (folder / f"{name}.csv").write_text("\n".join(lines[:stop]) + "\n")
    classes = [f"a.1.{superfamily}.{family}" for superfamily in (1, 2) for family in (1, 2) for _ in range(6)]
    (domains / "domains.fasta").write_text(fasta(domains_of(classes)))
    given = ["--backbones", *(f"{name}={mini_checkpoint}:{name}" for name in ("0.3M", "1.2M")), "--layers", "2"]
    given += ["--assays", folder, "--domains", domains, "--input", EXAMPLE_FASTA, "--num-sequences", "20"]
    given += ["--variants", "40", "--development", "1", "--jobs", "1", "--output", tmp_path / "out"]
    assert main([str(word) for word in given]) == 0
    report = (tmp_path / "out" / "report.md").read_text()
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    # The smallest that has 40 variants; the one that has fewer is reported on.
    assert set(scores.loc[scores["development"], "assay"]) == {"small"}
    assert set(scores["step"]) == {"1.2M: 64 + 32", "1.2M: 64 + 64"}
    assert "chosen on 1 assays, reported on 2 others" in report
    chosen = form_report.choose(scores)
    assert f"Chosen: {chosen}." in report
    assert f"| {READ_OUT} |" in report
    others = set(scores.loc[~scores["development"], "form"])
    assert others == {chosen, TODAY, READ_OUT, *REFERENCES}
    assert (tmp_path / "out" / "nested_forms.png").read_bytes().startswith(b"\x89PNG")
    assert main([*map(str, given), "--explore"]) == 0
    more = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(more.loc[~more["development"], "form"]) == set(scores["form"])
    assert main([*map(str, given), "--development", "3"]) == 1


def test_development_assays_leave_some_to_report_on() -> None:
    options = NestedOptions(
        backbones=("A=a",), assays=(ASSAY_FILE,), fit_data=("example",), output=Path("out"), variants=50, development=1
    )
    with pytest.raises(ValueError, match="more than the 0 of --assays"):
        form_report.development_assays([], options)

"""Domains, who looks for whom, published figures, and that no choice sees a label which does not say so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import permutation_test

from rd_hf.data.records import InputError
from rd_hf.evaluation import homology_runs, statistics
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.homology import (
    Domains,
    ranks_above,
    read_domains,
    read_published,
    relation,
    relations,
    search_weights,
    weight_grid,
)
from rd_hf.evaluation.homology_runs import Ranked, evaluate_rows
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.evaluation.treatments import (
    DOMAINS,
    LABELLED,
    RESIDUES,
    SEARCHED,
    TREATMENTS,
    candidates,
    mean_moments,
    treat,
)

CLASSES = ("a.1.1.1", "a.1.1.1", "a.1.1.2", "a.1.2.1", "a.1.2.2", "b.1.1.1", "b.2.1.1", "b.2.1.2", "c.1.1.1")


def domains_of(classes: tuple[str, ...], seed: int = 0) -> Domains:
    """Random sequences under a classification."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    sequences = tuple("".join(generator.choice(letters, generator.integers(15, 40))) for _ in classes)
    return Domains(tuple(f"d{number}" for number in range(len(classes))), sequences, classes)


def many_classes(superfamilies: int = 12) -> tuple[str, ...]:
    """Two families of two domains in each superfamily."""
    return tuple(f"a.{one}.1.{family}" for one in range(superfamilies) for family in (1, 1, 2, 2))


def fasta(domains: Domains) -> str:
    lines = zip(domains.ids, domains.classes, domains.sequences, strict=True)
    return "".join(f">{name} {sccs} (A:) a domain\n{sequence}\n" for name, sccs, sequence in lines)


def test_families_are_masked_and_superfamilies_looked_for() -> None:
    superfamily, fold = relations(domains_of(CLASSES))
    assert superfamily.queries.tolist() == [0, 1, 2, 3, 4, 6, 7]
    assert superfamily.positives.tolist() == [1, 1, 2, 1, 1, 1, 1]
    # The fold a.1 has two superfamilies; b.1 and b.2 have one each.
    assert fold.queries.tolist() == [0, 1, 2, 3, 4]
    assert fold.positives.tolist() == [2, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="no domain has another one"):
        relation("fold", np.array([0, 1]), np.array([0, 1]))
    with pytest.raises(ValueError, match="must look for the same group"):
        relation("fold", np.array([0, 1, 1]), np.array([0, 0, 1]))


def test_a_folder_is_read_and_what_is_wrong_is_named(tmp_path: Path) -> None:
    domains = domains_of(CLASSES)
    file = tmp_path / "domains.fa"
    file.write_text(fasta(domains))
    assert read_domains(tmp_path) == domains
    lengths = [len(sequence) for sequence in domains.sequences]
    shorter = domains.up_to(sorted(lengths)[3])
    assert list(map(len, shorter.sequences)) == [length for length in lengths if length <= sorted(lengths)[3]]
    assert shorter.classes[0] == domains.classes[domains.ids.index(shorter.ids[0])]
    with pytest.raises(InputError, match="no domain has 3 residues or fewer"):
        domains.up_to(3)
    assert read_published(tmp_path) is None
    for broken, words in (
        (">d1 a.1.1 short\nMKT\n", r"domains.fa, record 1 \(d1\): its header .* such as a.1.1.2"),
        (">d1\nMKT\n", r"record 1 \(d1\): its header"),
        (">d1 a.1.1.1\nMKT\n>d1 a.1.1.2\nMKV\n", "record 2: d1 is there already"),
        (">d1 a.1.1.1\nMKT\n>d2 a.1.1.2\nmkt\n", "record 2: d2 has the sequence of d1, which would find it"),
        (">d1 a.1.1.1\nMK*T\n", r"record 1 \(d1\): stop codon"),
    ):
        file.write_text(broken)
        with pytest.raises(InputError, match=words):
            read_domains(tmp_path)
    (tmp_path / "more.fasta").write_text(fasta(domains))
    with pytest.raises(InputError, match="holds 2 FASTA files"):
        read_domains(tmp_path)
    with pytest.raises(InputError, match="is no folder"):
        read_domains(tmp_path / "nowhere")


def test_published_figures_are_recomputed_from_single_queries(shared_data: Path) -> None:
    """Their means follow from their queries, and our queries, positives and negatives are theirs, one by one."""
    folder = shared_data / "tasks" / "scope208"
    domains, published = read_domains(folder), read_published(folder)
    assert published is not None
    superfamily, fold = relations(domains)
    assert (len(domains.ids), len(superfamily.queries), len(fold.queries)) == (6784, 5062, 3482)
    apart = published.disagreement(superfamily, domains.ids)
    # The table has six decimals.
    assert apart == {"queries": 0, "counts": 0, "means": pytest.approx(0, abs=1e-6)}
    labels = pd.read_csv(folder / "scope208_th10_labels.tsv", sep="\t").set_index("sid").loc[list(domains.ids)]
    assert labels["n_superfamily_partners_other_family"].iloc[superfamily.queries].tolist() == (
        superfamily.positives.tolist()
    )
    wrong = published.per_query.assign(**{"esm2_t33_650M_UR50D.hit1": 0})
    assert replace(published, per_query=wrong).disagreement(superfamily, domains.ids)["means"] > 0.4


def test_weights_are_judged_as_if_they_were_multiplied_in() -> None:
    wanted = relations(domains_of(many_classes()), ["superfamily"])[0]
    generator = torch.Generator().manual_seed(0)
    blocks = [torch.randn(48, width, generator=generator, dtype=torch.float64) for width in (3, 5)]
    grid = weight_grid(2)
    assert grid.tolist()[0] == [0, 1]
    assert len(grid) == 7
    assert (grid.max(axis=1) == 1).all()
    above = ranks_above(blocks, wanted, grid)
    for row, weights in zip(above, grid, strict=True):
        rows = torch.cat([weight * block for weight, block in zip(weights, blocks, strict=True)], dim=1).numpy()
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for found, query in zip(row, wanted.queries, strict=True):
            cosines = units @ units[query]
            own = wanted.groups == wanted.groups[query]
            best = cosines[own & (wanted.masked != wanted.masked[query])].max()
            assert found == (cosines[~own] > best).sum()


def test_labels_find_the_block_that_tells() -> None:
    domains = domains_of(many_classes(30))
    wanted = relations(domains, ["superfamily"])[0]
    generator = torch.Generator().manual_seed(0)
    telling = torch.nn.functional.one_hot(torch.from_numpy(wanted.groups)) + 0.1 * torch.randn(
        120, 30, generator=generator
    )
    noise = 10 * torch.randn(120, 30, generator=generator)
    found = search_weights([noise, telling], wanted)
    assert (found.chosen[:, 0] <= 0.25).all()
    assert found.best[0] <= 0.25
    assert found.hits.shape == (120, 2)
    assert found.hits.mean() > 0.9


def test_a_fold_never_sees_the_labels_it_is_judged_by() -> None:
    """Shuffle the labels of one fold's superfamilies among themselves: what the others chose for it stays."""
    wanted = relations(domains_of(many_classes(30)), ["superfamily"])[0]
    generator = torch.Generator().manual_seed(1)
    blocks = [torch.randn(120, 8, generator=generator) for _ in range(3)]
    blocks[0] += torch.nn.functional.one_hot(torch.from_numpy(wanted.groups)).float() @ torch.randn(
        30, 8, generator=generator
    )
    above = ranks_above(blocks, wanted, weight_grid(3))
    before = search_weights(blocks, wanted)
    changed = 0
    for fold in range(5):
        test = before.folds == fold
        groups, masked = wanted.groups.copy(), wanted.masked.copy()
        shuffled = np.random.default_rng(fold).permutation(np.flatnonzero(test))
        rows, others = wanted.queries[test], wanted.queries[shuffled]
        groups[rows], masked[rows] = wanted.groups[others], wanted.masked[others]
        after = search_weights(blocks, replace(wanted, groups=groups, masked=masked), folds_of=before.folds)
        np.testing.assert_array_equal(after.chosen[fold], before.chosen[fold])
        changed += not np.array_equal(
            ranks_above(blocks, replace(wanted, groups=groups, masked=masked), weight_grid(3)), above
        )
    assert changed == 5, "the shuffle must change something for the test to mean anything"


def test_only_what_says_so_has_seen_labels(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole evaluation under true and under shuffled labels: what is ranked is the same, but for what is marked."""
    options = EvaluationOptions(representations=("raw", "rd", "concat"))
    fit = mean_moments(np.random.default_rng(1).standard_normal((200, sum(tiny_family.widths))), tiny_family.widths)
    ranked: dict[str, dict[tuple, torch.Tensor]] = {}
    seen: dict[tuple, torch.Tensor] = {}

    def recording(rows: torch.Tensor, contender: Ranked, *rest) -> pd.DataFrame:
        seen[contender.representation, contender.level, contender.treatment] = rows
        return evaluate_rows(rows, contender, *rest)

    monkeypatch.setattr(homology_runs, "evaluate_rows", recording)
    results = {}
    true = domains_of(many_classes())
    shuffled = replace(true, classes=tuple(np.random.default_rng(0).permutation(true.classes)))
    for name, domains in (("true", true), ("shuffled", shuffled)):
        seen.clear()
        results[name] = homology_runs.evaluate_family(
            tiny_family, fit, options, domains, relations(domains, ["superfamily"]), tmp_path, tmp_path / name, True
        )
        ranked[name] = dict(seen)
    assert ranked["true"].keys() == ranked["shuffled"].keys()
    assert {key[2] for key in ranked["true"]} == set(TREATMENTS)
    for key, rows in ranked["true"].items():
        assert torch.equal(rows, ranked["shuffled"][key]), key
    for table in results.values():
        unmarked = table[~table["treatment"].isin(LABELLED)]
        assert set(unmarked["treatment"]) <= set(TREATMENTS)
    weights = {
        name: table[~table["treatment"].isin(LABELLED)]
        .groupby(["representation", "level", "treatment"])["weights"]
        .first()
        for name, table in results.items()
    }
    pd.testing.assert_series_equal(weights["true"], weights["shuffled"])
    assert {f"{name} + labels" for name in SEARCHED} <= set(results["true"]["treatment"])


def test_a_treatment_leaves_prefixes_nested(tiny_family: Family) -> None:
    """Each level of a chain under each treatment: the smaller one's, up to one factor, which no cosine sees."""
    generator = np.random.default_rng(0)
    states = generator.standard_normal((200, sum(tiny_family.widths))).astype(np.float32)
    known = {
        DOMAINS: mean_moments(states, tiny_family.widths),
        RESIDUES: mean_moments(states[:150], tiny_family.widths),
    }
    options = EvaluationOptions(representations=("raw", "rd", "concat", "rd_all"))
    found = candidates(tiny_family, known[RESIDUES], options)
    for kind in ("rd", "concat", "rd_all"):
        smaller, larger = [candidate for candidate in found if candidate.how.kind == kind]
        assert larger.blocks[:2] == smaller.blocks
        assert sum(larger.blocks) == larger.how.width
        for name, how in TREATMENTS.items():
            treated = [treat(name, torch.from_numpy(own.how(states)), own, known) for own in (smaller, larger)]
            assert treated[0] is not None
            assert treated[1] is not None
            prefix, whole = treated[0][0], treated[1][0][:, : smaller.how.width]
            factor = (whole * prefix).sum() / (prefix * prefix).sum()
            torch.testing.assert_close(whole, factor * prefix)
            assert len(treated[1][1]) == (3 if how.weights else 0)


def test_a_single_block_has_no_weights(tiny_family: Family) -> None:
    states = np.random.default_rng(0).standard_normal((50, sum(tiny_family.widths))).astype(np.float32)
    known = {DOMAINS: mean_moments(states, tiny_family.widths)}
    options = EvaluationOptions(representations=("raw", "rd"))
    found = candidates(tiny_family, None, options)
    assert [candidate.how.kind for candidate in found] == ["raw"] * 3 + ["rd"] * 2 + ["block"] * 2
    block = found[-1]
    rows = torch.from_numpy(block.how(states))
    assert torch.equal(rows, torch.from_numpy(found[4].how(states))[:, -rows.shape[1] :])
    assert treat("whitened + weights", rows, block, known) is None
    assert treat("whitened (fit)", rows, block, known) is None, "no residues are known"
    whitened, weights = treat("whitened", rows, block, known) or (rows, (1.0,))
    assert weights == ()
    # Whitened at a tenth of shrinkage: centred, and its directions uncorrelated.
    covariance = torch.cov(whitened.T)
    torch.testing.assert_close(whitened.mean(dim=0), torch.zeros(rows.shape[1], dtype=rows.dtype), atol=1e-5, rtol=0)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-4


def test_intervals_and_tests_resample_superfamilies() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 30, 40)
    owner = np.repeat(np.arange(40), sizes)
    # Queries of one superfamily agree: the mean knows 40 things, not 600.
    first = np.repeat(generator.random(40), sizes)
    second = first + np.repeat(generator.normal(0.05, 0.2, 40), sizes)
    low, high = statistics.cluster_intervals(first, owner)
    alone = statistics.cluster_intervals(first, np.arange(len(first)))
    assert low < first.mean() < high
    assert high - low > 2 * (alone[1] - alone[0])
    pair = statistics.compare_queries(second, first, owner)
    assert pair["difference"] == pytest.approx((second - first).mean())
    assert pair["difference_low"] < pair["difference"] < pair["difference_high"]
    sums = [np.bincount(owner, weights=values) for values in (second, first)]
    reference = permutation_test(
        sums, lambda x, y: x.sum() - y.sum(), permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(1)
    )
    # Two draws of 9,999 each.
    assert pair["p"] == pytest.approx(reference.pvalue, abs=0.02)
    assert statistics.compare_queries(first, first, owner)["p"] == 1.0
    assert np.isnan(statistics.cluster_intervals(first[:1], owner[:1])).all()

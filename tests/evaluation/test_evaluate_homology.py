"""The commands on homology and on widths from end to end, on domains made up here and a tiny family."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies import width

from rd_hf.commands import evaluate_dms, evaluate_homology
from rd_hf.evaluation import embeddings, homology, homology_runs
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.options import KINDS, EvaluationOptions
from rd_hf.evaluation.treatments import LABELLED, TREATMENTS, candidates
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, random_model
from tests.evaluation.conftest import ASSAY_FILE
from tests.evaluation.test_evaluate_dms import FITTING
from tests.evaluation.test_homology import domains_of, fasta

# Two superfamilies a fold, two families each, two domains a family.
CLASSES = tuple(
    f"a.{fold}.{superfamily}.{family}" for fold in range(4) for superfamily in (1, 2) for family in (1, 1, 2, 2)
)
PUBLISHED = (
    "model\tlevel\tth\tkind\tn\tauroc_mean\tauprc_mean\thit1_mean\thit10_mean\n"
    "theirs\tsuperfamily\t10\tper_query_mean\t32\t0.5\t0.25\t0.125\t1.0\n"
)


def call(main, *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of a command run in this process."""
    output, errors = io.StringIO(), io.StringIO()
    with redirect_stderr(errors), redirect_stdout(output):
        status = main([str(argument) for argument in arguments])
    return status, output.getvalue(), errors.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scop")
    domains = domains_of(CLASSES)
    (folder / "domains.fasta").write_text(fasta(domains))
    (folder / "published_summary.tsv").write_text(PUBLISHED)
    queries = pd.DataFrame({"sid": domains.ids, "sccs": domains.classes, "n_true_pos": 2, "n_true_neg": 28})
    for figure, value in (("auroc", 0.5), ("auprc", 0.25), ("hit1", [0, 0, 0, 0, 0, 0, 0, 1] * 4), ("hit10", 1)):
        queries[f"theirs.{figure}"] = value
    queries.to_csv(folder / "published_per_query_superfamily_th10.tsv.gz", sep="\t", index=False)
    (folder / "fitting").mkdir()
    (folder / "fitting" / "fitting.fasta").write_text(FITTING)
    return folder


@pytest.fixture(scope="module")
def run(data: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("out") / "homology"
    arguments = (
        "--model",
        tiny_checkpoint,
        "--domains",
        data,
        "--output",
        out,
        "--input",
        data / "fitting" / "fitting.fasta",
    )
    status, said, errors = call(evaluate_homology.main, *arguments)
    assert status == 0, errors
    return arguments, out, said


def test_every_contender_is_ranked_under_every_treatment(run) -> None:
    _, out, _ = run
    results = pd.read_parquet(out / "results.parquet")
    kinds = set(KINDS) - {"one_hot", "one_pass", "pca_chain"} | {"block", "block_all"}
    assert set(results["representation"]) == kinds
    assert set(results["treatment"]) == {*TREATMENTS, *LABELLED}
    counts = results.groupby(["representation", "level", "treatment", "relation"], observed=True).size()
    assert set(counts) == {32}, "each query once"
    for name in {"rd", "rd_all", "concat"}:
        assert set(results.loc[results["representation"] == name, "treatment"]) == {*TREATMENTS, *LABELLED}
    report = (out / "report.md").read_text()
    for words in ("| theirs (published) |", "means differ by at most 0e+00", "## Fold", "hit10_by_level.png"):
        assert words in report
    assert (out / "hit10_by_level.png").stat().st_size > 10_000
    # A table is an average of the rows.
    own = results[(results["representation"] == "rd") & (results["treatment"] == "whitened")]
    own = own[own["relation"] == "superfamily"]
    level = own["level"].iloc[-1]
    mean = own[own["level"] == level]["hit10"].mean()
    assert f"{mean:.3f}" in next(line for line in report.splitlines() if line.startswith(f"| rd.{level} "))


def test_a_second_run_ranks_and_embeds_nothing(run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, out, _ = run
    before = (out / "results.parquet").read_bytes()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for module, name in ((homology_runs, "rank"), (homology, "search_weights"), (embeddings, "residue_states")):
        monkeypatch.setattr(module, name, never)
    assert call(evaluate_homology.main, *arguments)[0] == 0
    assert (out / "results.parquet").read_bytes() == before


def test_what_cannot_be_evaluated_is_said(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (("--domains", data), "give --model or --backbones"),
        (("--domains", tmp_path / "none", "--model", tiny_checkpoint), "is no folder"),
        (("--domains", data, "--backbones", f"L0={tiny_checkpoint}"), "names 1 level"),
        (("--domains", data, "--backbones", tiny_checkpoint), "needs bases of its own; give --input"),
    ):
        status, _, errors = call(evaluate_homology.main, *arguments, "--output", tmp_path / "out", "--no-search")
        assert (status, errors.count("\n")) == (1, 1), errors
        assert words in errors


def test_score_against_width_is_one_command(data: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = ASSAY_FILE.read_text().splitlines()
    assay = tmp_path / ASSAY_FILE.name
    assay.write_text("\n".join(lines[:60]) + "\n")
    arguments = (
        *(
            "--model",
            tiny_checkpoint,
            "--assays",
            assay,
            "--domains",
            data,
            "--low-n",
            24,
            "--widths",
            5,
            32,
            40,
            64,
            80,
        ),
        *("--input", data / "fitting" / "fitting.fasta", "--output", tmp_path / "out", "--jobs", 1),
    )
    status, said, errors = call(width.main, *arguments)
    assert status == 0, errors
    scores = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    assert set(scores["panel"]) == {
        *("DMS, random folds", "DMS, 24 training variants"),
        *("superfamily hit@10, plain", "superfamily hit@10, whitened + weights"),
    }
    for _, panel in scores.groupby("panel"):
        widths = {kind: sorted(own["width"]) for kind, own in panel.groupby("representation")}
        assert widths == {
            "raw": [32, 48, 64],
            "rd": [5, 32, 40, 64],
            "rd_all": [5, 32, 40, 64, 80],
            "pca": [5, 32, 40, 64, 80],
            "random": [5, 32, 40, 64, 80],
        }
        # The first level of a nested embedding is the smallest backbone.
        at = panel.set_index(["representation", "width"])["score"]
        for kind in ("rd", "rd_all"):
            assert at[kind, 32] == pytest.approx(at["raw", 32], abs=1e-6)
    assert np.isfinite(scores[["score", "low", "high"]].drop(columns=["low", "high"])).all().all()
    assert (tmp_path / "out" / "score_by_width.png").stat().st_size > 10_000
    assert "| dimensions | raw backbone | reverse-distilled |" in said


def test_assays_learn_a_chain_to_a_real_esm2(shared_data: Path, tmp_path: Path) -> None:
    """The mini family below an ESM-2 8M as users have one: bases fitted on the way, every contender probed."""
    assay = tmp_path / ASSAY_FILE.name
    assay.write_text("\n".join(ASSAY_FILE.read_text().splitlines()[:81]) + "\n")
    arguments = (
        *("--backbones", REPOSITORY / "hub_configs" / "rd-esm2-mini", f"8M={shared_data / 'esm2_8m_finetuned'}"),
        *("--assays", assay, "--splits", "random", "--repeats", 1, "--low-n", "--no-control", "--jobs", 1),
        *("--input", EXAMPLE_FASTA, "--num-sequences", 10, "--output", tmp_path / "out"),
        *("--representations", "raw", "rd", "pca", "rd_all"),
    )
    status, _, errors = call(evaluate_dms.main, *arguments)
    assert status == 0, errors
    results = pd.read_parquet(tmp_path / "out" / "results.parquet")
    widths = results.groupby(["representation", "level"])["width"].first()
    assert (widths["rd", "8M"], widths["pca", "8M"], widths["raw", "8M"], widths["rd_all", "8M"]) == (
        320,
        320,
        320,
        704,
    )
    means = results.groupby(["representation", "level"])["spearman"].mean()
    assert means["raw", "8M"] > means["raw", "0.3M"], "a real model beats one of 0.3 million parameters"
    assert "chain to 8M: bases, PCA and all-directions chain fitted on" in (tmp_path / "out" / "report.md").read_text()


def test_one_pass_is_ranked_beside_the_exact_chain(data: Path, tmp_path: Path) -> None:
    random_model([32, 48, 64], names=["A", "B", "C"], readout={"layers": [0, 1]}).save_pretrained(tmp_path / "both")
    arguments = ["--domains", data, "--output", tmp_path / "report", "--scop-level", "superfamily", "--no-search"]
    code, _, err = call(evaluate_homology.main, "--model", tmp_path / "both", *arguments)
    assert code == 0, err
    results = pd.read_parquet(tmp_path / "report" / "results.parquet")
    own = results[results["model"] == "both, one pass"]
    ranked = {(row.representation, row.level, row.treatment, row.width) for row in own.itertuples()}
    levels = [("A", 32), ("B", 48), ("C", 64)]
    treatments = ("plain", "scaled", "whitened")
    assert ranked == {("one_pass", level, how, width) for level, width in levels for how in treatments}
    # Whitened by blocks, as the chain is: the first level is the prefix of every larger one.
    family = Family.load(str(tmp_path / "both"), one_pass=True)
    found = candidates(family, None, EvaluationOptions())
    assert [candidate.blocks for candidate in found] == [(32,), (32, 16), (32, 16, 16)]

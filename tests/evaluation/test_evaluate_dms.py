"""The command from end to end on a carried assay: report, figures, resume, broken files, no pickle."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from rd_hf.commands.evaluate_dms import main
from rd_hf.evaluation.report import render
from tests.conftest import REPOSITORY
from tests.evaluation.conftest import ASSAY_FILE, FOLDS_FILE

FITTING = ">a\nMKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKA\n>b\nACDEFGHIKLMNPQRSTVWYACDEFGHIKLMNPQRSTVWY\n"


@dataclass(frozen=True)
class Finished:
    """What a run of the command left: its exit status and its error output."""

    status: int
    errors: str


def evaluate(*arguments: str | Path) -> Finished:
    """Run the command in this process: starting Python for each run would take most of the time."""
    errors = io.StringIO()
    with redirect_stderr(errors), redirect_stdout(io.StringIO()):
        status = main([str(argument) for argument in arguments])
    return Finished(status, errors.getvalue())


@pytest.fixture(scope="module")
def run(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """One evaluation of the tiny family on two assays and a broken one: (arguments, folder, how it finished)."""
    folder = tmp_path_factory.mktemp("evaluation")
    assays = folder / "assays"
    assays.mkdir()
    lines = ASSAY_FILE.read_text().splitlines()
    (assays / ASSAY_FILE.name).write_text("\n".join(lines) + "\n")
    (assays / "singles.csv").write_text("\n".join(line for line in lines if ":" not in line) + "\n")
    (assays / "broken.csv").write_text("\n".join([*lines[:10], lines[10].replace(",", ",WW", 1), *lines[11:]]) + "\n")
    fitting = folder / "fitting.fasta"
    fitting.write_text(FITTING)
    published = folder / "published.csv"
    name = ASSAY_FILE.stem
    published.write_text(f"DMS_id,One-Hot Encodings,ESM-1v Embeddings\n{name},0.755,0.9\nsingles,0.7,0.8\n")
    arguments = (
        *("--model", tiny_checkpoint, "--assays", assays, "--output", folder / "out", "--folds", FOLDS_FILE),
        *("--input", fitting, "--repeats", "2", "--low-n", "24", "48", "--jobs", "1", "--reference", published),
    )
    return arguments, folder / "out", evaluate(*arguments)


def table_after(report: str, heading: str) -> dict[str, list[str]]:
    """Rows of the first Markdown table after a heading, by their first cell."""
    lines = report.split(f"## {heading}", 1)[1].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        rows[cells[0]] = cells[1:]
    return rows


def test_a_broken_assay_is_named_and_the_others_go_on(run) -> None:
    _, folder, finished = run
    assert finished.status == 1, finished.errors
    assert re.search(r"left out: .*broken\.csv, row 11", finished.errors)
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results["assay"]) == {ASSAY_FILE.stem, "singles"}
    assert "broken.csv" in (folder / "report.md").read_text()


def test_printed_means_are_plain_pandas_averages_of_the_parquet(run) -> None:
    _, folder, _ = run
    results = pd.read_parquet(folder / "results.parquet")
    report = (folder / "report.md").read_text()
    chosen = results[(results["split"] == "random") & (results["mutations"] == "all")]
    name = chosen["representation"] + np.where(chosen["level"] == "", "", "." + chosen["level"])
    name += np.where(chosen["labels"] == "shuffled", " (shuffled scores)", "")
    by_repeat = chosen.assign(name=name).groupby(["name", "assay", "repeat"])["spearman"].mean()
    by_assay = by_repeat.groupby(["name", "assay"]).mean()
    printed = table_after(report, "Mean Spearman (random folds)")
    expected = by_assay.groupby("name").mean()
    assert set(printed) == set(expected.index)
    for contender, mean in expected.items():
        assert printed[contender][2] == f"{mean:.3f}"
    every = table_after(report, "Every assay (random folds)")
    header = [cell.strip() for cell in report.split("## Every assay")[1].splitlines()[2].strip("|").split("|")][1:]
    for assay, cells in every.items():
        for contender, cell in zip(header, cells, strict=True):
            assert cell.split(" ± ")[0] == f"{by_assay[contender, assay]:.3f}"


def test_every_kind_of_contender_split_and_figure_is_reported(run) -> None:
    _, folder, _ = run
    results = pd.read_parquet(folder / "results.parquet")
    assert set(results["representation"]) == {"raw", "rd", "pca", "concat", "rd_all", "random", "one_hot"}
    assert set(results["split"]) == {"random", "by_mutations", "singles_to_multiples", "low_n"}
    assert set(results.loc[results["split"] == "by_mutations", "mutations"]) == {"all", "1", "2"}
    assert set(results["labels"]) == {"true", "shuffled"}
    for name in ("score_by_level.png", "win_rates.png", "low_n.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
        assert f"({name})" in (folder / "report.md").read_text()


@pytest.mark.parametrize("constant", [False, True])
def test_one_assay_has_no_intervals_over_assays(run, constant: bool) -> None:
    """Nor has one beside another that cannot be ranked; no figure is made up in their place."""
    results = pd.read_parquet(run[1] / "results.parquet")
    if constant:
        results.loc[results["assay"] != "singles", "spearman"] = np.nan
    else:
        results = results[results["assay"] == "singles"]
    levels = {results["model"].max(): ["L0", "L1", "L2"]}
    report = render(results, levels, [], {}, None, [])
    assert "nan" not in report.replace("ProteinNPT", "")
    who = table_after(report, "Who wins")
    assert len(who) > 5
    for _, wins, wins_interval, _, interval, p, q in who.values():
        assert (wins_interval, interval, p, q) == ("–",) * 4
        assert wins in ("0 of 1", "0.5 of 1", "1 of 1")
    assert {row[1] for row in table_after(report, "Does bigger win?").values()} <= {"0 of 1", "1 of 1"}
    assert {row[2] for row in table_after(report, "Does bigger win?").values()} == {"–"}
    assert "There is one assay" in report.split("## Who wins")[0]


def test_published_figures_stand_beside_ours(run) -> None:
    _, folder, _ = run
    rows = table_after((folder / "report.md").read_text(), "Beside published figures")
    assert rows["One-Hot Encodings (ProteinGym)"] == [f"{(0.755 + 0.7) / 2:.3f}"]
    assert "one_hot (here)" in rows


def test_the_same_command_again_computes_nothing_and_says_the_same(run) -> None:
    arguments, folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    report = (folder / "report.md").read_text()
    assert evaluate(*arguments).status == 1
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()} == before
    assert (folder / "report.md").read_text() == report


def test_one_more_option_computes_only_what_is_new(run) -> None:
    arguments, folder, _ = run
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    states = set((folder / "cache").rglob("states-*"))
    assert evaluate(*arguments, "--pooling", "mean", "difference").status == 1
    after = {path: path.stat().st_mtime_ns for path in (folder / "runs").iterdir()}
    assert before.items() < after.items()
    assert set((folder / "cache").rglob("states-*")) == states


def test_worker_processes_give_the_rows_of_one_process(run, tmp_path: Path) -> None:
    arguments, folder, _ = run
    parallel = [*arguments, "--jobs", "2", "--output", tmp_path, "--cache", folder / "cache"]
    # Repeated options: the last one counts. Two kinds will do: starting workers takes seconds.
    parallel += ["--representations", "raw", "one_hot", "--no-control"]
    assert evaluate(*parallel).status == 1
    expected = {path.name for path in (folder / "runs").iterdir()}
    assert {path.name for path in (tmp_path / "runs").iterdir()} <= expected
    ours = pd.read_parquet(tmp_path / "results.parquet")
    single = pd.concat([pd.read_parquet(folder / "runs" / path.name) for path in (tmp_path / "runs").iterdir()])
    keys = [column for column in ours.columns if column not in ("spearman", "pearson", "r2", "strength")]
    pd.testing.assert_frame_equal(
        ours.sort_values(keys).reset_index(drop=True),
        single.sort_values(keys).reset_index(drop=True),
        check_exact=False,
        rtol=1e-6,  # threads sum in another order
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--assays", "absent.csv"), "absent.csv"),
        (("--folds", "absent.tsv"), "absent.tsv"),
        (("--low-n", "3"), "low-n"),
    ],
)
def test_mistakes_are_one_sentence(tiny_checkpoint: Path, tmp_path: Path, arguments: tuple[str, str], words) -> None:
    finished = evaluate("--model", tiny_checkpoint, "--assays", ASSAY_FILE, "--output", tmp_path, *arguments)
    assert finished.status == 1
    assert words in finished.errors
    assert finished.errors.startswith("rd-hf evaluate dms: error: ")
    assert finished.errors.count("\n") == 1


def test_help_teaches() -> None:
    command = [sys.executable, "-m", "rd_hf", "evaluate", "dms", "--help"]
    text = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for word in ("--input", "--pooling", "--depth", "results.parquet", "ProteinGym"):
        assert word in text

"""What all evaluations share: options that are written once, one output folder per run, and how a run ends."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rd_hf.commands._arguments import tell
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.frame import Evaluation, stored_table
from rd_hf.evaluation.options import AssayOptions, EvaluationOptions, HomologyOptions
from rd_hf.files import FolderError
from tests.conftest import REPOSITORY

SHARED = "batch-tokens cache device input model num-sequences output quiet representations seed threads verbose"
FLAGS = {
    "dms": "assays backbones depth folds inner-folds jobs low-n no-control pooling reference repeats splits",
    "homology": "backbones domains longest-domain no-search scop-level",
    "residues": "depth metal-binding resamples secondary-structure train-chains validation-chains",
}


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_has_the_flags_that_all_share_and_its_own(command: str) -> None:
    parser = importlib.import_module(f"rd_hf.commands.evaluate_{command}").build_parser()
    flags = {
        word.removeprefix("--") for action in parser._actions for word in action.option_strings if word[:2] == "--"
    }
    assert flags == {"help", *SHARED.split(), *FLAGS[command].split()}
    assert {action.dest for action in parser._actions if action.required} >= {"output"}


@pytest.mark.parametrize("command", FLAGS)
def test_a_command_holds_words_only(command: str) -> None:
    tree = ast.parse((REPOSITORY / "rd_hf" / "commands" / f"evaluate_{command}.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert all((node.end_lineno or 0) - node.lineno < 10 for node in functions)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"representations": ("raw", "best")}, "unknown representation best: choose from raw, rd"),
        ({"splits": ()}, "unknown split"),
        ({"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
        ({"low_n": (9,)}, "low-n sizes start at 10 variants, got 9"),
        ({"inner_folds": 1}, "inner_folds must be a whole number of at least 2"),
    ],
)
def test_values_are_checked_from_python_too(values: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        AssayOptions(**values)
    with pytest.raises(ValueError, match="levels must be one of superfamily, fold"):
        HomologyOptions(levels=("family",))


def test_a_run_ends_with_its_report_what_it_left_out_and_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = Evaluation(EvaluationOptions(output=tmp_path / "out"), "an evaluation", "results.parquet")
    evaluation.output.claim()
    with pytest.raises(FolderError, match="in use by another run of an evaluation"):
        Evaluation(EvaluationOptions(output=tmp_path / "out"), "an evaluation").output.claim()
    evaluation.write_table("results.parquet", pd.DataFrame({"a": [1, 2]}))
    evaluation.failed["x.csv"] = "x.csv, row 2: broken"
    report = "# Title\n\n## First\n\ntext\n\n## Every row\n\nmore\n"
    assert tell(evaluation.finish(report, shown_until="Every row", rows=1234)) == 1
    out, err = capsys.readouterr()
    assert out.startswith("# Title\n\n## First\n\ntext\n")
    assert "more" not in out
    assert f"1,234 rows in 0.0 minutes: {tmp_path / 'out' / 'report.md'}\n" in out
    assert err == "left out: x.csv, row 2: broken\n"
    assert (tmp_path / "out" / "report.md").read_text() == report
    (tmp_path / "out" / "report.md").write_text("mine")
    with pytest.raises(FolderError, match="is not as an evaluation wrote it"):
        Evaluation(EvaluationOptions(output=tmp_path / "out"), "an evaluation")


def test_what_cannot_be_fitted_is_noted(tiny_family: Family, tmp_path: Path) -> None:
    evaluation = Evaluation(EvaluationOptions(output=tmp_path), "an evaluation")
    assert evaluation.moments(tiny_family) is None
    assert not evaluation.notes
    assert evaluation.moments(tiny_family, ["pca"]) is None
    assert evaluation.notes == [f"{tiny_family.label}: no pca, for want of --input."]


def test_a_table_is_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("not yet")
        return pd.DataFrame({"a": [1.5]})

    path = tmp_path / "runs" / "one.parquet"
    with pytest.raises(ValueError, match="not yet"):
        stored_table(path, compute)
    assert not path.exists()
    first, again = stored_table(path, compute), stored_table(path, compute)
    pd.testing.assert_frame_equal(first, again)
    assert len(calls) == 2


def test_a_folder_takes_more_of_the_same_evaluation_and_no_other(tmp_path: Path) -> None:
    def run(**options: Any) -> None:
        evaluation = Evaluation(AssayOptions(output=tmp_path / "out", **options), "an evaluation")
        evaluation.claim()
        evaluation.finish("report")
        evaluation.output.leave()

    first = {"model": ("small",), "assays": (tmp_path / "a.csv",), "seeds": 2}
    run(**first)
    run(**first, threads=1, jobs=7, batch_tokens=99, device="cpu", cache=tmp_path)  # how it runs, not what
    more = first | {"model": ("small", "large"), "pooling": ("mean", "site")}
    run(**more)
    # Its report would tell less, or something else.
    for options, flag in ((first, "--model, --pooling"), (more | {"seeds": 3}, "--repeats")):
        with pytest.raises(FolderError, match=f"out holds an evaluation with other {flag}: choose another --output"):
            run(**options)

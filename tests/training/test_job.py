"""A whole training: from a table to a checkpoint that answers, with its report; resumed, repeated, refused."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import metadata_load
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf.__main__ import main
from rd_hf.data.batching import collate
from rd_hf.embedding import Embedder
from rd_hf.files import FolderError
from rd_hf.hub.push import PUSHED
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification
from rd_hf.training import TrainingSettings, run_training
from tests.training.conftest import WriteTable, labelled, write_table

Make = Callable[..., TrainingSettings]
FILES = {
    *("config.json", "README.md", "report.md", "training.json", "out_of_fold.parquet"),
    *("training_levels.png", "training_predictions.png", "training_curve.png"),
}


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished training: its settings, training.json and out_of_fold.parquet."""

    settings: TrainingSettings
    found: dict
    table: pd.DataFrame

    @property
    def folder(self) -> Path:
        """Of the checkpoint."""
        return Path(self.settings.output)


def run(settings: TrainingSettings) -> dict:
    run_training(settings, report=lambda _: None, show_progress=False)
    return json.loads((Path(settings.output) / "training.json").read_text())


def predicted(folder: Path, sequences: list[str], level: str | None = None) -> np.ndarray:
    """What the checkpoint's own head says: (n, labels)."""
    asked = {} if level is None else {"level": level}
    model = RDEsmForSequenceClassification.from_pretrained(folder, **asked).eval()
    with torch.inference_mode():
        return np.stack([model(*collate([sequence])).logits[0].numpy() for sequence in sequences])


@pytest.fixture(scope="module")
def numbers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished training on numbers."""
    return train_on("score", tiny_checkpoint, tmp_path_factory.mktemp("numbers"))


@pytest.fixture(scope="module")
def classes(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A finished training on classes."""
    return train_on("kind", tiny_checkpoint, tmp_path_factory.mktemp("classes"))


def train_on(target: str, model: Path, folder: Path) -> Trained:
    source = write_table(folder / "labelled.csv", labelled())
    settings = TrainingSettings(model=str(model), input=str(source), target=target, output=folder / "out", device="cpu")
    return Trained(settings, run(settings), pq.read_table(folder / "out" / "out_of_fold.parquet").to_pandas())


def test_numbers(numbers: Trained) -> None:
    found, rows = numbers.found, labelled()
    assert {path.name for path in numbers.folder.iterdir()} >= FILES
    assert not (numbers.folder / ".train").exists()
    assert (found["task"], found["sequences"], found["folds"]) == ("regression", 60, 5)
    assert [level["width"] for level in found["levels"].values()] == [32, 48, 64]
    flop = [level["flop_per_residue"] for level in found["levels"].values()]
    assert flop == sorted(flop)
    assert list(numbers.table["id"]) == [row["id"] for row in rows]
    np.testing.assert_allclose(numbers.table["target"], [float(row["score"]) for row in rows])
    # The score is the mean over folds of what the file itself gives.
    means = [fold["target"].corr(fold["prediction_L1"], method="spearman") for _, fold in numbers.table.groupby("fold")]
    assert found["levels"]["L1"]["score"] == pytest.approx(np.mean(means))


def test_the_heads_compute_what_was_fitted(numbers: Trained, tiny_checkpoint: Path) -> None:
    """Every level's head against ridge on embeddings of the Embedder, fitted by scikit-learn."""
    rows = labelled()
    sequences, targets = [row["sequence"] for row in rows], np.array([float(row["score"]) for row in rows])
    for level, figures in numbers.found["levels"].items():
        features = np.stack(Embedder(tiny_checkpoint, level, device="cpu").embed(sequences)["embedding"])
        expected = make_pipeline(StandardScaler(), Ridge(alpha=figures["strength"])).fit(features, targets)
        # The head computes in float32.
        np.testing.assert_allclose(
            predicted(numbers.folder, sequences[:5], level)[:, 0], expected.predict(features[:5]), rtol=0, atol=1e-5
        )
    chosen = numbers.found["level"]
    np.testing.assert_array_equal(
        predicted(numbers.folder, sequences[:2]), predicted(numbers.folder, sequences[:2], chosen)
    )


def test_classes(classes: Trained) -> None:
    found, said = classes.found, classes.table
    assert (found["task"], found["classes"], found["score"]) == ("classification", ["high", "low"], "accuracy")
    config = RDEsmConfig.from_pretrained(classes.folder)
    assert config.id2label == {0: "high", 1: "low"}
    assert config.problem_type == "single_label_classification"
    named = said[f"prediction_{found['level']}"]
    assert list(named) == list(np.where(said["probability_high"] > said["probability_low"], "high", "low"))
    np.testing.assert_allclose(said["probability_high"] + said["probability_low"], 1)
    right = (named == said["target"]).groupby(said["fold"]).mean()
    assert found["levels"][found["level"]]["score"] == pytest.approx(right.mean())


@pytest.mark.parametrize("name", ["numbers", "classes"])
def test_doubled_rows_change_no_score(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    trained = request.getfixturevalue(name)
    twice = [{**row, "id": f"{row['id']}{copy}"} for row in labelled() for copy in "ab"]
    source = write_table(tmp_path / "twice.csv", twice)
    doubled = run(dataclasses.replace(trained.settings, input=str(source), output=tmp_path / "out"))
    assert doubled["levels"] == trained.found["levels"]
    assert doubled["metrics"] == trained.found["metrics"]
    assert (trained.found["rows"], doubled["rows"], doubled["sequences"]) == (60, 120, 60)


def test_a_split_of_the_table_is_kept(table: WriteTable, settings: Make, tmp_path: Path) -> None:
    """As FLIP has it: set, and which training rows validate. Test rows decide nothing."""
    rows = [
        {**row, "set": "test" if n >= 45 else "train", "validation": "True" if 30 <= n < 45 else ""}
        for n, row in enumerate(labelled())
    ]
    found = run(settings(table(rows)))
    assert found["folds"] == 1
    said = pq.read_table(tmp_path / "out" / "out_of_fold.parquet").to_pandas()
    assert list(said["id"]) == [f"p{n}" for n in range(45, 60)]
    before = predicted(tmp_path / "out", [row["sequence"] for row in rows[:5]], "L2")
    for row in rows[45:]:
        row["score"] = str(100 - float(row["score"]))
    again = run(settings(table(rows), output=tmp_path / "again"))
    assert found["levels"]["L2"]["strength"] == again["levels"]["L2"]["strength"]
    np.testing.assert_array_equal(before, predicted(tmp_path / "again", [row["sequence"] for row in rows[:5]], "L2"))


def test_a_stopped_training_goes_on(numbers: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = dataclasses.replace(numbers.settings, output=tmp_path / "out")

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr("rd_hf.training.job.save_model", stop)
        with pytest.raises(KeyboardInterrupt):
            run(chosen)
    monkeypatch.setattr(Embedder, "embed", lambda *_: pytest.fail("what was embedded is kept"))
    assert run(chosen) == numbers.found
    assert not (tmp_path / "out" / ".train").exists()


def test_a_finished_training_is_not_done_again(numbers: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Embedder, "embed", lambda *_: pytest.fail("nothing is left to do"))
    again = run_training(numbers.settings, report=lambda _: None)
    assert again.finished_before
    assert (again.text, again.level) == (numbers.found["summary"], numbers.found["level"])
    with pytest.raises(FolderError, match="holds a finished training of other data or choices already"):
        run_training(dataclasses.replace(numbers.settings, rule="best"))


def test_files_of_others_are_left_alone(table: WriteTable, settings: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("a night's work")
    chosen = settings(table(labelled()))
    with pytest.raises(FolderError, match="holds other files"):
        run(chosen)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


def test_a_trained_checkpoint_is_trained_on_something_else_up_to_a_smaller_level(
    numbers: Trained, tmp_path: Path
) -> None:
    settings = dataclasses.replace(numbers.settings, model=str(numbers.folder), target="kind", up_to="L1", level="L0")
    found = run(dataclasses.replace(settings, output=tmp_path / "out"))
    assert list(found["levels"]) == ["L0", "L1"]
    config = RDEsmConfig.from_pretrained(tmp_path / "out")
    assert (config.level_names, config.num_labels, found["level"]) == (["L0", "L1"], 2, "L0")


def test_the_card_tells_the_hub_the_metrics(numbers: Trained) -> None:
    found, folder = numbers.found, numbers.folder
    (index,) = metadata_load(folder / "README.md")["model-index"]
    figures = {metric["type"]: metric["value"] for result in index["results"] for metric in result["metrics"]}
    assert figures["spearmanr"] == pytest.approx(found["metrics"]["spearman"], abs=1e-4)
    assert f"| {found['level']} (answers) |" in (folder / "README.md").read_text()
    # All that the card and the report speak of goes to the Hub.
    named = [path for path in folder.iterdir() if path.suffix in (".png", ".json", ".parquet", ".md")]
    assert all(any(path.match(pattern) for pattern in PUSHED) for path in named)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--target", "dream"), "has no column 'dream'; its columns are id, sequence, score, kind, family"),
        (("--target", "id"), "class 'p0' of id has too few different sequences (1) for 5 folds"),
        (("--group", "clan"), "has no column 'clan'"),
        (("--level", "15B"), "level '15B' is none that is judged (L0, L1, L2): give --level one of them"),
        (("--score", "accuracy"), "--score accuracy is not for regression, which score is taken as"),
        (("--split-column", "kind"), "kind is 'high', and must be train, val or test: mend the row"),
        (("--group", "family", "--split-column", "kind"), "give one of them"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: tuple[str, ...], says: str, table: WriteTable, tiny_checkpoint: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    rows = [{**row, "kind": "high"} for row in labelled()]
    argv = ["train", "--model", tiny_checkpoint, "--input", table(rows), "--target", "score", "--quiet", *words]
    assert main([str(word) for word in [*argv, "--output", tmp_path / "out"]]) == 1
    error = capsys.readouterr().err
    assert error.startswith("rd-hf train: error: ")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fasta_has_no_targets(tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.fasta").write_text(">a\nMKT\n")
    argv = ["train", "--model", tiny_checkpoint, "--input", tmp_path / "a.fasta", "--target", "x"]
    assert main([str(word) for word in [*argv, "--output", tmp_path / "out"]]) == 1
    assert "is no table, which has a column 'x' beside the sequences" in capsys.readouterr().err


def test_rows_that_cannot_be_used_are_counted_and_listed(table: WriteTable, settings: Make, tmp_path: Path) -> None:
    rows = labelled()
    rows[3]["sequence"], rows[7]["score"], rows[9]["sequence"] = "MK*T", "", ""
    run(settings(table(rows)))
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Rows without a target, left out: 1." in report
    assert "left out: 2, the first row 5 (p3): stop codon" in report
    listed = (tmp_path / "out" / "left_out.tsv").read_text().splitlines()
    assert [line.split("\t")[:2] for line in listed[1:]] == [["row 5", "p3"], ["row 9", "p7"], ["row 11", "p9"]]

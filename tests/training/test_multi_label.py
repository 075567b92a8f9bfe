"""Several labels of a sequence at once: from cells with ``;`` to probabilities of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.training import PredictionSettings, TrainingSettings, run_prediction, run_training
from rd_hf.training.data import Examples, make_examples, with_known_labels
from rd_hf.training.levels import score_of
from rd_hf.training.rows import LabelledRow
from rd_hf.training.uncertainty import calibration_error, temperature
from tests.training.conftest import WriteTable, labelled

Make = Callable[..., TrainingSettings]
NAMES = ["charged", "oily", "small"]


def sets(count: int = 60) -> list[dict[str, str]]:
    """Sequences with labels that follow from their composition, ``;`` where there is none, and one that is rare."""
    rows = []
    for number, row in enumerate(labelled(count)):
        shares = [sum(letter in group for letter in row["sequence"]) for group in ("DEKR", "AILMFVW", "AGSTC")]
        names = [n for n, share in zip(NAMES, shares, strict=True) if share / len(row["sequence"]) > 0.25]
        rows.append({**row, "kinds": ";".join([*names, *(["rare"] if number < 2 else [])]) or ";"})
    return rows


def made(cells: list[str], task: str | None = None, sequences: str = "") -> Examples:
    rows = [
        LabelledRow(n, f"row {n}", "", f"MKTAYI{letter}A", cell)
        for n, (cell, letter) in enumerate(zip(cells, sequences or "ACDEFGHIKL", strict=False))
    ]
    return make_examples("t.csv", "kinds", rows, [], task)


def test_cells_with_semicolons_are_labels_and_rows_of_a_sequence_add_theirs() -> None:
    found = made(["a", "b; a", ";", "c", "b"], sequences="AACDE")
    assert (found.task, found.classes) == ("multi_label", ("a", "b", "c"))
    np.testing.assert_array_equal(found.targets, [[1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 1, 0]])
    assert made(["a", "b", "a", "b"]).task == "classification"
    assert made(["a", "b", "a", "b"], "multi_label").targets.shape == (4, 2)
    assert made(["a;b", "a", "a;b", "a"], "classification").classes == ("a", "a;b")
    with pytest.raises(InputError, match="in all rows, so there is nothing to learn"):
        made(["a;b", "b;a", "a;b"])


def test_labels_that_are_rare_are_left_out_and_said() -> None:
    found = made(["a;b", "a", "a;b", "b", "a;c", ";"])
    kept = with_known_labels(found, 2)
    assert (kept.classes, kept.targets.shape) == (("a", "b"), (6, 2))
    assert "lack, left out: 1 (c)." in kept.notes[-1]
    with pytest.raises(InputError, match="No label remains"):
        with_known_labels(found, 4)


def test_scores_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, (50, 3))
    logits = np.round(generator.normal(truth, 1.5), 1)  # with ties
    assert score_of("auroc", truth, logits) == pytest.approx(roc_auc_score(truth, logits, average="macro"))
    assert score_of("macro_f1", truth, logits) == pytest.approx(f1_score(truth, logits > 0, average="macro"))
    # One that all have says nothing.
    constant = np.column_stack((truth, np.ones(50, dtype=int)))
    assert score_of("auroc", constant, np.column_stack((logits, logits[:, 0]))) == score_of("auroc", truth, logits)


def test_probabilities_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    true = generator.normal(0, 1.5, (4000, 3))
    truth = (generator.random(true.shape) < 1 / (1 + np.exp(-true))).astype(int)
    # Of 12,000 labels a temperature is known to a few percent.
    assert temperature(truth, 3 * true) == pytest.approx(3, rel=0.06)
    assert calibration_error(truth, true) < 0.02 < calibration_error(truth, 3 * true)


def test_a_training_on_labels_and_its_predictions(
    table: WriteTable, settings: Make, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Against scikit-learn's one against the rest; the pipeline and predict say the same."""
    rows = sets()
    summary = run_training(
        settings(table(rows), target="kinds", folds=3, inner_folds=2), lambda _: None, show_progress=False
    )
    found = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (found["task"], found["classes"], found["score"]) == ("multi_label", NAMES, "auroc")
    assert "any of 3 (charged, oily, small)" in summary.text
    assert "left out: 1 (rare)" in summary.text
    level = found["level"]
    figures = found["levels"][level]
    sequences = [row["sequence"] for row in rows]
    targets = np.array([[name in row["kinds"].split(";") for name in NAMES] for row in rows], dtype=int)
    features = np.stack(Embedder(tiny_checkpoint, level, device="cpu").embed(sequences)["embedding"])
    each = OneVsRestClassifier(LogisticRegression(C=figures["strength"], max_iter=500))
    expected = make_pipeline(StandardScaler(), each).fit(features, targets)
    folder = str(tmp_path / "out")
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True).eval()
    assert model.config.problem_type == "multi_label_classification"
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    asked = pipeline("text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu")
    chances = np.array([[{one["label"]: one["score"] for one in said}[n] for n in NAMES] for said in asked(sequences)])
    logits = np.log(chances / (1 - chances)) * figures["temperature"]
    # L-BFGS stops where its gradient is below 1e-4.
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected.predict_proba(features), rtol=0, atol=2e-3)
    run_prediction(
        PredictionSettings(
            model=folder, inputs=(str(tmp_path / "labelled.csv"),), output=str(tmp_path / "said"), device="cpu"
        ),
        report=lambda _: None,
        show_progress=False,
    )
    said = pq.read_table(tmp_path / "said" / "predictions-000000.parquet").to_pandas()
    # float32 of embeddings in batches of other sizes.
    np.testing.assert_allclose(said[[f"probability_{name}" for name in NAMES]], chances, rtol=0, atol=1e-5)
    assert list(said["label"]) == [";".join(np.array(NAMES)[row > 0.5]) for row in chances]
    folds = pq.read_table(tmp_path / "out" / "out_of_fold.parquet").to_pandas()
    judged = [
        roc_auc_score(targets[fold.index], fold[[f"probability_{name}" for name in NAMES]], average="macro")
        for _, fold in folds.groupby("fold")
    ]
    assert figures["score"] == pytest.approx(np.mean(judged))

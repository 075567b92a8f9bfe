"""A class for each residue: from strings of a table or a pair of FASTA files to a head for tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf.data.batching import collate
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.model.heads_rd_esm import RDEsmForTokenClassification
from rd_hf.training import TrainingSettings, run_training
from rd_hf.training.data import Examples, make_examples
from rd_hf.training.residues import read_fasta_pair
from rd_hf.training.rows import LabelledRow
from tests.training.conftest import WriteTable, labelled

Make = Callable[..., TrainingSettings]
KINDS = str.maketrans("ACDEFGHIKLMNPQRSTVWY", "HCEEHCEHEHHECEECCHHH")


def chains(count: int = 24) -> list[dict[str, str]]:
    """Sequences with a class for each residue that follows from it, the first of which nobody knows."""
    return [
        {"id": row["id"], "sequence": row["sequence"], "kind": "?" + row["sequence"].translate(KINDS)[1:]}
        for row in labelled(count)
    ]


def made(rows: list[LabelledRow], unknown: str | None = "?", task: str | None = None) -> Examples:
    return make_examples("t.csv", "kind", rows, [], task, unknown=unknown)


def test_each_residue_is_a_row_of_its_sequence() -> None:
    found = made([LabelledRow(1, "row 2", "a", "MKTAY", "?HHEE"), LabelledRow(2, "row 3", "b", "MKCAYG", "H?EE?H")])
    assert (found.task, found.classes) == ("residues", ("E", "H"))
    np.testing.assert_array_equal(found.targets, [-1, 1, 1, 0, 0, 1, -1, 0, 0, -1, 1])
    np.testing.assert_array_equal(found.rows_of(np.array([1])), [5, 7, 8, 10])
    np.testing.assert_array_equal(found.rows_of(np.array([1, 0])), [5, 7, 8, 10, 1, 2, 3, 4])


def test_numbers_as_long_as_their_peptides_are_numbers() -> None:
    rows = [LabelledRow(n, "", "", f"MKTAYI{letter}A", f"0.12345{n}") for n, letter in enumerate("ACDE")]
    assert made(rows, None).task == "regression"


def test_labels_of_another_length_are_a_sentence() -> None:
    rows = [LabelledRow(n, f"row {n}", f"p{n}", f"MKTAYI{letter}A", "HHHHEEEE") for n, letter in enumerate("ACDE")]
    rows[2] = LabelledRow(2, "row 2", "p2", "MKTAYIA", "HHHHEEEE")
    with pytest.raises(InputError, match=r"row 2 \(p2\): kind has 8 letters, and its sequence 7 residues"):
        made(rows)


def test_a_pair_of_fasta_files(tmp_path: Path) -> None:
    (tmp_path / "s.fasta").write_text(">a\nMKTAY\n>b\nMKCAYG\n>c\nMKDAYG\n>d\nMK\n>e\nMKKKK\n")
    (tmp_path / "l.fasta").write_text(
        ">c SET=train VALIDATION=True\nHHHEEE\n>a SET=test VALIDATION=False\nHHHEE\n"
        ">b SET=train VALIDATION=False\nEEEHHH\n>e\nHHHHH\n"
    )
    rows, left_out = read_fasta_pair(str(tmp_path / "s.fasta"), str(tmp_path / "l.fasta"), lambda _: None)
    assert [(row.id, row.target, row.part) for row in rows] == [
        ("a", "HHHEE", "test"), ("b", "EEEHHH", "train"), ("c", "HHHEEE", "val")
    ]  # fmt: skip
    assert [(one.id, one.reason) for one in left_out] == [("d", "no target"), ("e", "neither train, val nor test")]


def test_a_training_on_residues(table: WriteTable, settings: Make, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """The head of tokens against scikit-learn's probe on residues of the Embedder."""
    rows = chains()
    run_training(
        settings(table(rows), target="kind", unknown="?", folds=3, inner_folds=2), lambda _: None, show_progress=False
    )
    found = json.loads((tmp_path / "out" / "training.json").read_text())
    assert (found["task"], found["classes"], found["sequences"]) == ("residues", ["C", "E", "H"], 24)
    level = found["level"]
    features = Embedder(tiny_checkpoint, level, pooling="residue", device="cpu").embed([r["sequence"] for r in rows])
    stacked = np.concatenate([chain[1:] for chain in features["embedding"]])
    kinds = np.array(list("".join(row["kind"][1:] for row in rows)))
    figures = found["levels"][level]
    model = LogisticRegression(C=figures["strength"], max_iter=500)
    expected = make_pipeline(StandardScaler(), model).fit(stacked, kinds)
    head = RDEsmForTokenClassification.from_pretrained(tmp_path / "out").eval()
    assert head.config.id2label == {0: "C", 1: "E", 2: "H"}
    with torch.inference_mode():
        logits = head(*collate([rows[0]["sequence"]])).logits[0, 1:-1]
    chances = torch.softmax(logits * figures["temperature"], dim=-1).numpy()
    # L-BFGS stops where its gradient is below 1e-4.
    np.testing.assert_allclose(chances, expected.predict_proba(features["embedding"][0]), rtol=0, atol=2e-3)
    said = pq.read_table(tmp_path / "out" / "out_of_fold.parquet").to_pandas()
    assert [len(one) for one in said[f"prediction_{level}"]] == [len(row["sequence"]) for row in rows]
    assert all(one[0] == "-" and "-" not in one[1:] for one in said[f"prediction_{level}"])
    right = [
        np.mean([a == b for row in fold.itertuples() for a, b in zip(row.target[1:], row.prediction[1:], strict=True)])
        for _, fold in said.rename(columns={f"prediction_{level}": "prediction"}).groupby("fold")
    ]
    assert figures["score"] == pytest.approx(np.mean(right))

"""One head, one answer: by AutoModel, a pipeline, `rd-hf predict` of proteins or embeddings, and scikit-learn."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from rd_hf.__main__ import main
from rd_hf.embedding import Embedder
from rd_hf.evaluation.options import ResidueOptions
from rd_hf.evaluation.residues import known_labels, logistic_probe, precision_recall_area
from rd_hf.evaluation.tasks import TEST, TRAIN, VALIDATION, ResidueTask, read_metal_binding, read_secondary_structure
from rd_hf.sklearn import NestedEmbedding
from tests.training.conftest import labelled
from tests.training.test_predict import embedded, read, same, trained

PROTEINS = [row["sequence"] for row in labelled(25, seed=7)]


def fasta(path: Path, sequences: Iterable[str], names: Iterable[str] = map(str, range(1000))) -> Path:
    path.write_text("".join(f">{name}\n{sequence}\n" for name, sequence in zip(names, sequences, strict=False)))
    return path


def test_a_number_is_the_same_at_every_entry(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = labelled()
    head = trained(tiny_checkpoint, tmp_path, rows, target="score", level="L1")
    level = json.loads((head / "training.json").read_text())["levels"]["L1"]
    proteins = fasta(tmp_path / "proteins.fasta", PROTEINS)
    tokenizer = AutoTokenizer.from_pretrained(head, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(head, trust_remote_code=True).eval()
    with torch.inference_mode():
        found = {"AutoModel": model(**tokenizer(PROTEINS, padding=True, return_tensors="pt")).logits[:, 0].numpy()}
    asked = pipeline("text-classification", model=model, tokenizer=tokenizer, function_to_apply="none", device="cpu")
    found["pipeline"] = np.array([said["score"] for said in asked(PROTEINS)])
    argv = ["predict", "--model", str(head), "--quiet", "--output"]
    assert main([*argv, str(tmp_path / "a"), "--input", str(proteins)]) == 0
    stored = embedded(tiny_checkpoint, proteins, tmp_path / "embeddings", "--level", "L2")
    assert main([*argv, str(tmp_path / "b"), "--embeddings", str(stored)]) == 0
    found |= {"predict": read(tmp_path / "a")["prediction"], "of embeddings": read(tmp_path / "b")["prediction"]}
    steps = NestedEmbedding(tiny_checkpoint, level="L1"), StandardScaler(), Ridge(alpha=level["strength"])
    learnt = make_pipeline(*steps).fit([row["sequence"] for row in rows], [float(row["score"]) for row in rows])
    expected = learnt.predict(PROTEINS)
    for name, numbers in found.items():
        assert np.std(expected) > 0.01, name
        same(np.asarray(numbers), expected)


def cut_short(task: ResidueTask, most: dict[str, int]) -> ResidueTask:
    """The first chains of up to 200 residues of each set."""
    short = {name: [chain for chain in task.splits[name] if len(chain.sequence) <= 200] for name in most}
    return task._replace(splits={name: short[name][:count] for name, count in most.items()})


@pytest.mark.parametrize(
    ("read_task", "folder", "most"),
    [
        (read_secondary_structure, "flip_secondary_structure", {TRAIN: 40, VALIDATION: 15, TEST: 30}),
        (read_metal_binding, "bindpredict_metal", {TRAIN: 80, VALIDATION: 30, TEST: 40}),
    ],
)
def test_residues_are_as_the_evaluation_finds_them_and_as_the_pipeline_says(
    read_task: object, folder: str, most: dict[str, int], shared_data: Path, mini_checkpoint: Path, tmp_path: Path
) -> None:
    """Accuracy and area on FLIP's secondary structure and bindPredict's metal sites, a part of each."""
    task = cut_short(read_task(shared_data / "tasks" / folder), most)  # type: ignore[operator]
    letters = [name[0] for name in task.classes]
    heads = {TRAIN: "SET=train", VALIDATION: "SET=train VALIDATION=True", TEST: "SET=test"}
    chains = [(part, chain) for part, own in task.splits.items() for chain in own]
    names = [f"{part}{number}" for number, (part, _) in enumerate(chains)]
    strings = ["".join([*letters, "?"][label] for label in chain.labels) for _, chain in chains]
    headers = [f"{name} {heads[part]}" for name, (part, _) in zip(names, chains, strict=True)]
    sequences = fasta(tmp_path / "sequences.fasta", [chain.sequence for _, chain in chains], names)
    labels = fasta(tmp_path / "labels.fasta", strings, headers)
    head = tmp_path / "head"
    argv = ["train", "--model", str(mini_checkpoint), "--input", str(sequences), "--target", str(labels)]
    assert main([*argv, "--unknown", "?", "--up-to", "0.3M", "--quiet", "--output", str(head)]) == 0
    found = json.loads((head / "training.json").read_text())

    embedder = Embedder(mini_checkpoint, "0.3M", pooling="residue", device="cpu")
    states = {
        part: np.concatenate(embedder.embed([chain.sequence for chain in own])["embedding"])
        for part, own in task.splits.items()
    }
    known, truth = known_labels(task)
    features = {part: rows[known[part]].astype(np.float32) for part, rows in states.items()}
    options = ResidueOptions(model="m", output="o")
    expected, _ = logistic_probe(features, truth, len(task.classes), options)
    accuracy = float((expected[TEST].argmax(axis=1) == truth[TEST]).mean())
    assert found["metrics"]["accuracy"] == pytest.approx(accuracy, abs=0.003)

    tested = fasta(tmp_path / "tested.fasta", [chain.sequence for chain in task.splits[TEST]])
    argv = ["predict", "--model", str(head), "--input", str(tested), "--probabilities", "--quiet"]
    assert main([*argv, "--output", str(tmp_path / "said")]) == 0
    said = pq.read_table(tmp_path / "said" / "predictions-000000.parquet").to_pylist()
    order = [found["classes"].index(letter) for letter in letters]
    chances = np.concatenate([np.array(row["probabilities"]) for row in said])[known[TEST]][:, order]
    weights = np.ones(len(chances))
    areas = [precision_recall_area(truth[TEST], values, weights) for values in (chances, expected[TEST])]
    assert areas[0] == pytest.approx(areas[1], abs=0.003)
    print(f"{task.name}: accuracy {found['metrics']['accuracy']:.4f} and {accuracy:.4f}, areas {areas}")

    model = AutoModelForTokenClassification.from_pretrained(head, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(head, trust_remote_code=True)
    asked = pipeline("token-classification", model=model, tokenizer=tokenizer, ignore_labels=[], device="cpu")
    for row, chain in zip(said[:10], task.splits[TEST], strict=False):
        assert row["labels"] == "".join(token["entity"] for token in asked(chain.sequence))

"""Residue-level tasks: labels line up, probes equal scikit-learn's, intervals resample chains."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rd_hf.commands.evaluate_residues import main
from rd_hf.data.records import InputError
from rd_hf.data.residues import STANDARD_RESIDUES
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.options import ResidueOptions
from rd_hf.evaluation.residues import (
    bootstrap_figures,
    chain_states,
    logistic_probe,
    paired_differences,
    precision_recall_area,
    summarise,
    window_one_hot,
)
from rd_hf.evaluation.tasks import UNLABELLED, Chain, read_metal_binding, read_secondary_structure, subsample

# The first, of the training set, has a letter that no other has.
CHAINS = {"a": "MKTAYIAXQR", "b": "GSHMLEDPVD", "c": "ACDEFGHIKL", "d": "WYVTSRQPNM"}


def fasta(records: dict[str, str]) -> str:
    return "".join(f">{name}\n{letters}\n" for name, letters in records.items())


@pytest.fixture
def structure(tmp_path: Path) -> Path:
    """A FLIP archive of four chains: two train, one validation, one test; the first residue is not resolved."""
    headers = {"a": "SET=train VALIDATION=False", "b": "SET=train VALIDATION=False"}
    headers |= {"c": "SET=train VALIDATION=True", "d": "SET=test VALIDATION=False"}
    labels = {f"{name} {header}": "CCCEEEHHHC" for name, header in headers.items()}
    with zipfile.ZipFile(tmp_path / "splits.zip", "w") as archive:
        archive.writestr("splits/sequences.fasta", fasta(CHAINS))
        archive.writestr("splits/sampled.fasta", fasta(labels))
        archive.writestr("splits/mask.fasta", fasta(dict.fromkeys(CHAINS, "0111111111")))
    return tmp_path


@pytest.fixture
def metal(tmp_path: Path) -> Path:
    """bindPredict's folder of four and one proteins; "a", "d" and "e" bind at residues 2 and 10."""
    development, independent = tmp_path / "development_set", tmp_path / "independent_set"
    development.mkdir()
    independent.mkdir()
    (development / "all.fasta").write_text(fasta(CHAINS))
    (development / "binding_residues_2.5_metal.txt").write_text("a\t2,10\nb\nd\t10,2\n")
    for number, names in enumerate(("a", "b", "", "", "c"), start=1):
        (development / f"ids_split{number}.txt").write_text(f"{names}\n")
    (development / "uniprot_test.txt").write_text("d\n")
    (independent / "indep_set.fasta").write_text(fasta({"e": "MKTAYIAKQK"}))
    (independent / "binding_residues_metal.txt").write_text("e\t2,10\n")
    return tmp_path


def test_secondary_structure_keeps_flips_splits_and_drops_unresolved_residues(structure: Path) -> None:
    task = read_secondary_structure(structure)
    assert {name: [chain.id for chain in chains] for name, chains in task.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
    }
    chain = task.splits["test"][0]
    assert chain.sequence == CHAINS["d"]
    assert [task.classes[label] if label >= 0 else "-" for label in chain.labels] == list("-CCEEEHHHC")


def test_metal_positions_count_from_one(metal: Path) -> None:
    task = read_metal_binding(metal)
    assert {name: [chain.id for chain in chains] for name, chains in task.splits.items()} == {
        "train": ["a", "b"],
        "validation": ["c"],
        "test": ["d"],
        "independent": ["e"],
    }
    for name in ("train", "test", "independent"):
        assert np.flatnonzero(task.splits[name][0].labels).tolist() == [1, 9]
    assert not task.splits["train"][1].labels.any()


def test_broken_tasks_name_the_record(structure: Path, metal: Path, tmp_path: Path) -> None:
    binding = metal / "development_set" / "binding_residues_2.5_metal.txt"
    binding.write_text("a\t11\n")
    with pytest.raises(InputError, match="a: position 11 lies outside its 10 residues"):
        read_metal_binding(metal)
    binding.write_text("a\tx\n")
    with pytest.raises(InputError, match="line 1"):
        read_metal_binding(metal)
    with zipfile.ZipFile(structure / "splits.zip", "w") as archive:
        archive.writestr("splits/sequences.fasta", fasta(CHAINS))
        archive.writestr("splits/sampled.fasta", ">a SET=train\nCC\n")
        archive.writestr("splits/mask.fasta", fasta(dict.fromkeys(CHAINS, "0111111111")))
    with pytest.raises(InputError, match="record a: 10 residues, 2 labels"):
        read_secondary_structure(structure)
    (structure / "splits.zip").write_text("no archive")
    with pytest.raises(InputError, match=r"splits\.zip"):
        read_secondary_structure(structure)


def test_a_protein_is_not_tested_where_it_was_trained_on(structure: Path, metal: Path) -> None:
    """Whatever it is called there: proteins are told apart by their sequences."""
    (metal / "independent_set" / "indep_set.fasta").write_text(fasta({"e": CHAINS["a"]}))
    with pytest.raises(InputError, match="e of the independent set has the sequence of a of the train set"):
        read_metal_binding(metal)
    with zipfile.ZipFile(structure / "splits.zip", "w") as archive:
        archive.writestr(
            "splits/sequences.fasta", fasta({"a": CHAINS["a"], "b": CHAINS["b"], "c": CHAINS["b"].lower()})
        )
        archive.writestr(
            "splits/sampled.fasta", fasta({"a": "CCCEEEHHHC", "b": "CCCEEEHHHC", "c V VALIDATION=True": "CCCEEEHHHC"})
        )
        archive.writestr("splits/mask.fasta", fasta(dict.fromkeys("abc", "1111111111")))
    with pytest.raises(InputError, match="c of the validation set has the sequence of b of the train set"):
        read_secondary_structure(structure)


def test_the_shared_tasks_are_read(shared_data: Path) -> None:
    metal = read_metal_binding(shared_data / "tasks" / "bindpredict_metal")
    assert {name: len(chains) for name, chains in metal.splits.items()} == {
        "train": 812,
        "validation": 202,
        "test": 300,
        "independent": 46,
    }
    # Metal is bound by few letters: positions that were off by one would show another composition.
    bound = [chain.sequence[i] for chain in metal.splits["train"] for i in np.flatnonzero(chain.labels)]
    assert sum(letter in "HCDE" for letter in bound) / len(bound) > 0.6
    structure = read_secondary_structure(shared_data / "tasks" / "flip_secondary_structure")
    assert {name: len(chains) for name, chains in structure.splits.items()} == {
        "train": 9712,
        "validation": 1080,
        "test": 364,
    }
    small = subsample(structure, 10, 5)
    assert [len(small.splits[name]) for name in ("train", "validation", "test")] == [10, 5, 364]


def test_states_stand_in_the_order_of_residues(tiny_family: Family, tmp_path: Path) -> None:
    chains = [Chain(name, letters, np.zeros(10, np.int8)) for name, letters in CHAINS.items()]
    together = chain_states(tiny_family, chains, tmp_path, batch_tokens=24)
    for number, chain in enumerate(chains):
        alone = chain_states(tiny_family, [chain], tmp_path / "alone")
        # Batched against single attention in float32; states are of order 1.
        np.testing.assert_allclose(together[10 * number : 10 * number + 10], alone, rtol=0, atol=5e-6)


def test_window_is_blank_beyond_the_ends() -> None:
    chain = Chain("a", "MKT", np.zeros(3, np.int8))
    features = window_one_hot([chain], STANDARD_RESIDUES, window=3).reshape(3, 3, -1)
    letters = features.shape[2]
    assert features.sum(axis=2).tolist() == [[0, 1, 1], [1, 1, 1], [1, 1, 0]]
    np.testing.assert_array_equal(features[1, 0], features[0, 1])
    assert letters == 20


def test_probe_equals_a_scikit_learn_pipeline_of_the_chosen_strength() -> None:
    generator = np.random.default_rng(0)
    sizes = {"train": 400, "validation": 100, "test": 100}
    weights = generator.standard_normal((6, 3))
    features, labels = {}, {}
    for name, size in sizes.items():
        features[name] = generator.standard_normal((size, 6)).astype(np.float32)
        noise = generator.gumbel(size=(size, 3))
        labels[name] = (features[name] @ weights + noise).argmax(axis=1)
    predicted, strength = logistic_probe(features, labels, 3, ResidueOptions())
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000, tol=1e-8))
    pipeline.fit(features["train"].astype(np.float64), labels["train"])
    # L-BFGS stops at a gradient of 1e-4 in float32.
    np.testing.assert_allclose(predicted["test"], pipeline.predict_proba(features["test"]), rtol=0, atol=2e-3)


def test_area_is_scikit_learns_and_weights_are_repeats() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 200)
    scores = np.round(generator.random(200), 2)  # with ties
    probabilities = np.stack((1 - scores, scores), axis=1)
    weights = generator.integers(0, 3, 200)
    repeated = np.repeat(np.arange(200), weights)
    expected = average_precision_score(labels[repeated], scores[repeated])
    assert precision_recall_area(labels, probabilities, weights.astype(float)) == pytest.approx(expected, abs=1e-12)


def test_resamples_take_whole_chains_and_contenders_share_them() -> None:
    generator = np.random.default_rng(0)
    chain_of = np.repeat(np.arange(30), 10)
    labels = generator.integers(0, 2, 300)
    good = np.where((labels == 1)[:, None], [0.1, 0.9], [0.9, 0.1])
    bad = good.copy()
    bad[chain_of == 7] = bad[chain_of == 7][:, ::-1]  # wrong on one chain
    options = ResidueOptions(resamples=400)
    parts = []
    for kind, probabilities in (("rd", good), ("raw", bad)):
        table = bootstrap_figures(labels, probabilities, chain_of, options)
        parts.append(
            table.assign(
                task="t", set="test", model="m", depth=1.0, representation=kind, level="L",
                width=2, inverse_strength=1.0, chains=30, residues=300,
            )
        )  # fmt: skip
    results = pd.concat(parts)
    accuracy = summarise(results).query("figure == 'accuracy'").set_index("representation")
    assert accuracy.loc["rd", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert accuracy.loc["raw", "value"] == pytest.approx(1 - 10 / 300)
    difference = paired_differences(results, "rd", "raw").query("figure == 'accuracy'").iloc[0]
    assert difference["difference"] == pytest.approx(10 / 300)
    # Chain 7 is absent from a third of the resamples, so the interval starts at nothing.
    assert difference["low"] == pytest.approx(0, abs=1e-12)


def test_the_command_writes_tables_figure_and_rows_and_resumes(
    structure: Path, metal: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["--model", tiny_checkpoint, "--secondary-structure", structure, "--metal-binding", metal]
    arguments += ["--output", out, "--resamples", "20", "--representations", "raw", "rd", "one_hot"]
    assert main([str(argument) for argument in arguments]) == 0
    results = pd.read_parquet(out / "results.parquet")
    assert set(results["set"]) == {"test", "independent"}
    assert set(results["representation"]) == {"raw", "rd", "one_hot"}
    report = (out / "report.md").read_text()
    point = results[(results["draw"] == 0) & (results["representation"] == "one_hot") & (results["figure"] == "AUPR")]
    # 21 letters around each of 15 residues.
    assert f"| one_hot | one-hot | 315 | {point['value'].iloc[0]:.3f} |" in report
    assert (out / "residues.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()}
    assert main([str(argument) for argument in arguments]) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "runs").iterdir()} == before
    capsys.readouterr()
    assert main(["--model", str(tiny_checkpoint), "--output", str(out)]) == 1
    assert "--secondary-structure" in capsys.readouterr().err


def test_unlabelled_is_no_class() -> None:
    assert UNLABELLED not in range(3)

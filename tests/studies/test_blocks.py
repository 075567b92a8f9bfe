"""The block report: what a block adds to its prefix is found, beside random directions, on sequences held apart."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies.block_probes import (
    Label,
    class_label,
    contenders,
    domain_labels,
    predicted,
    probe_label,
    residue_labels,
    sequence_label,
    summarise,
)
from studies.blocks import main
from studies.options import BlockOptions

from rd_hf.bases.chain import Basis
from rd_hf.data.residues import STANDARD_RESIDUES
from rd_hf.evaluation.homology import Domains
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.tasks import Chain, ResidueTask

NAMES, WIDTHS = ["S", "L"], [4, 12]
OPTIONS = BlockOptions(("m",), output=Path("out"), secondary_structure=Path("s"), resamples=50)


@pytest.fixture(scope="module")
def task() -> ResidueTask:
    """Random chains of all letters, labelled at random."""
    generator = np.random.default_rng(0)
    letters = list("LAGVSERTIDPKQNFYMHWC")

    def chains(number: int) -> list[Chain]:
        return [
            Chain(str(i), "".join(generator.choice(letters, 30)), generator.integers(0, 3, 30).astype(np.int8))
            for i in range(number)
        ]

    return ResidueTask(
        "structure", ("C", "E", "H"), {"train": chains(60), "validation": chains(20), "test": chains(20)}
    )


@pytest.fixture(scope="module")
def embeddings() -> dict[tuple[str, int], Representation]:
    """Of a family whose larger states are predicted as zero, and whose block is the first four of them."""
    basis = Basis(torch.zeros(4), torch.zeros(12), torch.zeros(4, 12), torch.eye(12)[:, :4])
    return contenders(NAMES, WIDTHS, [basis])


def label_of(task: ResidueTask, place: int) -> Label:
    """The task's label; the columns of z from ``place`` say what it is, the others are noise."""
    generator, states = np.random.default_rng(1), {}
    for name, chains in task.splits.items():
        values = np.concatenate([chain.labels for chain in chains])
        states[name] = generator.standard_normal((len(values), 16)).astype(np.float32)
        states[name][:, place : place + 3] += 6 * np.eye(3)[values]
    return residue_labels(task, states, everywhere=False)[0]


@pytest.mark.parametrize(("place", "where"), [(0, "prefix"), (4, "block"), (12, "nowhere")])
def test_what_a_block_adds_is_found(
    task: ResidueTask, embeddings: dict[tuple[str, int], Representation], place: int, where: str
) -> None:
    row = summarise(probe_label(label_of(task, place), embeddings, OPTIONS), NAMES).iloc[0]
    if where == "prefix":
        assert row["prefix"] > 0.99
        assert row["new_low"] <= 0 <= row["new_high"]
    elif where == "block":
        # A third, at chance; 600 test residues have a deviation of 0.02.
        assert row["prefix"] < 0.42
        assert row["block"] > 0.99
        assert row["new_low"] > 0.5
        # A third of all directions holds a part of it.
        assert row["chosen_low"] > 0
        assert row["any_low"] > 0.05
    else:
        # Of the residual's directions that are not kept, random ones have a part.
        assert row["new_high"] < 0.08
        assert row["chosen_high"] < 0
    assert row["new"] == pytest.approx(row["block"] - row["prefix"])


def test_random_directions_come_behind_the_same_prefix(embeddings: dict[tuple[str, int], Representation]) -> None:
    assert list(embeddings) == [("S", -1), ("L", -1), ("L", 0), ("L", 1), ("L", 2)]
    for draw in range(3):
        matrix = embeddings["L", draw].matrix
        assert np.array_equal(matrix[:, :4], embeddings["S", -1].matrix)
        # Orthonormal, in float64.
        assert np.abs(matrix[:, 4:].T @ matrix[:, 4:] - np.eye(4)).max() < 1e-12
    assert not np.allclose(embeddings["L", 0].matrix, embeddings["L", 1].matrix)


def test_groups_stay_in_one_set() -> None:
    groups = np.random.default_rng(0).integers(0, 30, 200)
    label = sequence_label("g", "R²", np.arange(200.0)[:, None], groups.astype(float), groups)
    kept = {name: set(values) for name, values in label.values.items()}
    assert not kept["train"] & kept["test"] | kept["train"] & kept["validation"] | kept["validation"] & kept["test"]
    assert [len(kept[name]) for name in ("train", "validation", "test")] == [18, 6, 6]
    # Rows of states go with their values.
    assert all((groups[label.states[name][:, 0].astype(int)] == label.values[name]).all() for name in kept)


def test_rare_classes_are_left_out() -> None:
    names = ["a"] * 30 + ["b"] * 5 + ["c"] * 30
    label = class_label("kind", np.zeros((65, 1)), names, [str(row) for row in range(65)], 20)
    assert label.name == "kind (2)"
    assert sum(map(len, label.values.values())) == 60
    assert {value for values in label.values.values() for value in values} == {0, 1}


def test_domains_give_class_fold_and_length() -> None:
    classes = [f"{'ab'[i % 2]}.{i % 2}.{i % 8}.{i % 40}" for i in range(160)]
    domains = Domains(tuple(map(str, range(160))), tuple("M" * (1 + i) for i in range(160)), tuple(classes))
    labels = domain_labels(domains, np.arange(160.0)[:, None])
    assert [label.name for label in labels] == ["SCOPe class (2)", "SCOPe fold (2)", "logarithm of the length"]
    for label, depth in zip(labels, (3, 4, 3), strict=True):
        rows = {name: states[:, 0].astype(int) for name, states in label.states.items()}
        groups = [{classes[row].split(".")[depth - 1] for row in own} for own in rows.values()]
        assert not groups[0] & groups[2]
    assert np.allclose(labels[2].values["test"], np.log(1 + labels[2].states["test"][:, 0]))


def test_numbers_are_judged_on_other_chains(task: ResidueTask) -> None:
    states = {
        name: np.arange(sum(len(chain.labels) for chain in chains), dtype=float)[:, None] + 1e6 * (name == "test")
        for name, chains in task.splits.items()
    }
    _, letter, place = residue_labels(task, states, everywhere=True)
    assert (letter.name, place.name) == ("amino acid", "place in the chain")
    chain = task.splits["train"][0].sequence
    assert [STANDARD_RESIDUES[value] for value in letter.values["train"][:30]] == list(chain)
    assert place.values["train"][:30].tolist() == np.linspace(0, 1, 30).tolist()
    # A feature that numbers the training residues says nothing about test chains.
    truth, found, owner = predicted(place, Representation("raw", "S", np.eye(1), np.zeros(1)), OPTIONS)
    assert 1 - ((truth - found) ** 2).sum() / ((truth - truth.mean()) ** 2).sum() < 0.05
    assert owner.tolist() == np.repeat(np.arange(20), 30).tolist()


def test_the_command_writes_its_report(tiny_checkpoint: Path, task: ResidueTask, tmp_path: Path) -> None:
    parts = {"train": "train VALIDATION=False", "validation": "train VALIDATION=True", "test": "test VALIDATION=False"}
    sequences, labels, masks = "", "", ""
    for name, chains in task.splits.items():
        for chain in chains[:12]:
            sequences += f">{name}{chain.id}\n{chain.sequence}\n"
            labels += f">{name}{chain.id} SET={parts[name]}\n{''.join('CEH'[label] for label in chain.labels)}\n"
            masks += f">{name}{chain.id}\n{'1' * len(chain.labels)}\n"
    with zipfile.ZipFile(tmp_path / "splits.zip", "w") as archive:
        for name, text in (("sequences", sequences), ("sampled", labels), ("mask", masks)):
            archive.writestr(f"splits/{name}.fasta", text)
    arguments = ["--model", tiny_checkpoint, "--secondary-structure", tmp_path, "--resamples", 5]
    assert main([str(argument) for argument in [*arguments, "--output", tmp_path / "out"]]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    table = pd.read_parquet(tmp_path / "out" / "blocks.parquet")
    # Two blocks, three draws each, and three levels of their own.
    assert len(table.groupby(["label", "level", "random"])) == 4 * 9
    for label in ("structure", "amino acid", "place in the chain", "compartment"):
        assert label in text
    chain = table[(table["draw"] == 0) & (table["random"] < 0)]
    for value in chain["value"]:
        assert f"{value:.3f}" in text
    assert (tmp_path / "out" / "blocks.png").read_bytes().startswith(b"\x89PNG")

"""The block report: blocks are the columns each level adds, and probes find what was put there."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from studies.block_probes import block_table, blocks, identity_task, position_r2, relative_positions
from studies.blocks import main

from rd_hf.evaluation.options import ResidueOptions
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.tasks import Chain, ResidueTask


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


def test_blocks_are_the_columns_each_level_adds() -> None:
    found = blocks({"S": 64, "M": 128, "L": 192})
    assert [(block.level, block.start, block.stop) for block in found] == [
        ("S", 0, 64),
        ("M", 64, 128),
        ("L", 128, 192),
    ]


def test_positions_run_from_zero_to_one_in_each_chain() -> None:
    chains = [Chain("a", "MKT", np.zeros(3, np.int8)), Chain("b", "MKTAY", np.zeros(5, np.int8))]
    assert relative_positions(chains).tolist() == [0, 0.5, 1, 0, 0.25, 0.5, 0.75, 1]


def test_each_block_is_found_to_hold_what_was_put_there(task: ResidueTask) -> None:
    generator = np.random.default_rng(0)
    states = {}
    for name, chains in task.splits.items():
        identity = np.concatenate([chain.labels for chain in identity_task(task).splits[name]])
        structure = np.concatenate([chain.labels for chain in chains])
        noise = generator.standard_normal((len(identity), 2))
        states[name] = np.hstack(
            (np.eye(20)[identity], np.eye(3)[structure], relative_positions(chains)[:, None], noise)
        )
    everything = Representation("rd", "L", np.eye(26), np.zeros(26))
    found = blocks({"S": 20, "M": 23, "L": 24, "XL": 26})
    table = block_table(task, states, everything, found, ResidueOptions()).set_index("block")
    assert table.loc["S", "amino acid"] == 1.0
    assert table.loc["M", "structure"] == 1.0
    assert table.loc["L", "position"] == pytest.approx(1.0, abs=1e-6)
    assert table.loc["whole", ["amino acid", "structure"]].tolist() == [1.0, 1.0]
    # A block that holds something else is at chance; 600 test residues have a deviation of 0.02.
    assert table.loc["L", "structure"] < 1 / 3 + 0.08
    assert table.loc["XL", "position"] < 0.02


def test_position_is_judged_on_other_chains(task: ResidueTask) -> None:
    # A feature that numbers the training residues says nothing about test chains.
    features = {
        name: np.arange(sum(len(chain.labels) for chain in chains), dtype=float)[:, None] + 1e6 * (name == "test")
        for name, chains in task.splits.items()
    }
    assert position_r2(task, features) < 0.05


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
    fitting = tmp_path / "fitting.fasta"
    fitting.write_text(sequences)
    arguments = ["--model", tiny_checkpoint, "--input", fitting, "--secondary-structure", tmp_path]
    assert main([str(argument) for argument in [*arguments, "--output", tmp_path / "out"]]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    table = pd.read_parquet(tmp_path / "out" / "blocks.parquet")
    assert table["block"].tolist() == ["L0", "L1", "L2", "whole", "chance"]
    assert table["width"].tolist() == [32, 16, 16, 64, 0]
    for value in table["amino acid"]:
        assert f"{value:.3f}" in text
    assert (tmp_path / "out" / "spectra.png").read_bytes().startswith(b"\x89PNG")

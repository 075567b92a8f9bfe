"""A real proteome through a real (small) family: batched equals one by one, in order, however it is run.

``RD_HF_FULL=1`` takes the whole E. coli proteome instead of a seeded sample of it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rd_hf.data.batching import collate
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import clean_sequence
from rd_hf.embedding.checkpoint import load_model
from tests.conftest import TWO_PROCESSES
from tests.embedding.conftest import Outcome, read, run_process

FULL = bool(os.environ.get("RD_HF_FULL"))
LONGEST = 1022
# Float32 sums in another order, through three backbones: measured at 3e-6 of a protein's norm on the whole
# proteome; ten times that, and a hundred times less than what any use of an embedding would notice.
RELATIVE = 3e-5


@pytest.fixture(scope="module")
def proteome(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = shared_data / "sequences" / "ecoli_K12_UP000000625.fasta.gz"
    if FULL:
        return path
    records = [record for record in read_fasta(path) if len(record.sequence) <= LONGEST]
    chosen = random.Random(0).sample(records, 60)
    sample = tmp_path_factory.mktemp("proteome") / "sample.fasta"
    sample.write_text("".join(f">{record.description}\n{record.sequence}\n" for record in chosen))
    return sample


@pytest.fixture(scope="module")
def one_by_one(proteome: Path, mini_checkpoint: Path) -> list[tuple[str, np.ndarray]]:
    """The loop anyone would write, without padding: what every other way must agree with."""
    if not (mini_checkpoint / "config.json").exists():
        pytest.skip(f"{mini_checkpoint} is absent")
    model = load_model(str(mini_checkpoint), None, "", None, "float32", None, "cpu")
    answers = []
    for record in read_fasta(proteome):
        sequence = clean_sequence(record.sequence)
        if len(sequence) > LONGEST:
            answers.append((record.id, np.array([])))
            continue
        input_ids, mask = collate([sequence])
        with torch.inference_mode():
            states = model(input_ids, attention_mask=mask).last_hidden_state
        answers.append((record.id, states[0, 1:-1].double().mean(dim=0).numpy()))
    return answers


def assert_equal(folder: Path, one_by_one: list[tuple[str, np.ndarray]]) -> None:
    table = read(folder)
    assert table["id"].to_pylist() == [record_id for record_id, _ in one_by_one]
    worst = 0.0
    for values, (_, expected) in zip(table["embedding"].to_pylist(), one_by_one, strict=True):
        if expected.size:  # longer ones are cut into windows: another definition, tested beside the engine
            worst = max(worst, float(np.linalg.norm(np.array(values) - expected) / np.linalg.norm(expected)))
    print(f"worst relative difference of {len(one_by_one)} proteins: {worst:.2g}")
    assert worst < RELATIVE


@pytest.mark.parametrize("batch_tokens", [256, 2048, 16384])
def test_any_token_budget_gives_what_one_by_one_gives(
    embed: Callable[..., Outcome],
    proteome: Path,
    mini_checkpoint: Path,
    one_by_one: list[tuple[str, np.ndarray]],
    tmp_path: Path,
    batch_tokens: int,
) -> None:
    command = ("--model", mini_checkpoint, "--input", proteome, "--output", tmp_path, "--batch-tokens", batch_tokens)
    outcome = embed(*command)
    assert outcome.status == 0, outcome.stderr
    assert_equal(tmp_path, one_by_one)


@pytest.mark.skipif(not FULL, reason="RD_HF_FULL=1 runs it; two processes are compared bit for bit in test_resume.py")
def test_two_processes_give_what_one_by_one_gives(
    proteome: Path, mini_checkpoint: Path, one_by_one: list[tuple[str, np.ndarray]], tmp_path: Path
) -> None:
    command = ("--model", mini_checkpoint, "--input", proteome, "--output", tmp_path, "--part-records", 500)
    outcome = run_process(*command, launcher=TWO_PROCESSES)
    assert outcome.status == 0, outcome.stderr
    assert_equal(tmp_path, one_by_one)

"""The pretraining recipe of the mini family: what ESM-2 does, at a size a test can run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CONFIG_MAPPING

from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import CLS_ID, EOS_ID, MASK_ID, PAD_ID, STANDARD_RESIDUES, VOCABULARY, encode
from rd_hf.hub import load_family
from tests.conftest import EXAMPLE_FASTA, REPOSITORY, environment

SCRIPT = REPOSITORY / "scripts" / "pretrain_mini_family.py"
sys.path.insert(0, str(SCRIPT.parent))
pretraining = pytest.importorskip("pretraining.recipe")


def test_masking_is_esm_2s_recipe() -> None:
    """15 % of residues are chosen; of those 80 % are masked, 10 % made random, 10 % kept; nothing else moves."""
    batch = torch.from_numpy(np.stack([encode("MKTAYIAKQR" * 100)] * 200))
    batch[:, -40:] = PAD_ID
    masked, chosen = pretraining.mask_batch(batch, torch.Generator().manual_seed(0))
    residues = (batch != PAD_ID) & (batch != CLS_ID) & (batch != EOS_ID)
    assert not (chosen & ~residues).any()
    assert torch.equal(masked[~chosen], batch[~chosen])
    # 192,000 residues: four standard deviations are 0.0033 of the share and 0.0094 of a share of the chosen.
    assert float(chosen.sum() / residues.sum()) == pytest.approx(0.15, abs=0.0033)
    is_mask = masked[chosen] == MASK_ID
    assert float(is_mask.float().mean()) == pytest.approx(0.8, abs=0.0094)
    kept = masked[chosen] == batch[chosen]
    # A twentieth of the random residues are what was there before.
    assert float(kept.float().mean()) == pytest.approx(0.105, abs=0.0094)
    standard = {VOCABULARY.index(residue) for residue in STANDARD_RESIDUES}
    assert set(masked[chosen][~is_mask].tolist()) <= standard


def test_the_schedule_warms_up_and_decays() -> None:
    factors = [pretraining.schedule(step, 100, 10) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] >= 0.01


def test_crops_are_windows_of_their_sequences() -> None:
    tokens = [encode("ACDEFGHIKLMNPQRSTVWY" * 10), encode("MK")]
    batch = pretraining.crop_batch(tokens, np.array([0, 1, 0]), 64, np.random.default_rng(0))
    assert batch.shape == (3, 64)
    text = "".join(VOCABULARY[token] for token in tokens[0])
    assert "".join(VOCABULARY[int(token)] for token in batch[0]) in text
    assert batch[1].tolist() == [*tokens[1].tolist(), *[PAD_ID] * 60]


def test_the_unigram_entropy_of_even_residues_is_the_log_of_their_number() -> None:
    assert pretraining.unigram_entropy([encode(STANDARD_RESIDUES)]) == pytest.approx(math.log(20))


@pytest.mark.parametrize(
    ("family", "dims"),
    [("esm2", {"0.3M": 64, "1.2M": 128, "2.7M": 192}), ("esmc", {"C0.3M": 64, "C1.3M": 128})],
)
def test_a_family_is_trained_assembled_and_kept(tmp_path: Path, family: str, dims: dict[str, int]) -> None:
    if family == "esmc" and family not in CONFIG_MAPPING:
        pytest.skip(f"this release of transformers has no {family}")
    records = [record for record in read_fasta(EXAMPLE_FASTA) if len(record.sequence) < 150][:40]
    fasta = tmp_path / "few.fasta"
    fasta.write_text("".join(f">{record.id}\n{record.sequence}\n" for record in records))
    command = [sys.executable, str(SCRIPT), "--data", str(fasta), "--output", str(tmp_path / "family")]
    command += ["--family", family] if family != "esm2" else []
    command += [
        "--steps",
        "2",
        "--batch",
        "4",
        "--crop",
        "32",
        "--final-crop",
        "64",
        "--held-out",
        "10",
        "--no-compile",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "family" / list(dims)[-1] / "pretraining.json").read_text())
    assert report["sequences"] == 30
    assert 0 < report["validation_loss"] < 10
    model = load_family(tmp_path / "family" / "family")
    assert model.config.nested_dims == dims
    assert {backbone.config.model_type.removesuffix("2") for backbone in model.backbones} == {family.removesuffix("2")}
    assert model.config.levels[0]["pretraining"]["steps"] == 2

    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment())
    assert again.stdout.count("kept") == len(dims)

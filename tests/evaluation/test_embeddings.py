"""Pooled states: equal to single forward passes, computed once, kept by sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import EsmConfig, EsmModel

from rd_hf.data.batching import collate
from rd_hf.data.records import InputError
from rd_hf.evaluation import embeddings, families
from rd_hf.evaluation.assays import Assay
from rd_hf.evaluation.embeddings import PooledStates, embed_assay, embed_proteins
from rd_hf.evaluation.families import Family, fingerprint, fitting_moments, residue_states
from rd_hf.evaluation.options import AssayOptions
from tests.conftest import backbone_settings
from tests.hub.layouts import LAYOUTS, Layout, Size, write_repo

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMLEDPVDAFKLMRQ", "ACDEFGHIKLMNPQRSTVWY"]


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch):
    """Counts the sequences that go through a model."""
    calls: list[int] = []
    original = residue_states

    def counting(family: Family, sequences):
        calls.append(len(sequences))
        return original(family, sequences)

    monkeypatch.setattr(embeddings, "residue_states", counting)
    return calls


def test_pooled_states_equal_one_forward_pass_a_variant(
    tiny_family: Family, assay: Assay, pooled: PooledStates
) -> None:
    def states(sequence: str) -> np.ndarray:
        with torch.no_grad():
            output = tiny_family.model(*collate([sequence]), output_backbone_states=True)
        return torch.cat(output.backbone_states, dim=-1)[0, 1:-1].numpy()  # without cls and eos

    wild_type = states(assay.wild_type)
    for row in (0, 50, 157):
        own, positions = states(assay.sequences[row]), list(assay.positions[row])
        for pooling, expected in (
            ("mean", own.mean(axis=0)),
            ("site", own[positions].mean(axis=0)),
            ("difference", (own[positions] - wild_type[positions]).mean(axis=0)),
        ):
            # Batched against single attention in float32; states are of order 1.
            np.testing.assert_allclose(getattr(pooled, pooling)[row], expected, rtol=0, atol=5e-6)


def test_unknown_pooling_is_refused() -> None:
    with pytest.raises(ValueError, match="pooling must be one of mean, site, difference, not 'max'"):
        AssayOptions(pooling=("mean", "max"))


def test_cached_variants_are_not_embedded_again(
    tiny_family: Family, assay: Assay, pooled: PooledStates, tmp_path: Path, no_forward: list[int]
) -> None:
    first = embed_assay(tiny_family, assay, tmp_path)
    assert sum(no_forward) == len(assay.mutants) + 1  # and the wild type
    no_forward.clear()
    again = embed_assay(tiny_family, assay, tmp_path)
    assert sum(no_forward) == 1
    np.testing.assert_array_equal(first.mean, again.mean)
    np.testing.assert_array_equal(first.site, again.site)


def test_a_stopped_run_keeps_what_it_had(
    tiny_family: Family, assay: Assay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_forward: list[int]
) -> None:
    monkeypatch.setattr(embeddings, "SHARD_VARIANTS", 40)
    embed_assay(tiny_family, assay, tmp_path)
    files = sorted(tmp_path.rglob("states-*.safetensors"))
    assert len(files) == 4
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:100])  # cut short
    no_forward.clear()
    embed_assay(tiny_family, assay, tmp_path)
    assert 1 + 38 + 40 <= sum(no_forward) <= 1 + 40 + 40
    assert not list(tmp_path.rglob("*.tmp"))


def test_states_do_not_depend_on_what_was_kept_before(tiny_family: Family, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    letters = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
    sequences = ["".join(generator.choice(letters, size)) for size in generator.integers(15, 90, 40)]
    names = [f"p{number}" for number in range(40)]
    embed_proteins(tiny_family, names[::3], sequences[::3], tmp_path / "used", batch_tokens=512)
    found = [embed_proteins(tiny_family, names, sequences, tmp_path / name, 512) for name in ("used", "new")]
    np.testing.assert_array_equal(*found)


def test_states_of_other_weights_dtype_or_depth_are_kept_apart(tiny_family: Family, tiny_checkpoint: Path) -> None:
    halfway = Family.load(str(tiny_checkpoint), depth=0.5)
    assert halfway.fingerprint != tiny_family.fingerprint
    # Bases play no part: what is kept are the backbones' states.
    changed = Family.load(str(tiny_checkpoint))
    with torch.no_grad():
        changed.model.projections[0].regression.zero_()
    assert fingerprint(changed.model, 1.0) == tiny_family.fingerprint
    with torch.no_grad():
        next(changed.model.backbones.parameters()).add_(1.0)
    assert fingerprint(changed.model, 1.0) != tiny_family.fingerprint


def test_depth_picks_the_layer_of_each_backbone(tiny_checkpoint: Path) -> None:
    halfway = Family.load(str(tiny_checkpoint), depth=0.5)  # layer 1 of 2
    states, mask = residue_states(halfway, SEQUENCES)
    input_ids, attention_mask = collate(SEQUENCES)
    parts = []
    for backbone in halfway.model.backbones:
        with torch.no_grad():
            parts.append(backbone(input_ids, attention_mask, output_hidden_states=True).hidden_states[1])
    torch.testing.assert_close(states, torch.cat(parts, dim=-1))
    assert mask.sum().item() == sum(map(len, SEQUENCES))
    with pytest.raises(InputError, match="above 0"):
        Family.load(str(tiny_checkpoint), depth=0.0)


def test_a_plain_esm2_is_a_family_of_one_level(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = EsmModel(EsmConfig(**backbone_settings(32)), add_pooling_layer=False).eval()
    backbone.save_pretrained(tmp_path)
    family = Family.load(str(tmp_path))
    assert family.widths == [32]
    states, _ = residue_states(family, SEQUENCES)
    with torch.no_grad():
        expected = backbone(*collate(SEQUENCES)).last_hidden_state
    # The same weights through the wrapper; attention kernels may differ in the last bits.
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_plain_model_is_read_as_its_repo_holds_it(tmp_path: Path, layout: Layout) -> None:
    write_repo(tmp_path, layout, Size(32))
    states, _ = residue_states(Family.load(str(tmp_path)), SEQUENCES)
    plain = EsmModel.from_pretrained(tmp_path, add_pooling_layer=False)
    ids, mask = collate(SEQUENCES)
    with torch.no_grad():
        expected = plain(ids, attention_mask=mask).last_hidden_state
    # The library's activation rounds five times, on states of order one, in each of the layers.
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=str(tmp_path)):
        Family.load(str(tmp_path))


def test_moments_are_those_of_the_stacked_states_and_an_interrupted_pass_goes_on(
    tiny_family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "CHECKPOINT_SECONDS", -1.0)  # keep after every batch
    original, calls = residue_states, []

    def failing(family: Family, sequences):
        calls.append(len(sequences))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(family, sequences)

    monkeypatch.setattr(families, "residue_states", failing)
    with pytest.raises(KeyboardInterrupt):
        fitting_moments(tiny_family, SEQUENCES, tmp_path, batch_tokens=24)
    found = fitting_moments(tiny_family, SEQUENCES, tmp_path, batch_tokens=24)
    assert len(calls) == 3 + 1  # three batches of one sequence, the third twice
    rows = []
    for sequence in SEQUENCES:
        states, mask = original(tiny_family, [sequence])
        rows.append(states[mask].double())
    stacked = torch.cat(rows)
    assert found.count == len(stacked)
    torch.testing.assert_close(found.mean(), stacked.mean(dim=0))
    centred = stacked - stacked.mean(dim=0)
    # Sums of 59 rows in float64, in another order.
    torch.testing.assert_close(found.scatter(), centred.T @ centred, rtol=1e-9, atol=1e-9)

"""Sequences that share a row: each embedded as if it were alone, or the row refused."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithFlattening

from rd_hf.data.batching import collate, pack
from rd_hf.data.residues import encode
from rd_hf.hub import load_family
from rd_hf.hub.backbones import family_config
from rd_hf.model import layers_rd_esm
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION, fused_kernel_takes, packed_attention
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings
from tests.hub.layouts import ESM1B, ESM2_BIN, Size, write_repo

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "M", "ACDEFGHIKLMNPQRSTVWY" * 3, "MSDKIIHLTDDSFDTDVLKADG"]
# The first rows of a packed batch and of separate ones are products of other shapes, summed in another order: some
# tens of units in the last place; bfloat16 rounds every layer's states to 8 bits.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.05}


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> RDEsmModel:
    return RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation=PACKED_ATTENTION)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_a_packed_row_is_its_sequences_alone(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=dtype, attn_implementation=PACKED_ATTENTION)
    plain = RDEsmModel.from_pretrained(tiny_checkpoint, dtype=dtype)
    packed = pack(SEQUENCES)
    whole = model(**packed, output_backbone_states=True)
    ends = packed["cu_seq_lens_q"].tolist()
    assert whole.last_hidden_state.shape == (1, ends[-1], 64)
    for sequence, (start, stop) in zip(SEQUENCES, pairwise(ends), strict=True):
        ids, mask = collate([sequence])
        alone = plain(ids, mask).last_hidden_state[0]
        torch.testing.assert_close(
            whole.last_hidden_state[0, start:stop], alone, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype]
        )
    # Nested bit for bit here too.
    for level, width in model.config.nested_dims.items():
        assert torch.equal(model(**packed, level=level).last_hidden_state, whole.last_hidden_state[..., :width])


def test_attention_is_changed_as_often_as_one_likes(tiny_checkpoint: Path, model: RDEsmModel) -> None:
    changed = RDEsmModel.from_pretrained(tiny_checkpoint)
    packed = pack(SEQUENCES)
    for attention in ("sdpa", PACKED_ATTENTION, "eager", PACKED_ATTENTION):
        changed.set_attn_implementation(attention)
        assert {backbone.config._attn_implementation for backbone in changed.backbones} == {attention}
    assert torch.equal(changed(**packed).last_hidden_state, model(**packed).last_hidden_state)


def test_a_row_that_a_backbone_would_mix_is_refused(tiny_checkpoint: Path) -> None:
    changed = RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation=PACKED_ATTENTION)
    # What the model says of itself is not what its layers look at.
    changed.backbones[1].config._attn_implementation = "sdpa"
    with pytest.raises(ValueError, match="with sdpa attention the sequences of a packed row would see each other"):
        changed(**pack(SEQUENCES))


def test_neighbours_in_a_row_do_not_matter(model: RDEsmModel) -> None:
    first = len(SEQUENCES[0]) + 2
    a = model(**pack([SEQUENCES[0], SEQUENCES[2]])).last_hidden_state[0, :first]
    b = model(**pack([SEQUENCES[0], SEQUENCES[2][::-1]])).last_hidden_state[0, :first]
    # The same shapes, so the same sums: not one bit of the neighbour gets through.
    assert torch.equal(a, b)


def test_the_attention_pads_as_usual_where_a_batch_is_not_packed(model: RDEsmModel, tiny_checkpoint: Path) -> None:
    ids, mask = collate(SEQUENCES)
    plain = RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation="sdpa")
    torch.testing.assert_close(
        model(ids, mask).last_hidden_state, plain(ids, mask).last_hidden_state, atol=1e-6, rtol=1e-6
    )


def test_transformers_own_collator_packs_too(model: RDEsmModel) -> None:
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    batch = collator([{"input_ids": encode(sequence).tolist()} for sequence in SEQUENCES])
    batch.pop("labels", None)
    assert torch.equal(model(**batch).last_hidden_state, model(**pack(SEQUENCES)).last_hidden_state)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_that_would_leak_is_refused(tiny_checkpoint: Path, attention: str) -> None:
    model = RDEsmModel.from_pretrained(tiny_checkpoint, attn_implementation=attention)
    with pytest.raises(ValueError, match=f"with {attention} attention .* attn_implementation='rd_esm_packed'"):
        model(**pack(SEQUENCES))


def test_rows_that_mean_something_else_are_refused(model: RDEsmModel) -> None:
    packed = pack(SEQUENCES)
    ids = packed["input_ids"]
    with pytest.raises(ValueError, match="cu_seq_lens_q from 0 to its length"):
        model(**{**packed, "input_ids": ids[:, 1:]})
    with pytest.raises(ValueError, match="with attention_mask"):
        model(**packed, attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="need cu_seq_lens_q"):
        model(ids, position_ids=torch.arange(ids.shape[1]).unsqueeze(0))
    with pytest.raises(ValueError, match="<mask>"):
        model(**{**packed, "input_ids": ids.masked_fill(ids == 20, 32)})
    with pytest.raises(TypeError, match="unexpected keyword argument 'cu_seqlens'"):
        model(ids, cu_seqlens=packed["cu_seq_lens_q"])


def test_on_cuda_the_fused_kernel_is_called_with_what_it_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulation of torch.nn.attention.varlen.varlen_attn, in its layout, stands in for the kernel."""
    import torch.nn.attention.varlen as varlen

    calls = []

    def emulated(q, k, v, cu_q, cu_k, max_q, max_k, *, scale=None):  # type: ignore[no-untyped-def]
        calls.append((tuple(q.shape), max_q, max_k, scale))
        assert q.is_contiguous()
        assert torch.equal(cu_q, cu_k)
        parts = []
        for start, stop in pairwise(cu_q.tolist()):
            weights = torch.einsum("qhd,khd->hqk", q[start:stop].float(), k[start:stop].float()) * scale
            parts.append(torch.einsum("hqk,khd->qhd", weights.softmax(-1), v[start:stop].float()))
        return torch.cat(parts).to(q.dtype)

    monkeypatch.setattr(varlen, "varlen_attn", emulated)
    asked = []

    def takes(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
        asked.append((dtype, head_width))
        return device.type == "cuda"

    monkeypatch.setattr(layers_rd_esm, "fused_kernel_takes", takes)
    query, key, value = (torch.randn(1, 4, 9, 8, dtype=torch.bfloat16) for _ in range(3))
    ends = torch.tensor([0, 2, 9], dtype=torch.int32)
    packing = {"scaling": 1.0, "cu_seq_lens_q": ends, "max_length_q": 7}
    expected, _ = packed_attention(torch.nn.Module(), query, key, value, **packing)

    class OnCuda(torch.Tensor):
        """A tensor that says it lies on a GPU."""

        device = torch.device("cuda")

    found, weights = packed_attention(torch.nn.Module(), query.as_subclass(OnCuda), key, value, **packing)
    assert weights is None
    assert calls == [((9, 4, 8), 7, 7, 1.0)]
    assert asked == [(torch.bfloat16, 8)] * 2
    # Both round to bfloat16 at the end.
    torch.testing.assert_close(torch.Tensor(found.float()), expected.float(), atol=0.02, rtol=0.02)
    assert "torch.nn.attention.varlen" in sys.modules


def test_the_fused_kernel_is_asked_for_what_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Uncached: what the machine is said to have changes here.
    takes, gpu = fused_kernel_takes.__wrapped__, torch.device("cuda")
    capability = [(8, 0)]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability[0])
    assert takes(gpu, torch.bfloat16, 64)
    assert takes(gpu, torch.float16, 24)
    assert not takes(gpu, torch.float32, 64)
    assert not takes(gpu, torch.bfloat16, 20)
    assert not takes(torch.device("cpu"), torch.bfloat16, 64)
    # A T4, and torch 2.6.
    capability[0] = (7, 5)
    assert not takes(gpu, torch.float16, 64)
    capability[0] = (9, 0)
    monkeypatch.setattr(layers_rd_esm, "find_spec", lambda name: None)
    assert not takes(gpu, torch.bfloat16, 64)


# -- absolute positions, which start behind the padding's ---------------------------------------------------------


def family(kinds: list[str], limit: int = 1026) -> RDEsmModel:
    """Levels with positions of each kind, as ESM-1b (absolute, a norm before the layers) and ESM-2 (rotary) have."""
    torch.manual_seed(0)
    levels = [
        {
            "name": f"L{index}",
            "backbone": {
                **backbone_settings(32 + 16 * index),
                "position_embedding_type": kind,
                "emb_layer_norm_before": kind == "absolute",
                "max_position_embeddings": limit,
            },
        }
        for index, kind in enumerate(kinds)
    ]
    model = RDEsmModel._from_config(RDEsmConfig(levels=levels), attn_implementation=PACKED_ATTENTION).eval()
    with torch.no_grad():
        for buffer in model.projections.buffers():
            buffer.copy_(torch.randn_like(buffer) / buffer.shape[0] ** 0.5)
        for backbone, kind in zip(model.backbones, kinds, strict=True):
            if kind == "absolute":
                # Positions that matter as much as the residues do.
                torch.nn.init.normal_(backbone.embeddings.position_embeddings.weight)
    return model


@torch.no_grad()
def check_rows(model: RDEsmModel, packed: dict[str, torch.Tensor]) -> None:
    """Each sequence of a packed row as it is alone and as a row of a padded batch."""
    whole = model(**packed).last_hidden_state[0]
    padded = model(*collate(SEQUENCES)).last_hidden_state
    ends = packed["cu_seq_lens_q"].tolist()
    for row, (sequence, (start, stop)) in enumerate(zip(SEQUENCES, pairwise(ends), strict=True)):
        alone = model(*collate([sequence])).last_hidden_state[0]
        for other in (alone, padded[row, : stop - start]):
            torch.testing.assert_close(whole[start:stop], other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize(
    "kinds", [["absolute"], ["absolute", "absolute"], ["rotary", "absolute"], ["absolute", "rotary"]]
)
def test_positions_are_counted_as_each_backbone_counts_them(kinds: list[str]) -> None:
    model = family(kinds)
    check_rows(model, pack(SEQUENCES))
    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_tensors="pt")
    batch = collator([{"input_ids": encode(sequence).tolist()} for sequence in SEQUENCES])
    batch.pop("labels", None)
    check_rows(model, batch)


def test_a_row_may_be_longer_than_the_table_and_a_sequence_may_not() -> None:
    # Positions 2 to 63: the longest of the sequences has 62 tokens.
    model = family(["rotary", "absolute"], limit=64)
    packed = pack(SEQUENCES)
    assert packed["input_ids"].shape[1] > 64
    check_rows(model, packed)
    longer = [*SEQUENCES, SEQUENCES[2] + "M"]
    for batch in (pack(longer), dict(zip(("input_ids", "attention_mask"), collate(longer), strict=True))):
        with pytest.raises(
            ValueError, match=r"absolute positions has 62 of them, cls and eos included, .* here has 63"
        ):
            model(**batch)
        model(**batch, level="L0")


def test_esm1b_as_it_lies_on_the_hub_is_packed_right(tmp_path: Path) -> None:
    for name, layout in (("a", ESM2_BIN), ("b", ESM1B)):
        write_repo(tmp_path / name, layout, Size(16))
    config = family_config([f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}"], [4])
    check_rows(load_family(config, attn_implementation=PACKED_ATTENTION), pack(SEQUENCES))

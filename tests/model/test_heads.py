"""Heads on nested embeddings: what they compute, are saved as, loaded from and refused for."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    pipeline,
)

from rd_hf.data.batching import pack
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.model.heads import IDS, KINDS, LEVELS, WIDTHS, logits, mean_by_hand, random_head, save_family, with_heads
from tests.model.test_earlier_versions import OLD, VERSION_0_2_0

AUTO: dict[str, Any] = {"sequences": AutoModelForSequenceClassification, "residues": AutoModelForTokenClassification}
OF = pytest.mark.parametrize("of", list(KINDS))
FORMS = pytest.mark.parametrize("full", [False, True], ids=["bases", "full"])
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "GSHMASMTGG"]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return save_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(scope="module")
def headed(family: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A head for each level, of sequences and of residues; the middle level was chosen."""
    folder = tmp_path_factory.mktemp("headed")
    for of in KINDS:
        model = with_heads(family[False], of)
        model.choose_level("L1")
        model.save_pretrained(folder / of, backbones=False)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(family[False] / name, folder / of)
    return {of: folder / of for of in KINDS}


def edited(folder: Path, target: Path, **fields: Any) -> Path:
    """A copy of a checkpoint with other fields in its config."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | fields))
    return target


# What is computed


@OF
@pytest.mark.parametrize("level", LEVELS)
def test_a_head_is_linear_on_standardised_means_or_residues(family: dict[bool, Path], of: str, level: str) -> None:
    model = with_heads(family[True], of).eval()
    with torch.no_grad():
        embedding = RDEsmModel.from_pretrained(family[True], level=level)(IDS).last_hidden_state
    head = random_head(embedding.shape[-1], 3, LEVELS.index(level))
    rows = mean_by_hand(embedding, IDS) if of == "sequences" else embedding
    expected = ((rows - head["mean"]) / head["scale"]) @ head["weight"].T + head["bias"]
    # Sums of some thirty float32 numbers of order one, in another order.
    torch.testing.assert_close(logits(model, level=level), expected, atol=1e-5, rtol=1e-5)


@OF
def test_batched_equals_single_and_padded_equals_unpadded(headed: dict[str, Path], of: str) -> None:
    model = KINDS[of].from_pretrained(headed[of], level="L2").eval()
    # Before transformers 5.5 token dropout of a mask depends on the padding beside it.
    ids = IDS.where(IDS != 32, 5)
    together = logits(model, ids)
    for row, tokens in enumerate(ids):
        short = tokens[tokens != 1][None]
        alone = logits(model, short)[0]
        batched = together[row] if of == "sequences" else together[row, : short.shape[1]]
        # Attention adds up in another order where a batch is padded.
        torch.testing.assert_close(alone, batched, atol=1e-5, rtol=1e-5)
    left = torch.tensor([[1, 1, *ids[1, :7].tolist()]])
    found = logits(model, left, attention_mask=left.ne(1).long())[0]
    expected = together[1] if of == "sequences" else together[1, :7]
    torch.testing.assert_close(found if of == "sequences" else found[2:], expected, atol=1e-5, rtol=1e-5)


@OF
def test_a_mask_that_hides_residues_hides_them_from_the_mean(headed: dict[str, Path], of: str) -> None:
    model = KINDS[of].from_pretrained(headed[of])
    mask = IDS.ne(1).long()
    mask[0, 5:] = 0
    found = logits(model, IDS[:1], attention_mask=mask[:1])
    expected = logits(model, IDS[:1, :5])
    torch.testing.assert_close(found if of == "sequences" else found[:, :5], expected, atol=1e-5, rtol=1e-5)


@OF
def test_packed_rows_and_windows_are_taken_apart(headed: dict[str, Path], of: str) -> None:
    packed = KINDS[of].from_pretrained(headed[of], attn_implementation="rd_esm_packed")
    model = KINDS[of].from_pretrained(headed[of])
    tokenizer = AutoTokenizer.from_pretrained(headed[of], trust_remote_code=True)
    ids = [tokenizer([protein], return_tensors="pt")["input_ids"] for protein in PROTEINS]
    rows = pack(PROTEINS)
    found = logits(packed, rows.pop("input_ids"), **rows)
    expected = torch.cat([logits(model, one) for one in ids], dim=0 if of == "sequences" else 1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # A sequence that is run in windows has as many rows as one that is not.
    windowed = KINDS[of].from_pretrained(headed[of], long_input="window", max_residues=12)
    assert logits(windowed, ids[0]).shape == logits(model, ids[0]).shape
    with pytest.raises(ValueError, match="12"):
        logits(KINDS[of].from_pretrained(headed[of], max_residues=12), ids[0])


@OF
def test_one_backbone_at_a_time_gives_the_same_bits(headed: dict[str, Path], of: str) -> None:
    sequential = KINDS[of].from_pretrained(headed[of], sequential=True)
    assert len(sequential.backbones) == 0
    assert torch.equal(logits(sequential), logits(KINDS[of].from_pretrained(headed[of])))


@OF
def test_in_one_pass_a_head_answers_of_what_is_read_out(mini_checkpoint: Path, of: str, tmp_path: Path) -> None:
    model = KINDS[of].from_pretrained(mini_checkpoint, num_labels=2)
    for level, width in model.config.nested_dims.items():
        model.set_head(level, **random_head(width, 2))
    model.choose_level("1.2M")
    model.save_pretrained(tmp_path)
    near = KINDS[of].from_pretrained(tmp_path, one_pass=True)
    assert (near.answering_level, near.first_backbone) == ("1.2M", 2)
    with torch.no_grad():
        embedding = RDEsmModel.from_pretrained(mini_checkpoint, one_pass=True)(IDS, level="1.2M").last_hidden_state
    rows = mean_by_hand(embedding, IDS) if of == "sequences" else embedding
    with torch.no_grad():
        expected = near.classifier(rows, 1)
    torch.testing.assert_close(logits(near), expected, atol=1e-5, rtol=1e-5)


@OF
def test_a_head_is_float32_whichever_dtype_the_backbones_have(headed: dict[str, Path], of: str) -> None:
    model = KINDS[of].from_pretrained(headed[of], dtype=torch.bfloat16, device_map="cpu")
    stored = load_file(headed[of] / "model.safetensors")
    assert model.dtype == torch.bfloat16
    assert "classifier" in model.hf_device_map

    def is_whole() -> bool:
        state = {f"classifier.{name}": value for name, value in model.classifier.state_dict().items()}
        return all(torch.equal(value, stored[name]) for name, value in state.items())

    assert is_whole()
    for cast in (torch.float16, torch.bfloat16):
        model.to(cast)
        assert is_whole()
    # What the head is given was not rounded to bfloat16 on the way.
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
        assert states[0].dtype == torch.bfloat16
        embedding = model.forward_window([{"input_ids": IDS}], "L1")[0].last_hidden_state
    assert not torch.equal(embedding, embedding.bfloat16().float())
    assert logits(model).dtype == torch.float32
    model(IDS).logits.sum().backward()
    model.half()
    weight = model.classifier[1].weight
    assert weight.grad.dtype == weight.dtype == torch.float32


def test_a_sequence_without_residues_is_refused(headed: dict[str, Path]) -> None:
    model = KINDS["sequences"].from_pretrained(headed["sequences"])
    with pytest.raises(ValueError, match="has no residues to take a mean over"):
        logits(model, torch.tensor([[0, 20, 2], [0, 2, 1]]))
    with pytest.raises(ValueError, match="input_ids hold <unk>"):
        logits(model, torch.tensor([[0, 3, 20, 2]]))


# Losses


def loss(labels: Any, count: int, of: str = "sequences", problem: str | None = None, rows: int = 3) -> tuple[Any, Any]:
    """The loss of labels for random logits, the logits with their gradient, and the model's config."""
    torch.manual_seed(3)
    config = RDEsmConfig(levels=[{"name": "L0", "backbone": BACKBONE}], num_labels=count, problem_type=problem)
    model = KINDS[of](config)
    values = torch.randn(rows, count, requires_grad=True)
    found = model.loss(values, labels)
    found.backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    return found, (values.detach(), model.config.problem_type)


from tests.conftest import backbone_settings  # noqa: E402

BACKBONE = backbone_settings(16)
NAN = float("nan")


def test_one_class_of_several() -> None:
    found, (values, problem) = loss(torch.tensor([2, -100, 0]), 3)
    assert problem == "single_label_classification"
    expected = functional.cross_entropy(values[[0, 2]], torch.tensor([2, 0]))
    torch.testing.assert_close(found, expected)


def test_several_classes_at_once() -> None:
    labels = torch.tensor([[1.0, 0.0], [NAN, 1.0], [-100.0, 0.0]])
    found, (values, problem) = loss(labels, 2)
    assert problem == "multi_label_classification"
    known = torch.tensor([[True, True], [False, True], [False, True]])
    torch.testing.assert_close(found, functional.binary_cross_entropy_with_logits(values[known], labels[known]))


def test_numbers() -> None:
    found, (values, problem) = loss(torch.tensor([-100.0, NAN, 2.0]), 1)
    assert problem == "regression"
    # -100 is a number as any other.
    torch.testing.assert_close(found, functional.mse_loss(values[[0, 2], 0], torch.tensor([-100.0, 2.0])))
    labels = torch.tensor([[1.0, NAN], [0.5, 2.0], [NAN, NAN]])
    found, (values, problem) = loss(labels, 2, problem="regression")
    assert problem == "regression"
    torch.testing.assert_close(found, functional.mse_loss(values[~labels.isnan()], labels[~labels.isnan()]))


@pytest.mark.parametrize(
    ("labels", "count", "problem"),
    [
        (torch.full((3,), -100), 3, "single_label_classification"),
        (torch.full((3, 2), NAN), 2, "regression"),
        (torch.full((3, 2), NAN), 2, "multi_label_classification"),
    ],
)
def test_a_batch_without_labels_has_no_loss(labels: torch.Tensor, count: int, problem: str) -> None:
    assert loss(labels, count, problem=problem)[0] == 0


@pytest.mark.parametrize(
    ("labels", "count", "problem", "message"),
    [
        (torch.tensor([0, 3, 1]), 3, None, r"labels must be classes from 0 to 2, or -100 for one that is missing"),
        (torch.tensor([0, -1, 1]), 3, None, r"labels must be classes from 0 to 2"),
        (torch.tensor([0, 1]), 3, None, r"labels of shape \(2,\) do not fit: single_label_classification .* 1 a row"),
        (torch.ones(3), 2, "regression", r"labels of shape \(3,\) do not fit: regression with num_labels=2 needs 2 a"),
    ],
)
def test_labels_that_do_not_fit_are_said(labels: torch.Tensor, count: int, problem: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loss(labels, count, problem=problem)


def test_of_residues_cls_eos_and_padding_have_no_label(headed: dict[str, Path]) -> None:
    model = KINDS["residues"].from_pretrained(headed["residues"])
    residues = (IDS > 2) & (IDS != 1)
    labels = torch.where(residues, IDS % 3, 0)
    output = model(IDS, labels=labels)
    expected = functional.cross_entropy(output.logits[residues], labels[residues])
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match=r"labels of shape \(3, 9\) do not fit input_ids of shape \(3, 10\)"):
        model(IDS, labels=labels[:, 1:])


def test_an_output_is_that_of_transformers(headed: dict[str, Path]) -> None:
    for of, kind in KINDS.items():
        model = kind.from_pretrained(headed[of]).eval()
        labels = torch.zeros(3, dtype=torch.long) if of == "sequences" else torch.zeros_like(IDS)
        output = model(IDS, labels=labels, output_hidden_states=True)
        assert type(output).__name__ == ("SequenceClassifierOutput" if of == "sequences" else "TokenClassifierOutput")
        assert len(output.hidden_states) == 2 * 3
        plain = model(IDS, labels=labels, return_dict=False)
        assert torch.equal(plain[0], output.loss)
        assert torch.equal(plain[1], output.logits)


# Checkpoints


@OF
@FORMS
def test_every_level_comes_back_bit_for_bit(family: dict[bool, Path], of: str, full: bool, tmp_path: Path) -> None:
    model = with_heads(family[full], of)
    model.choose_level("L1")
    model.save_pretrained(tmp_path)
    assert RDEsmConfig.from_pretrained(tmp_path).backbones_in_checkpoint == full
    for count, level in enumerate(LEVELS, start=1):
        again = KINDS[of].from_pretrained(tmp_path, level=level)
        assert (len(again.backbones), again.answering_level) == (count, level)
        assert torch.equal(logits(again), logits(model, level=level))
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    chosen = AUTO[of].from_pretrained(tmp_path, trust_remote_code=True, exact_activation=True)
    assert (len(chosen.backbones), chosen.answering_level) == (2, "L1")
    assert torch.equal(logits(chosen), logits(KINDS[of].from_pretrained(tmp_path, exact_activation=True)))
    # The level that answers goes with what is saved again; one that was asked for is the answer of its copy.
    for level, expected in ((None, "L1"), ("L2", "L2")):
        asked = {} if level is None else {"level": level}
        AUTO[of].from_pretrained(tmp_path, trust_remote_code=True, **asked).save_pretrained(tmp_path / "again")
        assert KINDS[of].from_pretrained(tmp_path / "again").answering_level == expected


@OF
def test_copies_and_pickles_answer_alike(headed: dict[str, Path], of: str) -> None:
    model = KINDS[of].from_pretrained(headed[of])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(other), logits(model))
        assert other.answering_level == "L1"


@OF
@pytest.mark.parametrize("level", [None, "0.3M"])
def test_a_base_checkpoint_gives_a_fresh_head_and_says_so(
    mini_checkpoint: Path, of: str, level: str | None, heard: list[str]
) -> None:
    settings = {} if level is None else {"level": level}
    model = KINDS[of].from_pretrained(mini_checkpoint, num_labels=3, **settings)
    (said,) = heard
    assert f"holds no classifier.{of}.{0 if level else 2}.bias, " in said
    assert said.endswith(f"for this {KINDS[of].__name__}: they start afresh, train them first")
    head = model.classifier[0 if level else 2]
    assert head.weight.shape == (3, 64 if level else 192)
    assert 0.015 < head.weight.std() < 0.025
    assert not head.bias.any()
    auto = AUTO[of].from_pretrained(mini_checkpoint, trust_remote_code=True, num_labels=3, **settings)
    assert type(auto).__name__ == KINDS[of].__name__
    assert auto.config.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}
    assert logits(auto).shape == ((3, 3) if of == "sequences" else (3, 10, 3))


@OF
@pytest.mark.parametrize("folder", [OLD, VERSION_0_2_0], ids=["0.1.0", "0.2.0"])
def test_checkpoints_of_earlier_versions_get_a_fresh_head(folder: Path, of: str, heard: list[str]) -> None:
    model = KINDS[of].from_pretrained(folder, num_labels=2, level="L1")
    assert len(heard) == 1
    assert logits(model).isfinite().all()


@OF
def test_who_wants_embeddings_is_not_bothered_by_heads(
    headed: dict[str, Path], family: dict[bool, Path], of: str, heard: list[str], tmp_path: Path
) -> None:
    plain, info = AutoModel.from_pretrained(
        headed[of], trust_remote_code=True, exact_activation=True, output_loading_info=True
    )
    expected = RDEsmModel.from_pretrained(family[False], exact_activation=True)
    with torch.no_grad():
        assert torch.equal(plain(IDS).last_hidden_state, expected(IDS).last_hidden_state)
    assert not info["unexpected_keys"]
    RDEsmModel.from_pretrained(headed[of]).save_pretrained(tmp_path)
    assert heard == []
    assert "heads" not in json.loads((tmp_path / "config.json").read_text())


def test_a_head_of_residues_is_not_taken_for_one_of_sequences(headed: dict[str, Path], heard: list[str]) -> None:
    model = RDEsmForSequenceClassification.from_pretrained(headed["residues"])
    assert model.config.heads["levels"] == ["L2"]
    assert any("holds no classifier.sequences.2.bias" in line for line in heard)


def test_a_level_without_a_head_is_said(family: dict[bool, Path], tmp_path: Path, heard: list[str]) -> None:
    model = with_heads(family[True], "sequences", levels=["L0", "L2"])
    assert model.config.heads["levels"] == ["L0", "L2"]
    with pytest.raises(
        ValueError, match=r"level L1 has no head in this model, which has those of L0, L2: load it with"
    ):
        model(IDS, level="L1")
    with pytest.raises(ValueError, match="unknown level 'L7'"):
        model.choose_level("L7")
    model.save_pretrained(tmp_path)
    heard.clear()
    assert RDEsmForSequenceClassification.from_pretrained(tmp_path, level="L1").config.heads["levels"] == ["L0", "L1"]
    assert "holds no classifier.sequences.1.bias" in heard[0]
    assert "sequences.0" not in heard[0]


def test_a_config_that_ends_at_a_smaller_level_keeps_the_heads_up_to_it(headed: dict[str, Path]) -> None:
    config = RDEsmConfig.from_pretrained(headed["sequences"])
    for level, kept, answering in (("L2", LEVELS, "L1"), ("L1", LEVELS[:2], "L1"), ("L0", LEVELS[:1], None)):
        heads = config.up_to(level).heads
        assert (heads["levels"], list(heads["bases"]), heads.get("level")) == (kept, kept, answering)


# What is refused


def test_a_head_that_does_not_fit_is_refused(family: dict[bool, Path]) -> None:
    model = RDEsmForSequenceClassification.from_pretrained(family[True], num_labels=3)
    good = random_head(WIDTHS[1], 3)
    for name, value, message in (
        ("weight", torch.randn(3, WIDTHS[2]), r"the weight of a head for level L1 has shape \(3, 32\), not \(3, 24\)"),
        ("weight", torch.randn(2, WIDTHS[1]), r"the weight of a head for level L1 has shape \(2, 24\), not \(3, 24\)"),
        ("bias", torch.tensor([0.0, NAN, 0.0]), "the bias of the head for level L1 holds NaN"),
        ("scale", torch.zeros(WIDTHS[1]), "the scale of the head for level L1 must be above 0"),
        ("bases", "0" * 64, "this head was fitted on embeddings of other bases than level L1's: fit it again"),
    ):
        with pytest.raises(ValueError, match=message):
            model.set_head("L1", **{**good, name: value})
    assert model.config.heads["levels"] == ["L2"]
    model.set_head("L1", **good, bases=model.bases_fingerprint("L1"))
    assert model.config.heads["levels"] == ["L1", "L2"]
    with pytest.raises(ValueError, match="num_labels must be 1 or more"):
        RDEsmForSequenceClassification.from_pretrained(family[True], num_labels=0)


def test_heads_beside_other_bases_are_refused(headed: dict[str, Path], tmp_path: Path) -> None:
    """As they would be after bases were fitted anew and only their file was exchanged."""
    folder = Path(shutil.copytree(headed["sequences"], tmp_path / "model"))
    path = folder / "model.safetensors"
    state = load_file(path)
    state["projections.1.directions"] += 1
    save_file(state, path, metadata={"format": "pt"})
    message = r"the head of level L2 in .* was made for other bases than lie there: fit it again on embeddings of this"
    with pytest.raises(ValueError, match=message):
        RDEsmForSequenceClassification.from_pretrained(folder, level="L2")
    # That basis has no part in smaller levels.
    assert logits(RDEsmForSequenceClassification.from_pretrained(folder)).isfinite().all()


def test_heads_of_another_size_are_refused_or_start_anew(headed: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"classifier\.sequences\.0\.bias has another shape .*ignore_mismatched_sizes"):
        RDEsmForSequenceClassification.from_pretrained(headed["sequences"], num_labels=5)
    model = RDEsmForSequenceClassification.from_pretrained(
        headed["sequences"], num_labels=5, ignore_mismatched_sizes=True
    )
    assert model.classifier[1].weight.std() < 0.03
    assert logits(model).shape == (3, 5)


@pytest.mark.parametrize("name", ["weight", "mean"])
def test_a_head_that_is_not_finite_is_refused(headed: dict[str, Path], name: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(headed["residues"], tmp_path / "model"))
    state = load_file(folder / "model.safetensors")
    state[f"classifier.residues.1.{name}"][..., 0] = NAN
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"the head of level L1 holds NaN or infinite numbers \({name}\)"):
        RDEsmForTokenClassification.from_pretrained(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": []}, "heads in .* must be an object"),
        ({"heads": {"of": "atoms", "levels": []}}, r"heads\.of .* sequences or residues"),
        ({"heads": {"of": "residues", "levels": ["L9"]}}, r"heads\.levels .* a list of levels, of L0, L1, L2"),
        ({"heads": {"of": "residues", "levels": ["L0"], "level": "L2"}}, r"heads\.level .* one of heads\.levels, L0"),
        ({"heads": {"of": "residues", "levels": ["L0"], "bases": "x"}}, r"heads\.bases .* an object"),
        ({"problem_type": "guessing"}, "problem_type|guessing"),
    ],
)
def test_fields_of_a_config_that_are_none_are_named(
    headed: dict[str, Path], fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        RDEsmConfig.from_pretrained(edited(headed["sequences"], tmp_path / "model", **fields))


# Pipelines


def test_the_pipeline_for_sequences_gives_the_models_numbers(headed: dict[str, Path], tmp_path: Path) -> None:
    names = {"id2label": {"0": "cytosol", "1": "membrane", "2": "nucleus"}}
    folder = edited(headed["sequences"], tmp_path / "model", **names)
    model = RDEsmForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    expected = logits(model, **tokenizer(PROTEINS, padding=True, return_tensors="pt")).softmax(dim=-1)
    found = pipeline("text-classification", model=str(folder), trust_remote_code=True)(PROTEINS, top_k=None)
    for row, answer in zip(expected, found, strict=True):
        assert [one["label"] for one in answer] == [
            names["id2label"][str(index)] for index in row.argsort(descending=True).tolist()
        ]
        torch.testing.assert_close(
            torch.tensor([one["score"] for one in answer]), row.sort(descending=True).values, atol=1e-5, rtol=1e-5
        )


def test_the_pipeline_gives_numbers_of_a_regression_as_they_are(family: dict[bool, Path], tmp_path: Path) -> None:
    model = with_heads(family[True], "sequences", labels=1)
    model.config.problem_type = "regression"
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(family[False] / name, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=True)
    expected = [float(logits(model, **tokenizer([protein], return_tensors="pt"))) for protein in PROTEINS]
    answer = pipeline("text-classification", model=str(tmp_path), trust_remote_code=True)
    # Releases that know only classes are told not to squash.
    found = [one["score"] for one in answer(PROTEINS, function_to_apply="none")]
    assert found == pytest.approx(expected, abs=1e-5)
    assert [one["score"] for one in answer(PROTEINS)] == pytest.approx(expected, abs=1e-5)


def test_the_pipeline_for_residues_gives_the_models_classes(headed: dict[str, Path]) -> None:
    model = RDEsmForTokenClassification.from_pretrained(headed["residues"])
    tokenizer = AutoTokenizer.from_pretrained(headed["residues"], trust_remote_code=True)
    answer = pipeline("token-classification", model=str(headed["residues"]), trust_remote_code=True)
    for protein in PROTEINS:
        expected = logits(model, **tokenizer([protein], return_tensors="pt"))[0, 1:-1].softmax(dim=-1)
        found = answer(protein)
        assert [one["word"] for one in found] == list(protein)
        assert [one["entity"] for one in found] == [f"LABEL_{int(row.argmax())}" for row in expected]
        scores = torch.tensor([float(one["score"]) for one in found])
        torch.testing.assert_close(scores, expected.amax(dim=-1), atol=1e-5, rtol=1e-5)

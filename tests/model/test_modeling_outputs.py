"""The output is tensors and nothing else, and what is made of it by others still knows its levels."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.utils import concatenate, send_to_device
from torch.utils import _pytree as pytree
from transformers import AutoTokenizer, pipeline

from rd_hf.model.modeling_rd_esm import RDEsmModel, RDEsmModelOutput
from tests.conftest import random_model, trainer_class

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 11, 5, 2, 1, 1, 1, 1]])
DIMS = {"L0": 32, "L1": 48, "L2": 64}


@pytest.fixture(scope="module")
def model() -> RDEsmModel:
    # A traced graph has the library's own activation: so has what it is compared with.
    return random_model([32, 48, 64], exact_activation=True)


@pytest.fixture
def output(model: RDEsmModel) -> RDEsmModelOutput:
    with torch.no_grad():
        found = model(IDS, output_hidden_states=True, output_backbone_states=True)
    assert isinstance(found, RDEsmModelOutput)
    return found


def tensors_of(value: object) -> list[torch.Tensor]:
    """All leaves, which must be tensors."""
    if isinstance(value, torch.Tensor):
        return [value]
    assert isinstance(value, tuple), f"{value!r} is no tensor"
    return [leaf for part in value for leaf in tensors_of(part)]


def test_tuples_hold_tensors(model: RDEsmModel, output: RDEsmModelOutput) -> None:
    assert len(tensors_of(output.to_tuple())) == 1 + 9 + 3
    assert list(output) == ["last_hidden_state", "hidden_states", "backbone_states"]
    with torch.no_grad():
        (only,) = model(IDS, return_dict=False)
    assert torch.equal(only, output.last_hidden_state)


def through_pytree(output: RDEsmModelOutput) -> RDEsmModelOutput:
    leaves, structure = pytree.tree_flatten(output)
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return pytree.tree_unflatten(leaves, structure)


def through_a_file(output: RDEsmModelOutput) -> RDEsmModelOutput:
    file = io.BytesIO()
    torch.save(output, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# What DataParallel's gather does with the outputs of its devices, which a CPU has one of.
def gathered(output: RDEsmModelOutput) -> RDEsmModelOutput:
    halves = [pytree.tree_map(lambda tensor, i=i: tensor[i : i + 1], output) for i in range(2)]
    return type(output)((key, _join([half[key] for half in halves])) for key in halves[0])


def _join(parts: list) -> torch.Tensor | tuple:  # type: ignore[type-arg]
    if isinstance(parts[0], torch.Tensor):
        return torch.cat(parts)
    return tuple(_join(list(part)) for part in zip(*parts, strict=True))


WAYS: dict[str, Callable[[RDEsmModelOutput], RDEsmModelOutput]] = {
    "pickle": lambda output: pickle.loads(pickle.dumps(output)),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "torch.save": through_a_file,
    "pytree": through_pytree,
    "tree_map": lambda output: pytree.tree_map(torch.clone, output),
    "gather": gathered,
    "accelerate concatenate": lambda output: concatenate(
        [pytree.tree_map(lambda tensor, i=i: tensor[i : i + 1], output) for i in range(2)]
    ),
    "accelerate send_to_device": lambda output: send_to_device(output, "cpu"),
}


@pytest.mark.parametrize("way", WAYS)
def test_levels_are_known_after(output: RDEsmModelOutput, way: str) -> None:
    again = WAYS[way](output)
    assert isinstance(again, RDEsmModelOutput)
    assert again.nested_dims == DIMS
    assert torch.equal(again.last_hidden_state, output.last_hidden_state)
    assert torch.equal(again.nested("L1"), output.nested("L1"))
    assert list(again) == list(output)
    for found, expected in zip(tensors_of(again.to_tuple()), tensors_of(output.to_tuple()), strict=True):
        assert torch.equal(found, expected)


def test_a_smaller_level_knows_its_own(model: RDEsmModel) -> None:
    with torch.no_grad():
        small = pickle.loads(pickle.dumps(model(IDS, level="L1")))
    assert small.nested_dims == {"L0": 32, "L1": 48}
    with pytest.raises(ValueError, match="level 'L2' is not in this output, which holds L0, L1"):
        small.nested("L2")


@pytest.mark.parametrize("settings", [{}, {"level": "L1"}, {"output_hidden_states": True}], ids=str)
def test_tracing_gives_the_same_bits(model: RDEsmModel, settings: dict[str, object]) -> None:
    class Set(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> object:
            return self.model(ids, mask, **settings)

    mask = IDS.ne(1).long()
    with torch.no_grad():
        traced = torch.jit.trace(Set(), (IDS, mask), check_trace=False)
        found = traced(IDS, mask)
        assert torch.equal(found[0], model(IDS, mask, **settings).last_hidden_state)


def test_it_traces_as_it_is(model: RDEsmModel) -> None:
    with torch.no_grad():
        traced = torch.jit.trace(model, (IDS, IDS.ne(1).long()))
        assert torch.equal(traced(IDS, IDS.ne(1).long())[0], model(IDS).last_hidden_state)


class Rows(torch.utils.data.Dataset):
    """Rows of two lengths."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": IDS[0] if index < 2 else IDS[1, :6]}


def test_a_trainer_predicts(model: RDEsmModel, tmp_path: Path) -> None:
    trainer, arguments = trainer_class()
    settings = arguments(str(tmp_path), report_to=[], use_cpu=True, per_device_eval_batch_size=2, disable_tqdm=True)
    before = model.config.output_hidden_states
    model.config.output_hidden_states = True
    try:
        found = trainer(model=model, args=settings).predict(Rows()).predictions
    finally:
        model.config.output_hidden_states = before
    # One array, rows padded with -100 to the longest: the config says what else is left aside.
    assert found.shape == (4, 10, 64)
    with torch.no_grad():
        alone = model(IDS[1:, :6]).last_hidden_state[0]
    # A batch of two and one of one are other products: units in the last place.
    torch.testing.assert_close(torch.tensor(found[3, :6]), alone, atol=2e-5, rtol=1e-5)
    assert (found[3, 6:] == -100).all()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_feature_extraction_pipeline(mini_checkpoint: Path, batch_size: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(mini_checkpoint)
    model = RDEsmModel.from_pretrained(mini_checkpoint)
    extract = pipeline("feature-extraction", model=model, tokenizer=tokenizer, device="cpu")
    sequences = ["MKTAYIAKQR", "GSHMA", "MKTAYIAKQR"]
    found = extract(sequences, batch_size=batch_size, return_tensors=True)
    for sequence, rows in zip(sequences, found, strict=True):
        with torch.no_grad():
            alone = model(**tokenizer(sequence, return_tensors="pt")).last_hidden_state
        # Padded and alone: products of other shapes.
        torch.testing.assert_close(rows[:, : alone.shape[1]], alone, atol=2e-5, rtol=1e-5)


# -- what is sent out of the model ---------------------------------------------------------------------------------


def test_torch_export_gives_the_models_numbers() -> None:
    model, level = random_model([16, 24, 32], layers=1), "L1"
    mask = IDS.ne(1).long()
    # More than a model takes at once that is not exported.
    length = torch.export.Dim("length", min=3, max=4096)
    rows = torch.export.Dim("rows", max=64)
    with torch.no_grad():
        program = torch.export.export(
            model,
            (IDS, mask),
            {"level": level},
            dynamic_shapes={"input_ids": {0: rows, 1: length}, "attention_mask": {0: rows, 1: length}, "level": None},
        )
        for ids in (IDS, IDS[:1, :7]):
            mask = ids.ne(1).long()
            found = program.module()(ids, mask, level=level)
            assert found.nested_dims == {"L0": 16, "L1": 24}
            # Decomposed products round otherwise: some tens of units in the last place.
            torch.testing.assert_close(
                found.last_hidden_state, model(ids, mask, level=level).last_hidden_state, atol=2e-5, rtol=1e-5
            )


def test_onnx_gives_the_models_numbers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    one = random_model([16, 24], layers=1)
    mask = IDS.ne(1).long()
    axes = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("length", min=3, max=4096)}
    torch.onnx.export(
        one,
        (IDS, mask),
        str(tmp_path / "level.onnx"),
        input_names=["input_ids", "attention_mask"],
        output_names=["last_hidden_state"],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        verbose=False,
    )
    session = onnxruntime.InferenceSession(str(tmp_path / "level.onnx"), providers=["CPUExecutionProvider"])
    for ids in (IDS, IDS[:1, :7]):
        mask = ids.ne(1).long()
        (found,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = one(ids, mask).last_hidden_state
        # Another library's sums of the same float32 numbers.
        torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-4, rtol=1e-4)

"""What a save holds: backbones that were changed are never lost, and those that were not are not written again."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, EsmConfig, EsmForMaskedLM, EsmModel

from rd_hf.hub import load_family, push, push_model, save_checkpoint
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from tests.conftest import backbone_settings, trainer_class
from tests.hub.conftest import published_family

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])
WIDTHS = [16, 24]


@pytest.fixture(scope="module")
def bases_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("family")
    model = published_family(folder, WIDTHS)
    return save_checkpoint(model, folder / "bases", backbones=False)


@pytest.fixture
def model(bases_only: Path) -> RDEsmModel:
    # A plain ESM-2 that is put in computes as the others do.
    return RDEsmModel.from_pretrained(bases_only, exact_activation=True)


@pytest.fixture
def heard() -> Iterator[list[str]]:
    """Warnings of the model's code, whichever release of transformers sends them where."""
    found: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    ear = Ear()
    logger = logging.getLogger("rd_hf.model.saving_rd_esm")
    logger.addHandler(ear)
    yield found
    logger.removeHandler(ear)


@torch.no_grad()
def output(model: RDEsmModel) -> torch.Tensor:
    return model(IDS).last_hidden_state


def is_bases_only(folder: Path) -> bool:
    return not RDEsmConfig.from_pretrained(folder).backbones_in_checkpoint


def three_steps(model: RDEsmModel) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        model(IDS).last_hidden_state.square().mean().backward()
        optimizer.step()


def merged_adapter(model: RDEsmModel) -> None:
    with_adapter = get_peft_model(model, LoraConfig(target_modules=["query", "value"], init_lora_weights=False))
    with_adapter.merge_and_unload()


def one_bit_through_data(model: RDEsmModel) -> None:
    weight = model.backbones[1].encoder.layer[1].attention.self.key.weight
    weight.data.view(torch.int32)[3, 5] ^= 1


def other_state(model: RDEsmModel) -> None:
    state = model.state_dict()
    key = next(key for key in state if key.endswith("LayerNorm.bias"))
    model.load_state_dict({**state, key: torch.ones_like(state[key])})


def replaced_storage(model: RDEsmModel) -> None:
    embeddings = model.backbones[0].get_input_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach() * 1.5)


def another_backbone(model: RDEsmModel) -> None:
    model.backbones[0] = EsmModel(model.config.backbone_config(0), add_pooling_layer=False).eval()


def averaged(model: RDEsmModel) -> None:
    """As stochastic weight averaging does, in place and without gradients."""
    with torch.no_grad():
        for parameter in model.backbones[1].parameters():
            parameter.lerp_(torch.zeros_like(parameter), 0.01)


CHANGES = [three_steps, merged_adapter, one_bit_through_data, other_state, replaced_storage, another_backbone, averaged]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_backbones_are_saved_and_it_says_so(
    model: RDEsmModel, heard: list[str], tmp_path: Path, change: Callable[[RDEsmModel], None]
) -> None:
    before = output(model)
    change(model)
    assert not torch.equal(output(model), before) or change is one_bit_through_data
    model.save_pretrained(tmp_path)
    assert not is_bases_only(tmp_path)
    again = RDEsmModel.from_pretrained(tmp_path)
    assert torch.equal(output(again), output(model))
    for kept, saved in zip(model.backbones, again.backbones, strict=True):
        assert all(torch.equal(value, saved.state_dict()[key]) for key, value in kept.state_dict().items())
    (said,) = heard
    assert "the backbone of level L" in said
    assert "is no longer that of" in said
    assert "the backbones are saved too" in said
    # The model in hand is described as before.
    assert not model.config.backbones_in_checkpoint
    assert all(entry["repo_id"] for entry in model.config.levels)


@pytest.mark.parametrize("change", CHANGES)
def test_bases_alone_are_refused_for_changed_backbones_with_what_would_do(
    model: RDEsmModel, tmp_path: Path, change: Callable[[RDEsmModel], None]
) -> None:
    change(model)
    for save in (model.save_pretrained, lambda folder, backbones: save_checkpoint(model, folder, backbones=backbones)):
        with pytest.raises(ValueError, match=r"no longer .* differs\): save the backbones too \(backbones=True\), or"):
            save(tmp_path / "new", backbones=False)
        assert not (tmp_path / "new").exists()
    model.load_backbones()
    model.save_pretrained(tmp_path, backbones=False)
    assert is_bases_only(tmp_path)


def test_untouched_backbones_are_not_written(model: RDEsmModel, heard: list[str], tmp_path: Path) -> None:
    model(IDS).last_hidden_state.sum().backward()  # gradients change no weight
    model.train()
    for number, same in enumerate((model, copy.deepcopy(model))):
        same.save_pretrained(tmp_path / str(number))
        assert is_bases_only(tmp_path / str(number))
    assert heard == []


def test_a_dtype_is_no_training(bases_only: Path, heard: list[str], tmp_path: Path) -> None:
    """Weights that were only rounded come back as published, in whichever dtype they are loaded then."""
    casts = [
        lambda: RDEsmModel.from_pretrained(bases_only).half(),
        lambda: RDEsmModel.from_pretrained(bases_only).bfloat16().float(),
        lambda: RDEsmModel.from_pretrained(bases_only, dtype=torch.bfloat16),
        lambda: RDEsmModel.from_pretrained(bases_only, dtype=torch.float16).float(),
    ]
    for number, cast in enumerate(casts):
        cast().save_pretrained(tmp_path / str(number))
        assert is_bases_only(tmp_path / str(number))
    assert heard == []
    trained = casts[2]()
    three_steps(trained)
    trained.save_pretrained(tmp_path / "trained")
    assert not is_bases_only(tmp_path / "trained")
    assert torch.equal(output(RDEsmModel.from_pretrained(tmp_path / "trained")), output(trained))


def test_a_full_checkpoint_that_was_trained_is_no_longer_its_repos(
    model: RDEsmModel, bases_only: Path, tmp_path: Path
) -> None:
    """Also in a later process, held one backbone at a time, and where the config still names the repos."""
    three_steps(model)
    model.save_pretrained(tmp_path / "full", backbones=True)
    named = RDEsmConfig.from_pretrained(bases_only).levels
    for sequential in (False, True):
        again = RDEsmModel.from_pretrained(tmp_path / "full", sequential=sequential)
        again.config.levels = copy.deepcopy(named)
        with pytest.raises(ValueError, match="the backbone of level L0 is no longer that of"):
            again.save_pretrained(tmp_path / "bases", backbones=False)
    untouched = RDEsmModel.from_pretrained(bases_only, sequential=True)
    untouched.save_pretrained(tmp_path / "bases")
    assert is_bases_only(tmp_path / "bases")


def test_a_state_dict_that_is_given_is_what_is_compared(model: RDEsmModel, tmp_path: Path) -> None:
    state = {
        key: value * 2 if key.startswith("backbones.1.encoder") else value for key, value in model.state_dict().items()
    }
    model.save_pretrained(tmp_path, state_dict=state)
    again = RDEsmModel.from_pretrained(tmp_path).backbones[1].state_dict()
    key = "encoder.layer.0.output.dense.weight"
    assert torch.equal(again[key], 2 * model.backbones[1].state_dict()[key])


def test_repos_that_are_gone_cannot_be_compared_with(model: RDEsmModel, heard: list[str], tmp_path: Path) -> None:
    for index, entry in enumerate(model.config.levels):
        entry["repo_id"] = str(tmp_path / "gone") if index else "nobody/nothing"
    with pytest.raises(ValueError, match="cannot be told, since that is not here to compare with"):
        model.save_pretrained(tmp_path / "saved", backbones=False)
    model.save_pretrained(tmp_path / "saved")
    assert not is_bases_only(tmp_path / "saved")
    assert len(heard) == 1


def test_an_adapter_that_is_not_merged_is_not_saved_as_if_it_were(model: RDEsmModel, tmp_path: Path) -> None:
    adapted = get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False))
    for backbones in (None, True):
        with pytest.raises(ValueError, match=r"the backbone of level L0 holds .*query.*merge_and_unload"):
            adapted.get_base_model().save_pretrained(tmp_path / "saved", backbones=backbones)
    adapted.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def whole_numbers(backbone: EsmModel) -> None:
    """As bitsandbytes keeps four bits: bytes in place of the weights, and what they mean beside them."""
    dense = backbone.encoder.layer[0].output.dense
    dense.weight = torch.nn.Parameter(dense.weight.detach().to(torch.int8), requires_grad=False)
    dense.register_buffer("absmax", torch.ones(3))


def scaled_bytes(backbone: EsmModel) -> None:
    dense = backbone.encoder.layer[0].output.dense
    dense.weight = torch.nn.Parameter(dense.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)


def torchs_own(backbone: EsmModel) -> None:
    """Whose state holds more than tensors."""
    torch.ao.quantization.quantize_dynamic(backbone, {torch.nn.Linear}, inplace=True)


def said_by_a_quantizer(backbone: EsmModel) -> None:
    """Tensors that stand for others and call themselves float32."""
    backbone.config.quantization_config = {"quant_method": "torchao"}


QUANTISED = [whole_numbers, scaled_bytes, torchs_own, said_by_a_quantizer]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("quantise", QUANTISED)
def test_quantised_backbones_are_saved_as_bases_where_that_is_said(
    model: RDEsmModel, quantise: Callable[[EsmModel], None], tmp_path: Path
) -> None:
    quantise(model.backbones[1])
    with pytest.raises(ValueError, match=r"quantised backbone of level L1 .* cannot be told.*backbones=False"):
        model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"backbone of level L1 is quantised.*save the bases alone \("):
        model.save_pretrained(tmp_path / "saved", backbones=True)
    assert not (tmp_path / "saved").exists()
    model.save_pretrained(tmp_path, backbones=False)
    assert is_bases_only(tmp_path)


@pytest.mark.parametrize("kind", [EsmModel, EsmForMaskedLM])
def test_repos_that_transformers_wrote_are_compared_with_too(kind: type, tmp_path: Path) -> None:
    """In its own names, which differ between releases and from those of the published ESM-2."""
    kind(EsmConfig(**backbone_settings(16))).save_pretrained(tmp_path / "L0")
    levels = [{"name": "L0", "backbone": backbone_settings(16), "repo_id": str(tmp_path / "L0")}]
    RDEsmConfig(levels=levels, backbones_in_checkpoint=False).save_pretrained(tmp_path / "config")
    model = load_family(tmp_path / "config")
    model.save_pretrained(tmp_path / "untouched", backbones=False)
    norm = model.backbones[0].encoder.layer[1].LayerNorm
    norm.bias.data[3] += 1e-3
    with pytest.raises(ValueError, match=r"encoder\.layer\.1\.LayerNorm\.bias differs"):
        model.save_pretrained(tmp_path / "changed", backbones=False)


def test_a_word_is_no_choice(model: RDEsmModel, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be True, False or None, not 'false'"):
        model.save_pretrained(tmp_path, backbones="false")


class Rows(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": IDS[0].roll(index)}


def train(model: RDEsmModel, folder: Path, resume_from: Path | None = None) -> None:
    trainer, arguments = trainer_class()

    class Sums(trainer):  # type: ignore[misc,valid-type]
        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):  # type: ignore[no-untyped-def]
            outputs = model(**inputs)
            loss = outputs.last_hidden_state.square().mean()
            return (loss, outputs) if return_outputs else loss

    settings = arguments(
        str(folder),
        max_steps=4,
        save_steps=2,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=2,
        seed=0,
        disable_tqdm=True,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        remove_unused_columns=False,
    )
    Sums(model=model, args=settings, train_dataset=Rows()).train(
        resume_from_checkpoint=None if resume_from is None else str(resume_from)
    )


def test_a_trainer_goes_on_from_its_checkpoint(bases_only: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = RDEsmModel.from_pretrained(bases_only)
    train(whole, tmp_path / "run")
    resumed = RDEsmModel.from_pretrained(bases_only)
    train(resumed, tmp_path / "run", tmp_path / "run" / "checkpoint-2")
    # The same steps from the same weights: the same sums in the same order.
    assert torch.equal(output(resumed), output(whole))
    last = RDEsmModel.from_pretrained(tmp_path / "run" / "checkpoint-4")
    assert torch.equal(output(last), output(whole))
    assert not torch.equal(output(last), output(RDEsmModel.from_pretrained(bases_only)))


def test_pushing_sends_what_is_needed(
    model: RDEsmModel, bases_only: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The folder that would be uploaded, by the method and by the package: trained, full and trained, and untouched."""
    forms: list[bool] = []
    monkeypatch.setattr(
        RDEsmModel,
        "_upload_modified_files",
        lambda self, folder, *args, **kwargs: forms.append(is_bases_only(Path(folder))),
    )
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/x"))
    monkeypatch.setattr(
        "transformers.utils.hub.create_repo", lambda *args, **kwargs: SimpleNamespace(repo_id="me/x"), raising=False
    )
    monkeypatch.setattr(
        "transformers.modeling_utils.create_repo",
        lambda *args, **kwargs: SimpleNamespace(repo_id="me/x"),
        raising=False,
    )
    monkeypatch.setattr(push, "push_folder", lambda folder, *args, **kwargs: forms.append(is_bases_only(folder)))
    untouched = RDEsmModel.from_pretrained(bases_only)
    three_steps(model)
    model.save_pretrained(tmp_path / "full")
    full = RDEsmModel.from_pretrained(tmp_path / "full")
    for one in (model, full):
        one.push_to_hub("me/x")
        push_model(one, "me/x")
    # Backbones in folders of this machine are of no use to others.
    untouched.push_to_hub("me/x")
    assert forms == [False] * 5
    # As if these folders were repos: what others could fetch.
    folders = {entry["repo_id"] for entry in untouched.config.levels}
    elsewhere = {**vars(os.path), "isdir": lambda path: path not in folders and os.path.isdir(path)}
    monkeypatch.setattr(
        "rd_hf.model.saving_rd_esm.os", SimpleNamespace(**{**vars(os), "path": SimpleNamespace(**elsewhere)})
    )
    untouched.push_to_hub("me/x")
    push_model(untouched, "me/x")
    assert forms[5:] == [True, True]
    with pytest.raises(ValueError, match="no longer that of"):
        model.push_to_hub("me/x", backbones=False)


def test_it_goes_through_automodel_too(bases_only: Path, tmp_path: Path) -> None:
    """The code that travels with the checkpoint, as users without the package run it."""
    model = AutoModel.from_pretrained(bases_only, trust_remote_code=True)
    three_steps(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(output(AutoModel.from_pretrained(tmp_path, trust_remote_code=True)), output(model))

"""What is put onto a model: a head is saved, loaded and trained with it, and an adapter beside it is loaded with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModel
from transformers.modeling_outputs import TokenClassifierOutput

from rd_hf.embedding.checkpoint import resolve
from rd_hf.hub import save_checkpoint
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.trust import OWN_CLASSES
from tests.conftest import random_model, trainer_class
from tests.hub.conftest import published_family
from tests.model.heads import names_in
from tests.model.test_earlier_versions import with_old_code

IDS = torch.tensor([[0, 20, 15, 11, 5, 19, 12, 5, 15, 2]])
WIDTHS = [16, 24]
FORMS = pytest.mark.parametrize("full", [False, True], ids=["bases", "full"])


class Classifier(RDEsmModel):
    """As a user would write it: no argument but the config, a parameter, a buffer and a layer."""

    def __init__(self, config: RDEsmConfig) -> None:
        super().__init__(config)
        self.norm = torch.nn.BatchNorm1d(config.hidden_size)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.temperature = torch.nn.Parameter(torch.tensor(1.5))
        self.post_init()

    def forward(self, input_ids: torch.Tensor, labels: Any = None, **settings: Any) -> TokenClassifierOutput:
        states = super().forward(input_ids, **settings).last_hidden_state
        logits = self.classifier(self.norm(states.transpose(1, 2)).transpose(1, 2)) * self.temperature
        loss = None if labels is None else torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return TokenClassifierOutput(loss=loss, logits=logits)


HEAD = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
HEAD |= {"classifier.weight", "classifier.bias", "temperature"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A family without a head, in both forms."""
    folder = tmp_path_factory.mktemp("family")
    model = published_family(folder, WIDTHS)
    return {full: save_checkpoint(model, folder / str(full), backbones=full) for full in (False, True)}


def with_head(source: Path, **settings: Any) -> Classifier:
    """With numbers in it that no other run would draw."""
    model = Classifier.from_pretrained(source, **settings)
    torch.manual_seed(7)
    with torch.no_grad():
        for name in HEAD - {"norm.num_batches_tracked"}:
            tensor = model.state_dict()[name]
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model


@torch.no_grad()
def embedding(model: Any) -> torch.Tensor:
    return model(IDS).last_hidden_state


# Heads


@FORMS
def test_a_head_is_saved_and_its_class_finds_it_again(
    saved: dict[bool, Path], full: bool, tmp_path: Path, heard: list[str]
) -> None:
    model = with_head(saved[full], num_labels=3)
    heard.clear()
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path, num_labels=3)
    assert heard == []
    assert RDEsmConfig.from_pretrained(tmp_path).backbones_in_checkpoint == full
    with torch.no_grad():
        assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())
    # Others read the model that it adds to: this version, which says what is left out, and version 0.1.0.
    expected = embedding(RDEsmModel.from_pretrained(saved[full], exact_activation=True))
    plain, info = AutoModel.from_pretrained(
        tmp_path, trust_remote_code=True, exact_activation=True, output_loading_info=True
    )
    assert torch.equal(embedding(plain), expected)
    assert type(plain).__name__ == "RDEsmModel"
    assert set(info["unexpected_keys"]) == HEAD
    RDEsmModel.from_pretrained(tmp_path)
    assert any("classifier.weight, " in line and "has no place for" in line for line in heard)
    old = AutoModel.from_pretrained(with_old_code(tmp_path), trust_remote_code=True)
    assert torch.equal(embedding(old), expected)


@FORMS
def test_a_layer_that_was_set_on_a_model_is_saved(saved: dict[bool, Path], full: bool, tmp_path: Path) -> None:
    model = RDEsmModel.from_pretrained(saved[full])
    model.heads = torch.nn.ModuleDict({"stability": torch.nn.Linear(WIDTHS[-1], 1)})
    model.save_pretrained(tmp_path)
    assert {"heads.stability.weight", "heads.stability.bias"} <= names_in(tmp_path)


@FORMS
def test_a_checkpoint_without_a_head_starts_it_anew_and_says_so(
    saved: dict[bool, Path], full: bool, heard: list[str]
) -> None:
    for level in (None, "L0"):
        heard.clear()
        model = Classifier.from_pretrained(saved[full], level=level)
        (said,) = heard
        assert "holds no classifier.bias, classifier.weight, norm.bias" in said
        assert "for this Classifier: they start afresh" in said
        # As the library draws it, .02, and as the class makes it.
        assert 0.01 < model.classifier.weight.std() < 0.03
        assert model.temperature == 1.5
        assert torch.equal(model.norm.running_var, torch.ones_like(model.norm.running_var))
        assert len(model.backbones) == (1 if level else 2)
        assert not model.training


def test_a_head_of_another_size_is_refused_or_starts_anew(saved: dict[bool, Path], tmp_path: Path) -> None:
    with_head(saved[False], num_labels=3).save_pretrained(tmp_path)
    for change in ({"num_labels": 5}, {"level": "L0"}):
        with pytest.raises(ValueError, match=r"classifier\..* has another shape .*ignore_mismatched_sizes=True"):
            Classifier.from_pretrained(tmp_path, **change)
    model = Classifier.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert model.classifier.weight.shape == (5, WIDTHS[-1])
    assert model.classifier.weight.std() < 0.03
    assert torch.equal(model.norm.weight, with_head(saved[False], num_labels=3).norm.weight)
    # Of the bases no size is another's.
    with pytest.raises(ValueError, match=r"its weights are not those that config\.json describes"):
        Classifier.from_pretrained(tmp_path, residual_directions=[4], ignore_mismatched_sizes=True)


def test_a_head_has_the_backbones_dtype_and_place(saved: dict[bool, Path], tmp_path: Path) -> None:
    with_head(saved[True]).save_pretrained(tmp_path)
    half = Classifier.from_pretrained(tmp_path, dtype=torch.bfloat16, device_map="cpu")
    assert half(IDS).logits.dtype == torch.bfloat16
    assert {"classifier", "norm", "temperature"} <= half.hf_device_map.keys()
    assert half.projections[0].directions.dtype == torch.float32
    assert Classifier.from_pretrained(tmp_path, sequential=True)(IDS).logits.dtype == torch.float32


def test_it_is_saved_again_over_itself_in_every_form(saved: dict[bool, Path], tmp_path: Path) -> None:
    """Of one level too, whose bases' file then holds nothing but the head, and in shards."""
    model, single = with_head(saved[False]), with_head(saved[False], level="L0")
    for one, settings in (
        *((model, {"backbones": full}) for full in (False, True, True, False)),
        *((single, {"backbones": full, "max_shard_size": size}) for full in (False, True) for size in ("5GB", 100)),
    ):
        one.save_pretrained(tmp_path, **settings)
        one.save_pretrained(tmp_path, **settings)
        again = Classifier.from_pretrained(tmp_path)
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in one.state_dict().items())
        assert names_in(tmp_path) - {key for key in names_in(tmp_path) if "inv_freq" in key} <= set(one.state_dict())


def test_anothers_weights_are_not_taken_for_a_head(saved: dict[bool, Path], tmp_path: Path) -> None:
    """Neither without a config of ours, nor beside one that says that its weights lie elsewhere."""
    model = with_head(saved[False])
    model.save_pretrained(tmp_path / "bases")
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "bases" / "model.safetensors", tmp_path / "alone")
    model.save_pretrained(tmp_path / "full", backbones=True)
    shutil.copy(tmp_path / "bases" / "model.safetensors", tmp_path / "full")
    for folder in ("alone", "full"):
        with pytest.raises(ValueError, match=r"model.safetensors is no file of a reverse-distilled model"):
            model.save_pretrained(tmp_path / folder, backbones=True)


def test_the_code_that_travels_is_ours(saved: dict[bool, Path], tmp_path: Path) -> None:
    model = with_head(saved[True])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"] == OWN_CLASSES
    assert config["architectures"] == ["Classifier"]
    assert {path.name for path in tmp_path.glob("*.py")} == {path.name for path in saved[True].glob("*.py")}


def test_half_a_model_is_not_saved_for_a_whole_one(saved: dict[bool, Path], tmp_path: Path) -> None:
    model = with_head(saved[False])
    for lost in ("classifier.bias", "projections.0.directions"):
        state = {key: value for key, value in model.state_dict().items() if key != lost}
        with pytest.raises(ValueError, match=f"the state_dict lacks {lost}: give the whole state_dict"):
            model.save_pretrained(tmp_path / "saved", state_dict=state)
    adapted = get_peft_model(model, LoraConfig(target_modules=["classifier"], modules_to_save=["norm"]))
    with pytest.raises(ValueError, match=r"the head holds classifier\.base_layer.*merge_and_unload"):
        adapted.get_base_model().save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    adapted.merge_and_unload().save_pretrained(tmp_path / "saved")
    assert names_in(tmp_path / "saved") >= HEAD


class Labelled(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": IDS[0].roll(index), "labels": IDS[0].roll(index) % 2}


@pytest.mark.parametrize("frozen", [True, False], ids=["the head alone", "all"])
def test_a_trainer_goes_on_with_the_head_it_saved(saved: dict[bool, Path], frozen: bool, tmp_path: Path) -> None:
    """With frozen backbones its checkpoints hold bases and head alone."""
    trainer, arguments = trainer_class()

    def run(resume: bool) -> Classifier:
        model = with_head(saved[False])
        model.backbones.requires_grad_(not frozen)
        settings = arguments(
            str(tmp_path),
            **{"max_steps": 4, "save_steps": 2, "report_to": [], "use_cpu": True, "per_device_train_batch_size": 2},
            **{"seed": 0, "disable_tqdm": True, "learning_rate": 1e-2, "lr_scheduler_type": "constant"},
        )
        trainer(model=model, args=settings, train_dataset=Labelled()).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-2") if resume else None
        )
        return model.eval()

    whole, resumed = run(False), run(True)
    last = Classifier.from_pretrained(tmp_path / "checkpoint-4")
    assert RDEsmConfig.from_pretrained(tmp_path / "checkpoint-4").backbones_in_checkpoint != frozen
    assert not torch.equal(whole.classifier.weight, with_head(saved[False]).classifier.weight)
    for other in (resumed, last):
        # The same steps from the same weights: the same sums in the same order.
        assert all(torch.equal(value, other.state_dict()[key]) for key, value in whole.state_dict().items())


# Adapters


@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "TOKEN_CLS", "SEQ_CLS", "QUESTION_ANS", None])
def test_every_task_of_peft_runs_and_trains_every_backbone(task: str | None) -> None:
    """With checkpointing, in both of its ways, and where only adapters take gradients."""
    ways: tuple[dict[str, Any] | None, ...] = ({"use_reentrant": True}, {"use_reentrant": False}, None)
    for way in ways if task is None else (None,):
        base = random_model([32, 48, 64])
        expected = embedding(base)
        if way is not None:
            base.gradient_checkpointing_enable(way)
        model = get_peft_model(base, LoraConfig(target_modules=["query", "value"], task_type=task))
        found = model.eval()(IDS)
        assert torch.equal(found[0], expected)
        model.train()(input_ids=IDS, attention_mask=torch.ones_like(IDS))[0].square().mean().backward()
        for index in range(3):
            of_it = [value for name, value in model.named_parameters() if f"backbones.{index}." in name]
            trained = [value for value in of_it if value.requires_grad]
            assert len(trained) == 8
            # Half of LoRA's matrices start as zeros, and the gradient of the others is zero so long.
            assert sum(bool(value.grad.any()) for value in trained if value.grad is not None) == 4


def test_gradients_at_the_inputs_are_switched_on_and_off_for_every_backbone() -> None:
    model = random_model([32, 48, 64])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.enable_input_require_grads()
    states = model(IDS, output_backbone_states=True).backbone_states
    assert all(state.requires_grad for state in states)
    model.disable_input_require_grads()
    assert not model(IDS).last_hidden_state.requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"inputs_embeds": torch.zeros(1, 10, 32)}, "each backbone has token embeddings of its own"),
        ({"input_ids": None, "inputs_embeds": torch.zeros(1, 10, 32)}, "give input_ids, and no inputs_embeds"),
        ({"labels": torch.zeros(1)}, "returns embeddings and no loss"),
    ],
)
def test_what_a_model_of_several_backbones_cannot_take_is_said(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_model([32, 48])(**{"input_ids": IDS, **settings})


def test_after_inference_mode_a_model_can_be_trained() -> None:
    """Also a backbone taken out; releases up to 5.0 keep angles that were made then."""
    model = random_model([32, 48])
    with torch.inference_mode():
        model(IDS)
    model.backbones[0](IDS).last_hidden_state.sum().backward()
    model.train()(IDS).last_hidden_state.sum().backward()
    assert all(backbone.get_input_embeddings().weight.grad.any() for backbone in model.backbones)


@pytest.fixture(scope="module")
def adapted(saved: dict[bool, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adapter in a folder of its own, and beside the checkpoint it is for, in both forms."""
    folder = tmp_path_factory.mktemp("adapters")
    torch.manual_seed(0)
    model = get_peft_model(
        RDEsmModel.from_pretrained(saved[True]), LoraConfig(target_modules=["query"], init_lora_weights=False)
    )
    model.save_pretrained(folder / "alone")
    for full in (False, True):
        beside = folder / ("full" if full else "bases")
        shutil.copytree(saved[full], beside)
        model.peft_config["default"].base_model_name_or_path = str(beside)
        model.save_pretrained(beside)
    torch.save(embedding(model.eval()), folder / "expected.pt")
    return {name: folder / name for name in ("alone", "bases", "full", "expected.pt")}


readable = pytest.mark.skipif(
    transformers.__version__.startswith("5.0."), reason="this release finds no adapter's weights, of EsmModel neither"
)


@pytest.mark.skipif(not transformers.__version__.startswith("5.0."), reason="other releases find them")
def test_an_adapter_whose_weights_the_library_does_not_find_is_an_error(adapted: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"the adapter in .*: transformers 5\.0.* finds no weights in it for"):
        RDEsmModel.from_pretrained(adapted["full"])


@readable
@pytest.mark.parametrize("where", ["alone", "bases", "full"])
@pytest.mark.parametrize("loader", ["AutoModel", "RDEsmModel"])
def test_an_adapter_is_loaded_with_what_it_belongs_to(adapted: dict[str, Path], where: str, loader: str) -> None:
    if loader == "AutoModel":
        model = AutoModel.from_pretrained(adapted[where], trust_remote_code=True)
    else:
        model = RDEsmModel.from_pretrained(adapted[where], adapter_name="mine")
    assert torch.equal(embedding(model), torch.load(adapted["expected.pt"]))
    assert list(model.peft_config) == ["default" if loader == "AutoModel" else "mine"]


@readable
def test_it_goes_onto_the_levels_that_were_loaded(saved: dict[bool, Path], adapted: dict[str, Path]) -> None:
    model = RDEsmModel.from_pretrained(adapted["full"], level="L0")
    assert torch.equal(embedding(model), torch.load(adapted["expected.pt"])[..., : WIDTHS[0]])
    with pytest.raises(ValueError, match=r"the adapter in .* changes backbones, and sequential=True"):
        RDEsmModel.from_pretrained(adapted["full"], sequential=True)
    onto = PeftModel.from_pretrained(RDEsmModel.from_pretrained(saved[False]), adapted["alone"])
    assert torch.equal(embedding(onto), torch.load(adapted["expected.pt"]))


@readable
def test_another_strength_of_the_adapter_is_another_model(adapted: dict[str, Path], tmp_path: Path) -> None:
    """To jobs that go on: its weights and its settings."""
    shutil.copytree(adapted["full"], tmp_path / "model")
    before = resolve(tmp_path / "model").fingerprint
    path = tmp_path / "model" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 64}))
    assert resolve(tmp_path / "model").fingerprint != before
    assert not torch.equal(
        embedding(RDEsmModel.from_pretrained(tmp_path / "model")), torch.load(adapted["expected.pt"])
    )


def test_an_adapter_beside_a_backbone_is_not_looked_for(saved: dict[bool, Path], tmp_path: Path) -> None:
    """A backbone is what the bases were fitted on."""
    shutil.copytree(saved[False].parent, tmp_path / "family")
    for index in range(2):
        folder = tmp_path / "family" / f"L{index}"
        model = RDEsmModel.from_pretrained(saved[False]).backbones[index]
        get_peft_model(model, LoraConfig(target_modules=["query"], init_lora_weights=False)).save_pretrained(folder)
    config = RDEsmConfig.from_pretrained(saved[False])
    for entry in config.levels:
        entry["repo_id"] = str(tmp_path / "family" / entry["name"])
    found = RDEsmModel.from_pretrained(saved[False], config=config)
    assert torch.equal(embedding(found), embedding(RDEsmModel.from_pretrained(saved[False])))
    assert found.backbones[0].name_or_path == str(tmp_path / "family" / "L0")


def test_a_folder_that_does_not_say_what_its_adapter_is_for(adapted: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(adapted["alone"], tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"adapter_config.json names no base_model_name_or_path: load that model"):
        RDEsmModel.from_pretrained(tmp_path / "adapter")

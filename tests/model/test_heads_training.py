"""Heads in training: the gradients of the equations, Trainer, adapters, and what is saved of it."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import EsmModel, TrainerCallback

from rd_hf.model.configuration_rd_esm import RDEsmConfig
from tests.conftest import trainer_class
from tests.model.heads import (
    IDS,
    KINDS,
    LEVELS,
    logits,
    mean_by_hand,
    names_in,
    save_family,
    states_by_hand,
    with_heads,
)

OF = pytest.mark.parametrize("of", list(KINDS))
# Before transformers 5.5 token dropout of a mask depends on the padding beside it.
TOKENS = IDS.where(IDS != 32, 5)
RESIDUES = TOKENS > 3
LABELS = {"sequences": torch.tensor([2, 0, 1]), "residues": torch.where(RESIDUES, TOKENS % 3, -100)}
WAYS = pytest.mark.parametrize(
    ("level", "checkpointing"), [*((level, False) for level in LEVELS), ("L2", True)], ids=[*LEVELS, "L2-checkpointing"]
)
TASKS = {"sequences": "SEQ_CLS", "residues": "TOKEN_CLS"}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    return save_family(tmp_path_factory.mktemp("family"))


class Labelled(torch.utils.data.Dataset):
    def __init__(self, of: str) -> None:
        self.of = of

    def __len__(self) -> int:
        return len(TOKENS)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = TOKENS[index]
        return {"input_ids": ids, "attention_mask": ids.ne(1).long(), "labels": LABELS[self.of][index]}


class Watch(TrainerCallback):
    """Keeps the gradients of the first step."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
        found = settings["model"].named_parameters()
        self.gradients = self.gradients or {name: one.grad.clone() for name, one in found if one.grad is not None}


def train(
    model: Any, of: str, folder: Path, resume: str | None = None, checkpointing: bool = False, **settings: Any
) -> dict[str, torch.Tensor]:
    """A few steps of Trainer, over all three sequences each; the gradients of the first."""
    trainer, arguments = trainer_class()
    watch = Watch()
    if checkpointing:
        # Its name since 5.20 or so; the former one is deprecated there.
        known = inspect.signature(arguments.__init__).parameters
        settings[next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)] = True
    chosen = {
        **{"max_steps": 1, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 0},
        **{"per_device_train_batch_size": 3, "learning_rate": 1e-2, "lr_scheduler_type": "constant"},
        **{"max_grad_norm": 0, "remove_unused_columns": True, **settings},
    }
    trainer(model=model, args=arguments(str(folder), **chosen), train_dataset=Labelled(of), callbacks=[watch]).train(
        resume_from_checkpoint=resume
    )
    model.eval()
    return watch.gradients


def learn(model: Any, of: str, steps: int = 1) -> dict[str, torch.Tensor]:
    """The same without Trainer, which some releases cannot import here."""
    model.train()
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
    found: dict[str, torch.Tensor] = {}
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=TOKENS, attention_mask=TOKENS.ne(1).long(), labels=LABELS[of]).loss.backward()
        gradients = ((name, one.grad) for name, one in model.named_parameters())
        found = found or {name: one.clone() for name, one in gradients if one is not None}
        optimizer.step()
    model.eval()
    return found


def gradients_by_hand(folder: Path, bases: Path, model: Any, of: str, level: int) -> dict[str, torch.Tensor]:
    """Those of plain EsmModels with a linear head, by the equations, under this model's names."""
    backbones = [
        EsmModel.from_pretrained(folder / name, add_pooling_layer=False).train() for name in LEVELS[: level + 1]
    ]
    mask = TOKENS.ne(1).long()
    embedding = states_by_hand([one(TOKENS, attention_mask=mask).last_hidden_state for one in backbones], bases)
    head = model.classifier[level]
    linear = torch.nn.Linear(embedding.shape[-1], 3)
    with torch.no_grad():
        linear.weight.copy_(head.weight)
        linear.bias.copy_(head.bias)
    standard = (embedding - head.mean) / head.scale
    if of == "sequences":
        loss = functional.cross_entropy(linear(mean_by_hand(standard, TOKENS)), LABELS[of])
    else:
        loss = functional.cross_entropy(linear(standard).flatten(0, 1), LABELS[of].flatten())
    loss.backward()
    found = {f"classifier.{of}.{level}.{name}": one.grad for name, one in linear.named_parameters()}
    for index, backbone in enumerate(backbones):
        found |= {f"backbones.{index}.{name}": one.grad for name, one in backbone.named_parameters()}
    return {name: gradient for name, gradient in found.items() if gradient is not None}


@OF
@WAYS
def test_gradients_through_trainer_are_those_of_the_equations(
    family: dict[bool, Path], of: str, level: str, checkpointing: bool, tmp_path: Path
) -> None:
    """At the first level that is a plain EsmModel with a linear head."""
    model = with_heads(family[False], of, levels=[level])
    index = LEVELS.index(level)
    expected = gradients_by_hand(family[False].parent, family[False] / "model.safetensors", model, of, index)
    try:
        found = train(model, of, tmp_path, checkpointing=checkpointing)
    except pytest.skip.Exception:
        found = learn(model, of)
    assert found.keys() == expected.keys()
    assert len(found) > 30 * (index + 1)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        # float32 sums in another order, and the backbones' layers in fewer passes.
        torch.testing.assert_close(found[name], gradient, atol=1e-5 * max(1.0, largest), rtol=1e-5, msg=name)


@OF
@pytest.mark.parametrize("frozen", [True, False], ids=["the head alone", "all"])
def test_a_trainer_goes_on_from_what_it_saved(family: dict[bool, Path], of: str, frozen: bool, tmp_path: Path) -> None:
    """With frozen backbones its checkpoints hold bases and heads; trained ones are saved in full."""

    def run(resume: str | None) -> Any:
        model = with_heads(family[False], of)
        model.choose_level("L1")
        model.backbones.requires_grad_(not frozen)
        train(model, of, tmp_path, resume, max_steps=4, save_strategy="steps", save_steps=2)
        return model

    whole, resumed = run(None), run(str(tmp_path / "checkpoint-2"))
    saved = tmp_path / "checkpoint-4"
    assert RDEsmConfig.from_pretrained(saved).backbones_in_checkpoint != frozen
    assert any(name.startswith("backbones.") for name in names_in(saved)) != frozen
    before = with_heads(family[False], of)
    assert not torch.equal(whole.classifier[1].weight, before.classifier[1].weight)
    # Those of other levels wait for their own training.
    assert torch.equal(whole.classifier[2].weight, before.classifier[2].weight)
    last = KINDS[of].from_pretrained(saved, level="L2")
    for other in (resumed, last):
        # The same steps from the same weights: the same sums in the same order.
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in whole.state_dict().items())
    assert KINDS[of].from_pretrained(saved).answering_level == "L1"


def test_a_trainer_evaluates_with_labels(family: dict[bool, Path], tmp_path: Path) -> None:
    trainer, arguments = trainer_class()
    model = with_heads(family[False], "sequences")
    settings = arguments(str(tmp_path), report_to=[], use_cpu=True, disable_tqdm=True)
    found = trainer(model=model, args=settings).predict(Labelled("sequences"))
    assert found.label_ids.tolist() == LABELS["sequences"].tolist()
    torch.testing.assert_close(torch.from_numpy(found.predictions), logits(model, TOKENS), atol=1e-5, rtol=1e-5)
    expected = functional.cross_entropy(logits(model, TOKENS), LABELS["sequences"])
    assert found.metrics["test_loss"] == pytest.approx(float(expected), abs=1e-5)


def lora(model: Any, task: str | None, **settings: Any) -> Any:
    return get_peft_model(model, LoraConfig(target_modules=["query", "value"], task_type=task, **settings))


@OF
@WAYS
def test_lora_trains_every_backbone_up_to_the_level_and_the_head(
    family: dict[bool, Path], of: str, level: str, checkpointing: bool
) -> None:
    base = KINDS[of].from_pretrained(family[True], level=level, num_labels=3)
    if checkpointing:
        base.gradient_checkpointing_enable()
    model = lora(base, TASKS[of])
    found = learn(model, of)
    count = LEVELS.index(level) + 1
    for index in range(count):
        trained = {name: gradient for name, gradient in found.items() if f"backbones.{index}." in name}
        assert len(trained) == 8
        # Half of LoRA's matrices start as zeros, and the gradient of the others is zero so long.
        assert sum(bool(gradient.any()) for gradient in trained.values()) == 4
    head = {name: gradient for name, gradient in found.items() if "classifier" in name}
    assert len(head) == 2
    assert all(gradient.any() for gradient in head.values())
    assert len(found) == 8 * count + 2


@OF
@pytest.mark.parametrize("task", ["its own", "FEATURE_EXTRACTION"])
def test_an_adapter_keeps_the_head(family: dict[bool, Path], of: str, task: str, tmp_path: Path) -> None:
    """By itself under the task's name, or as PEFT's modules_to_save; merged, the whole is saved in full."""

    def fresh() -> Any:
        return KINDS[of].from_pretrained(family[False], level="L1", num_labels=3)

    chosen = {} if task == "its own" else {"modules_to_save": ["classifier"]}
    model = lora(fresh(), TASKS[of] if task == "its own" else task, **chosen)
    learn(model, of, steps=3)
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = PeftModel.from_pretrained(fresh(), tmp_path / "adapter")
    assert torch.equal(logits(again, TOKENS), logits(model, TOKENS))
    assert not torch.equal(logits(again, TOKENS), logits(fresh(), TOKENS))
    assert logits(again, TOKENS, level="L1").dtype == torch.float32
    with model.disable_adapter():
        assert not torch.equal(logits(model, TOKENS), logits(again, TOKENS))
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    assert RDEsmConfig.from_pretrained(tmp_path / "merged").backbones_in_checkpoint
    loaded = KINDS[of].from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(loaded, TOKENS), logits(merged, TOKENS))


def test_the_trainer_of_several_numbers_learns_from_those_that_are_there(
    family: dict[bool, Path], tmp_path: Path
) -> None:
    labels = torch.tensor([[1.0, float("nan")], [0.5, -1.0], [float("nan"), 2.0]])
    logging.getLogger("transformers").setLevel(logging.ERROR)
    model = with_heads(family[False], "sequences", labels=2, levels=["L0"])
    model.config.problem_type = "regression"
    data = [{"input_ids": ids, "labels": row} for ids, row in zip(TOKENS, labels, strict=True)]
    trainer, arguments = trainer_class()
    settings = {"max_steps": 20, "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True}
    before = model(TOKENS, labels=labels).loss.item()
    trainer(
        model=model,
        args=arguments(str(tmp_path), per_device_train_batch_size=3, learning_rate=1e-2, **settings),
        train_dataset=data,
    ).train()
    after = model.eval()(TOKENS, labels=labels).loss.item()
    assert after < 0.2 * before

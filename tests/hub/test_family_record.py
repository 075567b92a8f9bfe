"""A family of backbones is one record that travels and one of the package: card, sizes, costs and names follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig, AutoModel, EsmConfig, EsmModel

from rd_hf import families
from rd_hf.families import Family, Member, esm2_backbone
from rd_hf.hub.card import render_card
from rd_hf.hub.describe import describe_model
from rd_hf.hub.plan import make_plan, stored_bytes
from rd_hf.model import families_rd_esm

MEMBERS = (
    Member("S", "lab/twin-s", 32, 2, 4, "0" * 40, download=123_456),
    Member("M", "lab/twin-m", 48, 3, 4, "1" * 40, download=345_678),
)


class TwinConfig(EsmConfig):
    model_type = "twin"


class TwinModel(EsmModel):
    config_class = TwinConfig


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """A family that reads ESM-2's tokens, added by its two records."""
    travels = replace(families_rd_esm.FAMILIES["esm"], model_type="twin", title="Twin-1")
    record = Family(
        "rd-twin",
        MEMBERS,
        lambda member: {"model_type": "twin", **esm2_backbone(member)},
        longest_trained=77,
        citation="@misc{twin2026}",
    )
    AutoConfig.register("twin", TwinConfig)
    AutoModel.register(TwinConfig, TwinModel)
    monkeypatch.setitem(families_rd_esm.FAMILIES, "twin", travels)
    monkeypatch.setitem(families.FAMILIES, "twin", record)
    monkeypatch.setitem(families.NAMED, "rd-twin-M", lambda: record.config("M"))
    yield record
    CONFIG_MAPPING._extra_content.pop("twin")
    MODEL_MAPPING._extra_content.pop(TwinConfig)


def test_its_card_names_cites_and_limits_it(twin: Family) -> None:
    card = " ".join(render_card(twin.config("M"), repo_id="me/x", full=False).split())
    assert "Nested protein embeddings from 2 Twin-1 models by reverse distillation" in card
    assert "- Backbones were trained on sequences of up to 77 residues." in card
    assert "@misc{twin2026}" in card
    assert "twin1" in card.partition("# x")[0], "a tag of the Hub"
    esm2 = render_card(families.esm2_config("35M"), repo_id="me/x", full=False)
    assert "twin" not in esm2.lower()


def test_its_sizes_and_costs_are_those_of_its_modules(twin: Family) -> None:
    config = twin.config("M")
    assert [stored_bytes(entry) for entry in config.levels] == [123_456, 345_678]
    other = [{**entry, "repo_id": "lab/other"} for entry in config.levels]
    facts = describe_model("rd-twin-M").levels
    own = [facts[0].parameters, facts[1].parameters - facts[0].parameters]
    for entry, parameters in zip(other, own, strict=True):
        width = entry["backbone"]["hidden_size"]
        assert stored_bytes(entry) == 4 * (parameters + width * width + 3 * width + 33 * (width + 1))
    # The same as of ESM-2's modules at these sizes, which have no other layers.
    plans = []
    for model_type in ("twin", "esm"):
        for entry in config.levels:
            entry["backbone"]["model_type"] = model_type
        plan = asdict(make_plan(config, [(2, 20)], 64, 64, base=0, flops=1.0))
        plans.append({name: plan[name] for name in ("flop", "resident", "sequential", "work", "tokens")})
    assert plans[0] == plans[1]


def test_a_level_that_it_does_not_have_is_named_with_its_title(twin: Family) -> None:
    with pytest.raises(ValueError, match="no reverse-distilled Twin-1 S: choose M"):
        twin.config("S")

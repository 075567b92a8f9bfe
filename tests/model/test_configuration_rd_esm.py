"""The config: what it accepts, what follows from it, what it says of what it cannot be."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from rd_hf.model.configuration_rd_esm import RDEsmConfig
from tests.conftest import backbone_settings


def levels(widths: list[int], **changes: Any) -> list[dict[str, Any]]:
    return [{"name": f"L{i}", "backbone": {**backbone_settings(width), **changes}} for i, width in enumerate(widths)]


def test_widths_of_the_levels_are_those_of_the_backbones_by_default() -> None:
    config = RDEsmConfig(levels=levels([32, 48, 64]))
    assert config.nested_dims == {"L0": 32, "L1": 48, "L2": 64}
    assert config.residual_directions == [16, 16]
    assert (config.hidden_size, config.num_hidden_layers) == (64, 6)
    assert (config.num_attention_heads, config.vocab_size) == (4, 33)


def test_more_directions_make_wider_levels_up_to_the_whole_concatenation() -> None:
    config = RDEsmConfig(levels=levels([32, 48, 64]), residual_directions=[48, 64])
    assert config.nested_dims == {"L0": 32, "L1": 80, "L2": 144}


def test_a_level_cuts_the_family() -> None:
    config = RDEsmConfig(levels=levels([32, 48, 64]), level="L1")
    assert config.nested_dims == {"L0": 32, "L1": 48}
    assert config.hidden_size == 48
    cut = config.up_to("L1")
    assert (cut.level_names, cut.residual_directions, cut.level) == (["L0", "L1"], [16], None)
    assert config.level_names == ["L0", "L1", "L2"]


def test_it_survives_saving_and_loading(tmp_path: Path) -> None:
    config = RDEsmConfig(
        levels=levels([32, 48]), residual_directions=[7], bases={"seed": 3}, backbones_in_checkpoint=False
    )
    config.save_pretrained(tmp_path)
    again = RDEsmConfig.from_pretrained(tmp_path)
    for field in ("levels", "residual_directions", "bases", "backbones_in_checkpoint", "nested_dims"):
        assert getattr(again, field) == getattr(config, field)
    assert json.loads((tmp_path / "config.json").read_text())["nested_dims"] == {"L0": 32, "L1": 39}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": levels([48, 32])}, "does not grow beyond L0"),
        ({"levels": levels([32, 48]), "residual_directions": [49]}, "1 to 48"),
        ({"levels": levels([32, 48]), "residual_directions": [1, 2]}, "one number for each level"),
        ({"levels": levels([32, 48]), "level": "9B"}, "unknown level '9B': this model has L0, L1"),
        ({"levels": [*levels([32]), *levels([48])]}, "must differ"),
        ({"levels": [levels([32])[0], levels([32, 48], vocab_size=40)[1]]}, "share one vocabulary"),
        ({"levels": [{"name": "../x", "backbone": backbone_settings(32)}]}, "part of a file name"),
        ({"levels": [{"name": "a"}]}, "each level needs"),
        ({"levels": [{"name": "a", "backbone": {"hidden_size": 32}}]}, "backbone of level a lacks"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        RDEsmConfig(**settings)


def test_fields_of_a_newer_version_are_left_out_with_a_warning(tmp_path: Path) -> None:
    RDEsmConfig(levels=levels([32])).save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "whitening": "zca"}))
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("rd_hf.model.configuration_rd_esm")
    logger.addHandler(handler)
    try:
        config = RDEsmConfig.from_pretrained(tmp_path)
        RDEsmConfig.from_pretrained(tmp_path, output_hidden_states=True)  # a field that every config has
    finally:
        logger.removeHandler(handler)
    assert len(heard) == 2
    assert all("does not know and leaves out: whitening" in text for text in heard)
    assert not hasattr(config, "whitening")


def test_inference_servers_read_the_dimensions_that_they_may_cut_to(tmp_path: Path) -> None:
    """Derived like nested_dims: what an edited or older config.json says of them does not count."""
    config = RDEsmConfig(levels=levels([32, 48, 64]))
    config.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["is_matryoshka"] is True
    assert fields["matryoshka_dimensions"] == list(config.nested_dims.values()) == [32, 48, 64]
    del fields["is_matryoshka"]
    fields["matryoshka_dimensions"] = [7]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    smaller = RDEsmConfig.from_pretrained(tmp_path, level="L1")
    assert (smaller.is_matryoshka, smaller.matryoshka_dimensions) == (True, [32, 48])

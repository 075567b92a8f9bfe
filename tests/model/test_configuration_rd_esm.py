"""The config: what it accepts, what follows from it, what it says of what it cannot be."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from rd_hf.embedding.checkpoint import resolve
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
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
    (tmp_path / "config.json").write_text(json.dumps({**fields, "quantile_map": "zca"}))
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
    assert all("does not know and leaves out: quantile_map" in text for text in heard)
    assert not hasattr(config, "quantile_map")


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


# -- types ------------------------------------------------------------------------------------------------------------


def with_backbone(**changes: Any) -> dict[str, Any]:
    return {"levels": levels([32], **changes)}


def with_entry(**changes: Any) -> dict[str, Any]:
    return {"levels": [{**levels([32])[0], **changes}]}


WRONG = [
    ({"levels": "x"}, "levels .* must be a list with an entry for each level, not 'x'"),
    ({"levels": {"name": "L0"}}, "levels .* must be a list"),
    ({"levels": ["x"]}, r"levels\[0\] .* must be an object with name and backbone, not 'x'"),
    ({"levels": [None]}, r"levels\[0\] .* must be an object"),
    (with_entry(backbone="esm2"), r"levels\[0\]\.backbone .* must be an object, not 'esm2'"),
    (with_entry(backbone=None), r"levels\[0\]\.backbone .* must be an object, not None"),
    (with_entry(name=8), r"levels\[0\]\.name .* must be a text, not 8"),
    (with_entry(repo_id=8), r"levels\[0\]\.repo_id .* must be a text or null, not 8"),
    (with_entry(revision=["a"]), r"levels\[0\]\.revision .* must be a text or null"),
    (with_backbone(hidden_size=128.0), r"levels\[0\]\.backbone\.hidden_size .* whole number above 0, not 128\.0"),
    (with_backbone(hidden_size="128"), r"levels\[0\]\.backbone\.hidden_size .* whole number above 0, not '128'"),
    (with_backbone(hidden_size=True), r"levels\[0\]\.backbone\.hidden_size .* not True"),
    (with_backbone(hidden_size=None), r"levels\[0\]\.backbone\.hidden_size .* not None"),
    (with_backbone(hidden_size=30), r"levels\[0\]\.backbone\.hidden_size .* a multiple of its 4 heads, .* not 30"),
    (with_backbone(hidden_size=36), r"levels\[0\]\.backbone\.hidden_size .* 4 heads, each of even width, not 36"),
    (with_backbone(num_hidden_layers=0), r"levels\[0\]\.backbone\.num_hidden_layers .* not 0"),
    (with_backbone(num_attention_heads=[4]), r"levels\[0\]\.backbone\.num_attention_heads .* not \[4\]"),
    (with_backbone(vocab_size=-33), r"levels\[0\]\.backbone\.vocab_size .* not -33"),
    (with_backbone(intermediate_size="4x"), r"levels\[0\]\.backbone\.intermediate_size .* not '4x'"),
    (with_backbone(max_position_embeddings=1e3), r"levels\[0\]\.backbone\.max_position_embeddings .* not 1000\.0"),
    (with_backbone(pad_token_id=33), r"levels\[0\]\.backbone\.pad_token_id .* a token id below 33, not 33"),
    (with_backbone(mask_token_id="<mask>"), r"levels\[0\]\.backbone\.mask_token_id .* not '<mask>'"),
    (
        with_backbone(layer_norm_eps="1e-5"),
        r"levels\[0\]\.backbone\.layer_norm_eps .* must be a finite number, not '1e-5'",
    ),
    (with_backbone(layer_norm_eps=float("nan")), r"backbone\.layer_norm_eps .* must be a finite number, not nan"),
    (with_backbone(layer_norm_eps=-1), r"backbone\.layer_norm_eps .* must be a number above 0, not -1"),
    (with_backbone(hidden_dropout_prob=5.0), r"backbone\.hidden_dropout_prob .* a number from 0 to 1, not 5\.0"),
    (with_backbone(rope_theta=0), r"backbone\.rope_theta .* a number above 0, not 0"),
    (with_backbone(initializer_range=-0.1), r"backbone\.initializer_range .* a number not below 0, not -0\.1"),
    (with_backbone(num_hidden_layers=10**9), r"backbone\.num_hidden_layers .* at most 1,024, not 1000000000"),
    (with_backbone(hidden_act="os"), r"backbone\.hidden_act .* gelu or silu or swish or relu, not 'os'"),
    (with_backbone(rope_parameters={"rope_type": "yarn"}), r"rope_parameters\.rope_type .* 'default', not 'yarn'"),
    (with_backbone(rope_parameters={"rope_theta": "x"}), r"rope_parameters\.rope_theta .* a finite number, not 'x'"),
    (with_backbone(quantization_config={"a": 1}), r"backbone of level L0 is quantised \(quantization_config\)"),
    (with_backbone(is_decoder=True), r"backbone of level L0 is a decoder \(is_decoder\)"),
    (with_entry(layers_of="../x"), r"levels\[0\]\.layers_of .* part of a file name, not '\.\./x'"),
    (with_entry(level_of_repo="../x"), r"levels\[0\]\.level_of_repo .* part of a file name, not '\.\./x'"),
    (with_entry(revision="../../x"), r"levels\[0\]\.revision .* a commit, branch or tag, not '\.\./\.\./x'"),
    (with_entry(revision="/etc/x"), r"levels\[0\]\.revision .* a commit, branch or tag, not '/etc/x'"),
    ({"levels": levels([32]), "dtype": "os"}, "dtype .* must be float32 or .*, not 'os'"),
    ({"levels": levels([32]), "torch_dtype": "int64"}, "torch_dtype .* must be float32 or .*, not 'int64'"),
    ({"levels": levels([32]), "dtype": {"a": "os"}}, "dtype .* must be float32 or .*, not {'a': 'os'}"),
    ({"levels": levels([32]), "num_labels": 10**9}, "num_labels .* a whole number up to 1,048,576, not 1000000000"),
    ({"levels": levels([32]), "id2label": 5}, "id2label .* an object, not 5"),
    ({"levels": levels([32]), "pad_token_id": 5}, "pad_token_id .* must be 1, .* not 5"),
    ({"levels": levels([32]), "output_hidden_states": "no"}, "output_hidden_states .* true or false, not 'no'"),
    ({"levels": levels([32]), "one_pass": "no"}, "one_pass .* true or false, not 'no'"),
    ({"levels": levels([32]), "initializer_range": "x"}, "initializer_range .* a finite number, not 'x'"),
    ({"levels": levels([32]), "rd_hf_version": [1]}, r"rd_hf_version .* a text, not \[1\]"),
    (with_backbone(token_dropout="false"), r"levels\[0\]\.backbone\.token_dropout .* true or false, not 'false'"),
    (with_backbone(emb_layer_norm_before=0), r"levels\[0\]\.backbone\.emb_layer_norm_before .* not 0"),
    (with_backbone(position_embedding_type="relative_key"), "position_embedding_type .* rotary or absolute, not 'rel"),
    ({"levels": levels([32]), "backbones_in_checkpoint": "false"}, "backbones_in_checkpoint .* true or false, not 'fa"),
    ({"levels": levels([32]), "backbones_in_checkpoint": None}, "backbones_in_checkpoint .* true or false, not None"),
    ({"levels": levels([32]), "backbones_in_checkpoint": 0}, "backbones_in_checkpoint .* true or false, not 0"),
    ({"levels": levels([32, 48]), "residual_directions": "16"}, "residual_directions .* a list of whole numbers"),
    ({"levels": levels([32, 48]), "residual_directions": [16.0]}, r"residual_directions\[0\] .* not 16\.0"),
    ({"levels": levels([32, 48]), "residual_directions": ["16"]}, r"residual_directions\[0\] .* not '16'"),
    ({"levels": levels([32]), "level": 0}, "level .* must be the name of a level, not 0"),
    ({"levels": levels([32]), "bases": "pcr"}, "bases .* must be an object, not 'pcr'"),
    (
        with_backbone(model_type="bert"),
        r"backbone of level L0 is of model_type 'bert', which this version cannot build",
    ),
    (with_backbone(model_type="gpt2"), r"backbone of level L0 is of model_type 'gpt2', which .*; it builds esm, esmc$"),
    (
        with_backbone(model_type="esmc", intermediate_size=None),
        r"intermediate_size .* a whole number above 0, not None",
    ),
    (
        {"levels": [levels([32])[0] | {"layer": 3}]},
        r"levels\[0\]\.layer .* one of its backbone's 2 layers, from 1, not 3",
    ),
    ({"levels": [levels([32])[0] | {"layer": 0}]}, r"levels\[0\]\.layer .* not 0"),
    ({"levels": [levels([32])[0] | {"layers_of": 3}]}, r"levels\[0\]\.layers_of .* the name of a level, not 3"),
    (with_backbone(model_type=None), r"backbone of level L0 is of model_type None"),
    (with_backbone(is_folding_model=True), r"backbone of level L0 is a folding model \(is_folding_model\)"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=[words for _, words in WRONG])
def test_a_field_of_the_wrong_type_is_named_in_one_sentence(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rd_esm", **fields}))
    for load in (
        lambda: RDEsmConfig(**fields),
        lambda: RDEsmConfig.from_pretrained(tmp_path),
        lambda: RDEsmModel.from_pretrained(tmp_path),
        lambda: resolve(tmp_path),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            load()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("found", [{}, {"levels": None}, {"levels": []}], ids=str)
def test_a_config_without_levels_describes_no_model(found: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "rd_esm", **found}))
    for load in (RDEsmConfig.from_pretrained, RDEsmModel.from_pretrained, resolve):
        with pytest.raises(ValueError, match=r"levels in its config\.json must be a list with an entry for each level"):
            load(tmp_path)


def test_levels_that_number_their_tokens_otherwise_are_refused() -> None:
    # Nucleotide models, SaProt and DPLM-2 are "esm" too.
    for changes in ({"pad_token_id": 0}, {"mask_token_id": 31}, {"vocab_size": 446}, {"vocab_size": 8229}):
        one, other = levels([32, 48])
        other["backbone"].update(changes)
        with pytest.raises(ValueError, match=r"all levels must share one vocabulary, .* level L1"):
            RDEsmConfig(levels=[one, other])


def test_esm_is_named_or_not(tmp_path: Path) -> None:
    config = RDEsmConfig(levels=levels([32], model_type="esm"))
    assert config.backbone_config(0).hidden_size == 32

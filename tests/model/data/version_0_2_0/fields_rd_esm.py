"""What the fields of an `RDEsmConfig` may hold.

This file travels to the Hub beside ``configuration_rd_esm.py``.
"""

import re
from typing import Any

from .families_rd_esm import FAMILIES, counts_from, family_of

# A level's name becomes part of file names (`model.backbone-150M.safetensors`).
LEVEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# How its positions are counted; releases that do not know another of `EsmConfig`'s choices leave positions out.
_POSITIONS = ("rotary", "absolute")
# Types of a backbone's fields, where they are given: whole numbers from 1 or from 0, numbers, true or false.
_COUNTS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"),
    *("max_position_embeddings", "num_key_value_heads", "head_dim"),
)
_TOKEN_IDS = ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")
_NUMBERS = (
    *("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    *("attention_dropout", "rope_theta"),
)
_FLAGS = ("emb_layer_norm_before", "token_dropout", "attention_bias", "mlp_bias")
# Fields that some transformers release from 4.57 on writes for every model, whether or not the running one does.
COMMON_FIELDS = {
    *("model_type", "auto_map", "transformers_version", "name_or_path", "trust_remote_code", "transformers_weights"),
    *(
        "dtype",
        "torch_dtype",
        "quantization_config",
        "attn_implementation",
        "output_attentions",
        "output_hidden_states",
    ),
    *("return_dict", "use_return_dict", "use_cache", "problem_type", "num_labels", "id2label", "label2id"),
    *("tie_word_embeddings", "is_decoder", "is_encoder_decoder", "add_cross_attention", "tokenizer_class", "prefix"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "pruned_heads"),
    *("cross_attention_hidden_size", "tie_encoder_decoder", "finetuning_task", "task_specific_params"),
    *("torchscript", "use_bfloat16", "tf_legacy_loss", "experts_implementation", "fusion_config"),
    *("distributed_config", "kernel_config"),
}


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def wrong(field: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{field} in an RDEsmConfig (config.json) must be {wanted}, not {value!r}")


def expect(field: str, value: Any, kind: type, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise wrong(field, wanted, value)


def stored_entries(levels: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`levels` as config.json has them: a level that shares or cuts a backbone keeps its number of layers outside.

    Versions that do not know layers would take the whole backbone for the level, and say nothing; without that number
    they refuse it.
    """
    stored = []
    for entry in levels:
        if "layer" in entry or "layers_of" in entry:
            backbone = {key: value for key, value in entry["backbone"].items() if key != "num_hidden_layers"}
            entry = {**entry, "backbone": backbone, "backbone_layers": entry["backbone"]["num_hidden_layers"]}
        stored.append(entry)
    return stored


def whole_entries(levels: Any) -> Any:
    """The inverse of `stored_entries`; what is no list of levels stays as it is."""
    if not isinstance(levels, list):
        return levels
    whole = []
    for entry in levels:
        if isinstance(entry, dict) and "backbone_layers" in entry and isinstance(entry.get("backbone"), dict):
            entry = dict(entry)
            entry["backbone"] = {"num_hidden_layers": entry.pop("backbone_layers"), **entry["backbone"]}
        whole.append(entry)
    return whole


def check_whitening(whitening: Any, levels: int) -> None:
    """Raise unless this says how blocks are whitened, or is none."""
    expect("whitening", whitening, dict, "an object with the weights of the levels")
    weights = [] if not whitening else whitening.get("weights")
    numbers = isinstance(weights, list) and all(is_whole(one) or isinstance(one, float) for one in weights)
    if whitening and not (numbers and len(weights) == levels and all(0 <= one < float("inf") for one in weights)):
        raise wrong("whitening.weights", f"{levels} finite numbers not below 0, one a level", weights)


def check_entry(where: str, entry: Any) -> None:
    """Raise unless one of `levels` is what a level is described by."""
    if not isinstance(entry, dict):
        raise wrong(where, "an object with name and backbone", entry)
    absent = {"name", "backbone"} - set(entry)
    if absent:
        raise ValueError(f"{where}: each level needs {sorted(absent)}; got {sorted(entry)}")
    if not isinstance(entry["name"], str):
        raise wrong(f"{where}.name", "a text", entry["name"])
    for field in ("repo_id", "revision"):
        expect(f"{where}.{field}", entry.get(field), str, "a text or null")
    backbone = entry["backbone"]
    if not isinstance(backbone, dict):
        raise wrong(f"{where}.backbone", "an object", backbone)
    found = backbone.get("model_type", "esm")
    if found not in FAMILIES:
        raise ValueError(
            f"the backbone of level {entry['name']} is of model_type {found!r}, which this version cannot build; it "
            f"builds {', '.join(FAMILIES)}"
        )
    absent = set(family_of(backbone).required) - set(backbone)
    if absent:
        raise ValueError(f"the backbone of level {entry['name']} lacks {', '.join(sorted(absent))}")
    for field in _COUNTS:
        if field in backbone and not (is_whole(backbone[field]) and backbone[field] > 0):
            raise wrong(f"{where}.backbone.{field}", "a whole number above 0", backbone[field])
    for field in _TOKEN_IDS:
        value = backbone.get(field, 0)
        if not (is_whole(value) and 0 <= value < backbone["vocab_size"]):
            raise wrong(f"{where}.backbone.{field}", f"a token id below {backbone['vocab_size']}", value)
    for field in _NUMBERS:
        value = backbone.get(field, 0)
        if not (is_whole(value) or isinstance(value, float)):
            raise wrong(f"{where}.backbone.{field}", "a number", value)
    for field in _FLAGS:
        expect(f"{where}.backbone.{field}", backbone.get(field), bool, "true or false")
    if backbone.get("position_embedding_type", "absolute") not in _POSITIONS:
        raise wrong(
            f"{where}.backbone.position_embedding_type", " or ".join(_POSITIONS), backbone["position_embedding_type"]
        )
    if backbone.get("is_folding_model"):
        raise ValueError(f"the backbone of level {entry['name']} is a folding model, which this version cannot build")
    expect(f"{where}.layers_of", entry.get("layers_of"), str, "the name of a level")
    layer, layers = entry.get("layer", 1), backbone["num_hidden_layers"]
    if not (is_whole(layer) and 1 <= layer <= layers):
        raise wrong(f"{where}.layer", f"the number of one of its backbone's {layers} layers, from 1", layer)
    heads, rotary = backbone["num_attention_heads"], not counts_from(backbone)
    if backbone["hidden_size"] % (heads * (2 if rotary else 1)):
        wanted = f"a multiple of its {heads} heads{', each of even width' if rotary else ''}"
        raise wrong(f"{where}.backbone.hidden_size", wanted, backbone["hidden_size"])


def check_readout(readout: dict[str, Any], levels: list[dict[str, Any]]) -> None:
    """Raise unless a readout names layers that the last of the levels has below its final state."""
    if len(levels) < 2:
        raise wrong("readout", "null for a family of one level", readout)
    layers, last = readout.get("layers"), levels[-1]
    count = last.get("layer") or last["backbone"]["num_hidden_layers"]
    if not isinstance(layers, list) or not all(is_whole(layer) and 0 <= layer < count for layer in layers):
        raise wrong("readout.layers", f"a list of layers of the largest backbone, from 0 to {count - 1}", layers)
    if sorted(set(layers)) != layers:
        raise wrong("readout.layers", "a list of layers in growing order", layers)

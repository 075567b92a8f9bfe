"""What this project knows of a family of backbones, in one record per family: all else treats them alike.

A level's `backbone` in config.json names its family by `model_type`, "esm" where it is absent. A backbone is built and
loaded by transformers' own class for that type; code that came with a backbone's weights never runs. To add a family
is to add an entry of `FAMILIES`.

All levels of a chain are given ESM-2's tokens. The number of rows in a table of embeddings does not tell whether a
backbone reads them: ESM-C's 64 rows hold ESM-2's ids, nucleotide models of the same `model_type` others. What a
tokenizer gives for each residue and each special token does.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import PretrainedConfig
from transformers.utils import cached_file

from .files_rd_esm import fetch_again
from .pooling_rd_esm import TOKENS

# What a level is given: special tokens, the twenty residues, and X, B, U, Z, O.
GIVEN = {token: number for token, number in TOKENS.items() if token not in ("<unk>", ".", "-", "<null_1>")}
# How positions are counted; releases that do not know another of `EsmConfig`'s choices leave positions out.
_POSITIONS = ("rotary", "absolute")
# Types of a backbone's fields, where they are given: whole numbers from 1 or from 0, numbers, true or false.
_COUNTS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size"),
    *("max_position_embeddings", "num_key_value_heads", "head_dim"),
)
_TOKEN_IDS = ("pad_token_id", "mask_token_id", "bos_token_id", "eos_token_id")
# Least and largest value.
_NUMBERS = {
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "attention_dropout"), (0, 1)),
    **dict.fromkeys(("layer_norm_eps", "rope_theta"), (5e-324, math.inf)),
    "initializer_range": (0, math.inf),
}
# Of sizes that no weight need have: beyond any encoder's, and still made in no time.
_MOST = {"num_hidden_layers": 1024, "max_position_embeddings": 2**20}
_ACTIVATIONS = ("gelu", "silu", "swish", "relu")
# What a backbone cannot be, and what that is.
_REFUSED = {
    "is_folding_model": "a folding model",
    "is_decoder": "a decoder",
    "quantization_config": "quantised",
}
_FLAGS = ("emb_layer_norm_before", "token_dropout", "attention_bias", "mlp_bias")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def wrong(field: str, wanted: str, value: Any) -> ValueError:
    return ValueError(f"{field} in an RDEsmConfig (config.json) must be {wanted}, not {value!r}")


def check_number(field: str, value: Any, least: float, most: float) -> None:
    """Raise unless this is a finite number within bounds."""
    if not (is_whole(value) or isinstance(value, float)) or not math.isfinite(value):
        raise wrong(field, "a finite number", value)
    if not least <= value <= most:
        bounds = f"from {least} to {most}" if most < math.inf else "above 0" if least else "not below 0"
        raise wrong(field, f"a number {bounds}", value)


def expect(field: str, value: Any, kind: type, wanted: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise wrong(field, wanted, value)


@dataclass(frozen=True)
class BackboneFamily:
    """One family of encoders. All take token ids, mask and positions, and attend through the library's interface, so
    that whichever attention is registered there reaches them."""

    model_type: str  # as its config.json and transformers' mappings have it
    title: str  # what readers call it
    released: str  # first release of transformers that has it
    layers: str  # path of its stack of layers
    final_norm: str  # path of the norm behind the last layer, whose output is the final state
    parts: tuple[str, ...]  # its direct children, for a `device_map` that names them
    whole: tuple[str, ...]  # classes of modules that are not split over devices
    rows: tuple[int, ...]  # of its published embedding tables: then the alphabet is known without a tokenizer
    tokens: Mapping[str, int]  # its ids of special tokens, where a config leaves them out
    # Rotary frequencies lie in its checkpoints, rounded as they were in training; others compute them in float32.
    stores_frequencies: bool
    fields: tuple[str, ...]  # of its config.json, those that decide what it computes
    required: tuple[str, ...]  # those of them that must be there
    arguments: Mapping[str, Any]  # what its class is built with beside the config

    def config(self, backbone: Mapping[str, Any], level: str) -> PretrainedConfig:
        """The library's config of a level's `backbone`.

        Raises:
            ValueError: this release of transformers does not have the family.
        """
        mapping = transformers.CONFIG_MAPPING
        if self.model_type not in mapping:
            raise ValueError(
                f"the backbone of level {level} is an {self.title} (model_type {self.model_type!r}), which "
                f"transformers has from {self.released} on, and this is {transformers.__version__}: upgrade it, or "
                f"load a level below {level}"
            )
        return mapping[self.model_type](**{key: value for key, value in backbone.items() if key in self.fields})


_SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
FAMILIES = {
    family.model_type: family
    for family in (
        # ESM-2 (Lin et al. 2023), ESM-1b and ESM-1v (Rives et al. 2021, Meier et al. 2021), DPLM (Wang et al. 2024).
        BackboneFamily(
            model_type="esm",
            title="ESM-2",
            released="4.57",
            layers="encoder.layer",
            final_norm="encoder.emb_layer_norm_after",
            parts=("embeddings", "encoder", "contact_head"),
            whole=("EsmLayer", "EsmEmbeddings"),
            rows=(33,),
            tokens={"pad_token_id": 1, "mask_token_id": 32, "eos_token_id": 2},
            stores_frequencies=True,
            # Its pooler pools over cls, with weights that no checkpoint has.
            arguments={"add_pooling_layer": False},
            fields=(
                *_SIZES,
                *("pad_token_id", "mask_token_id", "hidden_act", "hidden_dropout_prob"),
                *("attention_probs_dropout_prob", "max_position_embeddings", "initializer_range", "layer_norm_eps"),
                *("position_embedding_type", "rope_theta", "emb_layer_norm_before", "token_dropout"),
            ),
            # Without it the library has no padding.
            required=(*_SIZES[:-1], "pad_token_id"),
        ),
        # ESM Cambrian (EvolutionaryScale 2024).
        BackboneFamily(
            model_type="esmc",
            title="ESM-C",
            released="5.16",
            layers="layers",
            final_norm="norm",
            parts=("embed_tokens", "rotary_emb", "layers", "norm"),
            whole=("EsmcLayer",),
            rows=(33, 64),
            tokens={"pad_token_id": 1, "mask_token_id": 32, "bos_token_id": 0, "eos_token_id": 2},
            stores_frequencies=False,
            arguments={},
            fields=(
                *_SIZES,
                *("pad_token_id", "bos_token_id", "eos_token_id", "mask_token_id", "hidden_act", "head_dim"),
                *("num_key_value_heads", "max_position_embeddings", "initializer_range", "rope_parameters"),
                *("attention_bias", "attention_dropout", "mlp_bias"),
            ),
            # Without it the library takes that of the largest.
            required=_SIZES,
        ),
    )
}


# What says how a backbone counts positions.
POSITION_FIELDS = ("model_type", "position_embedding_type", "pad_token_id", "max_position_embeddings")


def family_of(backbone: Mapping[str, Any]) -> BackboneFamily:
    """The family of a level's `backbone`."""
    return FAMILIES[backbone.get("model_type", "esm")]


def describe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A level's `backbone`, from a model's own config.json: what decides what its encoder computes, and no more."""
    family = family_of(fields)
    found = {name: fields[name] for name in family.fields if fields.get(name) is not None}
    # As in every config.json of before there were others.
    return found if family.model_type == "esm" else {"model_type": family.model_type, **found}


def counts_from(backbone: Mapping[str, Any]) -> int:
    """First position: 0, or in a table of absolute positions (ESM-1b) the one behind the padding's."""
    has_choice = "position_embedding_type" in family_of(backbone).fields
    absolute = has_choice and backbone.get("position_embedding_type", "absolute") == "absolute"
    return int(backbone.get("pad_token_id", 1)) + 1 if absolute else 0


def longest_input(backbone: Mapping[str, Any]) -> int | None:
    """Tokens that it has positions for, cls and eos included; `None` where positions are rotary, and any number."""
    first = counts_from(backbone)
    return int(backbone.get("max_position_embeddings", 1026)) - first if first else None


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


def check_backbone(where: str, level: str, backbone: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless a level's `backbone`, at a place in config.json, is one that this version can build."""
    found = backbone.get("model_type", "esm")
    if found not in FAMILIES:
        raise ValueError(
            f"the backbone of level {level} is of model_type {found!r}, which this version cannot build; it "
            f"builds {', '.join(FAMILIES)}"
        )
    absent = set(family_of(backbone).required) - set(backbone)
    if absent:
        raise ValueError(f"the backbone of level {level} lacks {', '.join(sorted(absent))}")
    for field in _COUNTS:
        if field in backbone and not (is_whole(backbone[field]) and backbone[field] > 0):
            raise wrong(f"{where}.{field}", "a whole number above 0", backbone[field])
        if backbone.get(field, 0) > _MOST.get(field, math.inf):
            raise wrong(f"{where}.{field}", f"at most {_MOST[field]:,}", backbone[field])
    for field in _TOKEN_IDS:
        value = backbone.get(field, 0)
        if not (is_whole(value) and 0 <= value < backbone["vocab_size"]):
            raise wrong(f"{where}.{field}", f"a token id below {backbone['vocab_size']}", value)
    for field, bounds in _NUMBERS.items():
        if field in backbone:
            check_number(f"{where}.{field}", backbone[field], *bounds)
    for field in _FLAGS:
        expect(f"{where}.{field}", backbone.get(field), bool, "true or false")
    if backbone.get("position_embedding_type", "absolute") not in _POSITIONS:
        raise wrong(f"{where}.position_embedding_type", " or ".join(_POSITIONS), backbone["position_embedding_type"])
    for field, what in _REFUSED.items():
        if backbone.get(field):
            raise ValueError(f"the backbone of level {level} is {what} ({field}), which this version cannot build")
    if backbone.get("hidden_act", "gelu") not in _ACTIVATIONS:
        raise wrong(f"{where}.hidden_act", " or ".join(_ACTIVATIONS), backbone["hidden_act"])
    _check_rotary(f"{where}.rope_parameters", backbone.get("rope_parameters"))
    heads, rotary = backbone["num_attention_heads"], not counts_from(backbone)
    if backbone["hidden_size"] % (heads * (2 if rotary else 1)):
        wanted = f"a multiple of its {heads} heads{', each of even width' if rotary else ''}"
        raise wrong(f"{where}.hidden_size", wanted, backbone["hidden_size"])


def _check_rotary(where: str, rotary: Any) -> None:
    """Raise unless rotary positions are counted as every published family counts them, or are not described."""
    expect(where, rotary, dict, "an object")
    if rotary is None:
        return
    if rotary.get("rope_type", "default") != "default":
        raise wrong(f"{where}.rope_type", "'default'", rotary["rope_type"])
    if "rope_theta" in rotary:
        check_number(f"{where}.rope_theta", rotary["rope_theta"], *_NUMBERS["rope_theta"])


def check_alphabet(what: str, where: str, revision: str | None, backbone: Mapping[str, Any], **hub: Any) -> bool:
    """Compare a backbone's tokenizer, if it has one, with the tokens that it will be given.

    The backbone is called `what` in messages, lies in the repo or folder `where`, and is described so in the config.

    Returns:
        Whether a tokenizer was there to compare; without one, the rows of the table of tokens must be those that its
        family was published with.

    Raises:
        ValueError: it reads other tokens; the message names one.
    """
    compared = False
    for file, vocabulary in _vocabularies(where, revision, hub):
        compared = True
        other = [token for token, number in GIVEN.items() if vocabulary.get(token) != number]
        if other:
            found = vocabulary.get(other[0])
            raise ValueError(
                f"{what} reads other tokens than the other levels of a chain, which are given ESM-2's: {other[0]!r} "
                f"{'is none of its tokens' if found is None else f'is its token {found}'} ({file}) and ESM-2's "
                f"{TOKENS[other[0]]}, and so for {len(other)} of {len(GIVEN)}: it cannot be a level"
            )
    family = family_of(backbone)
    if not compared and backbone["vocab_size"] not in family.rows:
        raise ValueError(
            f"{what} has {backbone['vocab_size']} tokens where {family.title} has {_or(family.rows)}, and no tokenizer "
            f"beside its weights says whether ESM-2's are among them: put its vocab.txt or tokenizer.json there"
        )
    return compared


def check_tokens(level: str, entry: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the config alone tells that a level's tokens are not ESM-2's.

    The `alphabet` of its entry is "esm2" where `check_alphabet` compared a table of unusual size.
    """
    backbone = entry["backbone"]
    family, rows = family_of(backbone), backbone["vocab_size"]
    for field, number in family.tokens.items():
        if backbone.get(field, number) not in (number, None):
            raise ValueError(
                f"all levels must share one vocabulary, ESM-2's, where {field} is {number}: that of level {level} is "
                f"{backbone[field]}"
            )
    if rows not in family.rows and not (entry.get("alphabet") == "esm2" and rows > max(TOKENS.values())):
        raise ValueError(
            f"all levels must share one vocabulary, of which {family.title} has {_or(family.rows)} tokens: level "
            f"{level} has {rows}"
        )


def _or(numbers: tuple[int, ...]) -> str:
    return " or ".join(map(str, numbers))


def _vocabularies(where: str, revision: str | None, hub: dict[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """Name and content of each vocabulary of a folder, or of the first that a Hub repo has: token to id."""
    for name in ("vocab.txt", "tokenizer.json"):
        if os.path.isdir(where):
            path = os.path.join(where, name) if os.path.isfile(os.path.join(where, name)) else None
        else:
            try:
                path = cached_file(where, name, revision=revision, _raise_exceptions_for_missing_entries=False, **hub)
            except OSError:  # of a repo in the cache, perhaps without its tokenizer
                path = None
        if path is None:
            continue
        with open(path, encoding="utf-8") as file:
            text = file.read()
        if name == "vocab.txt":
            yield name, {token: place for place, token in enumerate(re.split(r"\r?\n", text.strip()))}
            if not os.path.isdir(where):
                return  # one request less
            continue
        try:
            content = json.loads(text)
            listed = content["model"]["vocab"]
            known = dict(listed) if isinstance(listed, dict) else {pair[0]: place for place, pair in enumerate(listed)}
            yield name, known | {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"{path} is no tokenizer.json ({error!r}): {fetch_again(path)}") from error

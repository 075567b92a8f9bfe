"""What this project knows of a family of backbones, said once a family: all else treats them alike.

A level's `backbone` in config.json names its family by `model_type`, "esm" where it is absent. A backbone is built and
loaded by transformers' own class for that type; code that came with a backbone's weights never runs. To add a family
is to add an entry of `FAMILIES`.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of transformers only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import transformers
from transformers import PretrainedConfig


@dataclass(frozen=True)
class BackboneFamily:
    """One family of encoders. All take token ids, mask and positions, and attend through the library's interface, so
    that whichever attention is registered there reaches them.

    Args:
        model_type: as its config.json and transformers' mappings have it.
        title: what readers call it.
        released: first release of transformers that has it.
        layers: path of its stack of layers.
        final_norm: path of the norm behind the last layer, whose output is the final state.
        parts: its direct children, for a `device_map` that names them.
        whole: classes of modules that are not split over devices.
        rows: rows of its published embedding tables: the alphabet is then known where no tokenizer is at hand.
        tokens: its ids of special tokens, where a config leaves them out.
        stores_frequencies: rotary frequencies lie in its checkpoints, rounded as they were in training; other families
            compute them in float32.
        arguments: what its class is built with beside the config.
        fields: of its config.json, those that decide what it computes.
        required: those of them that must be there.
    """

    model_type: str
    title: str
    released: str
    layers: str
    final_norm: str
    parts: tuple[str, ...]
    whole: tuple[str, ...]
    rows: tuple[int, ...]
    tokens: Mapping[str, int]
    stores_frequencies: bool
    fields: tuple[str, ...]
    required: tuple[str, ...]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def config(self, backbone: Mapping[str, Any], level: str) -> PretrainedConfig:
        """The library's config of a backbone.

        Args:
            backbone: `levels[...]["backbone"]` of an `RDEsmConfig`.
            level: its name, for the message.

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
        return mapping[self.model_type](**{key: value for key, value in backbone.items() if key != "model_type"})


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
            required=_SIZES[:-1],
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
    if family_of(backbone).model_type != "esm" or backbone.get("position_embedding_type", "absolute") != "absolute":
        return 0
    return int(backbone.get("pad_token_id", 1)) + 1


def longest_input(backbone: Mapping[str, Any]) -> int | None:
    """Tokens that it has positions for, cls and eos included; `None` where positions are rotary, and any number."""
    first = counts_from(backbone)
    return int(backbone.get("max_position_embeddings", 1026)) - first if first else None

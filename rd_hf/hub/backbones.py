"""A family put together from models that are there: ``NAME=REPO[@REVISION]``, smallest first, becomes a config.

Each may be a Hub id or a folder of an ESM-2-like model (``EsmModel`` of transformers, with its own head or without).
A reverse-distilled family stands for its levels: all of them, under their names, where no ``NAME=`` precedes it, and
the one called NAME otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers import EsmConfig, PretrainedConfig
from transformers.utils import cached_file

from rd_hf.data.fasta import InputError
from rd_hf.data.residues import MASK_ID, PAD_ID, VOCABULARY
from rd_hf.hub.card import is_hub_id
from rd_hf.hub.checkpoint import resolve_commit
from rd_hf.model.configuration_rd_esm import RDEsmConfig

# What decides what an encoder computes; everything else in a config.json concerns heads, training or its history.
_ENCODER_FIELDS = (
    *("vocab_size", "pad_token_id", "mask_token_id", "hidden_size", "num_hidden_layers", "num_attention_heads"),
    *("intermediate_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("max_position_embeddings", "initializer_range", "layer_norm_eps", "position_embedding_type"),
    *("emb_layer_norm_before", "token_dropout"),
)
_SYNTAX = "NAME=REPO[@REVISION], REPO being a Hub id or a folder"


@dataclass(frozen=True)
class BackboneSource:
    """One word of ``--backbones``.

    Attributes:
        name: of the level; None for all levels of a reverse-distilled family.
        where: Hub id or folder.
        revision: of a Hub id, None for its main branch.
    """

    name: str | None
    where: str
    revision: str | None = None


def parse_source(word: str) -> BackboneSource:
    """Read ``NAME=REPO[@REVISION]`` or ``FAMILY[@REVISION]``; a folder's name may hold ``@`` and ``#``.

    Raises:
        InputError: the word is neither.
    """
    name, equals, where = word.partition("=")
    if not equals or Path(word).is_dir():
        name, where = "", word
    if where and Path(where).is_dir():
        return BackboneSource(name or None, where)
    where, _, layer = where.partition("#")
    if layer:
        raise InputError(f"--backbones {word}: a level that ends at a layer (#{layer}) is not supported")
    where, _, revision = where.partition("@")
    if not is_hub_id(where) or (equals and not name):
        raise InputError(f"--backbones {word}: no such folder, and no Hub id (owner/name); write {_SYNTAX}")
    return BackboneSource(name or None, where, revision or None)


def family_config(words: list[str], keep: list[int] | Literal["all"] | None = None, **hub: Any) -> RDEsmConfig:
    """Describe the chain of the models that ``words`` name, smallest first, each pinned to its commit of today.

    Only config.json and vocab.txt are fetched.

    Args:
        words: see :func:`parse_source`.
        keep: residual directions of each level after the first, "all" of them, or None for the growth in width.
        hub: ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        InputError: fewer than two levels, a model that is no ESM-2-like encoder or speaks another vocabulary, names
            that repeat, or widths that do not grow without ``keep``.
        OSError: a config.json cannot be had.
    """
    levels = [entry for word in words for entry in _levels(parse_source(word), hub)]
    if len(levels) < 2:
        raise InputError(f"--backbones names {len(levels)} level: a chain needs two or more, smallest first")
    for entry in levels:
        _check_alphabet(entry, levels[0], hub)
    try:
        directions = [entry["backbone"]["hidden_size"] for entry in levels[1:]] if keep == "all" else keep
        return RDEsmConfig(levels=levels, residual_directions=directions, backbones_in_checkpoint=False)
    except ValueError as error:
        raise InputError(f"--backbones: {str(error).replace('residual_directions', '--keep')}") from error


def _levels(source: BackboneSource, hub: dict[str, Any]) -> list[dict[str, Any]]:
    commit = resolve_commit(source.where, source.revision, **hub)
    fields, _ = PretrainedConfig.get_config_dict(source.where, revision=commit, **hub)
    if fields.get("model_type") == RDEsmConfig.model_type:
        return _levels_of_family(source, commit, RDEsmConfig.from_dict(fields))
    if fields.get("model_type") != "esm" or fields.get("is_folding_model"):
        kind = "a folding model" if fields.get("is_folding_model") else f"of type {fields.get('model_type')!r}"
        raise InputError(f"--backbones {source.where} is {kind}: a level is an ESM-2-like encoder (model_type 'esm')")
    if source.name is None:
        raise InputError(f"--backbones {source.where} has no name: write {_SYNTAX}")
    known = EsmConfig(**{name: fields[name] for name in _ENCODER_FIELDS if name in fields}).to_dict()
    backbone = {name: known[name] for name in _ENCODER_FIELDS if known.get(name) is not None}
    where = str(Path(source.where).resolve()) if Path(source.where).is_dir() else source.where
    return [{"name": source.name, "backbone": backbone, "repo_id": where, "revision": commit}]


def _levels_of_family(source: BackboneSource, commit: str | None, config: RDEsmConfig) -> list[dict[str, Any]]:
    if source.name is not None and source.name not in config.level_names:
        raise InputError(
            f"--backbones {source.name}={source.where}: that is a reverse-distilled family without a level "
            f"{source.name!r}; it has {', '.join(config.level_names)}"
        )
    chosen = [entry for entry in config.levels if source.name in (None, entry["name"])]
    if not config.backbones_in_checkpoint:
        return chosen
    where = str(Path(source.where).resolve()) if Path(source.where).is_dir() else source.where
    return [{**entry, "repo_id": where, "revision": commit, "level_of_repo": entry["name"]} for entry in chosen]


def _check_alphabet(entry: dict[str, Any], first: dict[str, Any], hub: dict[str, Any]) -> None:
    """Raise unless a model reads the tokens that are given to all levels: ESM-2's."""
    what = f"--backbones {entry['name']}={entry['repo_id']}"
    wanted = {"vocab_size": len(VOCABULARY), "pad_token_id": PAD_ID, "mask_token_id": MASK_ID}
    for field, value in wanted.items():
        found = entry["backbone"].get(field)
        if found != value:
            raise InputError(
                f"{what} has {field} {found}, where ESM-2's tokens need {value}: all levels of a chain read the same "
                f"tokens, so it cannot be one of them"
            )
    try:
        path = cached_file(entry["repo_id"], "vocab.txt", revision=entry["revision"], **hub)
    except OSError:  # a model saved without its tokenizer: the numbers above are all there is to check
        return
    assert path is not None
    tokens = re.split(r"\r?\n", Path(path).read_text(encoding="utf-8").strip())
    differing = [(i, a, b) for i, (a, b) in enumerate(zip(tokens, VOCABULARY, strict=False)) if a != b]
    if differing or len(tokens) != len(VOCABULARY):
        place = f"token {differing[0][0]} is {differing[0][1]!r}" if differing else f"it lists {len(tokens)} tokens"
        raise InputError(
            f"{what} speaks another vocabulary than ESM-2 ({place} in its vocab.txt): it cannot be a level"
        )

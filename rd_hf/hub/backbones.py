"""The config of a family that is put together from any models: ``NAME=REPO[@REVISION][:LEVEL][#LAYER]`` each.

Each may be a Hub id or a folder of an encoder of a family that this project knows (ESM-2 and its like, ESM-C), with
its own head or without. ``#LAYER`` names a layer of it: the level is then that backbone as if it ended there, and
levels that are layers of one backbone share its weights and its forward pass. A reverse-distilled family stands for
its levels: the one called LEVEL, or else NAME, under the name NAME; and where neither names one, all of them, under
their names, with ``NAME-`` before each where there is a NAME.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from transformers import PretrainedConfig

from rd_hf.carried import model_place
from rd_hf.data.records import InputError
from rd_hf.hub.checkpoint import read_config
from rd_hf.hub.sources import is_hub_id, resolve_commit
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES, check_alphabet, describe, family_of
from rd_hf.model.files_rd_esm import LEVEL_NAME
from rd_hf.network import asks_hub

_SYNTAX = "NAME=REPO[@REVISION][:LEVEL][#LAYER], REPO being a Hub id, a folder or rd-esm2-mini"
# What tells whether two levels are of one backbone.
_PLACE = ("repo_id", "revision", "level_of_repo", "backbone")


@dataclass(frozen=True)
class BackboneSource:
    """One word of ``--backbones``.

    Attributes:
        name: of the level; None for all levels of a reverse-distilled family.
        where: Hub id or folder.
        level: of a reverse-distilled family, None for the one called ``name``.
        layer: number of the layer that the level ends at, None for the whole backbone.
    """

    name: str | None
    where: str
    revision: str | None = None
    level: str | None = None
    layer: int | None = None


def parse_source(word: str) -> BackboneSource:
    """Read ``NAME=REPO[@REVISION][:LEVEL][#LAYER]`` or ``FAMILY[@REVISION]``; InputError if the word is neither.

    A folder's name may hold any of these characters.
    """
    name, equals, where = word.partition("=")
    if not equals or Path(word).is_dir():
        name, where = "", word
    if where and Path(place := model_place(where)).is_dir():
        return BackboneSource(name or None, place)
    before, sharp, layer = where.rpartition("#")
    if sharp:
        if not layer.isdecimal() or not layer.isascii() or int(layer) < 1:
            raise InputError(
                f"--backbones {word}: #{layer} is no number of a layer, which count from 1; write {_SYNTAX}"
            )
        if not name:
            raise InputError(f"--backbones {word}: a layer is a level by itself, which needs a name; write {_SYNTAX}")
        return replace(parse_source(f"{name}={before}"), layer=int(layer))
    before, colon, level = where.rpartition(":")
    if colon and name and LEVEL_NAME.fullmatch(level):
        return replace(parse_source(f"{name}={before}"), level=level)
    where, _, revision = where.partition("@")
    if not is_hub_id(where) or (equals and not name):
        raise InputError(f"--backbones {word}: no such folder, and no Hub id (owner/name); write {_SYNTAX}")
    return BackboneSource(name or None, where, revision or None)


@asks_hub
def family_config(words: list[str], keep: list[int] | Literal["all"] | None = None, **hub: Any) -> RDEsmConfig:
    """Return the config of the chain of the models that ``words`` name, smallest first, pinned to today's commits.

    Only config.json and the tokenizer's vocabulary are fetched.

    Args:
        words: see :func:`parse_source`.
        keep: residual directions of each level after the first, "all" of them, or None for the growth in width.
        hub: ``token``, ``cache_dir``, ``local_files_only``.

    Raises:
        InputError: fewer than two levels, a model that is no encoder of a known family or reads other tokens, a layer
            that it does not have, names that repeat, or widths that do not grow without ``keep``.
        OSError: a config.json cannot be had.
    """
    levels = [entry for word in words for entry in _levels(parse_source(word), hub)]
    if len(levels) < 2:
        raise InputError(f"--backbones names {len(levels)} level: a chain needs two or more, smallest first")
    _share(levels)
    try:
        directions = [entry["backbone"]["hidden_size"] for entry in levels[1:]] if keep == "all" else keep
        return RDEsmConfig(levels=levels, residual_directions=directions, backbones_in_checkpoint=False)
    except ValueError as error:
        raise InputError(f"--backbones: {str(error).replace('residual_directions', '--keep')}") from error


def encoder_entry(where: str, fields: dict[str, Any], commit: str | None, **hub: Any) -> dict[str, Any]:
    """Return the entry of a level for a backbone (but for its name), from the fields of its config.json.

    An InputError if it is no encoder of a family that this project knows, or reads other tokens than ESM-2.
    """
    found = fields.get("model_type")
    known = ", ".join(f"{family.title} ({family.model_type})" for family in FAMILIES.values())
    why = None
    if found not in FAMILIES:
        why = f"of type {found!r}, which is none of the families of encoders that can be a level: {known}"
        if fields.get("auto_map"):
            why += "; it needs code of its own (trust_remote_code), and code that comes with a backbone is never run"
    elif fields.get("is_folding_model"):
        why = "a folding model, of which no level can be made: name the encoder that it was built on"
    elif fields.get("is_decoder") or fields.get("add_cross_attention"):
        why = "a decoder, whose residues do not see those that follow: a level is an encoder"
    else:
        lacking = [name for name in family_of(fields).required if fields.get(name) is None]
        if lacking:
            why = f"without {lacking[0]} in its config.json, which decides what it computes: fetch or save it again"
    if why is not None:
        raise InputError(f"--backbones {where} is {why}")
    entry: dict[str, Any] = {
        "backbone": describe(fields),
        "repo_id": str(Path(where).resolve()) if Path(where).is_dir() else where,
        "revision": commit,
    }
    try:
        compared = check_alphabet(f"--backbones {where}", where, commit, entry["backbone"], **hub)
    except ValueError as error:
        raise InputError(str(error)) from error
    if compared and entry["backbone"]["vocab_size"] not in family_of(fields).rows:
        entry["alphabet"] = "esm2"
    return entry


def _levels(source: BackboneSource, hub: dict[str, Any]) -> list[dict[str, Any]]:
    commit = resolve_commit(source.where, source.revision, **hub)
    fields, _ = PretrainedConfig.get_config_dict(source.where, revision=commit, **hub)
    if fields.get("model_type") == RDEsmConfig.model_type:
        levels = _levels_of_family(source, commit, read_config(source.where, commit, **hub))
    elif source.name is None:
        raise InputError(f"--backbones {source.where} has no name: write {_SYNTAX}")
    elif source.level is not None:
        raise InputError(
            f"--backbones {source.name}={source.where}:{source.level}: that is no reverse-distilled family, which "
            f"alone has levels"
        )
    else:
        levels = [{"name": source.name, **encoder_entry(source.where, fields, commit, **hub)}]
    if source.layer is None:
        return levels
    (level,) = levels
    layers = level["backbone"]["num_hidden_layers"]
    if source.layer > layers:
        raise InputError(
            f"--backbones {source.name}={source.where}#{source.layer}: it has {layers} layers, so that #1 to #{layers} "
            f"can be levels"
        )
    return [{**level, "layer": source.layer}]


def _levels_of_family(source: BackboneSource, commit: str | None, config: RDEsmConfig) -> list[dict[str, Any]]:
    wanted, prefix = source.level or source.name, ""
    if source.level is None and source.layer is None and source.name not in config.level_names:
        wanted, prefix = None, f"{source.name}-" if source.name else ""
    elif wanted not in config.level_names:
        raise InputError(
            f"--backbones {source.name}={source.where}: that is a reverse-distilled family without a level "
            f"{wanted!r}; it has {', '.join(config.level_names)}: write NAME=REPO:LEVEL, with #LAYER for a layer"
        )
    chosen = [entry for entry in config.levels if wanted in (None, entry["name"])]
    if config.backbones_in_checkpoint:
        where = str(Path(source.where).resolve()) if Path(source.where).is_dir() else source.where
        place = {"repo_id": where, "revision": commit}
        chosen = [{**entry, **place, "level_of_repo": entry.get("layers_of", entry["name"])} for entry in chosen]
    if wanted is not None:
        return [{**entry, "name": source.name} for entry in chosen]
    return [{**entry, "name": prefix + entry["name"]} for entry in chosen]


def _share(levels: list[dict[str, Any]]) -> None:
    """Let neighbouring levels that are layers of one backbone share it, under the name of the last of them."""

    def place(entry: dict[str, Any]) -> tuple[str, ...]:
        return tuple(repr(entry.get(key)) for key in _PLACE)

    seen: dict[tuple[str, ...], str] = {}
    for key, group in itertools.groupby(levels, place):
        members = list(group)
        for entry in members:
            entry.pop("layers_of", None)
            if entry is not members[-1]:
                entry["layers_of"] = members[-1]["name"]
        if key in seen:
            raise InputError(
                f"--backbones: {seen[key]} and {members[0]['name']} are layers of one backbone "
                f"({members[0]['repo_id']}), which runs once: name them one after the other"
            )
        seen[key] = members[-1]["name"]

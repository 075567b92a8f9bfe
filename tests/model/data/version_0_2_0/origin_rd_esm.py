"""Whether backbones still are those of the repos that the config names, so that bases alone may be saved.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import os
import re
from typing import Any

import torch
from transformers.utils import logging

from .families_rd_esm import FAMILIES
from .files_rd_esm import WeightFiles
from .layers_rd_esm import encoder_class

logger = logging.get_logger(__name__)

# Before the names of an encoder's weights: where it lies in a model with a head, or in this project's full form. And
# what a backbone's file may lack: no embedding is computed from it.
_PREFIX = re.compile(rf"^({'|'.join(FAMILIES)}|backbones\.\d+)\.")
_UNUSED = re.compile(r"inv_freq$|position_ids$|^contact_head\.")


def decide_form(model: Any, state: dict[str, torch.Tensor], backbones: bool | None, full: bool, push: bool) -> bool:
    """Whether a save must hold the backbones.

    Bases alone are a model only together with the backbones of the named repos. Whether the backbones in hand are
    those is read from the repos' files, bit for bit: nothing that happened to a weight (training, merging, copying)
    escapes that, and none of it needs to be told. Files are not fetched for this: they are in the cache where the
    backbones came from their repos.

    Args:
        model (`RDEsmModel`): with its backbones.
        state: its tensors, as they are to be saved.
        backbones: as the user says: `True`, `False`, or `None` for what is right.
        full: what `None` means where either is right.
        push: whether others are to load it, who do not have this machine's folders.

    Raises:
        ValueError: `False`, but bases alone would not be this model.
    """
    if not isinstance(backbones, (bool, type(None))):
        raise ValueError(f"backbones must be True, False or None, not {backbones!r}")
    if full if backbones is None else backbones:
        return True
    for index in range(len(model.config.backbone_groups)):
        entry = model.config.backbone_entry(index)
        why: str | None
        if entry["repo_id"] is None:
            why = f"level {entry['name']} names no repo_id that its backbone could be fetched from"
            mend = "set config.levels[...]['repo_id'] and ['revision']"
        elif push and os.path.isdir(entry["repo_id"]):
            why = f"level {entry['name']} takes its backbone from {entry['repo_id']}, a folder of this machine"
            mend = "name a Hub id in config.levels[...]['repo_id']"
        else:
            why = _why_not_published(model, index, state, trusted=backbones is False)
            mend = "go back to the published backbones with load_backbones()"
        if why is None:
            continue
        if backbones is None and len(model.backbones) == len(model.config.backbone_groups):
            logger.warning(f"{why}: the backbones are saved too (backbones=True), since bases alone would not do")
            return True
        raise ValueError(f"{why}: save the backbones too (backbones=True), or {mend}")
    return False


def _why_not_published(model: Any, index: int, state: dict[str, torch.Tensor], trusted: bool) -> str | None:
    """What speaks against fetching a level's backbone anew instead of saving it, or `None`.

    Raises:
        ValueError: it is quantised, and not `trusted` to be nothing but that.
    """
    entry = model.config.backbone_entry(index)
    prefix = f"backbones.{index}."
    weights = {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}
    if not weights and model._fetch is not None and model._source is not None:
        # Held one at a time, out of a checkpoint with backbones of its own.
        weights = model._fetch(index).state_dict()
    if not weights:
        return None
    pin = f"{entry['repo_id']} at {entry['revision'] or 'main'}"
    if any(not value.is_floating_point() for key, value in weights.items() if key.endswith("weight")):
        if trusted:
            return None
        raise ValueError(
            f"whether the quantised backbone of level {entry['name']} still is that of {pin} cannot be told: if "
            f"nothing was merged into it, save the bases alone (backbones=False)"
        )
    try:
        files = model._find_backbone(index, None, None, "", {**model._hub, "local_files_only": True})
        changed = _difference(files, weights)
    except (OSError, ValueError) as error:
        return (
            f"whether the backbone of level {entry['name']} still is that of {pin} cannot be told, since that is not "
            f"here to compare with ({' '.join(str(error).split())[:200]})"
        )
    return changed and f"the backbone of level {entry['name']} is no longer that of {pin} ({changed} differs)"


def _difference(files: WeightFiles, weights: dict[str, torch.Tensor]) -> str | None:
    """Name of the first of a backbone's weights that is not the one in the files, or `None`.

    A change of dtype alone is none: who loads it chooses one anew.
    """
    left = {key for key, value in weights.items() if not _UNUSED.search(key) and value.device.type != "meta"}
    for stored_key, stored in files.tensors():
        key = _PREFIX.sub("", stored_key)
        # As some releases of transformers write the norms' weights, and all read them.
        key = re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: {"gamma": "weight", "beta": "bias"}[old[0]], key)
        if key not in left:
            continue
        left.remove(key)
        now = weights[key].detach().cpu()
        casts = dict.fromkeys((now.dtype, torch.float16, torch.bfloat16))
        if not any(torch.equal(stored.to(cast).to(now.dtype), now) for cast in casts):
            return key
    return min(left, default=None)


def check_names(model: Any, index: int, part: dict[str, torch.Tensor]) -> None:
    """Raise unless the weights of a backbone are those that loading will look for.

    Raises:
        ValueError: naming one that is too much or missing.
    """
    name, level = model.config.backbone_name(index), model.config.backbone_groups[index][0]
    config = model.config.backbone_config(level)
    family, encoder = FAMILIES[config.model_type], encoder_class(config, model.config.backbone_depth(index))
    with torch.device("meta"):
        expected = set(encoder(config, **family.arguments).state_dict())
    wanted = {key for key in expected if not _UNUSED.search(key)}
    found = {key.split(".", 2)[2] for key in part}
    extra = {key for key in found - expected if not _UNUSED.search(key)}
    if extra:
        raise ValueError(
            f"the backbone of level {name} holds {min(extra)}, which no {family.title} has, and would be lost: merge "
            f"an adapter first (merge_and_unload()), or save it by itself (save_pretrained of the PeftModel)"
        )
    if wanted - found:
        raise ValueError(
            f"the backbone of level {name} lacks {min(wanted - found)}: give the whole state_dict, or none"
        )

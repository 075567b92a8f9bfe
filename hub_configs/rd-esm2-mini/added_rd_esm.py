"""What is put onto a model: heads, which are saved and loaded with its bases, and adapters that lie beside it.

A head is whatever a model's state dict holds beside backbones and bases: a module that was set on it
(``model.classifier = nn.Linear(...)``) or that a subclass makes. It lies in the file of the bases, which every reader
of checkpoints opens (`Trainer` reads no other when it goes on from bases alone); readers that know of no head leave it.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import json
import os
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available, logging

from .weights_rd_esm import reading, without_bars

logger = logging.get_logger(__name__)

_ADAPTER_CONFIG = "adapter_config.json"
# Within what PEFT puts in a module's place.
_WRAPPED = re.compile(r"\.(base_layer|original_module)\.")


def is_head(config: PretrainedConfig, key: str) -> bool:
    """Whether a tensor of a model belongs neither to a backbone nor to the bases."""
    parts = ["backbones.", "projections."]
    parts += ["readout."] if config.readout is not None else []
    parts += ["whitening."] if config.whitening else []
    return not key.startswith(tuple(parts))


def head_tensors(model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Parameters and persistent buffers of a head, by name."""
    state = model.state_dict(keep_vars=True)
    return ((key, value) for key, value in state.items() if is_head(model.config, key))


def refuse_adapter(what: str, names: Iterable[str]) -> None:
    """Raise `ValueError` if any of these tensors belongs to an adapter, or lies within one."""
    for name in sorted(names):
        if _WRAPPED.search(name):
            raise ValueError(
                f"{what} holds {name}, which an adapter has put there and no model would look for: merge it first "
                f"(merge_and_unload()), or save it by itself (save_pretrained of the PeftModel)"
            )


def adopt_head(
    model: PreTrainedModel,
    info: dict[str, Any],
    path: str,
    ignore_mismatched_sizes: bool,
    build: Callable[[], PreTrainedModel],
) -> dict[str, list[Any]]:
    """A head that is not in the checkpoint starts as its class makes it, and it is said.

    (transformers knows what numbers a layer starts with, and leaves other parameters as memory was.)

    Args:
        model: as it was loaded.
        info: what loading left over, `missing_keys` and so on, as transformers gives them.
        path: of the checkpoint.
        ignore_mismatched_sizes: a head of other sizes than the model's starts anew too.
        build: makes a model of this class and config, without backbones.

    Returns:
        `info` without what concerns a head.

    Raises:
        ValueError: the head in the checkpoint has other sizes than the model's.
    """
    kind = type(model).__name__
    missing = sorted(key for key in info["missing_keys"] if is_head(model.config, key))
    mismatched = sorted((key for key in info["mismatched_keys"] if is_head(model.config, _name(key))), key=_name)
    unexpected = sorted(key for key in info["unexpected_keys"] if is_head(model.config, key))
    if mismatched and not ignore_mismatched_sizes:
        raise ValueError(
            f"{_name(mismatched[0])} has another shape in {path} than in this {kind}: load it at the level and with "
            f"the number of labels that it was saved with, or give ignore_mismatched_sizes=True to start it anew"
        )
    if fresh := missing + [_name(key) for key in mismatched]:
        made, tensors = build().state_dict(), dict(head_tensors(model))
        for name in fresh:
            tensors[name].data.copy_(made[name])
        logger.warning(f"{path} holds no {', '.join(fresh)} for this {kind}: they start afresh, train them first")
    if unexpected:
        logger.warning(
            f"{path} holds {', '.join(unexpected)}, which {kind} has no place for and leaves out: load it with the "
            f"class that it was saved from"
        )
    return {
        "missing_keys": [key for key in info["missing_keys"] if key not in missing],
        "mismatched_keys": [key for key in info["mismatched_keys"] if key not in mismatched],
    }


def _name(key: str | tuple[Any, ...]) -> str:
    return key if isinstance(key, str) else key[0]


def cast_head(model: PreTrainedModel, dtype: torch.dtype) -> None:
    """Give a head the backbones' dtype, as all of a model has one in transformers."""
    for _, tensor in head_tensors(model):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)


def place_head(model: PreTrainedModel, device: Any) -> dict[str, Any]:
    """Move a head to where the embedding comes out; its part of a device map."""
    placed: dict[str, Any] = {}
    for name, tensor in head_tensors(model):
        tensor.data = tensor.data.to(device)
        placed[name.split(".")[0]] = device
    return placed


def find_adapter(
    path: str, kwargs: dict[str, Any], hub: dict[str, Any]
) -> tuple[str, tuple[str, str, dict[str, Any]] | None]:
    """The adapter that transformers would put onto a model, and the checkpoint that it goes onto.

    Args:
        path: folder or Hub id of a checkpoint, or of an adapter alone.
        kwargs: of `from_pretrained`; those that concern adapters are taken out, and of an adapter alone `revision` and
            `subfolder` too.
        hub: what a download takes.

    Returns:
        The checkpoint's folder or Hub id; and the adapter's, its name, and further arguments to load it, if there is
        one.

    Raises:
        ValueError: an adapter alone does not say what it goes onto.
    """
    # AutoModel has looked already.
    looked = "adapter_kwargs" in kwargs
    settings = dict(kwargs.pop("adapter_kwargs", None) or {})
    name = kwargs.pop("adapter_name", "default")
    where = settings.pop("_adapter_model_path", None)
    if where is not None or looked or not is_peft_available():
        return path, None if where is None else (os.fspath(where), name, settings)
    settings = {str(key): kwargs[key] for key in ("revision", "subfolder") if kwargs.get(key)}
    found = find_adapter_config_file(path, **settings, **hub)
    if found is None:
        return path, None
    adapter = path
    if cached_file(path, "config.json", _raise_exceptions_for_missing_entries=False, **settings, **hub) is None:
        with open(found, encoding="utf-8") as file:
            base = json.load(file).get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{found} names no base_model_name_or_path: load that model, then load_adapter({path!r})")
        path = str(base)
        for key in settings:
            del kwargs[key]
    settings |= {str(key): hub[key] for key in ("cache_dir", "token") if key in hub}
    return path, (adapter, name, settings)


def put_adapter(model: PreTrainedModel, where: str, name: str, settings: dict[str, Any]) -> None:
    """Load an adapter that `find_adapter` found onto a model with its backbones.

    Raises:
        OSError, ValueError: it cannot be had, fits no module of the model, or this release of transformers does not
            find its weights (5.0 does not, of any model, and would start it at random).
    """
    with reading(f"the adapter in {where}"), without_bars():
        found: Any = model.load_adapter(where, adapter_name=name, adapter_kwargs=settings)
        # (Before 5.0 nothing is returned.)
        if missing := sorted(getattr(found, "missing_keys", ())):
            raise ValueError(
                f"transformers {transformers.__version__} finds no weights in it for {missing[0]}: load the model from "
                f"elsewhere and put the adapter on with PeftModel.from_pretrained, or use a newer transformers"
            )


def weights_alone(folder: str) -> tuple[str, tempfile.TemporaryDirectory[str] | None]:
    """A folder with a checkpoint's files and without the adapter beside them, which transformers would put onto each
    part that it loads from there; the folder itself where there is no adapter."""
    if not os.path.isfile(os.path.join(folder, _ADAPTER_CONFIG)):
        return folder, None
    links = tempfile.TemporaryDirectory()
    for name in os.listdir(folder):
        source, target = os.path.realpath(os.path.join(folder, name)), os.path.join(links.name, name)
        if name != _ADAPTER_CONFIG and os.path.isfile(source):
            try:
                os.symlink(source, target)
            except OSError:  # a system where not everyone may make links
                shutil.copyfile(source, target)
    return links.name, links


def loaded_from(model: PreTrainedModel, folder: str, links: tempfile.TemporaryDirectory[str] | None) -> None:
    """Note where a model's weights are, after it was loaded from `weights_alone`."""
    if links is not None:
        model.name_or_path = model.config.name_or_path = folder
        # Weights that stay on disk are read from there.
        weakref.finalize(model, links.cleanup)

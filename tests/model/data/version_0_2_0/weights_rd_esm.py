"""Reading weights as they lie in a folder or on the Hub, and saying what is wrong with them.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from .files_rd_esm import read_header


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with rotary frequencies: one a layer before transformers 5.6, one a backbone since."""
    return [module for module in model.modules() if module._buffers.get("inv_freq") is not None]


def set_rotary_frequencies(modules: list[nn.Module], frequencies: torch.Tensor) -> None:
    """Replace them, in float32, where each module computes."""
    for module in modules:
        device = module._buffers["inv_freq"].device  # type: ignore[union-attr]
        module._buffers["inv_freq"] = frequencies.to(
            device="cpu" if device.type == "meta" else device, dtype=torch.float32, copy=True
        )


def keep_float32(module: nn.Module, name: str, before: torch.Tensor | None) -> None:
    """Undo a cast to a narrower dtype, and keep a move to another device."""
    now = module._buffers[name]
    if now is not None and before is not None and now.dtype.itemsize < torch.float32.itemsize:
        module._buffers[name] = before.to(device=now.device, dtype=torch.float32)


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bar of transformers meanwhile: several backbones are one thing to wait for."""
    shown = logging.is_progress_bar_enabled()
    if shown:
        _switch(logging.disable_progress_bar)
    try:
        yield
    finally:
        if shown:
            _switch(logging.enable_progress_bar)


def _switch(bars: Callable[[], None]) -> None:
    """Without the Hub's client saying that an environment variable rules over its own bars."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bars()


@contextmanager
def reading(what: str, quiet: bool = False) -> Iterator[None]:
    """Around reading one part of a checkpoint: what goes wrong is said with its name.

    Args:
        what: the part.
        quiet: say nothing else, since what it holds is checked here. (A backbone's repo holds a language model's head
            too; that this is left out is no news.)
    """
    verbosity = logging.get_verbosity()
    if quiet:
        logging.set_verbosity_error()
    try:
        with without_bars() if quiet else nullcontext():
            yield
    except OSError as error:
        raise OSError(f"{what} cannot be loaded: {error}") from error
    except Exception as error:
        if type(error).__name__ == "SafetensorError":
            raise ValueError(
                f"{what}: a weights file is cut short or is no safetensors file ({error}); fetch it again"
            ) from error
        if isinstance(error, ValueError) and not str(error).startswith(what):
            raise ValueError(f"{what}: {error}") from error
        raise
    finally:
        logging.set_verbosity(verbosity)


def check_loaded(what: str, info: dict[str, Any]) -> None:
    """Raise unless every weight was there, in its shape; contacts are not predicted here, and some encoders are
    published without the head for them."""
    missing = sorted(key for key in info["missing_keys"] if not re.search(r"inv_freq|^contact_head\.", key))
    mismatched = sorted((key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if missing or mismatched:
        wrong = [f"{len(missing)} are missing ({missing[0]}, ...)"] if missing else []
        wrong += [f"{len(mismatched)} have another shape ({mismatched[0]}, ...)"] if mismatched else []
        raise ValueError(
            f"{what}: its weights are not those that config.json describes: {' and '.join(wrong)}; "
            f"check that config, revision and weights belong together, or fetch them again"
        )


def refuse_links(folder: str) -> None:
    """Raise if a file of a local checkpoint is a link that leads out of it.

    The Hub's own cache is made of links from `snapshots/<commit>/` to `blobs/`, which are let through.
    """
    home = os.path.realpath(folder)
    blobs = os.path.join(os.path.dirname(os.path.dirname(home)), "blobs")
    in_cache = os.path.basename(os.path.dirname(home)) == "snapshots"
    for root, directories, files in os.walk(folder):
        for name in directories + files:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                continue
            target = os.path.realpath(path)
            if os.path.commonpath((home, target)) == home:
                continue
            if in_cache and os.path.commonpath((blobs, target)) == blobs:
                continue
            raise ValueError(f"{path} is a link out of its folder (to {target}): put the file itself there")


def write_index(folder: str) -> None:
    """`model.safetensors.index.json` over the files of all parts, for tools that read sharded checkpoints."""
    weight_map: dict[str, str] = {}
    size = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            for key, tensor in read_header(os.path.join(folder, name)).items():
                weight_map[key] = name
                size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")


def is_own(path: str) -> bool:
    """Whether a file of a checkpoint is one of an `rd_esm` model, by what it holds and not by its name."""
    try:
        if path.endswith(".safetensors"):
            keys = read_header(path).keys()
        elif path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if "weight_map" not in content:
                return content.get("model_type") == "rd_esm"
            keys = content["weight_map"].keys()
        else:
            with open(path, "rb") as file:
                # Code says so of itself; older or changed code is known by the config that it lies beside.
                return b"rd_esm" in file.read() or is_own(os.path.join(os.path.dirname(path), "config.json"))
        return all(re.match(r"((projections|backbones|whitening)\.\d+|readout)\.", key) for key in keys)
    except (OSError, ValueError, OverflowError, MemoryError, AttributeError, TypeError):
        return False


def refuse_foreign(folder: str, names: Iterable[str]) -> None:
    """Stop if any of these files is in the folder and is no `rd_esm` model's: saving would replace it.

    Raises:
        ValueError: one is.
    """
    for name in sorted(names):
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not is_own(path):
            raise ValueError(
                f"{path} is no file of a reverse-distilled model, and saving would replace it: "
                "save into another folder, or move it elsewhere"
            )


def former_weights(folder: str) -> set[str]:
    """Weight files of an earlier save into this folder: its config and index name them, and they hold such weights."""
    if not is_own(os.path.join(folder, "config.json")):
        return set()
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        entries = json.load(file).get("levels", [])
    levels = [f"backbone-{entry.get('layers_of', entry['name'])}" for entry in entries]
    index = "model.safetensors.index.json"
    names = {"model.safetensors", "model.projections.safetensors", index}
    for level in levels:
        names |= {f"model.{level}.safetensors", f"model.safetensors.index.{level}.json"}
    if is_own(os.path.join(folder, index)):
        with open(os.path.join(folder, index), encoding="utf-8") as file:
            names |= {os.path.basename(name) for name in json.load(file)["weight_map"].values()}
    return {name for name in names if is_own(os.path.join(folder, name))}

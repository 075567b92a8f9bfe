"""Reading weights as they lie in a folder or on the Hub, and saying what is wrong with them.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import copy
import json
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import EsmConfig, EsmModel
from transformers.utils import cached_file, logging

# Where a download comes from and how; the backbones are fetched with the same.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with rotary frequencies: one a layer before transformers 5.6, one a backbone since."""
    return [module for module in model.modules() if module._buffers.get("inv_freq") is not None]


def set_rotary_frequencies(backbone: nn.Module, frequencies: torch.Tensor) -> None:
    for module in rotary_modules(backbone):
        device = module._buffers["inv_freq"].device  # type: ignore[union-attr]
        module._buffers["inv_freq"] = frequencies.to(
            device="cpu" if device.type == "meta" else device, dtype=torch.float32, copy=True
        )


def keep_float32(module: nn.Module, name: str, before: torch.Tensor | None) -> None:
    """Undo a cast to a narrower dtype, and keep a move to another device."""
    now = module._buffers[name]
    if now is not None and before is not None and now.dtype.itemsize < torch.float32.itemsize:
        module._buffers[name] = before.to(device=now.device, dtype=torch.float32)


def read_rotary_frequencies(
    where: str, config: EsmConfig, source: dict[str, Any], options: dict[str, Any]
) -> torch.Tensor:
    """Rotary `inv_freq` of a checkpoint as it is stored, float32 `(head width / 2,)`.

    They are lost where the weights are loaded in a narrower dtype or left on disk, or with a release before 5.6
    from a file that a later one wrote (which names its key with a literal `*`). They are read through a model so
    small that nothing else in the checkpoint has its shapes; a checkpoint without them gets base^(-2 j / d)
    (Su et al. 2021).
    """
    head_width = config.hidden_size // config.num_attention_heads
    probe_config = copy.deepcopy(config)
    probe_config.hidden_size, probe_config.num_attention_heads = head_width, 1
    probe_config.intermediate_size = probe_config.num_hidden_layers = 1
    hub = {name: options[name] for name in HUB_ARGUMENTS if name in options}
    per_layer = {**source.get("key_mapping", {}), r"encoder\.layer\.\*\.attention": "encoder.layer.0.attention"}
    for mapping in (source.get("key_mapping"), per_layer):
        probe, info = EsmModel.from_pretrained(
            where,
            config=probe_config,
            add_pooling_layer=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            **{**source, "key_mapping": mapping},
            **hub,
        )
        if not any("inv_freq" in key for key in info["missing_keys"]):
            frequencies = rotary_modules(probe)[0]._buffers["inv_freq"]
            assert frequencies is not None
            return frequencies
    base = getattr(config, "rope_theta", None) or 10000.0
    return torch.as_tensor(1.0 / base ** (torch.arange(0, head_width, 2, dtype=torch.float) / head_width))


class Reading:
    """Reads one part of a checkpoint: quietly, since what it holds is checked here, and naming it when that fails."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.verbosity = logging.get_verbosity()
        # A backbone's repo holds a language model's head too; that this is left out is no news.
        logging.set_verbosity_error()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        logging.set_verbosity(self.verbosity)
        if kind is not None and kind.__name__ == "SafetensorError":
            raise ValueError(
                f"{self.what}: a weights file is cut short or is no safetensors file ({error}); fetch it again"
            ) from error
        if isinstance(error, OSError):
            raise OSError(f"{self.what} cannot be loaded: {error}") from error


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


def commit_of(repo: str, revision: str | None, subfolder: str, hub: dict[str, Any]) -> str | None:
    """The commit a revision stands for, from where the Hub's cache puts its config.json."""
    file = cached_file(repo, "config.json", revision=revision, subfolder=subfolder, **hub)
    parts = os.path.normpath(file).split(os.sep) if file is not None else []
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def write_index(folder: str) -> None:
    """`model.safetensors.index.json` over the files of all parts, for tools that read sharded checkpoints."""
    weight_map: dict[str, str] = {}
    size = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            header = read_header(os.path.join(folder, name))
            for key, tensor in header.items():
                if key != "__metadata__":
                    weight_map[key] = name
                    size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")


def read_header(path: str) -> dict[str, Any]:
    """JSON header of a safetensors file: 8 bytes of length, then that many of JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))


def is_own(path: str) -> bool:
    """Whether a file of a checkpoint is one of an `rd_esm` model, by what it holds and not by its name."""
    try:
        if path.endswith(".safetensors"):
            keys = read_header(path).keys() - {"__metadata__"}
        elif path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if "weight_map" not in content:
                return content.get("model_type") == "rd_esm"
            keys = content["weight_map"].keys()
        else:
            with open(path, "rb") as file:
                return b"rd_esm" in file.read()
        return all(re.match(r"(projections|backbones)\.\d+\.", key) for key in keys)
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
        levels = [f"backbone-{entry['name']}" for entry in json.load(file).get("levels", [])]
    index = "model.safetensors.index.json"
    names = {"model.safetensors", "model.projections.safetensors", index}
    for level in levels:
        names |= {f"model.{level}.safetensors", f"model.safetensors.index.{level}.json"}
    if is_own(os.path.join(folder, index)):
        with open(os.path.join(folder, index), encoding="utf-8") as file:
            names |= {os.path.basename(name) for name in json.load(file)["weight_map"].values()}
    return {name for name in names if is_own(os.path.join(folder, name))}

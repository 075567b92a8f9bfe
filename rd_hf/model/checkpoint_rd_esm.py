"""Where a model's weights come from: bases, backbones of their own repos or of the checkpoint, heads and adapters.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import copy
import inspect
import json
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file, is_peft_available

from .bases_rd_esm import check_finite
from .configuration_rd_esm import HEADS, RDEsmConfig
from .families_rd_esm import FAMILIES, check_alphabet
from .files_rd_esm import (
    HUB_ARGUMENTS,
    WeightFiles,
    check_loaded,
    check_sizes,
    commit_of,
    find_weights,
    loaded_from,
    may_be_hub_id,
    reading,
    refuse_links,
    weights_alone,
    without_bars,
)
from .fused_rd_esm import fuse_layers
from .layers_rd_esm import encoder_class, rotary_modules, set_class_and_recording, set_rotary_frequencies
from .saving_rd_esm import RDEsmSaving, adopt_head, cast_head, head_tensors, place_head

# How weights are laid out: those of backbones, since the bases are small and always float32.
_WEIGHT_ARGUMENTS = (
    *("dtype", "torch_dtype", "attn_implementation", "device_map", "max_memory", "offload_folder"),
    *("offload_buffers", "quantization_config", "tp_plan", "disable_mmap"),
)
# Arguments of transformers' `from_pretrained` that cannot mean here what they mean there: for each the value that asks
# for nothing, and what to do.
_REFUSED: dict[str, tuple[Any, str]] = {
    "variant": (None, "its files have names of their own; say dtype= for another precision"),
    "key_mapping": (None, "its weights are read under the names that they were saved with; rename them in the file"),
    "weights_only": (True, "nothing is unpickled; leave it out"),
    "from_tf": (False, "weights are those of PyTorch; leave it out"),
    "from_flax": (False, "weights are those of PyTorch; leave it out"),
    "gguf_file": (None, "weights are safetensors (or .bin, of a backbone); leave it out"),
    "state_dict": (None, "weights are read from files; load_state_dict of the loaded model takes others"),
    "use_kernels": (False, "no compiled code is fetched; leave it out"),
}
# Where in a repo a checkpoint lies.
_PLACE = ("revision", "subfolder")
# What names of the bases' tensors begin with.
_BASES = ("projections.", "readout.", "whitening.")


class RDEsmPreTrainedModel(RDEsmSaving):
    """Loads what a checkpoint holds and what it names, and has the flags that transformers reads."""

    config_class = RDEsmConfig
    base_model_prefix = "rd_esm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Behind a ModuleList these are not collected from the backbones, so they are listed again here.
    _no_split_modules = [
        *(name for family in FAMILIES.values() for name in family.whole),
        "RDEsmProjection",
        "RDEsmReadout",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A smaller level leaves the projections and heads of the larger ones alone, and a model without heads all heads.
    _keys_to_ignore_on_load_unexpected = [
        *(r"^(backbones|projections|whitening)\.\d+\.", r"^readout\.", rf"^classifier\.({'|'.join(HEADS)})\.\d+\."),
    ]
    # Loads a backbone by position, where they are held one at a time only.
    _fetch: Callable[..., PreTrainedModel] | None = None
    # Position of the smallest backbone that is held (or fetched in turn).
    first_backbone = 0
    # Where the backbones came from, if not from repos of their own; and the cache that holds those.
    _source: str | os.PathLike | None = None
    _hub: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `level="150M"` to fetch, load and hold that level's backbones only.

        The bases come from this checkpoint. Each backbone comes from here too where the checkpoint holds them,
        and from its own `repo_id` at its pinned `revision` otherwise, with the same `dtype` (by default as
        saved), `attn_implementation`, `device_map`, `max_memory`, `cache_dir`, `token`, `local_files_only`, ...
        `RDEsmConfig` describes `exact_activation`, `long_input` and `max_residues`.

        With `sequential=True` no backbone is held: each is loaded when its turn comes and released after it, so
        that a family runs where its largest backbone alone would. Give `forward_window` many batches at a time.

        With `above="35M"` only the backbones of levels larger than that are fetched, for who has the smaller
        embedding already (see `visit_backbones`); with the largest level, the bases alone.

        With `one_pass=True` the largest backbone alone is fetched, held and run, and every level read out of its
        layers: an approximation, of families that were fitted with it (`rd-hf fit --one-pass`). The card says how near
        each level comes.

        Bases are read from safetensors alone; backbones too where their repo has them, and else from `.bin` files,
        which torch's restricted reader opens: tensors only, no code. `use_safetensors=True` refuses those too.

        A subclass with a head finds it in its own checkpoints, in the backbones' dtype; in others it is new, with a
        warning. An adapter that lies beside a checkpoint, or a folder of an adapter alone, is loaded with what it
        belongs to. Both are as in transformers.

        Raises:
            OSError: a repo, revision or file cannot be had.
            ValueError: weights are missing, damaged, not finite, or do not fit the config; an argument of transformers
                that has no meaning here.
        """
        path = os.fspath(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        sequential = kwargs.pop("sequential", False)
        above = kwargs.pop("above", None)
        _refuse_unsupported(kwargs)
        use_safetensors = kwargs.pop("use_safetensors", None)
        if use_safetensors is False:
            raise ValueError(
                "use_safetensors=False cannot be given: bases are safetensors alone, and a backbone's .bin files are "
                "taken by themselves where its repo has no others; leave it out"
            )
        # Of a head; bases and backbones that do not fit are an error, never a random start.
        ignore_mismatched_sizes = kwargs.pop("ignore_mismatched_sizes", False)
        weights = {name: kwargs.pop(name) for name in _WEIGHT_ARGUMENTS if name in kwargs}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        _refuse_missing(path)
        path, adapter = find_adapter(path, kwargs, hub)
        _refuse_missing(path)
        if adapter is not None and sequential:
            raise ValueError(
                f"the adapter in {adapter[0]} changes backbones, and sequential=True holds none: load without it, "
                f"merge the adapter (merge_and_unload()), save that, and load it sequentially"
            )
        if os.path.isdir(path):
            refuse_links(path)
        else:
            # One commit for everything that follows, even where the repo moves on meanwhile.
            kwargs["revision"] = commit_of(path, kwargs.get("revision"), kwargs.get("subfolder", ""), hub)
        own = {name: kwargs[name] for name in _PLACE if name in kwargs}
        config = kwargs.pop("config", None)
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            for name in ("level", "one_pass", "long_input", "max_residues"):
                setattr(config, name, kwargs.pop(name, getattr(config, name)))
        else:
            config, kwargs = RDEsmConfig.from_pretrained(
                path if config is None else config, return_unused_kwargs=True, **kwargs
            )
            kwargs = dict(kwargs) | hub | own
        cls._choose_level(config)
        config.up_to(config.level).check_release()
        if not os.path.isdir(path):
            _refuse_local_paths(path, config)
        if "attn_implementation" in weights:
            kwargs["attn_implementation"] = weights.pop("attn_implementation")

        if config.one_pass and above is not None:
            raise ValueError("one_pass=True runs the largest backbone alone: leave out above=")
        full = config.backbones_in_checkpoint
        # Backbones are loaded below: none is built before. (A subclass need not take an argument for that.)
        config.backbones_in_checkpoint = False
        mine = inspect.signature(cls.__init__).parameters.keys() & kwargs.keys()
        build = partial(cls, config, *args, **{name: kwargs[name] for name in mine})
        model, info = cls._load_bases(path, config, full, build, *args, **kwargs)
        check_loaded(f"the bases of {path}", adopt_head(model, info, path, ignore_mismatched_sizes, build))
        check_finite(model._named_parts())
        model._check_heads(path)
        dtype = weights.pop("torch_dtype", None)
        dtype = weights.pop("dtype", None) or dtype or "auto"
        if dtype == "auto":
            # Also where a release leaves the `dtype` that was asked for in the config and nowhere else.
            dtype = getattr(config, "dtype", None) or dtype
        model.config.backbones_in_checkpoint = full
        source = path if full else None
        weights |= {"dtype": dtype, "sequential": sequential, "above": above, "use_safetensors": use_safetensors}
        model.load_backbones(source, **weights, **hub, **(own if full else {}))
        cast_head(model, model.config.dtype)
        if adapter is not None:
            put_adapter(model, *adapter)
        return (model, info) if wants_info else model

    @classmethod
    def _choose_level(cls, config: RDEsmConfig) -> None:
        """Note in a config that is to be loaded which level answers; without heads it says that already."""

    def _check_heads(self, path: str) -> None:
        """Raise `ValueError` unless the heads of the checkpoint at `path` belong to its bases."""

    @classmethod
    def _load_bases(
        cls, path: str, config: RDEsmConfig, full: bool, build: Callable[[], Any], /, *args: Any, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        """The model without backbones, and what loading left over: a head may be missing, and bases may not."""
        model: Any = None
        info: dict[str, Any] | None = None
        what = f"the bases of {path}"
        if config.level_index(config.level) == 0 and not config.one_pass and not config.whitening:
            # The first level has no basis, so without whitening and a head there is nothing to read of this checkpoint.
            model = cls._from_config(config, attn_implementation=kwargs.get("attn_implementation"))
            model.config.name_or_path = path
            model.eval()
            info = {"missing_keys": [name for name, _ in head_tensors(model)]}
            info |= {"unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
            if not info["missing_keys"]:
                return model, info
        variant = "projections" if full else None
        where = {name: kwargs[name] for name in (*HUB_ARGUMENTS, *_PLACE) if name in kwargs}
        try:
            with reading(what):
                files = find_weights(path, variant=variant, allow_bin=False, **where)
        except OSError as error:
            # Of a file that is not there the first error has no cause: then the head is new.
            if info is None or error.__cause__ is None or error.__cause__.__cause__ is not None:
                raise
            return model, info
        with reading(what):
            check_loaded(what, _compare_bases(build, files))
        with reading(what, quiet=True):
            folder, links = weights_alone(files.folder)
            model, info = super().from_pretrained(
                folder,
                *args,
                config=config,
                variant=variant,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                dtype=torch.float32,
                **{name: value for name, value in kwargs.items() if name not in _PLACE},
            )
            loaded_from(model, path, links)
        model.config.name_or_path = model.name_or_path = path
        return model, info

    def load_backbones(
        self,
        source: str | os.PathLike | None = None,
        revision: str | None = None,
        subfolder: str = "",
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        max_memory: dict[Any, Any] | None = None,
        offload_folder: str | os.PathLike | None = None,
        sequential: bool = False,
        above: str | None = None,
        use_safetensors: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Fetch the backbones that the config names and attach them; none is initialised first.

        They come from the checkpoint `source`, or by default each from its own `repo_id` at its `revision`, in their
        files' dtype where that is "auto". With a `device_map` of "auto" and its like they are placed in turn, smallest
        first, and each projection on the device where its backbone ends. `sequential` attaches none, and loads each
        whenever it is its turn, in the dtype of the first and on the device that the model is moved to; `above` leaves
        out those up to this level; `use_safetensors=True` refuses `.bin` files. All else is as in transformers, and
        `kwargs` are passed to `from_pretrained` of each backbone.

        Raises:
            OSError, ValueError: a backbone cannot be had or does not fit; the message names its level.
        """
        hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
        located: dict[int, WeightFiles] = {}
        self._source, self._hub = source, {name: hub[name] for name in ("cache_dir",) if name in hub}

        def fetch(index: int, dtype: str | torch.dtype = dtype, **placed: Any) -> PreTrainedModel:
            what, level = self._origin(index, source)
            entry = self.config.backbone_entry(index)
            if source is None and entry["repo_id"] is None:
                name = entry["name"]
                raise ValueError(f"level {name} names no repo_id in config.json, so its backbone cannot be had")
            if index not in located:
                with reading(what):
                    located[index] = self._find_backbone(
                        index, hub, source, revision, subfolder, allow_bin=not use_safetensors
                    )
            return self._load_backbone(index, located[index], what, level, dtype=dtype, **placed, **kwargs)

        backbones = range(len(self.config.backbone_groups))
        first = 0 if above is None else self.config.first_backbone(self.config.level_index(above) + 1)
        if self.config.one_pass:
            first = len(backbones) - 1
        self.first_backbone = first
        if sequential:
            if device_map is not None:
                raise ValueError("sequential loading runs one backbone at a time: move the model with .to(device)")
            found = fetch(first).dtype if first in backbones else torch.float32
            # It follows .to(): where backbones go, and in which dtype.
            self.register_buffer("placeholder", torch.empty(0, dtype=found), persistent=False)
            self._fetch = fetch
            self.backbones = nn.ModuleList()
            self.config.dtype = found
            return
        # What is left out keeps its place, so that the others keep their names.
        loaded: list[nn.Module] = [nn.Identity() for _ in range(first)]
        placement = Placement(device_map, max_memory, self.config)
        for index in backbones[first:]:
            placed: dict[str, Any] = {}
            if device_map is not None:
                placed = placement.arguments(index)
                if offload_folder is not None:
                    name = self.config.backbone_name(index)
                    placed["offload_folder"] = os.path.join(offload_folder, f"backbone-{name}")
            loaded.append(fetch(index, **placed))
            placement.add(index, loaded[-1])
        self.backbones = nn.ModuleList(loaded)
        self._fetch = None
        if device_map is not None:
            self._place(placement)
        self.config.dtype = loaded[first].dtype if first < len(loaded) else torch.float32

    def _place(self, placement: "Placement") -> None:
        """Move bases and head beside the backbones that they follow, and note where everything is."""
        last = len(self.config.levels) - 1
        self.hf_device_map = placement.backbones()
        for level, projection in enumerate(self.projections, start=1):
            if placement.holds(level):
                self.hf_device_map[f"projections.{level - 1}"] = placement.device(level)
                projection.to(placement.device(level))
        if self.config.readout is not None:
            self.hf_device_map["readout"] = placement.device(last)
            self.readout.to(placement.device(last))
        if placement.holds(last):
            self.hf_device_map |= place_head(self, placement.device(last))

    def _prepare(self, backbone: PreTrainedModel, levels: Sequence[int]) -> None:
        """Make a backbone that was built what this model calls: it serves these levels."""
        set_class_and_recording(backbone, record=len(levels) > 1 or self.config.one_pass)
        if not self.config.exact_activation:
            fuse_layers(backbone)

    def _origin(self, index: int, source: str | os.PathLike | None) -> tuple[str, str | None]:
        """What messages call a backbone, and its level's name in its repo where that is a checkpoint like this one."""
        entry, name = self.config.backbone_entry(index), self.config.backbone_name(index)
        if source is None:
            return f"{entry['repo_id']}, the backbone of {name}", entry.get("level_of_repo")
        return f"the backbone of {name} in {os.fspath(source)}", name

    def _find_backbone(
        self,
        index: int,
        hub: dict[str, Any],
        source: str | os.PathLike | None = None,
        revision: str | None = None,
        subfolder: str = "",
        allow_bin: bool = True,
    ) -> WeightFiles:
        """The files of one backbone, from `source` or from its own repo."""
        entry, (what, level) = self.config.backbone_entry(index), self._origin(index, source)
        variant = None if level is None else f"backbone-{level}"
        if source is not None:
            return find_weights(source, revision, subfolder, variant, allow_bin=False, **hub)
        where = entry["repo_id"]
        if os.path.isdir(where):
            refuse_links(where)
        if level is None:
            check_alphabet(what, where, entry["revision"], entry["backbone"], **hub)
        return find_weights(where, entry["revision"], variant=variant, allow_bin=allow_bin and variant is None, **hub)

    def _load_backbone(
        self, index: int, files: WeightFiles, what: str, level: str | None, **kwargs: Any
    ) -> PreTrainedModel:
        """One backbone; `kwargs` as `from_pretrained` takes them."""
        levels = self.config.backbone_groups[index]
        with reading(what):
            shapes = files.shapes()
        check_sizes(what, self.config.levels[levels[0]]["backbone"], self.config.backbone_depth(index), shapes)
        config = self.config.backbone_config(levels[0])
        family, depth = FAMILIES[config.model_type], self.config.backbone_depth(index)
        encoder = encoder_class(config, depth)
        settings = {
            "config": config,
            "attn_implementation": self.config._attn_implementation,
            **family.arguments,
            "use_safetensors": files.safetensors,
            "ignore_mismatched_sizes": True,
            "output_loading_info": True,
            **kwargs,
        }
        if level is not None:
            settings |= {"variant": f"backbone-{level}", "key_mapping": {r"^backbones\.\d+\.": ""}}
        with reading(what, quiet=True):
            folder, links = weights_alone(files.folder)
            # The library's own class, so that its renamings of older checkpoints' keys apply.
            try:
                backbone, info = encoder.from_pretrained(folder, **settings)
            except Exception as error:
                if "device disk is invalid" not in str(error):
                    raise
                # Before 5.0 a whole model cannot go to disk, but all of its parts can.
                settings["device_map"] = dict.fromkeys(family.parts, "disk")
                backbone, info = encoder.from_pretrained(folder, **settings)
            loaded_from(backbone, files.folder, links)
            check_loaded(what, info)
            if family.stores_frequencies and (rotary := rotary_modules(backbone)):
                # They are lost where the weights are loaded in a narrower dtype or left on disk, or with a release
                # before 5.6 from a file that a later one wrote; a checkpoint without them gets base^(-2 j / d)
                # (Su et al. 2021).
                frequencies = files.rotary_frequencies()
                if frequencies is None:
                    base = getattr(backbone.config, "rope_theta", None) or 10000.0
                    width = backbone.config.hidden_size // backbone.config.num_attention_heads
                    frequencies = 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.float) / width)
                set_rotary_frequencies(rotary, frequencies)
        self._prepare(backbone, levels)
        backbone.train(self.training)
        return backbone


def _compare_bases(build: Callable[[], PreTrainedModel], files: WeightFiles) -> dict[str, Any]:
    """Bases that are missing, or of another shape than the config says, as transformers reports them.

    Checked before any is built: the library makes what is missing at random first, whatever its size.
    """
    with torch.device("meta"):
        state = build().state_dict()
    wanted = {name: tuple(value.shape) for name, value in state.items() if name.startswith(_BASES)}
    found = files.shapes()
    return {
        "missing_keys": [name for name in wanted if name not in found],
        "mismatched_keys": [name for name, shape in wanted.items() if found.get(name, shape) != shape],
    }


def _refuse_unsupported(kwargs: dict[str, Any]) -> None:
    """Take out arguments that would be dropped; raises `ValueError` where one of them asks for something."""
    for name, (nothing, mend) in _REFUSED.items():
        value = kwargs.pop(name, None)
        if value is not None and value != nothing:
            raise ValueError(f"{name}={value!r} cannot be given for a reverse-distilled model: {mend}")


def _refuse_missing(path: str) -> None:
    """Raise `OSError` for a path that is neither a folder nor what a Hub id looks like."""
    if not os.path.isdir(path) and not may_be_hub_id(path):
        raise OSError(f"{path}: no such folder (and no Hub id, which is owner/name)")


def _refuse_local_paths(path: str, config: RDEsmConfig) -> None:
    """Raise where a checkpoint of the Hub takes a backbone from elsewhere: it must not name folders of this machine."""
    for entry in config.levels:
        if entry["repo_id"] is not None and not may_be_hub_id(entry["repo_id"]):
            raise ValueError(
                f"{path} on the Hub takes the backbone of level {entry['name']} from {entry['repo_id']!r}, which is no "
                f"Hub id (owner/name): it is not looked for"
            )


class Placement:
    """Chooses where backbones go under a `device_map` (and `max_memory`), one after the other."""

    def __init__(self, device_map: Any, max_memory: dict[Any, Any] | None, config: RDEsmConfig) -> None:
        self.device_map, self.config = device_map, config
        self.left = {device: _bytes(size) for device, size in (max_memory or {}).items()}
        self.maps: dict[int, dict[str, Any]] = {}

    def arguments(self, index: int) -> dict[str, Any]:
        """`device_map` (and `max_memory`) of one backbone."""
        if isinstance(self.device_map, str) and self.device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
            return {"device_map": self.device_map, "max_memory": dict(self.left) or None}
        if not isinstance(self.device_map, dict):
            return {"device_map": {"": self.device_map}}
        prefix = f"backbones.{index}"
        inside = {key[len(prefix) + 1 :]: to for key, to in self.device_map.items() if key.startswith(f"{prefix}.")}
        for whole in ("", "backbones", prefix):
            if whole in self.device_map and not inside.keys() - {""}:
                inside[""] = self.device_map[whole]
        if not inside:
            raise ValueError(
                f"device_map has no entry for {prefix}; its keys are {', '.join(map(repr, self.device_map))}"
            )
        return {"device_map": inside}

    def add(self, index: int, backbone: nn.Module) -> None:
        """Note where a backbone went, and what it takes there."""
        given = getattr(backbone, "hf_device_map", None) or {"": next(backbone.parameters()).device}
        self.maps[index] = dict(given)
        sizes = [(f"{key}.", parameter.nbytes) for key, parameter in backbone.named_parameters()]
        for name, to in given.items():
            if to in self.left:
                taken = sum(size for key, size in sizes if not name or key.startswith(f"{name}."))
                self.left[to] = max(0, self.left[to] - taken)

    def holds(self, level: int) -> bool:
        """Whether the backbone of the level at this position was placed."""
        return self.config.first_backbone(level) in self.maps

    def device(self, level: int) -> Any:
        """Where a level's backbone ends: layers that are kept in memory or on disk compute on an accelerator."""
        if isinstance(self.device_map, dict) and f"projections.{level - 1}" in self.device_map:
            return self.device_map[f"projections.{level - 1}"]
        placed = self.maps[self.config.first_backbone(level)].values()
        accelerators = [to for to in placed if str(to) not in ("cpu", "disk")]
        return accelerators[-1] if accelerators else "cpu"

    def backbones(self) -> dict[str, Any]:
        """One map over all backbones, by the names of modules in the model."""
        return {
            f"backbones.{index}.{name}".rstrip("."): to
            for index, names in self.maps.items()
            for name, to in names.items()
        }


def _bytes(size: int | str) -> int:
    """ "8GB", "500MiB" or a number, in bytes."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", size, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"max_memory {size!r} is no size: write it as 500MB, 8GiB or a number of bytes")
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))


def find_adapter(
    path: str, kwargs: dict[str, Any], hub: dict[str, Any]
) -> tuple[str, tuple[str, str, dict[str, Any]] | None]:
    """The adapter that transformers would put onto a model, and the checkpoint that it goes onto.

    Of the `kwargs` of `from_pretrained` those that concern adapters are taken out, and, where `path` is an adapter
    alone, `revision` and `subfolder` too.

    Returns:
        The checkpoint's folder or Hub id; and the adapter's, its name, and arguments to load it, if there is one.
    """
    # AutoModel has looked already.
    looked = "adapter_kwargs" in kwargs
    settings = dict(kwargs.pop("adapter_kwargs", None) or {})
    name = kwargs.pop("adapter_name", "default")
    where = settings.pop("_adapter_model_path", None)
    if where is not None or looked or not is_peft_available():
        return path, None if where is None else (os.fspath(where), name, settings)
    settings = {key: kwargs[key] for key in _PLACE if kwargs.get(key)}
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
    settings |= {key: hub[key] for key in ("cache_dir", "token") if key in hub}
    return path, (adapter, name, settings)


def put_adapter(model: PreTrainedModel, where: str, name: str, settings: dict[str, Any]) -> None:
    """Load an adapter that `find_adapter` found onto a model with its backbones.

    Raises:
        OSError, ValueError: it cannot be had, fits no module of the model, or transformers does not find its weights
            (5.0 does not, of any model, and would start it at random).
    """
    with reading(f"the adapter in {where}"), without_bars():
        found: Any = model.load_adapter(where, adapter_name=name, adapter_kwargs=settings)
        # (Before 5.0 nothing is returned.)
        if missing := sorted(getattr(found, "missing_keys", ())):
            raise ValueError(
                f"transformers {transformers.__version__} finds no weights in it for {missing[0]}: load the model from "
                f"elsewhere and put the adapter on with PeftModel.from_pretrained, or use a newer transformers"
            )

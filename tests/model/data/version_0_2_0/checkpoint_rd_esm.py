"""Where a model's weights come from: bases, and backbones of their own repos or of the checkpoint.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import copy
import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from .alphabet_rd_esm import check_alphabet
from .configuration_rd_esm import RDEsmConfig
from .families_rd_esm import FAMILIES
from .files_rd_esm import HUB_ARGUMENTS, WeightFiles, commit_of, find_weights
from .layers_rd_esm import encoder_class, settle
from .lean_rd_esm import make_lean
from .placement_rd_esm import Placement
from .saving_rd_esm import RDEsmSaving
from .weights_rd_esm import check_loaded, reading, refuse_links, rotary_modules, set_rotary_frequencies

# How weights are laid out; said of the backbones, since the projections are small and always float32.
_WEIGHT_ARGUMENTS = (
    *("dtype", "torch_dtype", "attn_implementation", "device_map", "max_memory", "offload_folder"),
    *("offload_buffers", "quantization_config", "tp_plan", "disable_mmap"),
)


class RDEsmPreTrainedModel(RDEsmSaving):
    """Where weights come from and go to, and the flags that transformers reads."""

    config_class = RDEsmConfig
    base_model_prefix = "rd_esm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Behind a ModuleList these are not collected from the backbones, so they are said again here.
    _no_split_modules = [
        *(name for family in FAMILIES.values() for name in family.whole),
        "RDEsmProjection",
        "RDEsmReadout",
    ]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A smaller level leaves the projections of the larger ones alone.
    _keys_to_ignore_on_load_unexpected = [r"^(backbones|projections|whitening)\.\d+\.", r"^readout\."]
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

        With `sequential=True` no backbone is held: each is loaded when its turn comes and released after it, so
        that a family runs where its largest backbone alone would. Give `forward_window` many batches at a time.

        With `exact_activation=True` the backbones' bits are those of transformers' own classes (see `RDEsmConfig`).

        With `above="35M"` only the backbones of levels larger than that are fetched, for who has the smaller
        embedding already (see `visit_backbones`); with the largest level, the bases alone.

        With `one_pass=True` the largest backbone alone is fetched, held and run, and every level read out of its
        layers: an approximation, of families that were fitted with it (`rd-hf fit --one-pass`). The card says how near
        each level comes.

        Bases are read from safetensors alone; backbones too where their repo has them, and else from `.bin` files,
        which torch's restricted reader opens: tensors only, no code.

        Raises:
            OSError: a repo, revision or file cannot be had.
            ValueError: weights are missing, damaged, not finite, or do not fit the config.
        """
        path = os.fspath(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        sequential = kwargs.pop("sequential", False)
        above = kwargs.pop("above", None)
        # Weights that do not fit are an error here, never a random start.
        for refused in ("ignore_mismatched_sizes", "use_safetensors", "weights_only", "variant", "key_mapping"):
            kwargs.pop(refused, None)
        weights = {name: kwargs.pop(name) for name in _WEIGHT_ARGUMENTS if name in kwargs}
        hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
        if os.path.isdir(path):
            refuse_links(path)
        elif os.path.isabs(path) or path.startswith(".") or path.count("/") > 1:
            raise OSError(f"{path}: no such folder (and no Hub id, which is owner/name)")
        else:
            # One commit for everything that follows, even where the repo moves on meanwhile.
            kwargs["revision"] = commit_of(path, kwargs.get("revision"), kwargs.get("subfolder", ""), hub)
        own = {name: kwargs[name] for name in ("revision", "subfolder") if name in kwargs}
        config = kwargs.pop("config", None)
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.level = kwargs.pop("level", config.level)
            config.one_pass = kwargs.pop("one_pass", config.one_pass)
        else:
            config, kwargs = RDEsmConfig.from_pretrained(
                path if config is None else config, return_unused_kwargs=True, **kwargs
            )
            kwargs = dict(kwargs) | hub | own
        config.up_to(config.level).check_release()
        if "attn_implementation" in weights:
            kwargs["attn_implementation"] = weights.pop("attn_implementation")

        if config.one_pass and above is not None:
            raise ValueError("one_pass=True runs the largest backbone alone: leave out above=")
        full = config.backbones_in_checkpoint
        if config.level_index(config.level) == 0 and not config.one_pass and not config.whitening:
            # The first level has no basis, so without whitening there is nothing to read of this checkpoint itself.
            model = cls._from_config(
                config, build_backbones=False, attn_implementation=kwargs.get("attn_implementation")
            )
            model.config.name_or_path = path
            model.eval()
            info: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        else:
            variant = "projections" if full else None
            with reading(f"the bases of {path}"):
                files = find_weights(path, variant=variant, allow_bin=False, **hub, **own)
            for name in own:
                kwargs.pop(name, None)
            with reading(f"the bases of {path}", quiet=True):
                model, info = super().from_pretrained(
                    files.folder,
                    *args,
                    config=config,
                    build_backbones=False,
                    variant=variant,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **kwargs,
                )
            model.config.name_or_path = model.name_or_path = path
        check_loaded(f"the bases of {path}", info)
        _check_finite(model)
        dtype = weights.pop("torch_dtype", None)
        dtype = weights.pop("dtype", None) or dtype or "auto"
        if dtype == "auto":
            # Also where a release leaves the `dtype` that was asked for in the config and nowhere else.
            dtype = getattr(config, "dtype", None) or dtype
        model.config.backbones_in_checkpoint = full
        source = path if full else None
        weights |= {"dtype": dtype, "sequential": sequential, "above": above}
        model.load_backbones(source, **weights, **hub, **(own if full else {}))
        return (model, info) if wants_info else model

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
        **kwargs: Any,
    ) -> None:
        """Fetch the backbones that the config names and attach them; none is initialised first.

        Args:
            source: folder or repo of this project's full form to take them from; by default each backbone comes
                from its own `repo_id` at its `revision`.
            revision, subfolder: of `source`.
            dtype: of the backbones; "auto" keeps what their files have.
            device_map, max_memory, offload_folder: as in transformers. With "auto" and its like the backbones
                are placed in turn, smallest first, and each projection on the device where its backbone ends.
            sequential: attach none, and load each whenever it is its turn, in the dtype of the first and on the
                device that the model is moved to.
            above: leave out the backbones up to this level.
            kwargs: passed to `from_pretrained` of each backbone (`token`, `cache_dir`, ...).

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
                    located[index] = self._find_backbone(index, source, revision, subfolder, hub)
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
        placement = Placement(device_map, max_memory, self.config.backbone_groups)
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
            for level, projection in enumerate(self.projections, start=1):
                if placement.holds(level):
                    projection.to(placement.device(level))
            self.hf_device_map = placement.merged()
            if self.config.one_pass:
                held = self.hf_device_map.items()
                self.hf_device_map = {name: to for name, to in held if not name.startswith("projections.")}
            if self.config.readout is not None:
                self.hf_device_map["readout"] = placement.device(len(self.config.levels) - 1)
                self.readout.to(self.hf_device_map["readout"])
        self.config.dtype = loaded[first].dtype if first < len(loaded) else torch.float32

    def _origin(self, index: int, source: str | os.PathLike | None) -> tuple[str, str | None]:
        """What messages call a backbone, and its level's name in its repo, where that has this project's full form."""
        entry, name = self.config.backbone_entry(index), self.config.backbone_name(index)
        if source is None:
            return f"{entry['repo_id']}, the backbone of {name}", entry.get("level_of_repo")
        return f"the backbone of {name} in {os.fspath(source)}", name

    def _find_backbone(
        self, index: int, source: str | os.PathLike | None, revision: str | None, subfolder: str, hub: dict[str, Any]
    ) -> WeightFiles:
        """The files of one backbone, from `source` or from its own repo."""
        entry = self.config.backbone_entry(index)
        what, level = self._origin(index, source)
        variant = None if level is None else f"backbone-{level}"
        if source is not None:
            return find_weights(source, revision, subfolder, variant, allow_bin=False, **hub)
        where = entry["repo_id"]
        if os.path.isdir(where):
            refuse_links(where)
        if level is None:
            check_alphabet(what, where, entry["revision"], entry["backbone"], **hub)
        return find_weights(where, entry["revision"], variant=variant, allow_bin=variant is None, **hub)

    def _load_backbone(
        self, index: int, files: WeightFiles, what: str, level: str | None, **kwargs: Any
    ) -> PreTrainedModel:
        """One backbone; `kwargs` as `from_pretrained` takes them."""
        levels = self.config.backbone_groups[index]
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
            # The library's own class, so that its renamings of older checkpoints' keys apply.
            try:
                backbone, info = encoder.from_pretrained(files.folder, **settings)
            except Exception as error:
                if "device disk is invalid" not in str(error):
                    raise
                # Before 5.0 a whole model cannot go to disk, but all of its parts can.
                settings["device_map"] = dict.fromkeys(family.parts, "disk")
                backbone, info = encoder.from_pretrained(files.folder, **settings)
            check_loaded(what, info)
            settle(backbone, watch=len(levels) > 1 or self.config.one_pass)
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
        if not self.config.exact_activation:
            make_lean(backbone)
        backbone.train(self.training)
        return backbone


def _check_finite(model: RDEsmPreTrainedModel) -> None:
    names = [f"the basis of level {name}" for name in model.config.level_names[1:]]
    parts: list[tuple[str, nn.Module]] = list(zip(names, model.projections))
    if model.config.readout is not None:
        parts.append(("the one-pass readout", model.readout))
    whitened = [f"what level {name} is whitened by" for name in model.config.level_names]
    parts += list(zip(whitened, model.whitening or ()))
    for name, part in parts:
        for key, buffer in part.named_buffers():
            if buffer.device.type != "meta" and not torch.isfinite(buffer).all():
                raise ValueError(f"{name} holds NaN or infinite numbers ({key}): fit it again, or fetch it again")

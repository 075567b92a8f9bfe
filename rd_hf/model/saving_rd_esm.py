"""Where a model's weights go to: what is saved of it, in both forms, and pushed.

Beside backbones and bases a model may hold a head: whatever its state dict holds else, a module that was set on it
(``model.classifier = nn.Linear(...)``) or that a subclass makes. It lies in the file of the bases, which every reader
of checkpoints opens (`Trainer` reads no other when it goes on from bases alone); readers that know of no head leave it.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from .bases_rd_esm import Float32Module
from .families_rd_esm import FAMILIES
from .files_rd_esm import WeightFiles, former_files, refuse_foreign, without_bars, write_index
from .layers_rd_esm import encoder_class, rotary_modules, stack_of
from .staging_rd_esm import staging

logger = logging.get_logger(__name__)

# What a repo holds beside config, code and weights.
_COMPANIONS = (
    *("README.md", "fit_report.json", "fit_report.png", "modules.json", "sentence_bert_config.json"),
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
)
# Before the names of an encoder's weights: where it lies in a model with a head, or in this project's full form. And
# what a backbone's file may lack: no embedding is computed from it.
_PREFIX = re.compile(rf"^({'|'.join(FAMILIES)}|backbones\.\d+)\.")
_UNUSED = re.compile(r"inv_freq$|position_ids$|^contact_head\.")
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
    """Start a head that is not in the checkpoint at `path` as its class makes it, with a warning.

    (transformers knows what numbers a layer starts with, and leaves other parameters as memory was.) So does one of
    other sizes with `ignore_mismatched_sizes`. `build` makes a model of this class and config, without backbones.

    Returns:
        Of `info`, what transformers' loading left over, all that concerns no head.

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
    """Give a head the backbones' dtype, as all of a model has one in transformers; one of float32 keeps its own."""
    float32 = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Float32Module))
    for name, tensor in head_tensors(model):
        if tensor.is_floating_point() and not name.startswith(float32):
            tensor.data = tensor.data.to(dtype)


def place_head(model: PreTrainedModel, device: Any) -> dict[str, Any]:
    """Move a head to where the embedding comes out; its part of a device map."""
    placed: dict[str, Any] = {}
    for name, tensor in head_tensors(model):
        tensor.data = tensor.data.to(device)
        placed[name.split(".")[0]] = device
    return placed


def _file_mode(folder: str) -> int:
    """Permissions that the umask gives a new file: safetensors makes its own readable by their owner alone."""
    path = os.path.join(folder, ".mode")
    with open(path, "xb") as file:
        mode = os.fstat(file.fileno()).st_mode
    os.remove(path)
    return stat.S_IMODE(mode)


def _without_folder(entry: dict[str, Any]) -> dict[str, Any]:
    """A level's entry without a folder of this machine."""
    if not os.path.isdir(entry["repo_id"] or ""):
        return entry
    kept = {key: value for key, value in entry.items() if key != "level_of_repo"}
    return kept | {"repo_id": None, "revision": None}


def _refuse_pointers(folder: str) -> None:
    """Raise `ValueError` if settings that are to be pushed name code in another repo, which loading them would run."""
    for name in sorted(name for name in os.listdir(folder) if name.endswith("config.json")):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            content = json.load(file)
        named = content.get("auto_map") or {}
        classes = [one for what in (named.values() if isinstance(named, dict) else [named]) for one in _listed(what)]
        elsewhere = [one for one in classes if "--" in str(one)] or _listed(content.get("custom_pipelines") or [])
        if elsewhere:
            raise ValueError(
                f"{name} names code in another repo ({elsewhere[0]}), which whoever loads the model would run: take it "
                f"out of {name} before pushing"
            )


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


class RDEsmSaving(PreTrainedModel):
    """Saves and pushes a reverse-distilled model, in place of the library's own ways."""

    _companions: tuple[str, ...] = _COMPANIONS
    # Whose code is saved with a model, and is named in its config.json.
    _saved_classes: Callable[[], tuple[Any, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A registration is of one class. Were it inherited, a user's file would be saved in place of ours, and
        # AutoModel would look for the user's class.
        cls._auto_class = vars(cls).get("_auto_class")

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        backbones: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, remote code and weights, as safetensors.

        A head goes with the bases in either form: the class that it was saved from loads it again, and `AutoModel`
        loads the model without it.

        Args:
            save_directory: folder; weights and code of an earlier save in it are replaced, other files are left alone.
            backbones: `False` writes the bases only (`model.safetensors`), for backbones that are published at
                their `repo_id`; `True` writes the full form too, each backbone in files of its own
                (`model.projections.safetensors`, `model.backbone-150M.safetensors`, ..., and the usual
                `model.safetensors.index.json` over all of them). By default as the config says, and in the full
                form, with a warning, where backbones are no longer those of their repos (trained, an adapter
                merged, ...).
            is_main_process, state_dict, push_to_hub, max_shard_size, kwargs: as in transformers.

        Raises:
            ValueError: bases only, but a level names no `repo_id` or its backbone is no longer that one; or full,
                but the backbones are not there, or are quantised; or it holds an adapter; or the folder holds another
                model's files of the same names; or another format is asked for. Nothing has been written then.
        """
        kwargs.pop("save_original_format", None)
        if kwargs.pop("variant", None) is not None:
            raise ValueError("variant= cannot be given: a checkpoint's files have names of their own; leave it out")
        if not kwargs.pop("safe_serialization", True):
            raise ValueError(
                "weights are written as safetensors alone: leave out safe_serialization=False (in TrainingArguments, "
                "save_safetensors=False)"
            )
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
            return
        if not is_main_process:
            return
        state = self.state_dict() if state_dict is None else state_dict
        before, levels = self.config.backbones_in_checkpoint, self.config.levels
        full = decide_form(self, state, backbones, full=before, push=False)
        parts = self._parts(state, full)
        folder = os.fspath(save_directory)
        if os.path.isdir(folder):
            # Said before gigabytes are written. Beside the full form, model.safetensors would be loaded in its place.
            certain = ("config.json", "model.safetensors")
            refuse_foreign(folder, [n for n in os.listdir(folder) if n in certain or n.endswith("_rd_esm.py")])
        os.makedirs(folder, exist_ok=True)
        self.config.backbones_in_checkpoint = full
        if full:
            # A folder of this machine means nothing in another's config.json.
            self.config.levels = [_without_folder(entry) for entry in levels]
        try:
            self._write(folder, parts, max_shard_size)
        finally:
            self.config.backbones_in_checkpoint, self.config.levels = before, levels
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(folder))), backbones=full, **kwargs)

    def _write(self, folder: str, parts: dict[str | None, dict[str, torch.Tensor]], max_shard_size: int | str) -> None:
        """Write files of all parts, and take away those of an earlier save."""
        # Whichever of them is saved; of a model that came from a repo, the entries name that.
        classes = [(kind, kind.__module__.split(".")[-1]) for kind in (type(self.config), *self._saved_classes())]
        own = {kind._auto_class: f"{file}.{kind.__name__}" for kind, file in classes}
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **own}
        # Written beside the old files and moved over them: these may be what the model's tensors map.
        with staging(folder) as fresh_folder, without_bars():
            for kind in type(self).__mro__[1:]:
                if vars(kind).get("_auto_class"):
                    # Of a subclass: its name goes into config.json, and with it the code and the entry of the model
                    # that it adds to, which those who know nothing of it load.
                    plain: Any = object.__new__(kind)
                    vars(plain).update(vars(self))
                    PreTrainedModel.save_pretrained(plain, fresh_folder, state_dict={}, variant=next(iter(parts)))
            for variant, part in parts.items():
                super().save_pretrained(
                    fresh_folder,
                    state_dict=part,
                    max_shard_size=max_shard_size,
                    variant=variant,
                    # The keys are already those that every release reads.
                    save_original_format=False,
                )
            if self.config.backbones_in_checkpoint:
                write_index(fresh_folder)
            fresh = os.listdir(fresh_folder)
            refuse_foreign(folder, fresh)
            former = former_files(folder)
            mode = _file_mode(fresh_folder)
            for name in fresh:
                os.chmod(os.path.join(fresh_folder, name), mode)
                os.replace(os.path.join(fresh_folder, name), os.path.join(folder, name))
        for name in former - set(fresh):
            os.remove(os.path.join(folder, name))

    def push_to_hub(self, repo_id: str, *args: Any, backbones: bool | None = None, **kwargs: Any) -> Any:
        """As in transformers: bases only, or with `backbones=True` the backbones too.

        By default bases only where every backbone still is that of its Hub repo, and else, with a warning, all.
        Tokenizer, fit report, figure and card come along from the folder or repo that the model was loaded from.
        `rd-hf push` pushes a folder, makes its card afresh, and checks what arrived.
        """
        backbones = decide_form(self, self.state_dict(), backbones, full=False, push=True)
        before, self.config.backbones_in_checkpoint = self.config.backbones_in_checkpoint, backbones
        # A card that describes the other form stays behind.
        self._companions = _COMPANIONS if before == backbones else _COMPANIONS[1:]
        try:
            return super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.config.backbones_in_checkpoint = before

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just written a card of its own; one that came with the model says more.
        source = getattr(self.config, "name_or_path", "") or ""
        for name in self._companions if source else ():
            if os.path.isdir(source):
                found = os.path.join(source, name)
                if os.path.islink(found) or not os.path.isfile(found):
                    continue
            else:
                found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
                if found is None:
                    continue
            with open(found, "rb") as file:
                content = file.read()
            if name == "README.md":
                for old in (source, f"your-name/{os.path.basename(os.path.abspath(source))}"):
                    content = content.replace(old.encode(), repo_id.encode())
            with open(os.path.join(working_dir, name), "wb") as file:
                file.write(content)
        _refuse_pointers(os.fspath(working_dir))
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _parts(self, state: dict[str, torch.Tensor], full: bool) -> dict[str | None, dict[str, torch.Tensor]]:
        """The tensors of each file (or set of shards), by variant name."""
        if self.config.one_pass:
            raise ValueError(
                "this model was loaded for one pass, without its smaller backbones and their bases: load it without "
                "one_pass=True to save it"
            )
        # With a head beside them, if there is one.
        bases = {key: value for key, value in state.items() if not key.startswith("backbones.")}
        refuse_adapter("the head", (key for key in bases if is_head(self.config, key)))
        absent = {key for key in self.state_dict() if not key.startswith("backbones.")} - bases.keys()
        if absent:
            raise ValueError(f"the state_dict lacks {min(absent)}: give the whole state_dict, or none")
        if not full:
            return {None: bases}
        if len(self.backbones) < len(self.config.backbone_groups) or self.first_backbone:
            raise ValueError(
                "this model holds bases only; fetch its backbones (load_backbones) or save backbones=False"
            )
        parts: dict[str | None, dict[str, torch.Tensor]] = {"projections": bases}
        for index, backbone in enumerate(self.backbones):
            family = FAMILIES[backbone.config.model_type]
            prefix = f"backbones.{index}."
            part = {
                key: value for key, value in state.items() if key.startswith(prefix) and not key.endswith("inv_freq")
            }
            check_names(self, index, part)
            # Under the keys of releases before 5.6 (one per layer) and since (one per model): each finds its own
            # and ignores the other.
            for module in rotary_modules(backbone)[:1] if family.stores_frequencies else ():
                frequencies = module.get_buffer("inv_freq")
                layers = range(len(stack_of(backbone)))
                for place in ["", *(f"{family.layers}.{layer}.attention.self." for layer in layers)]:
                    part[f"{prefix}{place}rotary_embeddings.inv_freq"] = frequencies.detach().clone()
            parts[f"backbone-{self.config.backbone_name(index)}"] = part
        return parts


def decide_form(model: Any, state: dict[str, torch.Tensor], backbones: bool | None, full: bool, push: bool) -> bool:
    """Whether a save must hold the backbones.

    Bases alone are a model only together with the backbones of the named repos. Whether the backbones in hand are
    those is read from the repos' files, bit for bit: nothing that happened to a weight (training, merging, copying)
    escapes that. Files are not fetched for this: they are in the cache where the backbones came from their repos.

    `state` are the model's tensors as they are to be saved; `backbones` is what the user asks for, `None` for what is
    right, and `full` where either is; `push` says that others are to load it, who do not have this machine's folders.

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

    Raises `ValueError` if it is quantised, and not `trusted` to be nothing but that.
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
    if _is_quantised(model, index, weights):
        if trusted:
            return None
        raise ValueError(
            f"whether the quantised backbone of level {entry['name']} still is that of {pin} cannot be told: if "
            f"nothing was merged into it, save the bases alone (backbones=False)"
        )
    try:
        files = model._find_backbone(index, {**model._hub, "local_files_only": True})
        changed = _difference(files, weights)
    except (OSError, ValueError) as error:
        return (
            f"whether the backbone of level {entry['name']} still is that of {pin} cannot be told, since that is not "
            f"here to compare with ({' '.join(str(error).split())[:200]})"
        )
    return changed and f"the backbone of level {entry['name']} is no longer that of {pin} ({changed} differs)"


def _is_quantised(model: Any, index: int, weights: dict[str, Any]) -> bool:
    """Whether a backbone's weights are other than numbers as they were published or trained."""
    backbone = model.backbones[index] if index < len(model.backbones) else None
    config = getattr(backbone, "config", None)
    return (
        getattr(backbone, "hf_quantizer", None) is not None
        or getattr(config, "quantization_config", None) is not None
        or any(
            # Also what torch's own quantised layers keep, some of it no tensor, and scaled numbers of 8 bits.
            not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype.itemsize < 2
            for key, value in weights.items()
            if not _UNUSED.search(key)
        )
    )


def _difference(files: WeightFiles, weights: dict[str, torch.Tensor]) -> str | None:
    """Name of the first of a backbone's weights that is not the one in the files, or `None`.

    A change of dtype alone does not count: whoever loads it chooses one anew.
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
    """Raise `ValueError` unless the weights of a backbone are those that loading will look for."""
    name, level = model.config.backbone_name(index), model.config.backbone_groups[index][0]
    refuse_adapter(f"the backbone of level {name}", (key.split(".", 2)[2] for key in part))
    config = model.config.backbone_config(level)
    family, encoder = FAMILIES[config.model_type], encoder_class(config, model.config.backbone_depth(index))
    with torch.device("meta"):
        expected = set(encoder(config, **family.arguments).state_dict())
    wanted = {key for key in expected if not _UNUSED.search(key)}
    if _is_quantised(model, index, {key.split(".", 2)[2]: value for key, value in part.items()}):
        raise ValueError(
            f"the backbone of level {name} is quantised, and a checkpoint holds weights as they were published or "
            f"trained: save the bases alone (backbones=False), or load the model without quantisation"
        )
    found = {key.split(".", 2)[2] for key in part}
    extra = {key for key in found - expected if not _UNUSED.search(key)}
    if extra:
        raise ValueError(
            f"the backbone of level {name} holds {min(extra)}, which no {family.title} has, and would be lost: take it "
            f"off (an adapter that it was left by: unload() or merge_and_unload()), or put it onto the model itself"
        )
    if wanted - found:
        raise ValueError(
            f"the backbone of level {name} lacks {min(wanted - found)}: give the whole state_dict, or none"
        )

"""A model's files: which hold its weights, in a folder or on the Hub, and what is wrong with them.

Safetensors where the repo has them at the pinned commit, else `.bin` files, which only torch's restricted reader
opens: it builds tensors and runs no code. What is fetched is loaded from the cache's own folder of that commit. (Of a
Hub id that has `.bin` files alone, transformers would tell a conversion service, token included.)

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import json
import os
import pickle
import re
import shutil
import tempfile
import warnings
import weakref
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.utils import cached_file, logging

_ADAPTER_CONFIG = "adapter_config.json"
# Where a download comes from and how.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# A level's name becomes part of file names (`model.backbone-150M.safetensors`).
LEVEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
# Files of code that earlier versions saved (NAME_rd_esm.py) and this one does not: beside its own they would not fit.
_FORMER_CODE = (
    *("added", "alphabet", "attention", "fields", "lean", "merging", "origin", "outputs", "passes", "placement"),
    *("projection", "readout", "rotary", "weights", "whitening", "windows"),
)
# Sizes in a backbone's config that cannot be more than the longest side of its weights.
_SIZES = (
    *("hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
)
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


def may_be_hub_id(name: str) -> bool:
    """Whether a name reads as `owner/name` on the Hub: no path out of a folder, no address."""
    return _HUB_ID.fullmatch(name) is not None and ".." not in name


@contextmanager
def open_safetensors(path: str) -> Iterator[Any]:
    """As `safetensors.safe_open`, for torch: tensors are mapped into memory, and read where they are looked at.

    Raises:
        ValueError: the file is damaged, or not as long as its header says.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"a weights file is cut short or is no safetensors file ({path}: {error}): {fetch_again(path)}"
        ) from error


@dataclass(frozen=True)
class WeightFiles:
    """Weights of one model, all in one folder of this machine (of a Hub repo, the cache's folder of that commit).

    `names` are the file, or all shards; they are `.bin` files where they are not `safetensors`.
    """

    folder: str
    names: tuple[str, ...]
    safetensors: bool

    def _stored(self, ending: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Each tensor whose name ends so, mapped into memory; raises `ValueError` where a file is damaged."""
        for name in self.names:
            path = os.path.join(self.folder, name)
            if not self.safetensors:
                yield from ((key, value) for key, value in read_bin(path).items() if key.endswith(ending))
                continue
            with open_safetensors(path) as file:
                for key in file.keys():  # noqa: SIM118
                    if key.endswith(ending):
                        yield key, file.get_tensor(key)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight by its name in the files, one at a time; those of whole numbers or of 8 bits are left out."""
        return ((key, value) for key, value in self._stored() if value.dtype in _FLOATS)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each weight by its name in the files; raises `ValueError` where one is damaged."""
        return {key: tuple(value.shape) for key, value in self._stored()}

    def rotary_frequencies(self) -> torch.Tensor | None:
        """Rotary `inv_freq` as stored, the same in all layers: float32 `(head width / 2,)`; `None` if there is none."""
        return next((value.float().clone() for _, value in self._stored("rotary_embeddings.inv_freq")), None)


def find_weights(
    where: str | os.PathLike,
    revision: str | None = None,
    subfolder: str = "",
    variant: str | None = None,
    allow_bin: bool = True,
    **hub: Any,
) -> WeightFiles:
    """The files of a model's weights in a folder or on the Hub, fetched where they are not here yet, and nothing else.

    Where there are no safetensors `.bin` files are taken too, unless `allow_bin` is `False`. Of `hub` (`cache_dir`,
    `token`, `local_files_only`, ...) anything else is left aside.

    Raises:
        OSError: no such weights, a shard that is not there, or a Hub that cannot be reached.
        ValueError: an index that is damaged or leads elsewhere; a `.bin` that is damaged or holds anything but
            tensors.
    """
    where = os.fspath(where)
    hub = {name: hub[name] for name in HUB_ARGUMENTS if hub.get(name) is not None}
    if not os.path.isdir(where):
        if not may_be_hub_id(where):
            raise OSError(f"{where!r} is no folder that exists, and no Hub id (owner/name)")
        if revision is None or not _COMMIT.fullmatch(revision):
            # One commit for all files, even where the repo moves on meanwhile.
            revision = commit_of(where, revision, subfolder, hub)
        hub["revision"] = revision
    place = where if os.path.isdir(where) else f"{where} at {revision}"
    middle = "" if variant is None else f".{variant}"
    wanted = [(f"model{middle}.safetensors", False), (f"model.safetensors.index{middle}.json", True)]
    if allow_bin:
        wanted += [(f"pytorch_model{middle}.bin", False), (f"pytorch_model.bin.index{middle}.json", True)]
    trouble: OSError | None = None
    for name, is_index in wanted:
        try:
            # Once the Hub could not be asked, what is absent is not known: the cache alone may go on.
            path = _fetch(where, name, subfolder, hub | {"local_files_only": True} if trouble else hub)
        except OSError as error:
            # Of a file that is not there the library's error has no cause; of all other trouble it has.
            trouble = trouble or (error if error.__cause__ is not None else None)
            continue
        folder = os.path.dirname(path)
        weight_map = _read_index(path) if is_index else {}
        names = tuple(sorted(set(weight_map.values()))) or (name,)
        for shard in names if is_index else ():
            try:
                _fetch(where, shard, subfolder, hub)
            except OSError as error:
                if error.__cause__ is not None:
                    raise
                raise OSError(
                    f"{place} has no file {shard}, which {name} names: fetch or save the model again"
                ) from error
        safetensors = not name.startswith("pytorch_model")
        for file in names:
            found = WeightFiles(folder, (file,), safetensors).shapes()
            # Releases before 5.0 believe the index, and leave what it promises in vain as it was drawn at random.
            absent = sorted(key for key, shard in weight_map.items() if shard == file and key not in found)
            if absent:
                raise ValueError(f"{path} says that {file} holds {absent[0]}, and it does not: {fetch_again(path)}")
        return WeightFiles(folder, names, safetensors)
    if trouble is not None:
        raise trouble
    looked = ", ".join(name for name, _ in wanted)
    raise OSError(
        f"{place} holds none of {looked}: name a revision or folder that has one of them "
        f"(save_pretrained of transformers writes the first)"
    )


def _fetch(where: str, name: str, subfolder: str, hub: dict[str, Any]) -> str:
    """One file's place on this machine.

    Raises `OSError`, without a cause where the file does not exist, and with one where it cannot be had.
    """
    try:
        path = cached_file(where, name, subfolder=subfolder, **hub)
    except OSError:
        raise
    except Exception as error:  # the client's own, of connections that break: their types differ between releases
        raise OSError(f"{where} could not be fetched from ({error})") from error
    assert path is not None
    return path


def commit_of(repo: str, revision: str | None, subfolder: str, hub: dict[str, Any]) -> str | None:
    """The commit a revision stands for, from where the Hub's cache puts its config.json."""
    file = cached_file(repo, "config.json", revision=revision, subfolder=subfolder, **hub)
    parts = os.path.normpath(file).split(os.sep) if file is not None else []
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


def _read_index(path: str) -> dict[str, str]:
    """Names of the tensors that an index lists, and of their shards."""
    try:
        with open(path, encoding="utf-8") as file:
            index = json.load(file)
        # Releases before 5.0 read the metadata too.
        weight_map = dict(index["weight_map"].items()) if isinstance(index["metadata"], dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no index of weight files ({error!r}): {fetch_again(path)}") from error
    suffix = ".bin" if os.path.basename(path).startswith("pytorch_model") else ".safetensors"
    for name in weight_map.values():
        # An index comes with the weights: it must not lead out of their folder, nor to files of another kind.
        if not isinstance(name, str) or re.search(r"[/\\:]", name) or not name.endswith(suffix):
            raise ValueError(f"{path} names {name!r}, which is no {suffix} file beside it; its files are not read")
    if not weight_map:
        raise ValueError(f"{path} names no weight files: {fetch_again(path)}")
    return weight_map


def fetch_again(path: str) -> str:
    """What mends a damaged file, in words. One that lies in the Hub's cache is taken from there as long as it does."""
    kept = os.path.realpath(path)
    if os.path.basename(os.path.dirname(kept)) == "blobs" or "snapshots" in kept.split(os.sep):
        return f"delete {kept}, so that it is fetched again"
    return "fetch it again, or save the model again"


def read_bin(path: str) -> dict[str, torch.Tensor]:
    """Tensors of a `.bin` file by name, mapped into memory, by torch's restricted reader: no code runs.

    Raises:
        ValueError: it is damaged, or holds anything but tensors by name.
    """
    mend = "save the model's state_dict() alone, or as safetensors"
    try:
        # Files written by torch before 1.6 are no zip files and cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with open(path, "rb") as file:
            if not mapped and file.read(2) == b"PK":
                raise EOFError("it is cut short")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what cannot be read is an error here
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped or None)
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        refused = re.search(r"(?:GLOBAL|[Cc]lass|[Tt]ype) `?([A-Za-z_]\w*(?:\.\w+)+)", reason)
        if isinstance(error, pickle.UnpicklingError) and refused is not None:
            raise ValueError(
                f"{path} holds {refused[1]} beside tensors, and unpickling that could run code: it is not read; {mend}"
            ) from error
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is no file of tensors"
        raise ValueError(
            f"{path} is damaged or was never weights ({reason[:200]}): {fetch_again(path)}, or {mend}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds one {type(state).__name__}, not tensors by name: {mend}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds more than tensors ({key!r} is of type {type(value).__name__}): {mend}")
    return state


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
    """Around reading one part of a checkpoint: errors begin with its name.

    Where it is `quiet`, the library's own messages are silenced, since what was read is checked here. (They would warn
    of the language model's head that a backbone's repo holds too.)
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
        if isinstance(error, SafetensorError):
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


def check_sizes(what: str, backbone: Mapping[str, Any], depth: int, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise where a config says sizes that its weights cannot have, before anything is built of them.

    What is missing or of another shape would first be made at random, whatever its size. `depth` counts the layers
    that are wanted.
    """
    if depth > len(shapes):
        raise ValueError(f"{what}: config.json says that it has {depth:,} layers, and its weights are {len(shapes):,}")
    widest = max((size for shape in shapes.values() for size in shape), default=0)
    for field in _SIZES:
        if backbone.get(field, 0) > widest:
            raise ValueError(
                f"{what}: config.json says {field} {backbone[field]:,}, and none of its weights has a side of more "
                f"than {widest:,}; check that config, revision and weights belong together, or fetch them again"
            )


def refuse_links(folder: str) -> None:
    """Raise if a file of a local checkpoint is a link that leads out of it, other than those of the Hub's cache.

    (That is made of links from `snapshots/<commit>/` to `blobs/`.)
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
            with open_safetensors(os.path.join(folder, name)) as file:
                weight_map |= dict.fromkeys(file.keys(), name)
                size += sum(file.get_tensor(key).nbytes for key in file.keys())  # noqa: SIM118
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")


def is_own(path: str) -> bool:
    """Whether a file of a checkpoint is one of an `rd_esm` model, by what it holds and not by its name.

    Where a head lies with the bases, the config beside them says so.
    """
    beside = os.path.join(os.path.dirname(path), "config.json")
    try:
        if path.endswith(".safetensors"):
            keys, files = _tensor_names(path), [os.path.basename(path)]
        elif path.endswith(".json"):
            with open(path, encoding="utf-8") as file:
                content = json.load(file)
            if "weight_map" not in content:
                return content.get("model_type") == "rd_esm"
            keys, files = list(content["weight_map"]), list(content["weight_map"].values())
        else:
            with open(path, "rb") as file:
                # Code says so of itself; older or changed code is known by the config that it lies beside.
                return b"rd_esm" in file.read() or is_own(beside)
        if keys and all(re.match(r"((projections|backbones|whitening)\.\d+|readout)\.", key) for key in keys):
            return True
        return _are_named_by(beside, files)
    except (OSError, ValueError, OverflowError, MemoryError, AttributeError, TypeError, RecursionError):
        return False


def _tensor_names(path: str) -> list[str]:
    """Names of the tensors of a safetensors file; none of one that is damaged."""
    with suppress(ValueError), open_safetensors(path) as file:
        return list(file.keys())
    return []


def _are_named_by(config: str, files: Iterable[str]) -> bool:
    """Whether a config is one of ours, and files are named as those that it describes."""
    if not is_own(config):
        return False
    with open(config, encoding="utf-8") as file:
        full = json.load(file).get("backbones_in_checkpoint")
    parts = r"\.(projections|backbone-[\w.-]+)" if full else ""
    return all(re.fullmatch(rf"model{parts}(-\d{{5}}-of-\d{{5}})?\.safetensors", name) for name in files)


def refuse_foreign(folder: str, names: Iterable[str]) -> None:
    """Raise `ValueError` if any of these files is in the folder and is no `rd_esm` model's: saving would replace it."""
    for name in sorted(names):
        path = os.path.join(folder, name)
        if os.path.lexists(path) and not is_own(path):
            raise ValueError(
                f"{path} is no file of a reverse-distilled model, and saving would replace it: "
                "save into another folder, or move it elsewhere"
            )


def former_files(folder: str) -> set[str]:
    """Files of an earlier save into this folder: weights that its config and index name, and code of other versions."""
    if not is_own(os.path.join(folder, "config.json")):
        return set()
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        entries = json.load(file).get("levels", [])
    # Names of levels as others wrote them, which may be anything.
    levels = [str(entry.get("layers_of", entry.get("name"))) for entry in entries if isinstance(entry, dict)]
    index = "model.safetensors.index.json"
    names = {"model.safetensors", index, *(f"{name}_rd_esm.py" for name in _FORMER_CODE)}
    for part in ["projections", *(f"backbone-{level}" for level in levels if LEVEL_NAME.fullmatch(level))]:
        names |= {f"model.{part}.safetensors", f"model.safetensors.index.{part}.json"}
    if is_own(os.path.join(folder, index)):
        with open(os.path.join(folder, index), encoding="utf-8") as file:
            names |= {os.path.basename(name) for name in json.load(file)["weight_map"].values()}
    return {name for name in names if is_own(os.path.join(folder, name))}


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

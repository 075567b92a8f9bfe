"""Which files hold a model's weights: found in a folder or fetched from the Hub, and looked at before they are loaded.

Safetensors where the repo has them at the pinned commit, else `.bin` files, which only torch's restricted reader
opens: it builds tensors and runs no code. What is fetched is loaded from the cache's own folder of that commit. (Of a
Hub id that has `.bin` files alone, transformers would tell a conversion service, token included.)

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import json
import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers.utils import cached_file

# Where a download comes from and how.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class WeightFiles:
    """Weights of one model, all in one folder of this machine.

    Args:
        folder (`str`): where they lie; of a Hub repo, the cache's folder of that commit.
        names (`tuple[str, ...]`): the file, or all shards.
        safetensors (`bool`): else `.bin`.
    """

    folder: str
    names: tuple[str, ...]
    safetensors: bool

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each weight by its name in the files, one in memory at a time; not those of whole numbers."""
        for name in self.names:
            path = os.path.join(self.folder, name)
            if not self.safetensors:
                yield from ((key, value) for key, value in read_bin(path).items() if value.is_floating_point())
                continue
            for key, entry in read_header(path).items():
                if entry["dtype"] in _FLOATS:
                    yield key, _read_tensor(path, entry)

    def rotary_frequencies(self) -> torch.Tensor | None:
        """Rotary `inv_freq` as it is stored, float32 `(head width / 2,)`; `None` where there is none.

        Layers store the same numbers, so that the first found will do.
        """
        for name in self.names:
            path = os.path.join(self.folder, name)
            if not self.safetensors:
                found = [value for key, value in read_bin(path).items() if key.endswith("rotary_embeddings.inv_freq")]
                if found:
                    return found[0].float().clone()
                continue
            for key, tensor in read_header(path).items():
                if key.endswith("rotary_embeddings.inv_freq"):
                    return _read_tensor(path, tensor).float()
        return None


def find_weights(
    where: str | os.PathLike,
    revision: str | None = None,
    subfolder: str = "",
    variant: str | None = None,
    allow_bin: bool = True,
    **hub: Any,
) -> WeightFiles:
    """The files of a model's weights, fetched where they are not here yet, and nothing else of its repo.

    Args:
        where: folder or Hub id.
        revision, subfolder, variant: as in `from_pretrained`.
        allow_bin: also take `.bin` files, opened by torch's restricted reader, where there are no safetensors.
        hub: `cache_dir`, `token`, `local_files_only`, ...; anything else is left aside.

    Raises:
        OSError: no such weights, a shard that is not there, or a Hub that cannot be reached.
        ValueError: an index that is damaged or leads elsewhere; a `.bin` that is damaged or holds anything but
            tensors.
    """
    where = os.fspath(where)
    hub = {name: hub[name] for name in HUB_ARGUMENTS if hub.get(name) is not None}
    if not os.path.isdir(where):
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
            found = _keys(os.path.join(folder, file)) if safetensors else read_bin(os.path.join(folder, file))
            # Releases before 5.0 believe the index, and leave what it promises in vain as it was drawn at random.
            absent = sorted(key for key, shard in weight_map.items() if shard == file and key not in (found or [key]))
            if absent:
                raise ValueError(
                    f"{path} says that {file} holds {absent[0]}, and it does not: fetch or save the model again"
                )
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

    Raises:
        OSError: without a cause where it does not exist, with one where it cannot be had.
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
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no index of weight files ({error!r}): fetch or save the model again") from error
    suffix = ".bin" if os.path.basename(path).startswith("pytorch_model") else ".safetensors"
    for name in weight_map.values():
        # An index comes with the weights: it must not lead out of their folder, nor to files of another kind.
        if not isinstance(name, str) or re.search(r"[/\\:]", name) or not name.endswith(suffix):
            raise ValueError(f"{path} names {name!r}, which is no {suffix} file beside it; its files are not read")
    if not weight_map:
        raise ValueError(f"{path} names no weight files: fetch or save the model again")
    return weight_map


def _keys(path: str) -> dict[str, Any]:
    """Header of a safetensors file; empty where it is damaged, which the library's reader tells in its own words."""
    try:
        return read_header(path)
    except (ValueError, MemoryError, OverflowError):
        return {}


def read_bin(path: str) -> dict[str, torch.Tensor]:
    """Tensors of a `.bin` file by name, mapped into memory, by torch's restricted reader: no code runs.

    Raises:
        ValueError: damaged, or it holds anything but tensors by name.
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
            f"{path} is damaged or was never weights ({reason[:200]}): fetch it again, or {mend}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds one {type(state).__name__}, not tensors by name: {mend}")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path} holds more than tensors ({key!r} is of type {type(value).__name__}): {mend}")
    return state


def read_header(path: str) -> dict[str, Any]:
    """JSON header of a safetensors file (8 bytes of length, then that many of JSON), tensors only."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header


def _read_tensor(path: str, entry: dict[str, Any]) -> torch.Tensor:
    """One tensor of a safetensors file, by its entry in the header."""
    start, stop = entry["data_offsets"]
    with open(path, "rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + start)
        content = bytearray(file.read(stop - start))
    return torch.frombuffer(content, dtype=_FLOATS[entry["dtype"]]).reshape(entry["shape"])

"""From a model's name to its weights: resolve, fingerprint, load once per process."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd_hf.carried import model_place
from rd_hf.data.records import InputError
from rd_hf.devices import check_device
from rd_hf.embedding.compiling import check_compiler
from rd_hf.embedding.options import INT8, EmbeddingOptions
from rd_hf.embedding.quantization import make_grid, refuse_odd_widths
from rd_hf.files import file_sha256
from rd_hf.lazy import gc_paused
from rd_hf.model_names import check_model_name
from rd_hf.network import asks_hub, one_answer
from rd_hf.trust import refuse_foreign_code

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    import numpy as np
    import torch

    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from rd_hf.model.modeling_rd_esm import RDEsmModel


_COMMIT = re.compile(r"[0-9a-f]{40}")
# What stands before the commit of each backbone that was left open.
_AT = "+at:"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that can be loaded, as a manifest names it."""

    name: str  # Hub id, folder or name of a carried one, as the user gave it
    revision: str | None  # commit of a Hub model
    fingerprint: str  # changes whenever config or weights do
    nested_dims: dict[str, int]  # width of each level, smallest first
    # Residues that each level takes at once, as its strictest backbone does; levels that take any number are left out.
    longest: dict[str, int] = field(default_factory=dict)
    one_pass: bool = False  # every level is read out of the largest backbone
    block_weights: list[float] | None = None  # per level's block; None where the model has nothing to whiten by
    # Commits that are loaded of backbones whose revision the model leaves open, by repo (and branch).
    backbones: dict[str, str] = field(default_factory=dict)
    grids: bool = False  # whether the model holds statistics of which grids are made

    def __post_init__(self) -> None:
        # A manifest is anybody's file.
        noted: object = self.backbones
        if not isinstance(noted, dict) or not all(_COMMIT.fullmatch(str(commit)) for commit in noted.values()):
            raise ValueError(f"backbones must be commits by repo, not {noted!r}")

    def is_of(self, fingerprint: object, backbones: Mapping[str, str]) -> bool:
        """Whether this is the model that an earlier job noted; backbones that it left out it did not load."""
        alike = all(backbones.get(repo, commit) == commit for repo, commit in self.backbones.items())
        return alike and _without_backbones(str(fingerprint)) == _without_backbones(self.fingerprint)

    def widths(self, levels: tuple[str, ...], width: int | None = None) -> dict[str, int]:
        """Return the width of each level asked for, or of the largest; with a width, of the smallest that has it.

        Raises:
            InputError: the model has no such level, or the level not so many dimensions.
        """
        unknown = [level for level in levels if level not in self.nested_dims]
        if unknown:
            raise InputError(f"{self.name} has no level {unknown[0]!r}; its levels are {', '.join(self.nested_dims)}")
        chosen = levels or (list(self.nested_dims)[-1],)
        if width is None:
            return {level: self.nested_dims[level] for level in chosen}
        (most,) = chosen
        if width > self.nested_dims[most]:
            raise InputError(
                f"width {width:,} is more than the {self.nested_dims[most]:,} dimensions of level {most} of "
                f"{self.name}: ask for at most so many{' or leave the level out' if levels else ''}"
            )
        return {next(level for level, dims in self.nested_dims.items() if dims >= width): width}

    def refuse_to_whiten(self) -> None:
        """Raise an InputError where the model has nothing to whiten by."""
        if self.one_pass:
            raise InputError(
                f"{self.name} knows how to whiten exact embeddings, and one pass reads out others: leave out --whiten, "
                "or whiten a search by the database's own proteins (--whiten database)"
            )
        if self.block_weights is None:
            from rd_hf.model.modeling_rd_esm import NO_WHITENING

            raise InputError(f"{self.name}: {NO_WHITENING}")

    def refuse_to_store(self, options: EmbeddingOptions) -> None:
        """Raise an InputError where embeddings of this model cannot be stored as asked."""
        if options.whiten:
            self.refuse_to_whiten()
        if options.output_dtype == INT8 and (self.one_pass or not self.grids):
            why = (
                "for what one pass reads out" if self.one_pass else "since it was fitted before rd_hf 0.3, or imported"
            )
            mend = "leave --one-pass away" if self.one_pass else "fit it again with rd-hf fit"
            raise InputError(f"{self.name} holds no grids of one byte, {why}: {mend}, or store float16")
        widest = max(self.widths(options.levels, options.width).values())
        refuse_odd_widths(options.output_dtype, self.held(widest), self.name)

    def grid(self, options: EmbeddingOptions) -> np.ndarray | None:
        """Return what embeddings are rounded to, (2, width) float32: centres and steps; None unless they are int8."""
        if options.output_dtype != INT8:
            return None
        spreads = [block.get_buffer("spread") for block in self.bases(self.largest(options)).whitening or ()]
        return make_grid(spreads, options)[:, : max(self.widths(options.levels, options.width).values())]

    def bases(self, level: str) -> RDEsmModel:
        """Load what was fitted of the levels up to one, and no backbone."""
        return load_model(self.name, self.revision, self.fingerprint, level, "float32", None, "cpu", above=level)

    def held(self, widest: int) -> dict[str, int]:
        """Return the width of each level that the first ``widest`` dimensions hold, the last perhaps cut."""
        below = [0, *self.nested_dims.values()]
        dims = zip(self.nested_dims.items(), below, strict=False)
        return {level: min(width, widest) for (level, width), smaller in dims if smaller < widest}

    def largest(self, options: EmbeddingOptions) -> str:
        """Return the widest of the levels asked for: the one that is run."""
        widths = self.widths(options.levels, options.width)
        return max(widths, key=lambda level: widths[level])

    def within(self, options: EmbeddingOptions) -> EmbeddingOptions:
        """Limit options to sequences that the levels that run take at once; windows shrink along."""
        longest = self.longest.get(self.largest(options), options.max_length)
        if longest >= options.max_length:
            return options
        return replace(options, max_length=longest, overlap=min(options.overlap, longest // 4))


@one_answer()
def resolve(
    name: str | os.PathLike,
    revision: str | None = None,
    one_pass: bool = False,
    backbones: Mapping[str, str] | None = None,
) -> Checkpoint:
    """Find a model; of one on the Hub only its config is fetched yet, so that a small level stays a small download.

    A folder's fingerprint is a hash over the contents of ``config.json``, all weight files and their indices; on the
    Hub the commit says the same for nothing. Backbones in repos of their own whose revision is left open, or is a
    branch, are taken at the commit that they have now, or that an earlier job noted (``backbones``): it is part of the
    fingerprint, and is what is loaded.

    Raises:
        InputError: no such model, it is no reverse-distilled one, or ``one_pass`` and it has no readout.
    """
    check_model_name(name)
    place, name = Path(model_place(name)), os.fspath(name)
    is_here = place.is_dir()
    folder = place.resolve() if is_here else _fetch_config(name, revision).parent
    # The Hub's cache keeps each commit in a folder of its name.
    commit = None if is_here else folder.name
    family = _read_config(name, folder)
    fingerprint = f"commit:{commit}" if commit else _folder_fingerprint(folder)
    loaded: dict[str, str] = {}
    for level in [] if family.backbones_in_checkpoint else family.levels:
        # A checkpoint of bases alone leans on backbones in other folders or repos; a commit in config.json pins them.
        backbone = level["repo_id"]
        if backbone and Path(backbone).is_dir():
            fingerprint += "+" + _folder_fingerprint(Path(backbone).resolve())
        elif (key := _open_revision(level)) is not None:
            commit_now = (backbones or {}).get(key) or loaded.get(key) or _commit_now(level)
            loaded |= {} if commit_now is None else {key: commit_now}
    fingerprint += "".join(f"{_AT}{key}:{commit}" for key, commit in sorted(loaded.items()))
    if one_pass and family.readout is None:
        raise InputError(f"{name} was fitted without a one-pass readout: fit it with rd-hf fit --one-pass")
    from rd_hf.data.batching import SPECIAL_TOKENS

    family.one_pass = one_pass
    limits = {level: family.longest_input(level) for level in family.nested_dims}
    longest = {level: limit - SPECIAL_TOKENS for level, limit in limits.items() if limit is not None}
    fingerprint = f"one-pass:{fingerprint}" if one_pass else fingerprint
    weights, grids = (family.whitening or {}).get("weights"), bool((family.whitening or {}).get("grids"))
    return Checkpoint(name, commit, fingerprint, family.nested_dims, longest, one_pass, weights, loaded, grids)


def _without_backbones(fingerprint: str) -> str:
    """Return the part of a fingerprint that versions before 0.3 had too."""
    return fingerprint.partition(_AT)[0]


def _open_revision(level: Mapping[str, Any]) -> str | None:
    """Return the repo (and branch) of a level's backbone where its commit may change, else None."""
    repo, revision = level["repo_id"], level["revision"]
    if not repo or _COMMIT.fullmatch(revision or ""):
        return None
    return str(repo) if revision is None else f"{repo}@{revision}"


def _commit_now(level: Mapping[str, Any]) -> str | None:
    """Return the commit of a level's backbone, None where it cannot be had: loading it says so."""
    try:
        return _fetch_config(level["repo_id"], level["revision"]).parent.name
    except InputError:
        return None


@asks_hub
def _fetch_config(name: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, "config.json", revision=revision))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{name} is neither a folder here nor a model that the Hub gives us: {reason}") from error


def _read_config(name: str, folder: Path) -> RDEsmConfig:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{name} holds no config.json; give the folder or Hub id of a saved model") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        from rd_hf.model.files_rd_esm import fetch_again

        raise InputError(f"{path} is no JSON ({error}): {fetch_again(str(path))}") from error
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != "rd_esm":
        raise InputError(f"{name} is a model of type {found!r}, not 'rd_esm': fit bases first")
    with gc_paused():
        from rd_hf.model.configuration_rd_esm import RDEsmConfig

    try:
        refuse_foreign_code(folder)
    except ValueError as error:
        raise InputError(str(error)) from error
    try:
        return RDEsmConfig.from_pretrained(folder)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def _folder_fingerprint(folder: Path) -> str:
    whole = hashlib.sha256()
    weights = [path for pattern in ("*.safetensors", "*.bin", "*.index*.json") for path in folder.glob(pattern)]
    for path in sorted([folder / "config.json", folder / "adapter_config.json", *weights]):
        if path.exists():
            status = path.stat()
            whole.update(f"{path.name}\0{_file_sha256(str(path), status.st_size, status.st_mtime_ns)}\n".encode())
    return f"sha256:{whole.hexdigest()}"


@functools.lru_cache(maxsize=1024)
def _file_sha256(path: str, size: int, modified: int) -> str:
    """Hash of a file's content; size and time of change are there to make a changed file a new key."""
    return file_sha256(path)


def pinned_config(place: str, revision: str | None, backbones: Mapping[str, str]) -> RDEsmConfig:
    """A model's config with the commits of its backbones where it leaves them open."""
    from rd_hf.model.configuration_rd_esm import RDEsmConfig

    config: RDEsmConfig = RDEsmConfig.from_pretrained(place, **({} if revision is None else {"revision": revision}))
    for level in config.levels:
        level["revision"] = backbones.get(_open_revision(level) or "", level["revision"])
    return config


# Two: a process that compares two models does not load either again.
@functools.lru_cache(maxsize=2)
@asks_hub
def load_model(
    name: str,
    revision: str | None,
    fingerprint: str,
    level: str | None,
    dtype: str,
    attn_implementation: str | None,
    device: str,
    sequential: bool = False,
    above: str | None = None,
    one_pass: bool = False,
    backbones: tuple[tuple[str, str], ...] = (),
    compiled: bool = False,
) -> RDEsmModel:
    """Return the model on its device, in eval mode, loaded at most once per process.

    Only this package's own modelling code runs, never code that came with the weights.

    Args:
        name, revision, fingerprint, one_pass, backbones: of the :class:`Checkpoint`.
        level: largest level to load; None means all of the family.
        dtype, device: names that torch has for them.
        attn_implementation: as in transformers; None chooses packed rows where a GPU has a kernel for them.
        sequential: hold one backbone at a time, each loaded when its turn comes.
        above: leave out the backbones up to this level.
        compiled: compile the backbones' layers.

    Raises:
        InputError: it cannot be loaded, or not so, or not there.
    """
    import torch

    check_device(device)
    if compiled:
        check_compiler(device)
    from rd_hf.embedding.layouts import packing_pays
    from rd_hf.model.layers_rd_esm import PACKED_ATTENTION
    from rd_hf.model.modeling_rd_esm import RDEsmModel

    chosen: dict[str, Any] = {"attn_implementation": attn_implementation, "revision": revision}
    place = model_place(name)
    try:
        if backbones:
            chosen["config"] = pinned_config(place, revision, dict(backbones))
        chosen = {key: value for key, value in chosen.items() if value is not None}
        chosen |= {"level": level, "sequential": sequential, "above": above, "one_pass": one_pass}
        model = RDEsmModel.from_pretrained(place, dtype=getattr(torch, dtype), **chosen)
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error
    except ImportError as error:
        if attn_implementation is None:
            raise
        raise InputError(
            f"attention {attn_implementation!r} cannot be used here: {' '.join(str(error).split())}; leave "
            "--attn-implementation away for what torch itself has"
        ) from error
    model = model.to(device).eval()
    if attn_implementation is None and packing_pays(model):
        model.set_attn_implementation(PACKED_ATTENTION)
    if compiled:
        model.compile_layers()
    logger.info(
        "%s loaded up to level %s: %s on %s, attention %s, layers %s",
        name,
        level or model.config.level_names[-1],
        dtype,
        device,
        model.config._attn_implementation,
        "compiled" if compiled else "as they are",
    )
    return model


# Whether this process was forked, by whichever pool, from one that had imported this module.
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def prepare_after_fork(device: torch.device) -> None:
    """Make torch usable in a process that was forked after the model ran, which a GPU does not allow.

    OpenMP's threads do not survive a fork, and a computation that counts on them waits for ever: one thread is left.
    """
    import torch

    if device.type != "cpu":
        raise InputError(
            f"this process was forked from one that had the model on {device.type}, which does not work there: start "
            "the pool with the 'spawn' method (multiprocessing.get_context('spawn'); for datasets' map "
            "multiprocess.set_start_method('spawn'))"
        )
    torch.set_num_threads(1)


def threads_of_a_worker() -> int:
    """Return the threads for one of many processes on a CPU: as OMP_NUM_THREADS says, else or after a fork one."""
    # It may be a list, a number for each level of nesting, or empty.
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 and not _forked else 1


def is_worker() -> bool:
    """Whether this process is one of a pool's, or was forked by other means."""
    import multiprocessing

    import multiprocess

    return _forked or multiprocess.parent_process() is not None or multiprocessing.parent_process() is not None

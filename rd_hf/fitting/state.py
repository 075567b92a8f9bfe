"""What an unfinished fit leaves on disk: moments, the batches they hold, and the settings they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.files import Workspace, write_json
from rd_hf.fitting.sample import Sample, SamplePart
from rd_hf.fitting.settings import FitOptions
from rd_hf.model.modeling_rd_esm import RDEsmModel

# GPUs whose float64 runs at half the float32 rate; on the others the products are formed in float32.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


class FitProgress:
    """Moments of this process, where they are kept, and which batches they hold.

    A run is what so many processes do together, from start to end. One that was killed is gone on with by as many
    processes as it was: each takes up its own moments as it left them, so that sums are added in the same order, to the
    same bits. With another number of processes a new run begins, and the moments of former runs are merged at its end.
    """

    def __init__(
        self, folder: Path, widths: Sequence[int], accelerator: Accelerator, parts: Sequence[SamplePart]
    ) -> None:
        device = accelerator.device
        # MPS has no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        product_dtype = torch.float64
        if device.type == "cuda" and torch.cuda.get_device_capability(device) not in _FAST_FLOAT64:
            product_dtype = torch.float32
        self.moments = {part: JointMoments(widths, device=self.device, product_dtype=product_dtype) for part in parts}
        self.done: list[int] = []
        self.processes = accelerator.num_processes
        found = sorted(folder.glob("moments-*.safetensors"))
        runs = {path: int(path.name.split("-")[1]) for path in found}
        run = max(runs.values(), default=0)
        last = [path for path in found if runs[path] == run]
        # All files of a run say the same.
        if last and int(load_tensors(last[0], "processes")["processes"]) != self.processes:
            run += 1
        self.earlier = [path for path in found if runs[path] < run]
        self.path = folder / f"moments-{run:04d}-{accelerator.process_index:04d}.safetensors"
        if self.path in found:
            tensors = load_tensors(self.path)
            self.done = tensors["done"].tolist()
            for part in parts:
                self.moments[part] = JointMoments.from_state(_of_part(tensors, part), self.device, product_dtype)

    def save(self) -> None:
        state = {"done": torch.tensor(self.done, dtype=torch.int64), "processes": torch.tensor(self.processes)}
        for part, moments in self.moments.items():
            state |= {f"{part}.{key}": value for key, value in moments.state().items()}
        save_tensors(self.path, state)

    def done_earlier(self) -> set[int]:
        """Batches that files of former runs hold."""
        done: set[int] = set()
        for path in self.earlier:
            done |= set(load_tensors(path, "done")["done"].tolist())
        return done

    def merge_earlier(self) -> None:
        """Add the moments of former runs to this process's."""
        for path in self.earlier:
            tensors = load_tensors(path)
            for part, moments in self.moments.items():
                moments.merge(JointMoments.from_state(_of_part(tensors, part)))


def _of_part(tensors: Mapping[str, torch.Tensor], part: SamplePart) -> dict[str, torch.Tensor]:
    """The moments of one part of the sample, out of a file of all."""
    prefix = f"{part}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def fit_settings(sample: Sample, model: RDEsmModel, options: FitOptions) -> dict[str, Any]:
    """What must not change between an interrupted fit and its continuation."""
    digest = hashlib.sha256()
    for sequence in sample.sequences:
        digest.update(sequence.encode() + b"\n")
    config = model.config
    backbones: dict[str, dict[str, Any]] = {}

    def describe(served: list[int], backbone: torch.nn.Module) -> None:
        for level in served:
            entry = config.levels[level]
            backbones[entry["name"]] = {
                "commit": entry["revision"],
                "config": entry["backbone"],
                "layer": config.depth(level),
                "weights": weights_sha256(backbone) if level == served[0] else None,
            }

    model.visit_backbones(describe)
    settings = {
        "format": STATE_FORMAT,
        "sequences": digest.hexdigest(),
        "heldout": hashlib.sha256(str(sorted(sample.heldout)).encode()).hexdigest(),
        "levels": dict(zip(config.level_names, config.backbone_widths, strict=True)),
        "backbones": backbones,
        "batch tokens": options.batch_tokens,
        "one-pass layers": None if options.one_pass is None else list(options.one_pass),
    }
    # As they are read back.
    return dict(json.loads(json.dumps(settings)))


def weights_sha256(module: torch.nn.Module) -> str:
    """A digest of a module's parameters and rotary frequencies: names, shapes, dtypes and every byte, in their order.

    One read, at 1.5 GB a second on a CPU that has SHA in hardware.
    """
    digest = hashlib.sha256()
    # Other buffers are caches, or follow from the config.
    frequencies = ((name, buffer) for name, buffer in module.named_buffers() if name.endswith("inv_freq"))
    for name, tensor in chain(module.named_parameters(), frequencies):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


STATE_FORMAT = 2
SETTINGS_FILE = "settings.json"
# What a finished fit takes away from its state folder. The settings go first: without them a fit is finished.
STATE_FILES = (SETTINGS_FILE, "moments-*.safetensors", "fit_report.png")


def state_workspace(folder: Path) -> Workspace:
    """The lock of a state folder, its half-written files, and how it is known."""
    return Workspace(folder, "a fit")


def is_state(folder: Path) -> bool:
    """Whether a folder is the state of a fit, by what it says of itself (those of older versions have no record)."""
    try:
        return {"sequences", "heldout", "levels"} <= set(json.loads((folder / SETTINGS_FILE).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the settings of two fits, in words."""
    changed = [name for name in now if name != "backbones" and before.get(name) != now[name]]
    if changed:
        return changed
    for level, backbone in now["backbones"].items():
        old = before["backbones"][level]
        own = f"of the backbone of {level}"
        for field in sorted(backbone["config"] | old["config"]):
            then, is_now = old["config"].get(field), backbone["config"].get(field)
            if then != is_now:
                changed.append(f"{field} {own} ({then} then, {is_now} now)")
        if backbone["commit"] != old["commit"]:
            changed.append(f"commit {own} ({old['commit']} then, {backbone['commit']} now)")
        changed += [f"{name} {own}" for name in ("weights", "layer") if backbone[name] != old[name]]
    return changed


def open_state(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Start or continue the state of a fit in ``folder``; one that holds no moments yet is begun anew.

    Raises:
        ValueError: an unfinished fit is there and ``resume`` was not asked for, or it was of other settings or of an
            earlier version, or its settings are lost; the message says which.
    """
    record = folder / SETTINGS_FILE
    if any(folder.glob("moments-*.safetensors")):
        if not is_state(folder):
            raise ValueError(
                f"{folder} holds moments and not what they are of ({record.name}): delete it to start over"
            )
        if not resume:
            raise ValueError(
                f"{folder.parent} holds an unfinished fit: add --resume to continue it, or delete {folder} to start "
                "over"
            )
        try:
            before = json.loads(record.read_bytes())
            known = before.get("format") == STATE_FORMAT
            changed = _changes(before, settings) if known else []
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{record} is damaged: delete {folder} to start over") from error
        if not known:
            raise ValueError(
                f"the unfinished fit in {folder} was begun by another version of rd_hf, and its state does not tell "
                f"all that this one compares: continue it with that version, or delete {folder} to start over"
            )
        if changed:
            raise ValueError(
                f"the unfinished fit in {folder} was of other {', '.join(changed)}: "
                f"repeat the command that began it, or delete {folder} to start over"
            )
    else:
        write_json(record, settings)

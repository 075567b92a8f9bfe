"""What an unfinished fit leaves on disk: moments, the batches they hold, and the settings they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.files import Workspace, write_json
from rd_hf.fitting.sample import FitOptions, Sample, SamplePart
from rd_hf.model.modeling_rd_esm import RDEsmModel

# GPUs whose float64 runs at half the float32 rate; on the others the products are formed in float32.
_FAST_FLOAT64 = {(6, 0), (7, 0), (8, 0), (9, 0), (10, 0)}


class FitProgress:
    """Moments of this process, where they are kept, and which batches they hold."""

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
        self.workspace = state_workspace(folder)
        self.earlier = sorted(folder.glob("moments-*.safetensors"))
        runs = [int(path.name.split("-")[1]) for path in self.earlier]
        self.path = folder / f"moments-{max(runs, default=-1) + 1:04d}-{accelerator.process_index:04d}.safetensors"

    def save(self) -> None:
        state = {"done": torch.tensor(self.done, dtype=torch.int64)}
        for part, moments in self.moments.items():
            state |= {f"{part}.{key}": value for key, value in moments.state().items()}
        save_tensors(self.path, state, self.workspace.temporary())

    def done_earlier(self) -> set[int]:
        """Batches that files of former runs hold."""
        done: set[int] = set()
        for path in self.earlier:
            done |= set(load_tensors(path)["done"].tolist())
        return done

    def merge_earlier(self) -> None:
        """Add the moments of former runs to this process's."""
        for path in self.earlier:
            tensors = load_tensors(path)
            for part, moments in self.moments.items():
                prefix = f"{part}."
                state = {key.removeprefix(prefix): v for key, v in tensors.items() if key.startswith(prefix)}
                moments.merge(JointMoments.from_state(state))


def fit_settings(sample: Sample, model: RDEsmModel, options: FitOptions) -> dict[str, Any]:
    """What must not change between an interrupted fit and its continuation."""
    digest = hashlib.sha256()
    for sequence in sample.sequences:
        digest.update(sequence.encode() + b"\n")
    weights = hashlib.sha256()

    def digest_weights(served: list[int], backbone: torch.nn.Module) -> None:
        level = served[0]
        for name, parameter in backbone.named_parameters():
            # A sum a parameter tells other weights apart at the cost of one read, without hashing gigabytes.
            total = float(parameter.detach().double().sum())
            weights.update(f"{level}.{name} {tuple(parameter.shape)} {parameter.dtype} {total!r}".encode())

    model.visit_backbones(digest_weights)
    levels: dict[str, Any] = dict(zip(model.config.level_names, model.config.backbone_widths, strict=True))
    for index, entry in enumerate(model.config.levels):
        if "layer" in entry:
            levels[entry["name"]] = f"{levels[entry['name']]} after layer {model.config.depth(index)}"
    return {
        "sequences": digest.hexdigest(),
        "heldout": hashlib.sha256(str(sorted(sample.heldout)).encode()).hexdigest(),
        "levels": levels,
        "backbone weights": weights.hexdigest(),
        "batch tokens": options.batch_tokens,
        "one-pass layers": None if options.one_pass is None else list(options.one_pass),
    }


# What a finished fit takes away from its state folder.
STATE_FILES = ("moments-*.safetensors", "settings.json", "fit_report.png")


def state_workspace(folder: Path) -> Workspace:
    """The lock of a state folder, its half-written files, and how it is known."""
    return Workspace(folder, "a fit")


def is_state(folder: Path) -> bool:
    """Whether a folder is the state of a fit, by what it says of itself (those of older versions have no record)."""
    try:
        return {"sequences", "heldout", "levels"} <= set(json.loads((folder / "settings.json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return False


def open_state(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Start or continue the state of a fit in ``folder``.

    Raises:
        ValueError: an unfinished fit is there and ``resume`` was not asked for, or it was of other settings;
            the message names them.
    """
    record = folder / "settings.json"
    if record.exists():
        if not resume:
            raise ValueError(
                f"{folder.parent} holds an unfinished fit: add --resume to continue it, or delete {folder} to start "
                "over"
            )
        before = json.loads(record.read_bytes())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ValueError(
                f"the unfinished fit in {folder} was of other {', '.join(changed)}: "
                f"repeat the command that began it, or delete {folder} to start over"
            )
    else:
        write_json(record, settings)

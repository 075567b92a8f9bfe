"""What an unfinished fit leaves on disk: moments, the batches they hold, and the settings they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from rd_hf.bases.moments import JointMoments, load_tensors, product_dtype, save_tensors
from rd_hf.embedding.engine import default_batch_tokens
from rd_hf.embedding.layouts import layout_of
from rd_hf.embedding.options import OFF, ON
from rd_hf.embedding.transfer import moved
from rd_hf.files import write_json
from rd_hf.fitting.sample import Sample, Split
from rd_hf.fitting.settings import CPU_FIT_TOKENS, FitOptions
from rd_hf.model.modeling_rd_esm import RDEsmModel

# Moments of four sets of residues at most, in float64, and a copy of them as they are saved.
_SETS = 5


def settled(options: FitOptions, model: RDEsmModel, folder: str | Path, accelerator: Accelerator) -> FitOptions:
    """Options with the tokens of a batch: as asked, as an unfinished fit in ``folder`` has them, or as memory allows.

    One number for all processes, which the main process chooses.
    """
    if options.batch_tokens is not None:
        return options
    chosen: list[int] = [0]
    if accelerator.is_main_process:
        widths = _widths(model, options)
        held, sums = 2 * model.dtype.itemsize * sum(widths), 8 * _SETS * sum(widths) ** 2
        begun = begun_with(Path(folder), "batch_tokens")
        known = isinstance(begun, int) and begun > 0
        chosen = [begun if known else default_batch_tokens(model, CPU_FIT_TOKENS, held, sums)]
    (tokens,) = broadcast_object_list(chosen)
    return replace(options, batch_tokens=tokens)


def _widths(model: RDEsmModel, options: FitOptions) -> list[int]:
    """Widths of what moments are gathered of: all levels, then layers of the largest."""
    levels = model.config.backbone_widths
    return [*levels, *[levels[-1]] * len(options.one_pass or ())]


def begun_with(folder: Path, name: str) -> Any:
    """What an unfinished fit notes of itself; None where there is none, or its notes are damaged (said later)."""
    if not any(folder.glob("moments-*.safetensors")):
        return None
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        return json.loads((folder / SETTINGS_FILE).read_bytes())[name]
    return None


def how_it_runs(model: RDEsmModel, options: FitOptions) -> dict[str, Any]:
    """What decides the last digits of a fit, beside its sample: one fit has one of each."""
    return {
        "batch_tokens": options.batch_tokens,
        "compile": ON if model.layer_graphs else OFF,
        "device": model.device.type,
        "rows": type(layout_of(model)).__name__.lower(),
        "products": str(product_dtype(model.device)).removeprefix("torch."),
    }


class FitProgress:
    """Moments of this process, where they are kept, and which batches they hold.

    A run is what so many processes do together, from start to end. One that was killed is continued by as many
    processes as it had: each takes up its own moments as it left them, so that sums are added in the same order, to the
    same bits. With another number of processes a new run starts, and the moments of former runs are merged at its end.
    """

    def __init__(
        self,
        folder: Path,
        model: RDEsmModel,
        sample: Sample,
        options: FitOptions,
        accelerator: Accelerator,
    ) -> None:
        """Start or continue a fit in ``folder``, in all processes; raises as :func:`open_state` does."""
        if accelerator.is_main_process:
            open_state(folder, fit_settings(sample, model, options))
        accelerator.wait_for_everyone()
        self.accelerator, self.layers = accelerator, options.one_pass or ()
        widths, levels = _widths(model, options), model.config.backbone_widths
        # MPS has no float64.
        device = torch.device("cpu") if accelerator.device.type == "mps" else accelerator.device
        products = product_dtype(device)
        splits: list[Split] = ["training", "heldout"]
        if options.one_pass is not None:
            splits.append("tuning")
        self.moments = {split: JointMoments(widths, device, products) for split in splits}
        # Of the means over each sequence that is fitted on: what grids to round to are made of.
        self.moments["means"] = JointMoments(levels, device, products)
        self.done: list[int] = []
        found = sorted(folder.glob("moments-*.safetensors"))
        runs = {path: int(path.name.split("-")[1]) for path in found}
        run = max(runs.values(), default=0)
        last = [path for path in found if runs[path] == run]
        # All files of a run hold the same number.
        if last and int(load_tensors(last[0], "processes")["processes"]) != accelerator.num_processes:
            run += 1
        self.earlier = [path for path in found if runs[path] < run]
        self.path = folder / f"moments-{run:04d}-{accelerator.process_index:04d}.safetensors"
        if self.path in found:
            tensors = load_tensors(self.path)
            self.done = tensors["done"].tolist()
            for split in self.moments:
                self.moments[split] = JointMoments.from_state(_of_split(tensors, split), device, products)

    def remaining(self, batches: int) -> list[int]:
        """Numbers of the batches that this process is to run, out of so many."""
        done = {index for path in self.earlier for index in load_tensors(path, "done")["done"].tolist()}
        remaining = [index for index in range(batches) if index not in done]
        # Every process must have read the earlier files before one of them adds its own.
        self.accelerator.wait_for_everyone()
        done = set(self.done)
        mine = remaining[self.accelerator.process_index :: self.accelerator.num_processes]
        return [index for index in mine if index not in done]

    def add(self, index: int, split: Split, states: Sequence[torch.Tensor], lengths: Sequence[int]) -> None:
        """Add the states of a batch of sequences of these lengths; raises as :meth:`JointMoments.update` does."""
        self.moments[split].update(states)
        if split != "heldout":
            means = self.moments["means"]
            means.update([means_of(state, lengths) for state, _ in zip(states, means.widths, strict=False)])
        self.done.append(index)

    def saving(self) -> Callable[[], None]:
        """Copy the moments, and which batches they hold; what is returned writes them."""
        processes = torch.tensor(self.accelerator.num_processes)
        state = {"done": torch.tensor(self.done, dtype=torch.int64), "processes": processes}
        for split, moments in self.moments.items():
            # To the CPU at once: a GPU holds no second set of all.
            state |= {f"{split}.{key}": value.cpu() for key, value in moments.state().items()}
        return partial(save_tensors, self.path, state)

    def merge_earlier(self) -> None:
        """Add the moments of former runs to this process's."""
        for path in self.earlier:
            tensors = load_tensors(path)
            for split, moments in self.moments.items():
                moments.merge(JointMoments.from_state(_of_split(tensors, split)))


def means_of(states: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """Mean of each sequence's residues: (sequences, width), of (residues, width) one sequence behind the other."""
    if states.device.type == "cpu":
        return torch.stack([rows.float().mean(dim=0) for rows in states.split(list(lengths))])
    # At once: a GPU would wait for thousands of small orders.
    return segment_means(states, moved(torch.tensor(lengths), states.device))


def segment_means(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """As :func:`means_of`, float64, of lengths that lie on the same device."""
    return torch.segment_reduce(states.double(), "mean", lengths=lengths, unsafe=True)


def _of_split(tensors: Mapping[str, torch.Tensor], split: Split) -> dict[str, torch.Tensor]:
    """The moments of one split of the sample, out of a file of all."""
    prefix = f"{split}."
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def fit_settings(sample: Sample, model: RDEsmModel, options: FitOptions) -> dict[str, Any]:
    """What must not change between an interrupted fit and its continuation."""
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
    digest = hashlib.sha256()
    for sequence in sample.sequences:
        digest.update(sequence.encode() + b"\n")
    settings = {
        "format": STATE_FORMAT,
        "sequences": digest.hexdigest(),
        "heldout": hashlib.sha256(str(sorted(sample.heldout)).encode()).hexdigest(),
        "levels": dict(zip(config.level_names, config.backbone_widths, strict=True)),
        "backbones": backbones,
        **how_it_runs(model, options),
        "one-pass layers": None if options.one_pass is None else list(options.one_pass),
    }
    # As they are read back.
    return dict(json.loads(json.dumps(settings)))


def weights_sha256(module: torch.nn.Module) -> str:
    """A digest of a module's parameters and rotary frequencies: names, shapes, dtypes and every byte, in their order.

    It takes 1.5 GB per second on a CPU that has SHA in hardware.
    """
    digest = hashlib.sha256()
    # Other buffers are caches, or follow from the config.
    frequencies = ((name, buffer) for name, buffer in module.named_buffers() if name.endswith("inv_freq"))
    for name, tensor in chain(module.named_parameters(), frequencies):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


STATE_FORMAT = 4
SETTINGS_FILE = "settings.json"
# What a finished fit takes away from its state folder. The settings go first: without them a fit is finished.
STATE_FILES = (SETTINGS_FILE, "moments-*.safetensors", "fit_report.png")


def is_state(folder: Path) -> bool:
    """Whether a folder is the state of a fit, by what it says of itself (those of older versions have no record)."""
    try:
        return {"sequences", "heldout", "levels"} <= set(json.loads((folder / SETTINGS_FILE).read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Sentences on what differs between the settings of two fits."""
    changed = [name for name in now if name != "backbones" and before.get(name) != now[name]]
    if changed:
        return changed
    for level, backbone in now["backbones"].items():
        old, own = before["backbones"][level], f"of the backbone of {level}"
        names = sorted(backbone["config"] | old["config"])
        pairs = [(name, old["config"].get(name), backbone["config"].get(name)) for name in names]
        pairs.append(("commit", old["commit"], backbone["commit"]))
        changed += [f"{name} {own} ({then} then, {new} now)" for name, then, new in pairs if then != new]
        changed += [f"{name} {own}" for name in ("weights", "layer") if backbone[name] != old[name]]
    return changed


def open_state(folder: Path, settings: dict[str, Any]) -> None:
    """Start or continue the state of a fit in ``folder``; one that holds no moments yet is started anew.

    Raises:
        ValueError: an unfinished fit of other settings is there; the message says which.
    """
    record = folder / SETTINGS_FILE
    if not any(folder.glob("moments-*.safetensors")):
        write_json(record, settings)
        return
    if not is_state(folder):
        raise ValueError(f"{folder} holds moments and not what they are of ({record.name}): delete it to start over")
    try:
        before = json.loads(record.read_bytes())
        known = before.get("format") == STATE_FORMAT
        changed = _changes(before, settings) if known else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{record} is damaged: delete {folder} to start over") from error
    if not known:
        raise ValueError(
            f"the unfinished fit in {folder} was begun by another version of rd_hf, and its state does not tell all "
            f"that this one compares: continue it with that version, or delete {folder} to start over"
        )
    if changed:
        raise ValueError(
            f"the unfinished fit in {folder} was of other {', '.join(changed)}: "
            f"repeat the command that began it, choose another --output, or delete {folder} to start over"
        )

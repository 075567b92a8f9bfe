"""What a model is and what each of its levels costs, from its description alone: no weight is read or fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from torch import nn
from transformers import PreTrainedModel

from rd_hf.families import named_config
from rd_hf.hub.checkpoint import REPORT_FILE, read_config, read_json, resolve_commit
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES
from rd_hf.model.layers_rd_esm import stack_of
from rd_hf.model.modeling_rd_esm import RDEsmModel


@dataclass(frozen=True)
class LevelFacts:
    """One level, with all that it needs of the levels below.

    Attributes:
        level: its name.
        width: of its nested embedding; in float32 a vector has four times as many bytes.
        backbone: where the backbone that it adds comes from; None for this checkpoint itself.
        revision: commit of that repo, where one is pinned.
        parameters: of the backbones up to it, embeddings included.
        memory_bytes: of their weights in the dtype of the config, and of the bases in float32.
        largest_bytes: as ``memory_bytes``, with one backbone held at a time.
        flop_per_residue: multiplications and additions of all linear maps, bases included; the attention between
            residues comes on top and grows with the length of the sequence.
        heldout_r2: of the larger backbone's states on held-out residues, as explained by the level below.
    """

    level: str
    width: int
    backbone: str | None
    revision: str | None
    parameters: int
    memory_bytes: int
    largest_bytes: int
    flop_per_residue: int
    heldout_r2: float | None


@dataclass(frozen=True)
class ModelFacts:
    """A model.

    Attributes:
        name: as asked for.
        revision: commit on the Hub; None for a folder or a named family.
        form: "full", "bases only" or "not fitted".
        rd_hf_version: of the package that wrote it, where it says so.
        dtype: of the backbones' weights.
        file_bytes: of the weights in a folder; None elsewhere.
        bases: how they were fitted, as the config records it.
        levels: smallest first.
        lossless: all directions of every backbone are kept.
        whitening: what blocks can be whitened by, as the config records it; None for nothing.
        one_pass: ``layers`` of the largest backbone that all levels can be read out of, and of each level the held-out
            ``r2``, where the fit report has it; None for no readout.
    """

    name: str
    revision: str | None
    form: str
    rd_hf_version: str | None
    dtype: str
    file_bytes: int | None
    bases: dict[str, Any]
    levels: list[LevelFacts]
    lossless: bool = False
    whitening: dict[str, Any] | None = None
    one_pass: dict[str, Any] | None = None


def describe_model(source: str, revision: str | None = None) -> ModelFacts:
    """Describe a checkpoint folder, a Hub model (its config and fit report are fetched) or a named family.

    Raises:
        ValueError, OSError: there is no such model, or it is not of this kind.
    """
    folder = Path(source) if Path(source).is_dir() else None
    named = None if folder else named_config(source)
    config = named or read_config(source, revision)
    report = [] if named else _report(source, folder, revision)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    fitted = bool(config.bases) or bool(report)
    return ModelFacts(
        name=source,
        revision=None if named or folder else resolve_commit(source, revision),
        form=("full" if config.backbones_in_checkpoint else "bases only") if fitted else "not fitted",
        rd_hf_version=getattr(config, "rd_hf_version", None),
        dtype=str(_dtype(config)).removeprefix("torch."),
        file_bytes=sum(file.stat().st_size for file in files) if files else None,
        bases=config.bases,
        levels=_levels(config, {entry["level"]: entry for entry in report}),
        lossless=config.is_lossless and len(config.levels) > 1,
        whitening=config.whitening,
        one_pass=_one_pass(config, report),
    )


def _one_pass(config: RDEsmConfig, report: list[dict[str, Any]]) -> dict[str, Any] | None:
    if not config.readout:
        return None
    found = {entry["level"]: (entry.get("one_pass") or {}).get("level_r2") for entry in report}
    return {
        "layers": list(config.readout["layers"]),
        "r2": {level: r2 for level, r2 in found.items() if r2 is not None},
    }


def _report(source: str, folder: Path | None, revision: str | None) -> list[dict[str, Any]]:
    if folder is None:
        try:
            path = Path(hf_hub_download(source, REPORT_FILE, revision=revision))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError:
            return []
    else:
        path = folder / REPORT_FILE
    found = read_json(path) if path.exists() else []
    return [entry for entry in found if isinstance(entry, dict) and "level" in entry] if isinstance(found, list) else []


def _dtype(config: RDEsmConfig) -> torch.dtype:
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found or "float32"))


def backbone_cost(backbone: PreTrainedModel, depth: int) -> tuple[int, int]:
    """Parameters of a backbone that ends after ``depth`` layers, and FLOP a residue of its linear maps."""
    beyond = tuple(
        f"{FAMILIES[backbone.config.model_type].layers}.{layer}." for layer in range(depth, len(stack_of(backbone)))
    )
    parameters = sum(p.numel() for name, p in backbone.named_parameters() if not name.startswith(beyond))
    # The contact head is stored, but does not run.
    linear = [
        module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and "contact_head" not in name and not name.startswith(beyond)
    ]
    return parameters, 2 * sum(module.weight.numel() for module in linear)


def _levels(config: RDEsmConfig, report: dict[str, dict[str, Any]]) -> list[LevelFacts]:
    # Built without memory: sizes are those of the modules that would run, whichever family they are of.
    with torch.device("meta"):
        model = RDEsmModel(config, build_backbones=True)
    item = torch.empty((), dtype=_dtype(config)).element_size()
    facts: list[LevelFacts] = []
    parameters = bases = flop = largest = 0
    places = [(model.backbones[index], level) for index, group in enumerate(config.backbone_groups) for level in group]
    ran: tuple[nn.Module | None, int, int, int] = (None, 0, 0, 0)
    for (entry, width), (backbone, index) in zip(
        zip(model.config.levels, model.config.nested_dims.values(), strict=True), places, strict=True
    ):
        depth = config.depth(index)
        own, work = backbone_cost(backbone, depth)
        # Of a backbone that ran for the level below, the layers beyond that one's are all that is new.
        former = ran if ran[0] is backbone else (backbone, 0, 0, 0)
        if depth > former[1]:
            parameters += own - former[2]
            flop += work - former[3]
            ran = (backbone, depth, own, work)
        largest = max(largest, own)
        if index:
            step = dict(model.projections[index - 1].named_buffers())
            bases += sum(buffer.numel() * buffer.element_size() for buffer in step.values())
            flop += 2 * (step["regression"].numel() + step["directions"].numel())
        heldout = (report.get(entry["name"]) or {}).get("heldout") or {}
        facts.append(
            LevelFacts(
                level=entry["name"],
                width=width,
                backbone=entry["repo_id"],
                revision=entry["revision"],
                parameters=parameters,
                memory_bytes=parameters * item + bases,
                largest_bytes=largest * item + bases,
                flop_per_residue=flop,
                heldout_r2=heldout.get("r2"),
            )
        )
    return facts

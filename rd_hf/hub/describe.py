"""What a model is and what each of its levels costs, from its description alone: no weight is read or fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from rd_hf.carried import model_place
from rd_hf.families import named_config
from rd_hf.hub.checkpoint import REPORT_FILE, read_config
from rd_hf.hub.sources import find_file, read_json, resolve_commit
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import FAMILIES
from rd_hf.model.layers_rd_esm import stack_of
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model_names import check_model_name
from rd_hf.network import asks_hub


@dataclass(frozen=True)
class LevelFacts:
    """One level, with all that it needs of the levels below.

    Attributes:
        width: of its nested embedding; in float32 a vector has four times as many bytes.
        backbone, revision: repo and pinned commit of the backbone that it adds; None for this checkpoint itself.
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
    """A model, with its levels, smallest first.

    Attributes:
        name: as asked for.
        revision: commit on the Hub; None for a folder or a named family.
        form: "full", "bases only" or "not fitted".
        rd_hf_version: of the package that wrote it, if known.
        dtype: of the backbones' weights.
        file_bytes: of the weights in a folder; None elsewhere.
        bases, whitening: how the bases were fitted and what blocks can be whitened by, as the config records it.
        lossless: all directions of every backbone are kept.
        one_pass: ``layers`` of the largest backbone that all levels can be read out of, and of each level the held-out
            ``r2``, where the fit report has it; None for no readout.
        heads: what they are ``of`` ("sequences" or "residues"), the ``levels`` that have one, the ``level`` that
            answers, names of the ``labels`` and the ``problem_type``; None for no heads.
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
    heads: dict[str, Any] | None = None


@asks_hub
def describe_model(source: str, revision: str | None = None) -> ModelFacts:
    """Describe a checkpoint folder or name, a family, or a Hub model, of which config and fit report are fetched.

    A ValueError or OSError if there is no such model, or it is not of this kind.
    """
    check_model_name(source, fitted=False)
    place = Path(model_place(source))
    folder = place if place.is_dir() else None
    named = None if folder else named_config(source)
    config = named or read_config(source, revision)
    report = {} if named else _report(source, revision)
    files = sorted(folder.glob("*.safetensors")) if folder else []
    form = "full" if config.backbones_in_checkpoint else "bases only"
    return ModelFacts(
        name=source,
        revision=None if named or folder else resolve_commit(source, revision),
        form=form if config.bases or report else "not fitted",
        rd_hf_version=getattr(config, "rd_hf_version", None),
        dtype=str(_dtype(config)).removeprefix("torch."),
        file_bytes=sum(file.stat().st_size for file in files) if files else None,
        bases=config.bases,
        levels=_levels(config, report),
        lossless=config.is_lossless and len(config.levels) > 1,
        whitening=config.whitening,
        one_pass=_one_pass(config, report),
        heads=_heads(config),
    )


def _heads(config: RDEsmConfig) -> dict[str, Any] | None:
    if not config.heads:
        return None
    return {
        "of": config.heads["of"],
        "levels": list(config.heads["levels"]),
        "level": config.heads.get("level") or config.level_names[-1],
        "labels": [config.id2label[index] for index in sorted(config.id2label)],
        "problem_type": config.problem_type,
    }


def _one_pass(config: RDEsmConfig, report: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    if not config.readout:
        return None
    found = {level: (entry.get("one_pass") or {}).get("level_r2") for level, entry in report.items()}
    return {
        "layers": list(config.readout["layers"]),
        "r2": {level: r2 for level, r2 in found.items() if r2 is not None},
    }


def _report(source: str, revision: str | None) -> dict[str, dict[str, Any]]:
    """What the fit report says of each level."""
    path = find_file(source, REPORT_FILE, revision)
    found = [] if path is None else read_json(path)
    entries = found if isinstance(found, list) else []
    return {entry["level"]: entry for entry in entries if isinstance(entry, dict) and "level" in entry}


def _dtype(config: RDEsmConfig) -> torch.dtype:
    found = getattr(config, "dtype", None)
    return found if isinstance(found, torch.dtype) else getattr(torch, str(found or "float32"))


def backbone_cost(backbone: PreTrainedModel, depth: int) -> tuple[int, int]:
    """Parameters of a backbone that ends after ``depth`` layers, and FLOP per residue of its linear maps."""
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
    for group, backbone in zip(config.backbone_groups, model.backbones, strict=True):
        deepest = (0, 0)
        for index in group:
            entry = model.config.levels[index]
            own = backbone_cost(backbone, config.depth(index))
            # Of a backbone that ran for the level below, the layers beyond that one's are all that is new.
            former, deepest = deepest, max(deepest, own)
            parameters += deepest[0] - former[0]
            flop += deepest[1] - former[1]
            largest = max(largest, own[0])
            if index:
                step = dict(model.projections[index - 1].named_buffers())
                bases += sum(buffer.nbytes for buffer in step.values())
                flop += 2 * (step["regression"].numel() + step["directions"].numel())
            heldout = (report.get(entry["name"]) or {}).get("heldout") or {}
            facts.append(
                LevelFacts(
                    level=entry["name"],
                    width=model.config.nested_dims[entry["name"]],
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

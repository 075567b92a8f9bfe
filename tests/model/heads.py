"""What the tests of heads share: a family, heads with numbers of their own, and the equations written out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from rd_hf.hub import save_checkpoint
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from tests.hub.conftest import published_family

WIDTHS = [16, 24, 32]
LEVELS = ["L0", "L1", "L2"]
KINDS: dict[str, Any] = {"sequences": RDEsmForSequenceClassification, "residues": RDEsmForTokenClassification}
# cls, residues, eos; the second is shorter, and has a mask in it; the third is a single residue.
IDS = torch.tensor(
    [[0, 20, 15, 11, 5, 19, 12, 5, 15, 2], [0, 20, 15, 32, 5, 4, 2, 1, 1, 1], [0, 20, 2, 1, 1, 1, 1, 1, 1, 1]]
)


def save_family(folder: Path) -> dict[bool, Path]:
    """A family without heads, in both forms, by whether it is full; its backbones lie beside them."""
    model = published_family(folder, WIDTHS)
    for buffer in model.projections.buffers():
        buffer.div_(buffer.shape[0] ** 0.5)
    return {full: save_checkpoint(model, folder / str(full), backbones=full) for full in (False, True)}


def random_head(width: int, labels: int, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    shift = {"mean": torch.randn(width), "scale": torch.rand(width) + 0.5}
    return {"weight": torch.randn(labels, width), "bias": torch.randn(labels), **shift}


def with_heads(source: Path, kind: str, labels: int = 3, levels: Sequence[str] = LEVELS, **settings: Any) -> Any:
    """A model with a head of random numbers for each of some levels."""
    model = KINDS[kind].from_pretrained(source, num_labels=labels, level=levels[-1], **settings)
    for seed, level in enumerate(levels):
        model.set_head(level, **random_head(model.config.nested_dims[level], labels, seed))
    return model


def states_by_hand(states: Sequence[torch.Tensor], bases: Path) -> torch.Tensor:
    """e_i = [e_(i-1), r_i V_i] of the backbones' final states, from the file of the bases."""
    stored = load_file(bases)
    embedding = states[0]
    for index, state in enumerate(states[1:]):
        part = {name: stored[f"projections.{index}.{name}"] for name in ("prefix_mean", "backbone_mean")}
        weights, directions = stored[f"projections.{index}.regression"], stored[f"projections.{index}.directions"]
        residual = (state - part["backbone_mean"]) - (embedding - part["prefix_mean"]) @ weights
        embedding = torch.cat((embedding, residual @ directions), dim=-1)
    return embedding


def mean_by_hand(embedding: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Mean over residues of each row: whatever is not cls, pad, eos, unknown or mask."""
    rows = [
        state[[token not in (0, 1, 2, 3, 32) for token in row.tolist()]]
        for state, row in zip(embedding, ids, strict=True)
    ]
    return torch.stack([row.mean(dim=0) for row in rows])


def names_in(folder: Path) -> set[str]:
    """Names of all tensors of a checkpoint."""
    found: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor = IDS, **settings: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids, **settings).logits
    return found

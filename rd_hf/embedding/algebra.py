"""From what each backbone says to a nested embedding, without the residues: the part of the model that is affine.

Everything after the backbones commutes with a weighted mean whose weights add up to one, so with the mean over
residues and with the merging of windows. From a mean of e_(i-1) and a mean of what backbone i contributes follows the
mean of e_i, and no smaller backbone has to run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from rd_hf.model.bases_rd_esm import RDEsmProjection
from rd_hf.model.layers_rd_esm import backbone_arguments
from rd_hf.model.modeling_rd_esm import RDEsmModel


def contributions(model: RDEsmModel, batches: Sequence[dict[str, Any]], above: str, level: str) -> list[torch.Tensor]:
    """Run the backbones beyond the level ``above`` that is known, up to ``level``: what each contributes, side by side.

    Args:
        model: with the backbones beyond ``above``; smaller ones are neither needed nor run.
        batches: what the model is called with, one after the other.

    Returns:
        For each batch (batch, length, width of ``level`` - width of ``above``) float32.
    """
    config = model.config
    parts: list[list[torch.Tensor]] = [[] for _ in batches]
    arguments = [backbone_arguments(config, **batch) for batch in batches]

    def run(levels: list[int], backbone: PreTrainedModel) -> None:
        for own, batch in zip(parts, arguments, strict=True):
            for index, state in zip(levels, model.level_states(levels, backbone, batch), strict=True):
                own.append(projection(model, index).contribution(state))

    model.visit_backbones(run, config.level_index(level), config.level_index(above) + 1)
    return [torch.cat([part.to(own[-1].device) for part in own], dim=-1) for own in parts]


def projection(model: RDEsmModel, index: int) -> RDEsmProjection:
    """Return the step of the chain that leads to the level at a position, from 1."""
    return cast(RDEsmProjection, model.projections[index - 1])


def extend(model: RDEsmModel, known: torch.Tensor, brought: torch.Tensor, above: str, level: str) -> torch.Tensor:
    """Make the embedding of a larger level of that of a smaller one and what the backbones between contribute.

    Args:
        model: its bases are enough.
        known: (..., width of ``above``) float32, one row per residue, position or sequence (means over residues).
        brought: (..., width of ``level`` - width of ``above``) float32, the same mean of :func:`contributions`.

    Returns:
        (..., width of ``level``) float32; its first dimensions are ``known``, bit for bit.
    """
    config = model.config
    chosen = range(config.level_index(above), config.level_index(level))
    blocks = brought.split([config.residual_directions[index] for index in chosen], dim=-1)
    for index, block in zip(chosen, blocks, strict=True):
        known = projection(model, index + 1).append(known, block)
    return known

"""What is done to an embedding before it is compared: nothing, scaling, whitening, weights of blocks.

A treatment sees embeddings, the bases that made them and the states' moments, never a label. Moments are those of the
domains that are compared, as a search has them at hand, or those of the residues that bases were fitted on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.whitening import BlockMoments, chain_whitening, fit_whitening
from rd_hf.evaluation.families import Family, family_bases
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.evaluation.representations import Representation, family_maps

DOMAINS, RESIDUES = "domains", "residues"


class Treatment(NamedTuple):
    """What is done to rows before they are compared."""

    words: str  # how reports describe it
    moments: str = ""  # whose moments are used, DOMAINS or RESIDUES; empty for none
    # See fit_whitening; None whitens as a search does; at 1 a block is centred and brought to one variance as a whole,
    # and its directions keep their proportions.
    shrinkage: float | None = 1.0
    weights: str = ""  # whose moments choose the weights of blocks (chain_whitening); empty for equal ones


# "whitened + weights" is what a search does by default: a database has its own means at hand, its model the weights.
TREATMENTS = {
    "plain": Treatment("the embedding as it is, not centred"),
    "scaled": Treatment("each block centred and brought to one variance, of the domains' means", DOMAINS),
    "scaled + weights": Treatment("the same, blocks weighted by the fit", DOMAINS, weights=RESIDUES),
    "whitened": Treatment("each block whitened by the domains' means", DOMAINS, None),
    "whitened + weights": Treatment("the same, blocks weighted by the fit", DOMAINS, None, RESIDUES),
    "whitened + weights (domains)": Treatment("the same, by the domains' means", DOMAINS, None, DOMAINS),
    "whitened (fit)": Treatment("each block whitened by the residues of the fit", RESIDUES, None),
    "whitened + weights (fit)": Treatment("the same, blocks weighted by the fit", RESIDUES, None, RESIDUES),
}
# Treatments after which labels choose weights too, and what :func:`rd_hf.evaluation.homology_runs.search_rows` calls
# them then. Nothing else has seen a label.
SEARCHED = ("plain", "whitened")
LABELLED = tuple(f"{name} + {how}" for name in SEARCHED for how in ("labels", "best"))


def unweighted(name: str) -> str:
    """The treatment without weights: what a weighted one is where there is one block only."""
    how = TREATMENTS[name]._replace(words="", weights="")
    return next(other for other, own in TREATMENTS.items() if own._replace(words="") == how)


@dataclass(frozen=True)
class Candidate:
    """A representation and what is known of its blocks without labels."""

    how: Representation
    blocks: tuple[int, ...]  # their widths; one, where it is not nested
    bases: tuple[Basis, ...] = field(default=(), repr=False)  # of their chain, a step for each block after the first


def concatenation_bases(widths: Sequence[int]) -> list[Basis]:
    """A concatenation as a chain: nothing is predicted, and every direction kept."""
    zeros, eye = torch.zeros, torch.eye
    return [
        Basis(zeros(end).double(), zeros(width).double(), zeros(end, width).double(), eye(width).double())
        for end, width in zip(itertools.accumulate(widths), widths[1:], strict=False)
    ]


def candidates(family: Family, moments: JointMoments | None, options: EvaluationOptions) -> list[Candidate]:
    """Every representation of one family, single blocks of the nested ones among them."""
    maps = family_maps(family, moments, options.representations, options.seed)
    config = family.model.config
    if config.one_pass:
        # Nested as the chain is, by a readout instead of bases.
        ends = [0, *config.nested_dims.values()]
        widths = [wide - narrow for narrow, wide in itertools.pairwise(ends)]
        return [Candidate(how, tuple(widths[: family.names.index(how.level) + 1])) for how in maps]
    chains: dict[str, Sequence[Basis]] = {"concat": concatenation_bases(family.widths)}
    if "rd" in options.representations and len(family.names) > 1:
        chains["rd"] = family_bases(family, moments)
    if "rd_all" in options.representations and moments is not None:
        chains["rd_all"], _ = fit_chain(moments, family.names, family.widths[1:])
    found = []
    for how in maps:
        bases = chains.get(how.kind, ())[: family.names.index(how.level)]
        blocks = (family.widths[0], *(basis.directions.shape[1] for basis in bases))
        found.append(Candidate(how, blocks if bases else (how.width,), tuple(bases)))
    for kind, single in (("rd", "block"), ("rd_all", "block_all")):
        # Each block of the widest after the first, alone.
        for whole in [candidate for candidate in found if candidate.how.kind == kind][-1:]:
            matrix, offset = whole.how.matrix, whole.how.offset
            edges = itertools.pairwise(itertools.accumulate(whole.blocks))
            for name, (a, b) in zip(family.names[1:], edges, strict=True):
                found.append(Candidate(Representation(single, name, matrix[:, a:b], offset[a:b]), (b - a,)))
    return found


def mean_moments(states: np.ndarray, widths: Sequence[int]) -> JointMoments:
    """Moments of the domains' mean states, (n, K), each domain counted once."""
    moments = JointMoments(list(widths))
    moments.update(torch.from_numpy(states).split(list(widths), dim=1))
    return moments


def _block_moments(candidate: Candidate, moments: JointMoments) -> list[BlockMoments]:
    """Moments of the blocks of e = z A + b, given those of z."""
    mean, scatter = moments.mean().cpu(), moments.scatter().cpu()
    blocks = list(candidate.blocks)
    matrices = torch.from_numpy(candidate.how.matrix).split(blocks, dim=1)
    offsets = torch.from_numpy(candidate.how.offset).split(blocks)
    return [
        BlockMoments(moments.count, mean @ matrix + offset, matrix.T @ (scatter @ matrix) / (moments.count - 1))
        for matrix, offset in zip(matrices, offsets, strict=True)
    ]


def treat(
    name: str, rows: torch.Tensor, candidate: Candidate, known: dict[str, JointMoments]
) -> tuple[torch.Tensor, tuple[float, ...]] | None:
    """Rows under one treatment and the weights of their blocks; None where it says nothing new or lacks what it needs.

    Rows are embeddings of ``candidate``, (n, width); ``known`` are moments of states, :data:`DOMAINS` or
    :data:`RESIDUES`.
    """
    how = TREATMENTS[name]
    if not how.moments:
        return rows, ()
    moments = known.get(how.moments)
    if moments is None or (how.weights and not (candidate.bases and how.weights in known)):
        return None
    weights = chain_whitening(known[how.weights], candidate.bases).weights if how.weights else ()
    whitening = fit_whitening(_block_moments(candidate, moments), weights or None, shrinkage=how.shrinkage)
    return whitening(rows), tuple(weights)

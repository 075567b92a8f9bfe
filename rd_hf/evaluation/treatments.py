"""What is done to an embedding before it is compared: nothing, whitening, weights of blocks, or both.

A treatment sees embeddings and the widths of their blocks, never a label. Statistics are those of the domains that are
compared, as a search has them at hand, or those of the fit's residues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rd_hf.bases.moments import JointMoments
from rd_hf.bases.whitening import BlockMoments, fit_whitening, moments_of_rows
from rd_hf.evaluation.representations import Representation


def blocks_of(maps: Sequence[Representation], widths: Sequence[int]) -> dict[str, list[int]]:
    """Widths of the blocks of every representation, by its digest.

    A nested embedding has a block a level, and so has a concatenation; all others are one block.

    Args:
        maps: of one family; the levels of a nested kind in order.
        widths: of the family's backbones.
    """
    found: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    for how in maps:
        if how.kind in ("rd", "rd_all", "concat"):
            before = ends.setdefault(how.kind, [widths[0]])
            before.append(how.width)
            found[how.digest] = np.diff([0, *before]).tolist()
        else:
            found[how.digest] = [how.width]
    return found


def block_maps(kind: str, largest: Representation, names: Sequence[str], widths: Sequence[int]) -> list[Representation]:
    """Each block of a nested embedding after the first, alone.

    Args:
        kind: of the results.
        largest: the whole chain.
        names: of its levels.
        widths: of its blocks, from :func:`blocks_of`.
    """
    ends = np.cumsum(widths)
    return [
        Representation(kind, name, largest.matrix[:, start:end], largest.offset[start:end])
        for name, start, end in zip(names[1:], ends[:-1], ends[1:], strict=True)
    ]


def map_moments(how: Representation, widths: Sequence[int], moments: JointMoments) -> list[BlockMoments]:
    """Moments of the blocks of e = z A + b over the residues whose states' moments these are."""
    mean, scatter = moments.mean().cpu(), moments.scatter().cpu()
    result = []
    for end, width in zip(np.cumsum(widths), widths, strict=True):
        columns = torch.from_numpy(how.matrix[:, end - width : end])
        result.append(
            BlockMoments(
                moments.count,
                mean @ columns + torch.from_numpy(how.offset[end - width : end]),
                columns.T @ (scatter @ columns) / (moments.count - 1),
            )
        )
    return result


# Rows (n, width), the widths of their blocks, and the blocks' moments over the fit's residues where there are any.
Apply = Callable[[torch.Tensor, Sequence[int], "Sequence[BlockMoments] | None"], torch.Tensor]


@dataclass(frozen=True)
class Treatment:
    """What is done to rows before they are compared.

    Attributes:
        words: what tables say of it.
        apply: the function; it returns rows of the same shape.
        single: the treatment that is the same where there is one block only; itself, if it is done there too.
        residues: whether it needs moments of the fit's residues.
    """

    words: str
    apply: Apply
    single: str
    residues: bool = False


def _plain(rows: torch.Tensor, widths: Sequence[int], residues: Sequence[BlockMoments] | None) -> torch.Tensor:
    return rows


def _whitened(rows: torch.Tensor, widths: Sequence[int], residues: Sequence[BlockMoments] | None) -> torch.Tensor:
    return fit_whitening(moments_of_rows(rows, widths))(rows)


def _whitened_fit(rows: torch.Tensor, widths: Sequence[int], residues: Sequence[BlockMoments] | None) -> torch.Tensor:
    assert residues is not None
    return fit_whitening(residues)(rows)


TREATMENTS = {
    "plain": Treatment("the embedding as it is, not centred", _plain, "plain"),
    "whitened": Treatment("each block whitened by the means of the domains compared", _whitened, "whitened"),
    "whitened_fit": Treatment("each block whitened by residues of the fit", _whitened_fit, "whitened_fit", True),
}
# Treatments that labels chose the weights after, and what :func:`rd_hf.evaluation.homology_runs.search_rows` adds to
# their names. Nothing else has seen a label.
SEARCHED = ("plain", "whitened")
LABELLED = tuple(f"{name} + {how}" for name in SEARCHED for how in ("labels", "best"))


def treat(
    name: str, rows: torch.Tensor, widths: Sequence[int], residues: Sequence[BlockMoments] | None = None
) -> torch.Tensor | None:
    """Rows under one treatment, or None where it says nothing new or lacks what it needs.

    Args:
        name: key of :data:`TREATMENTS`.
        rows: (n, sum of widths).
        widths: of the blocks.
        residues: moments of the blocks over the fit's residues, if they are known.
    """
    how = TREATMENTS[name]
    if (how.residues and residues is None) or (len(widths) == 1 and how.single != name):
        return None
    return how.apply(rows, widths, residues)

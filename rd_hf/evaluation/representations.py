"""Every contender as an affine map of the same concatenated backbone states.

With z = [h_1, ..., h_m] the states of all backbones at a residue (K wide), the reverse-distilled embedding of a
level, concatenation, its principal components and a random projection are all e = z A + b. Means over residues
commute with such maps, so one forward pass a variant, pooled, serves every contender, and each is compared on
exactly the same states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import descending_eigh
from rd_hf.model.modeling_rd_esm import RDEsmModel

# Kinds in the order of tables and legends.
KINDS = {
    "raw": "raw backbone",
    "rd": "reverse-distilled",
    "pca": "concatenation + PCA",
    "concat": "concatenation",
    "one_pass": "read out in one pass",
    "rd_all": "reverse-distilled, all directions",
    "random": "random projection",
    "one_hot": "one-hot",
}
# Those that are fitted on sequences here, not read from the model.
FITTED_KINDS = ("pca", "rd_all")


@dataclass(frozen=True)
class Representation:
    """e = z A + b.

    Attributes:
        kind: key of :data:`KINDS`.
        level: name of the largest backbone it uses.
        matrix: A, (K, width) float64.
        offset: b, (width,) float64.
    """

    kind: str
    level: str
    matrix: np.ndarray = field(repr=False)
    offset: np.ndarray = field(repr=False)

    @property
    def width(self) -> int:
        """Columns of the embedding."""
        return int(self.matrix.shape[1])

    @property
    def digest(self) -> str:
        """Of the map's values: two runs with one digest give the same features from the same states."""
        values = np.ascontiguousarray(self.matrix).tobytes() + np.ascontiguousarray(self.offset).tobytes()
        return hashlib.sha256(values).hexdigest()

    def __call__(self, states: Any) -> np.ndarray:
        """(n, K) states, any float dtype, to (n, width) float64."""
        return states.astype(np.float64) @ self.matrix + self.offset


def _selection(offset: int, width: int, total: int) -> np.ndarray:
    """Columns that copy z[offset : offset + width]."""
    matrix = np.zeros((total, width))
    matrix[offset : offset + width] = np.eye(width)
    return matrix


def raw_maps(names: Sequence[str], widths: Sequence[int]) -> list[Representation]:
    """Each backbone's own state, h_i."""
    total = sum(widths)
    starts = np.cumsum([0, *widths])
    return [
        Representation("raw", name, _selection(int(start), width, total), np.zeros(width))
        for name, width, start in zip(names, widths, starts, strict=False)
    ]


def concatenation_maps(names: Sequence[str], widths: Sequence[int]) -> list[Representation]:
    """[h_1, ..., h_i] at its full width, for each level after the first."""
    total = sum(widths)
    ends = np.cumsum(widths)
    return [
        Representation("concat", name, _selection(0, int(end), total), np.zeros(int(end)))
        for name, end in zip(names[1:], ends[1:], strict=True)
    ]


def chain_maps(kind: str, names: Sequence[str], widths: Sequence[int], bases: Sequence[Basis]) -> list[Representation]:
    """Each level of a chain after the first, composed into one map of z.

    e_i = [e_(i-1), (h_i - mean_i - (e_(i-1) - mean) W) V] with e_(i-1) = z A + b gives
    A_i = [A, (I_i - A W) V] and b_i = [b, (mean W - mean_i - b W) V].
    """
    total = sum(widths)
    starts = np.cumsum([0, *widths])
    matrix, offset = _selection(0, widths[0], total), np.zeros(widths[0])
    maps = []
    for index, basis in enumerate(bases, start=1):
        w, v = basis.regression.double().numpy(), basis.directions.double().numpy()
        prefix_mean, mean = basis.prefix_mean.double().numpy(), basis.backbone_mean.double().numpy()
        own = _selection(int(starts[index]), widths[index], total)
        block = (own - matrix @ w) @ v
        shift = ((prefix_mean - offset) @ w - mean) @ v
        matrix, offset = np.hstack((matrix, block)), np.concatenate((offset, shift))
        maps.append(Representation(kind, names[index], matrix, offset))
    return maps


def one_pass_maps(nested_dims: Mapping[str, int]) -> list[Representation]:
    """Each level of an embedding that was read out in one pass, from the widest: its first columns."""
    total = max(nested_dims.values())
    return [
        Representation("one_pass", name, _selection(0, width, total), np.zeros(width))
        for name, width in nested_dims.items()
    ]


def model_bases(model: RDEsmModel) -> list[Basis]:
    """The bases a model holds, as :func:`rd_hf.bases.chain.fit_chain` gives them, float64 on the CPU."""
    return [
        Basis(
            *(
                getattr(projection, name).detach().double().cpu()
                for name in ("prefix_mean", "backbone_mean", "regression", "directions")
            )
        )
        for projection in model.projections
    ]


def principal_map(name: str, moments: JointMoments, levels: int, width: int) -> Representation:
    """Leading principal components of the concatenation of the first ``levels`` backbones.

    Args:
        name: of the largest of them.
        width: components kept.
    """
    mean, scatter, end = moments.mean().cpu(), moments.scatter().cpu(), moments.offsets[levels]
    _, leading = descending_eigh(scatter[:end, :end], width)
    matrix = np.zeros((sum(moments.widths), width))
    matrix[:end] = leading.numpy()
    return Representation("pca", name, matrix, -(mean[:end] @ leading).numpy())


def pca_maps(names: Sequence[str], moments: JointMoments) -> list[Representation]:
    """Leading principal components of [h_1, ..., h_i], as many as h_i is wide, for each level after the first."""
    return [
        principal_map(name, moments, levels, width)
        for levels, (name, width) in enumerate(zip(names[1:], moments.widths[1:], strict=True), start=2)
    ]


def random_map(name: str, widths: Sequence[int], levels: int, width: int, seed: int = 0) -> Representation:
    """A Gaussian projection of the concatenation of the first ``levels`` backbones; its columns are drawn in order, so
    that a narrower one is the start of a wider one."""
    end = sum(widths[:levels])
    matrix = np.zeros((sum(widths), width))
    matrix[:end] = np.random.default_rng(seed).standard_normal((width, end)).T / np.sqrt(width)
    return Representation("random", name, matrix, np.zeros(width))


def random_maps(names: Sequence[str], widths: Sequence[int], seed: int = 0) -> list[Representation]:
    """Gaussian projections of [h_1, ..., h_i] to h_i's width, for each level after the first: the floor."""
    generator = np.random.default_rng(seed)
    total = sum(widths)
    maps = []
    for index in range(1, len(widths)):
        end = sum(widths[: index + 1])
        matrix = np.zeros((total, widths[index]))
        matrix[:end] = generator.standard_normal((end, widths[index])) / np.sqrt(widths[index])
        maps.append(Representation("random", names[index], matrix, np.zeros(widths[index])))
    return maps


def all_maps(
    names: Sequence[str],
    widths: Sequence[int],
    bases: Sequence[Basis],
    moments: JointMoments | None,
    kinds: Sequence[str],
    seed: int = 0,
) -> list[Representation]:
    """The asked-for contenders of one family; those of :data:`FITTED_KINDS` only where there are moments.

    Args:
        names, widths: of the levels, smallest first.
        bases: the reverse-distilled chain's.
        moments: of the fitting sequences, or None.
        kinds: keys of :data:`KINDS`; "one_hot" needs no states and is passed over.
        seed: of the random projection.
    """
    maps: list[Representation] = []
    if "raw" in kinds:
        maps += raw_maps(names, widths)
    if "rd" in kinds:
        maps += chain_maps("rd", names, widths, bases)
    if "pca" in kinds and moments is not None:
        maps += pca_maps(names, moments)
    if "concat" in kinds:
        maps += concatenation_maps(names, widths)
    if "rd_all" in kinds and moments is not None and len(widths) > 1:
        everything, _ = fit_chain(moments, names, widths[1:])
        maps += chain_maps("rd_all", names, widths, everything)
    if "random" in kinds:
        maps += random_maps(names, widths, seed)
    return maps

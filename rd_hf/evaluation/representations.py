"""Every contender as an affine map of the same concatenated backbone states.

With z = [h_1, ..., h_m] the states of all backbones at a residue (K wide), the reverse-distilled embedding of a
level, concatenation, its principal components and a random projection are all e = z A + b. Means over residues
commute with such maps, so one forward pass per variant, pooled, serves every contender, and each is compared on
exactly the same states.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import descending_eigh
from rd_hf.evaluation.families import Family, family_bases
from rd_hf.evaluation.options import KINDS


@dataclass(frozen=True)
class Representation:
    """e = z A + b."""

    kind: str  # key of KINDS
    level: str  # name of the largest backbone it uses
    matrix: np.ndarray = field(repr=False)  # A, (K, width) float64
    offset: np.ndarray = field(repr=False)  # b, (width,) float64

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


def selection(start: int, width: int, total: int) -> np.ndarray:
    """Columns that copy z[start : start + width]: (total, width) float64."""
    return np.eye(total, width, -start)


def _copy(kind: str, name: str, start: int, width: int, total: int) -> Representation:
    """The map that copies z[start : start + width], of z ``total`` wide."""
    return Representation(kind, name, selection(start, width, total), np.zeros(width))


def starts_of(widths: Sequence[int]) -> list[int]:
    """Where the columns of each backbone begin in z, and where the last ones end."""
    return [0, *np.cumsum(widths).tolist()]


def raw_maps(names: Sequence[str], widths: Sequence[int]) -> list[Representation]:
    """Each backbone's own state, h_i."""
    columns = zip(names, starts_of(widths), widths, strict=False)
    return [_copy("raw", name, start, width, sum(widths)) for name, start, width in columns]


def one_pass_maps(nested_dims: Mapping[str, int]) -> list[Representation]:
    """Each level of an embedding that was read out in one pass: its first columns."""
    return [_copy("one_pass", name, 0, width, max(nested_dims.values())) for name, width in nested_dims.items()]


def chain_maps(kind: str, names: Sequence[str], widths: Sequence[int], bases: Sequence[Basis]) -> list[Representation]:
    """Each level of a chain after the first, composed into one map of z.

    e_i = [e_(i-1), (h_i - mean_i - (e_(i-1) - mean) W) V] with e_(i-1) = z A + b gives
    A_i = [A, (I_i - A W) V] and b_i = [b, (mean W - mean_i - b W) V].
    """
    total, starts = sum(widths), starts_of(widths)
    matrix, offset = selection(0, widths[0], total), np.zeros(widths[0])
    maps = []
    for index, basis in enumerate(bases, start=1):
        w, v = basis.regression.double().numpy(), basis.directions.double().numpy()
        prefix_mean, mean = basis.prefix_mean.double().numpy(), basis.backbone_mean.double().numpy()
        block = (selection(starts[index], widths[index], total) - matrix @ w) @ v
        shift = ((prefix_mean - offset) @ w - mean) @ v
        matrix, offset = np.hstack((matrix, block)), np.concatenate((offset, shift))
        maps.append(Representation(kind, names[index], matrix, offset))
    return maps


def principal_map(name: str, moments: JointMoments, levels: int, width: int) -> Representation:
    """``width`` leading principal components of the concatenation of the first ``levels`` backbones."""
    mean, scatter, end = moments.mean().cpu(), moments.scatter().cpu(), moments.offsets[levels]
    _, leading = descending_eigh(scatter[:end, :end], width)
    matrix = np.zeros((sum(moments.widths), width))
    matrix[:end] = leading.numpy()
    return Representation("pca", name, matrix, -(mean[:end] @ leading).numpy())


def pca_maps(names: Sequence[str], moments: JointMoments) -> list[Representation]:
    """Leading principal components of [h_1, ..., h_i], as many as h_i is wide, for each level after the first."""
    levels = zip(names[1:], moments.widths[1:], strict=True)
    return [principal_map(name, moments, number, width) for number, (name, width) in enumerate(levels, start=2)]


def pca_chain_maps(names: Sequence[str], moments: JointMoments) -> list[Representation]:
    """A chain of principal components: p_1 = h_1, and p_i the k_i leading ones of [p_(i-1), h_i].

    The baseline of the first publication's code ("naive"). Levels are not nested.
    """
    widths, starts = moments.widths, starts_of(moments.widths)
    mean, scatter = moments.mean().cpu().numpy(), moments.scatter().cpu().numpy()
    matrix, maps = selection(0, widths[0], len(mean)), []
    for index, name in enumerate(names[1:], start=1):
        pair = np.hstack((matrix, selection(starts[index], widths[index], len(mean))))
        _, leading = descending_eigh(torch.from_numpy(pair.T @ scatter @ pair), widths[index])
        matrix = pair @ leading.numpy()
        maps.append(Representation("pca_chain", name, matrix, -mean @ matrix))
    return maps


def random_maps(names: Sequence[str], widths: Sequence[int], seed: int = 0) -> list[Representation]:
    """Gaussian projections of [h_1, ..., h_i] to h_i's width, for each level after the first: the floor."""
    generator = np.random.default_rng(seed)
    maps = []
    for name, width, end in zip(names[1:], widths[1:], starts_of(widths)[2:], strict=True):
        matrix = np.zeros((sum(widths), width))
        matrix[:end] = generator.standard_normal((end, width)) / np.sqrt(width)
        maps.append(Representation("random", name, matrix, np.zeros(width)))
    return maps


def family_maps(
    family: Family, moments: JointMoments | None, kinds: Sequence[str], seed: int = 0
) -> list[Representation]:
    """The contenders of one family that need its states; those that are fitted only where there are moments."""
    if family.model.config.one_pass:
        return one_pass_maps(family.model.config.nested_dims)
    names, widths = family.names, family.widths
    makers = {
        "raw": lambda: raw_maps(names, widths),
        "rd": lambda: chain_maps("rd", names, widths, family_bases(family, moments)),
        # [h_1, ..., h_i] at its full width, for each level after the first.
        "concat": lambda: [
            _copy("concat", name, 0, end, sum(widths))
            for name, end in zip(names[1:], starts_of(widths)[2:], strict=True)
        ],
        "random": lambda: random_maps(names, widths, seed),
    }
    if moments is not None:
        makers["pca"] = lambda: pca_maps(names, moments)
        makers["pca_chain"] = lambda: pca_chain_maps(names, moments)
        makers["rd_all"] = lambda: chain_maps("rd_all", names, widths, fit_chain(moments, names, widths[1:])[0])
    return [found for kind in KINDS if kind in kinds and kind in makers for found in makers[kind]()]

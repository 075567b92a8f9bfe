"""Other blocks for the same prefix: each form of a nested embedding in closed form, from moments of residues and means.

With z the states of all backbones and some of their layers, deviations from the mean, e = z P the prefix and h = z T
the larger backbone's state, a form is a matrix of columns to append, (K, d). Most are directions of a residual

    u = z U,   U = T - P W,        W by principal components, or by least squares (then u has nothing linear of e)

and their covariances follow from that of z, over residues or over proteins' means: cov(z X, z Y) = X^T C Y.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.readout import embedding_map, fit_readout
from rd_hf.bases.regression import RegressionKind, descending_eigh, regress
from rd_hf.bases.whitening import whitening_map
from rd_hf.evaluation.representations import Representation

TODAY, READ_OUT = "variance", "read-out prefix"
REFERENCES = ("raw", "components", "all directions")


@dataclass(frozen=True)
class Covariance:
    """Of z over ``count`` residues or proteins: (K, K) float64, and the mean, (K,)."""

    count: int
    mean: torch.Tensor = field(repr=False)
    values: torch.Tensor = field(repr=False)

    @classmethod
    def of(cls, moments: JointMoments) -> Covariance:
        """From moments of z."""
        return cls(moments.count, moments.mean(), moments.scatter() / (moments.count - 1))

    def __call__(self, left: torch.Tensor, right: torch.Tensor | None = None) -> torch.Tensor:
        """cov(z L, z R); exactly symmetric where R is not given."""
        if right is not None:
            return left.T @ self.values @ right
        own = left.T @ self.values @ left
        return (own + own.T) / 2


@dataclass(frozen=True)
class Step:
    """One level of the chain, and how many dimensions it may append."""

    level: str
    index: int  # of its backbone, from 0
    prefix: torch.Tensor = field(repr=False)  # P, (K, p)
    state: torch.Tensor = field(repr=False)  # T, (K, k)
    layers: torch.Tensor = field(repr=False)  # copies the backbone's other layers, (K, F)
    below: torch.Tensor = field(repr=False)  # copies the final states of all backbones up to this one
    directions: int  # d
    copied: int  # width of the smallest backbone, whose state is copied; all else is centred

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"{self.level}: {self.prefix.shape[1]} + {self.directions}"


def copies(moments: JointMoments, levels: Sequence[int]) -> torch.Tensor:
    """Columns of z that hold these levels' states, in this order: (K, sum of widths)."""
    starts = moments.offsets
    chosen = torch.cat([torch.arange(starts[level], starts[level + 1]) for level in levels])
    return torch.eye(starts[-1], dtype=torch.float64)[:, chosen]


def restricted(moments: JointMoments, levels: Sequence[int]) -> JointMoments:
    """Moments of these levels alone, in this order."""
    chosen = copies(moments, levels)
    widths = [moments.widths[level] for level in levels]
    return JointMoments.of(widths, moments.count, moments.mean() @ chosen, chosen.T @ moments.scatter() @ chosen)


def chain_steps(
    moments: JointMoments, names: Sequence[str], whole: Sequence[int], directions: Mapping[int, Sequence[int]]
) -> list[Step]:
    """Steps of today's chain.

    Args:
        moments: of z, whose levels are backbones and, before each of them, its layers.
        names: of the backbones, smallest first.
        whole: positions of their final states in z.
        directions: by position in ``whole``, the numbers of directions to try.
    """
    final = restricted(moments, whole)
    growth = [after - before for before, after in pairwise(final.widths)]
    bases, _ = fit_chain(final, names, growth)
    placed = copies(moments, whole)
    steps = []
    for index, numbers in directions.items():
        prefix = embedding_map(bases[: index - 1], final.widths[:index])
        layers = list(range(whole[index - 1] + 1, whole[index]))
        state, beside, below = (copies(moments, levels) for levels in ([whole[index]], layers, whole[: index + 1]))
        for number in numbers:
            own = placed[:, : len(prefix)] @ prefix
            steps.append(Step(names[index], index, own, state, beside, below, number, final.widths[0]))
    return steps


def turn(columns: torch.Tensor, seed: int) -> torch.Tensor:
    """The same space by other columns, an orthogonal matrix at random."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(columns.shape[1], columns.shape[1], dtype=torch.float64, generator=generator)
    return columns @ torch.linalg.qr(square).Q


def leading(residual: torch.Tensor, over: Covariance, scale: torch.Tensor | None = None) -> torch.Tensor:
    """The directions of largest variance of u (scaled), as columns of z: (K, k), the largest first."""
    scaled = residual if scale is None else residual @ scale
    return scaled @ descending_eigh(over(scaled))[1]


def correlated(residual: torch.Tensor, target: torch.Tensor, over: Covariance, whiten: bool) -> torch.Tensor:
    """Directions of u that tell most of a target: (K, k), the best first.

    They are singular vectors of the covariance of whitened u with the target: canonical directions where the target is
    whitened too; where its channels are only brought to one variance, those of reduced-rank regression.
    """
    own = whitening_map(over(residual), over.count)
    other = whitening_map(over(target), over.count, rotate=whiten, shrinkage=None if whiten else 0.0)
    found = torch.linalg.svd(own.T @ over(residual, target) @ other, full_matrices=True).U
    return residual @ own @ found


def forms(step: Step, residues: Covariance, means: Covariance, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every candidate's block, (K, d) float64, by its name."""

    def residual(over: Covariance, kind: RegressionKind) -> torch.Tensor:
        fitted = regress(over(step.prefix), over(step.prefix, step.state), over.count, kind)
        return step.state - step.prefix @ fitted.coefficients

    own, plain, of_means = residual(residues, "pcr"), residual(residues, "ols"), residual(means, "pcr")
    state = residues(step.state)
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(len(state), len(state), dtype=torch.float64, generator=generator)
    found = {
        TODAY: leading(own, residues),
        "whitened": leading(own, residues, whitening_map(state, residues.count)),
        "standardised": leading(own, residues, whitening_map(state, residues.count, rotate=False, shrinkage=0.0)),
        "canonical, state": correlated(plain, step.state, residues, whiten=True),
        "canonical, layers": correlated(plain, step.layers, residues, whiten=True),
        "reduced rank, layers": correlated(plain, step.layers, residues, whiten=False),
        "means": leading(own, means),
        "means, whitened": leading(own, means, whitening_map(means(step.state), means.count)),
        "means, both": leading(of_means, means),
        "state": leading(step.state, residues),
        "random": own @ torch.linalg.qr(square).Q,
    }
    found = {name: block[:, : step.directions] for name, block in found.items()}
    return found | {"turned": turn(found[TODAY], seed), "means, turned": turn(found["means"], seed)}


def contenders(step: Step, residues: Covariance, means: Covariance, seed: int = 0) -> list[Representation]:
    """Every candidate and reference of one step as a map of z."""

    def mapped(name: str, matrix: torch.Tensor, copied: int) -> Representation:
        offset = -(residues.mean @ matrix)
        offset[:copied] = 0.0
        return Representation(name, step.name, matrix.numpy(), offset.numpy())

    blocks = forms(step, residues, means, seed)
    width = step.prefix.shape[1] + step.directions
    everything = leading(step.below, residues)[:, :width]
    fitted = regress(residues(step.prefix), residues(step.prefix, step.state), residues.count)
    rest = leading(step.state - step.prefix @ fitted.coefficients, residues)
    nested = {**blocks, "all directions": rest}
    return [
        *(mapped(name, torch.cat((step.prefix, block), dim=1), step.copied) for name, block in nested.items()),
        mapped("raw", step.state, step.state.shape[1]),
        mapped("components", everything, 0),
    ]


def read_map(
    fitting: JointMoments, tuning: JointMoments, order: Sequence[int], growth: Sequence[int], own_prefix: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The nested embedding read out of the largest backbone: (K, width), and what is added, (width,).

    Args:
        fitting, tuning: moments of z, of different sequences; neither is changed.
        order: positions in z of the final states, smallest backbone first, then of what is read beside the last.
        growth: residual directions of each level after the first.
        own_prefix: read a state along its block's directions, and take off what the chain predicts from the prefix
            that was read; else read the block.
    """
    known, other, both = (restricted(moments, order) for moments in (fitting, tuning, fitting))
    both.merge(other)
    names = [str(level) for level in order[: len(growth) + 1]]
    bases, _ = fit_chain(both.first_levels(len(names)), names, growth)
    asked = [replace(basis, regression=torch.zeros_like(basis.regression)) for basis in bases] if own_prefix else bases
    readout, _ = fit_readout(known, other, asked, names)
    first, *read = readout.weights.split([both.widths[0], *growth[:-1]], dim=1)
    for block, basis in zip(read, bases, strict=False):
        first = torch.cat((first, block - first @ basis.regression @ basis.directions if own_prefix else block), dim=1)
    features = copies(both, range(len(growth), len(order)))
    pair = torch.cat((features @ first, copies(both, [len(growth)])), dim=1)
    widths = [first.shape[1], pair.shape[1] - first.shape[1]]
    joint = JointMoments.of(widths, both.count, both.mean() @ pair, pair.T @ both.scatter() @ pair)
    (last,), _ = fit_chain(joint, names[-2:], growth[-1:])
    prefix, state = pair.split(widths, dim=1)
    matrix = torch.cat((prefix, (state - prefix @ last.regression) @ last.directions), dim=1)
    mean = torch.cat((readout.embedding_mean, torch.zeros(growth[-1], dtype=torch.float64)))
    return copies(fitting, order) @ matrix, mean - both.mean() @ matrix


def read_out(step: Step, fitting: JointMoments, tuning: JointMoments, whole: Sequence[int]) -> Representation:
    """Today's last step on a prefix that is read out of the backbone's own layers; ``whole`` as in chain_steps."""
    widths = [fitting.widths[level] for level in whole[: step.index]]
    growth = [after - before for before, after in pairwise(widths)] + [step.directions]
    order = [*whole[: step.index + 1], *range(whole[step.index - 1] + 1, whole[step.index])]
    matrix, offset = read_map(fitting, tuning, order, growth)
    return Representation(READ_OUT, step.name, matrix.numpy(), offset.numpy())

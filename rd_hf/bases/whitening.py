"""Whitening of a nested embedding, one block at a time, so that what comes out is nested again.

An embedding e_m = [b_1, ..., b_m] has a block a level: the first level's state, and what each level appends. Channels
of large variance rule distances and cosines between such vectors, and so do blocks that are wide or that vary much,
whether or not they tell proteins apart. Each block by itself is therefore centred, turned to the principal axes of its
own covariance, divided by the deviations along them, and multiplied by one weight:

    b_i'  =  weight_i (b_i - mean_i) U_i diag(variance_i)^(-1/2)          C_i = U_i diag(variance_i) U_i^T

(PCA whitening; Kessy, Lewin and Strimmer 2018, Am. Stat. 72:309.) Nothing of a block depends on a later one, so that
the first dimensions of a whitened embedding are the whitened smaller embedding, bit for bit; and since axes come in
order of falling variance, any number of dimensions is a meaningful cut. All of it is affine: the whitened mean over
residues is the mean of the whitened residues. Cosines of whitened vectors are about the statistics' mean, not about
zero.

The statistics may be those of residues (the fit's moments) or of proteins' means (of a set that is searched); those of
means suit what is compared as means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from rd_hf.bases.chain import Basis, ChainWalk, fix_signs
from rd_hf.bases.moments import JointMoments

# Directions whose share of their block's largest variance is below this have none: what is there is rounding.
NO_VARIANCE = 1e-10
# A block's weight beside what precedes it is at most this, and at least its inverse.
MOST = 16.0


@dataclass(frozen=True)
class BlockMoments:
    """Mean and covariance of one block, float64.

    Attributes:
        count: of residues, or of proteins.
        mean: (d,).
        covariance: (d, d).
    """

    count: int
    mean: torch.Tensor
    covariance: torch.Tensor

    @property
    def width(self) -> int:
        """d."""
        return len(self.mean)


def block_moments(moments: JointMoments) -> list[BlockMoments]:
    """Of moments whose levels are the blocks themselves: ``JointMoments(block_widths)``, updated with blocks of rows.

    Raises:
        ValueError: fewer than two rows, which have no variance.
    """
    if moments.count < 2:
        raise ValueError(f"{moments.count} rows have no variance to whiten by: two are needed, and thousands are good")
    means = moments.mean().cpu().split(moments.widths)
    return [
        BlockMoments(moments.count, mean, moments.scatter_between(index, index).cpu() / (moments.count - 1))
        for index, mean in enumerate(means)
    ]


def moments_of_rows(rows: torch.Tensor, widths: Sequence[int]) -> list[BlockMoments]:
    """Of nested embeddings that are at hand, such as proteins' means.

    Args:
        rows: (n, sum of widths), any float dtype.
        widths: d_i of each block: differences of the levels' nested widths.

    Raises:
        ValueError: as :func:`block_moments`.
    """
    moments = JointMoments(widths)
    moments.update(rows.split(list(widths), dim=1))
    return block_moments(moments)


def moments_of_chain(moments: JointMoments, bases: Sequence[Basis]) -> list[BlockMoments]:
    """Of the blocks that bases make of the states whose moments these are: no embedding is needed.

    Args:
        moments: of the backbones' states, k_i wide each.
        bases: a step a level after the first.
    """
    return [block for block, _ in _walked(moments, bases)]


def _walked(moments: JointMoments, bases: Sequence[Basis]) -> Iterator[tuple[BlockMoments, _Step | None]]:
    """The chain once more: each block's moments, and what its weight is chosen from (None for the first)."""
    walk, degrees = ChainWalk(moments), max(moments.count - 1, 1)
    yield BlockMoments(moments.count, walk.mean.cpu(), walk.own.cpu() / degrees), None
    for index, basis in enumerate(bases, start=1):
        basis = Basis(*(part.to(walk.mean) for part in vars(basis).values()))
        w, v = basis.regression, basis.directions
        prefix, cross, width = walk.own, walk.cross[:, : walk.next_width], len(basis.prefix_mean)
        state = moments.scatter_between(index, index)
        walk.extend(basis, walk.residual_scatter(w) @ v)
        step = _Step(
            prefix=prefix / degrees,
            prefix_block=walk.own[:width, width:] / degrees,
            prefix_state=cross / degrees,
            block_state=v.T @ (state - w.T @ cross) / degrees,
            state=state / degrees,
        )
        own = walk.own[width:, width:] / degrees
        yield BlockMoments(moments.count, walk.mean[width:].cpu(), own.cpu()), step


@dataclass(frozen=True)
class _Step:
    """Covariances of e_(i-1), its block b_i and its state h_i with each other, on the device of the moments."""

    prefix: torch.Tensor
    prefix_block: torch.Tensor
    prefix_state: torch.Tensor
    block_state: torch.Tensor
    state: torch.Tensor


def chain_whitening(
    moments: JointMoments,
    bases: Sequence[Basis],
    weights: Sequence[float] | None = None,
    shrinkage: float | None = None,
) -> Whitening:
    """Whitening by the residues that a chain was fitted on, with weights that no label had a part in.

    The larger a backbone, the more its own whitened state is worth as a judge of which proteins are alike; and the
    nested embedding should judge as it does. So, level by level, with X' a whitened X, the inner products of all pairs
    of residues under [e_(i-1)', weight b_i'] are brought as near as one weight can to those under h_i':

        min over alpha, beta of  E (h'.h' - alpha e'.e' - beta b'.b')^2,        weight_i^2 = beta / alpha

    Such an expectation over pairs is a squared Frobenius norm of a cross-covariance (the numerator of linear CKA;
    Kornblith et al. 2019, ICML), so that it takes the moments alone. A prefix that says little of the larger state gets
    little weight. Weights are a sequence: each is settled by its own level, and a larger one changes none.

    Args:
        moments: of the backbones' states.
        bases: fitted on them.
        weights: of each level; by default as above, the largest set to 1.
        shrinkage: see :func:`fit_whitening`.
    """
    blocks: list[BlockMoments] = []
    chosen = [1.0]
    prefix: list[torch.Tensor] = []
    for block, step in _walked(moments, bases):
        blocks.append(block)
        turned = _map(block.covariance, block.count, True, shrinkage)
        if step is not None and weights is None:
            joint = torch.block_diag(*prefix).to(step.prefix)
            own, state = turned.to(step.prefix), _map(step.state, block.count, True, shrinkage)
            chosen.append(_weight(step, joint, own, block.covariance.to(step.prefix), state))
        prefix.append(chosen[-1] * turned)
    if weights is None:
        weights = [weight / max(chosen) for weight in chosen]
    return fit_whitening(blocks, weights, shrinkage=shrinkage)


def _weight(
    step: _Step, prefix: torch.Tensor, block: torch.Tensor, covariance: torch.Tensor, state: torch.Tensor
) -> float:
    """Of a block beside a prefix whose own weights are settled, given the map of each: sqrt(beta / alpha)."""

    def products(left: torch.Tensor, between: torch.Tensor, right: torch.Tensor) -> float:
        return float((left.T @ between @ right).square().sum())

    both = products(prefix, step.prefix_block, block)
    known = torch.tensor(
        [[products(prefix, step.prefix, prefix), both], [both, products(block, covariance, block)]], dtype=torch.float64
    )
    wanted = torch.tensor(
        [products(prefix, step.prefix_state, state), products(block, step.block_state, state)], dtype=torch.float64
    )
    alpha, beta = torch.linalg.solve(known, wanted).tolist()
    if beta <= 0:
        return 1 / MOST
    return float(min(max(beta / alpha, MOST**-2), MOST**2) ** 0.5) if alpha > 0 else MOST


@dataclass(frozen=True)
class Whitening:
    """One affine map a block: b_i' = (b_i - mean_i) map_i.

    Attributes:
        means: (d_i,) float64 each.
        maps: (d_i, d_i) float64 each, its weight in it; columns in order of falling variance.
        weights: of each block, for the record.
    """

    means: tuple[torch.Tensor, ...]
    maps: tuple[torch.Tensor, ...]
    weights: tuple[float, ...]

    @property
    def widths(self) -> list[int]:
        """d_i of each block."""
        return [len(mean) for mean in self.means]

    def up_to(self, blocks: int) -> Whitening:
        """That of the first blocks: nothing else changes."""
        return Whitening(self.means[:blocks], self.maps[:blocks], self.weights[:blocks])

    def __call__(self, embedding: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Whiten nested embeddings of any level that ends at a block.

        Args:
            embedding: (..., width of the level), any float dtype.
            dtype: to compute in; by default float32, or that of the embedding where it is wider.

        Returns:
            The same shape in that dtype; its first dimensions are the whitened smaller embedding, bit for bit.

        Raises:
            ValueError: the width is that of no level.
        """
        dtype = dtype or torch.promote_types(embedding.dtype, torch.float32)
        parts, start = [], 0
        for mean, matrix in zip(self.means, self.maps, strict=True):
            if start == embedding.shape[-1]:
                break
            # A copy of its own, so that the product is the same whatever stands beside the block.
            block = embedding[..., start : start + len(mean)].to(dtype, copy=True).contiguous()
            if block.shape[-1] != len(mean):
                break
            parts.append((block - mean.to(block)) @ matrix.to(block))
            start += len(mean)
        if start != embedding.shape[-1]:
            raise ValueError(
                f"an embedding of {embedding.shape[-1]} dimensions does not end at a block of {self.widths}"
            )
        return torch.cat(parts, dim=-1)


def fit_whitening(
    blocks: Sequence[BlockMoments],
    weights: Sequence[float] | None = None,
    rotate: bool = True,
    shrinkage: float | None = None,
) -> Whitening:
    """The map of each block from its moments.

    Args:
        blocks: in the order of the levels.
        weights: of each block; by default all equal.
        rotate: to the principal axes; without, each direction is divided by its own deviation alone, and directions
            stay as and where they are.
        shrinkage: from 0 to 1, share of the block's mean variance in each variance: v -> (1 - s) v + s mean(v). At 1
            all are equal, and only centring, turning and weights are left. By default what
            :func:`oracle_shrinkage` finds right for so many rows.

    Raises:
        ValueError: another number of weights than of blocks, a weight below zero or not finite, or a shrinkage out of
            range.
    """
    weights = [1.0] * len(blocks) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(blocks):
        raise ValueError(f"{len(weights)} weights for {len(blocks)} blocks: give one a level")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights of blocks must be finite and not below 0, got {weights}")
    if shrinkage is not None and not 0 <= shrinkage <= 1:
        raise ValueError(f"a shrinkage lies between 0 and 1, got {shrinkage}")
    maps = [
        weight * _map(block.covariance, block.count, rotate, shrinkage)
        for block, weight in zip(blocks, weights, strict=True)
    ]
    return Whitening(tuple(block.mean for block in blocks), tuple(maps), tuple(weights))


def oracle_shrinkage(covariance: torch.Tensor, count: int) -> float:
    """How far a covariance of so many rows is best moved towards its mean variance, were the rows Gaussian.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero 2010 (IEEE Trans. Signal Process. 58:5016, eq.
    23). Small where rows are many; where they are few, small variances are too small by chance, and directions of them
    would count too much.

    Args:
        covariance: (d, d).
        count: of rows, n.

    Returns:
        From 0 to 1.
    """
    size = len(covariance)
    squares, trace = float(covariance.square().sum()), float(covariance.trace())
    spread = (count + 1 - 2 / size) * (squares - trace**2 / size)
    return min(1.0, ((1 - 2 / size) * squares + trace**2) / spread) if spread > 0 else 1.0


def _map(covariance: torch.Tensor, count: int, rotate: bool, shrinkage: float | None) -> torch.Tensor:
    """Axes over deviations, columns in order of falling variance where they are turned."""
    if rotate:
        variances, axes = torch.linalg.eigh(covariance)
        variances, axes = variances.flip(0).clamp_min(0.0), fix_signs(axes.flip(1))
    else:
        variances, axes = covariance.diagonal(), torch.eye(len(covariance)).to(covariance)
    if shrinkage is None:
        shrinkage = oracle_shrinkage(covariance, count)
    there = variances > NO_VARIANCE * variances.max()
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    return axes * (torch.where(there, shrunk, torch.ones_like(shrunk)).rsqrt() * there)

"""Whitening of a nested embedding, one block at a time, so that the result is nested again.

An embedding e_m = [b_1, ..., b_m] has one block per level: the first level's state, and what each level appends.
Channels of large variance rule distances and cosines between such vectors, and so do wide blocks, whether or not they
tell proteins apart. Each block by itself is therefore centred, rotated to the principal axes of its own covariance,
divided by the deviations along them, and multiplied by one weight:

    b_i'  =  weight_i (b_i - mean_i) U_i diag(variance_i)^(-1/2)          C_i = U_i diag(variance_i) U_i^T

(PCA whitening; Kessy, Lewin and Strimmer 2018, Am. Stat. 72:309.) Nothing of a block depends on a later one, so that
the first dimensions of a whitened embedding are the whitened smaller embedding, bit for bit; axes come in order of
falling variance, so that any number of dimensions is a meaningful cut. All of it is affine: the whitened mean over
residues is the mean of the whitened residues. Statistics of residues are the fit's moments; those of proteins' means
suit what is compared as means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from rd_hf.bases.chain import Basis, ChainWalk
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import descending_eigh

# Directions whose variance is below this share of their block's largest have none: it is rounding.
NO_VARIANCE = 1e-10
# A block's weight beside what precedes it is at most this, and at least its inverse.
MOST = 16.0


@dataclass(frozen=True)
class BlockMoments:
    """Mean and covariance of one block over ``count`` residues or proteins, float64."""

    count: int
    mean: torch.Tensor  # (d,)
    covariance: torch.Tensor  # (d, d)


def block_moments(moments: JointMoments) -> list[BlockMoments]:
    """Moments of each block, from joint moments whose levels are the blocks: ``JointMoments(block_widths)``."""
    if moments.count < 2:
        raise ValueError(f"{moments.count} rows have no variance to whiten by: two are needed, and thousands are good")
    means = moments.mean().cpu().split(moments.widths)
    return [
        BlockMoments(moments.count, mean, moments.scatter_between(index, index).cpu() / (moments.count - 1))
        for index, mean in enumerate(means)
    ]


def moments_of_rows(rows: torch.Tensor, widths: Sequence[int]) -> list[BlockMoments]:
    """Moments of each block, d_i wide, from (n, sum of widths) nested embeddings such as proteins' means."""
    moments = JointMoments(widths)
    moments.update(rows.split(list(widths), dim=1))
    return block_moments(moments)


def _walked(moments: JointMoments, bases: Sequence[Basis]) -> Iterator[tuple[BlockMoments, dict[str, torch.Tensor]]]:
    """Each block's moments, and covariances of the prefix e, the block b and the state h, each by its two letters."""
    walk, degrees = ChainWalk(moments), max(moments.count - 1, 1)
    yield BlockMoments(moments.count, walk.mean.cpu(), walk.own.cpu() / degrees), {}
    for index, basis in enumerate(bases, start=1):
        basis = Basis(*(tensor.to(walk.mean) for tensor in vars(basis).values()))
        w, v, width = basis.regression, basis.directions, len(basis.prefix_mean)
        scatters = {"ee": walk.own, "eh": walk.next_cross, "hh": moments.scatter_between(index, index)}
        walk.extend(basis, walk.residual_scatter(w) @ v)
        scatters["eb"], scatters["bb"] = walk.own[:width, width:], walk.own[width:, width:]
        scatters["bh"] = v.T @ (scatters["hh"] - w.T @ scatters["eh"])
        covariances = {letters: scatter / degrees for letters, scatter in scatters.items()}
        yield BlockMoments(moments.count, walk.mean[width:].cpu(), covariances["bb"].cpu()), covariances


def chain_whitening(
    moments: JointMoments,
    bases: Sequence[Basis],
    weights: Sequence[float] | None = None,
    shrinkage: float | None = None,
    sequence_means: JointMoments | None = None,
) -> Whitening:
    """Whiten by the residues that a chain was fitted on, with weights chosen without labels.

    A nested embedding should judge which proteins are alike as its backbone's own whitened state does. So, level by
    level, with X' a whitened X, the inner products of all pairs of residues under [e_(i-1)', weight b_i'] are brought
    as near as one weight can to those under h_i':

        min over alpha, beta of  E (h'.h' - alpha e'.e' - beta b'.b')^2,        weight_i^2 = beta / alpha

    Such an expectation over pairs is a squared Frobenius norm of a cross-covariance (the numerator of linear CKA;
    Kornblith et al. 2019, ICML), so that it takes the moments alone. A prefix that says little of the larger state gets
    little weight, and a larger level changes no weight below it.

    Moments are of the backbones' states, on which the bases were fitted. Weights are scaled so that the largest is 1,
    where they are not given. ``sequence_means`` are moments of the means of states over each sequence, for ``spreads``;
    for the shrinkage see :func:`whitening_map`.
    """
    blocks: list[BlockMoments] = []
    chosen: list[float] = []
    prefix: list[torch.Tensor] = []
    for block, covariances in _walked(moments, bases):
        blocks.append(block)
        if weights is None:
            own = whitening_map(block.covariance, block.count, shrinkage=shrinkage)
            weight = 1.0
            if covariances:
                state = whitening_map(covariances["hh"], block.count, shrinkage=shrinkage)
                weight = _weight({"e": torch.block_diag(*prefix), "b": own, "h": state}, covariances)
            chosen.append(weight)
            prefix.append(weight * own)
    found = fit_whitening(blocks, weights or [weight / max(chosen) for weight in chosen], shrinkage=shrinkage)
    if sequence_means is None or sequence_means.count < 2:
        return found
    means = [block for block, _ in _walked(sequence_means, bases)]
    return replace(found, spreads=tuple(map(_spread, blocks, means, found.means, found.maps)))


def _spread(residues: BlockMoments, means: BlockMoments, centre: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Mean and deviation of each dimension of a block: as :attr:`Whitening.spreads` has them."""
    spreads = []
    for of in (residues, means):
        # What is affine moves means and covariances in closed form.
        white = ((of.mean - centre) @ matrix, matrix.T @ of.covariance @ matrix)
        spreads += [
            torch.stack((mean, covariance.diagonal().clamp_min(0.0).sqrt()))
            for mean, covariance in ((of.mean, of.covariance), white)
        ]
    return torch.stack(spreads).view(2, 2, 2, -1)


def _weight(maps: Mapping[str, torch.Tensor], covariances: Mapping[str, torch.Tensor]) -> float:
    """sqrt(beta / alpha) for a block b beside a prefix e, whose weights are chosen, given the whitening of each."""

    def products(letters: str) -> float:
        covariance = covariances[letters]
        left, right = (maps[letter].to(covariance) for letter in letters)
        return float((left.T @ covariance @ right).square().sum())

    between = products("eb")
    known = torch.tensor([[products("ee"), between], [between, products("bb")]], dtype=torch.float64)
    wanted = torch.tensor([products("eh"), products("bh")], dtype=torch.float64)
    alpha, beta = torch.linalg.solve(known, wanted).tolist()
    if beta <= 0:
        return 1 / MOST
    return float(min(max(beta / alpha, MOST**-2), MOST**2) ** 0.5) if alpha > 0 else MOST


@dataclass(frozen=True)
class Whitening:
    """One affine map per block: b_i' = (b_i - mean_i) map_i."""

    means: tuple[torch.Tensor, ...]  # (d_i,) float64 each
    maps: tuple[torch.Tensor, ...]  # (d_i, d_i) float64 each, times its weight; columns in order of falling variance
    weights: tuple[float, ...]
    # (2, 2, 2, d_i) float64 each: of residues and of means over a sequence's; plain and whitened; mean and deviation.
    spreads: tuple[torch.Tensor, ...] = ()

    @property
    def widths(self) -> list[int]:
        """d_i of each block."""
        return [len(mean) for mean in self.means]

    def up_to(self, blocks: int) -> Whitening:
        """Return the whitening of the first blocks alone."""
        return Whitening(self.means[:blocks], self.maps[:blocks], self.weights[:blocks], self.spreads[:blocks])

    def __call__(self, embedding: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Whiten nested embeddings of any level that ends at a block, (..., width of the level), any float dtype.

        Returns:
            The same shape, in ``dtype`` (by default float32, or that of the embedding where it is wider); its first
            dimensions are the whitened smaller embedding, bit for bit.
        """
        dtype = dtype or torch.promote_types(embedding.dtype, torch.float32)
        ends, width = list(accumulate(self.widths)), embedding.shape[-1]
        if width not in ends:
            raise ValueError(f"an embedding of {width} dimensions does not end at a block of {self.widths}")
        blocks = embedding.split(self.widths[: ends.index(width) + 1], dim=-1)
        # Each a copy of its own, so that the product is the same whatever stands beside the block.
        blocks = [block.to(dtype, copy=True).contiguous() for block in blocks]
        whitened = [
            (block - mean.to(block)) @ matrix.to(block)
            for block, mean, matrix in zip(blocks, self.means, self.maps, strict=False)
        ]
        return torch.cat(whitened, dim=-1)


def fit_whitening(
    blocks: Sequence[BlockMoments],
    weights: Sequence[float] | None = None,
    rotate: bool = True,
    shrinkage: float | None = None,
) -> Whitening:
    """Whiten each block by its moments and multiply it by its weight, by default 1; see :func:`whitening_map`."""
    weights = [1.0] * len(blocks) if weights is None else [float(weight) for weight in weights]
    if len(weights) != len(blocks):
        raise ValueError(f"{len(weights)} weights for {len(blocks)} blocks: give one a level")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights of blocks must be finite and not below 0, got {weights}")
    maps = [
        weight * whitening_map(block.covariance, block.count, rotate, shrinkage)
        for block, weight in zip(blocks, weights, strict=True)
    ]
    return Whitening(tuple(block.mean for block in blocks), tuple(maps), tuple(weights))


def oracle_shrinkage(covariance: torch.Tensor, count: int) -> float:
    """Share, from 0 to 1, by which a (d, d) covariance of ``count`` rows is best moved towards its mean variance.

    The oracle approximating shrinkage of Chen, Wiesel, Eldar and Hero 2010 (IEEE Trans. Signal Process. 58:5016, eq.
    23), for Gaussian rows. Small where rows are many; where they are few, small variances are too small by chance, and
    directions of them would count too much.
    """
    size = len(covariance)
    squares, trace = float(covariance.square().sum()), float(covariance.trace())
    spread = (count + 1 - 2 / size) * (squares - trace**2 / size)
    return min(1.0, ((1 - 2 / size) * squares + trace**2) / spread) if spread > 0 else 1.0


def whitening_map(
    covariance: torch.Tensor, count: int, rotate: bool = True, shrinkage: float | None = None
) -> torch.Tensor:
    """U diag(variance)^(-1/2), (d, d), of the covariance of ``count`` rows; zero along directions without variance.

    Columns are principal axes in order of falling variance; without ``rotate`` U is the identity, and each direction is
    divided by its own deviation alone. The shrinkage s, from 0 to 1, is the share of the block's mean variance in each
    variance, v -> (1 - s) v + s mean(v); by default that of :func:`oracle_shrinkage`. At 1 all are equal.
    """
    if shrinkage is None:
        shrinkage = oracle_shrinkage(covariance, count)
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"a shrinkage lies between 0 and 1, got {shrinkage}")
    if rotate:
        variances, axes = descending_eigh(covariance)
        variances = variances.clamp_min(0.0)
    else:
        variances, axes = covariance.diagonal(), torch.eye(len(covariance)).to(covariance)
    varies = variances > NO_VARIANCE * variances.max()
    shrunk = (1 - shrinkage) * variances + shrinkage * variances.mean()
    return axes * (torch.where(varies, shrunk, torch.ones_like(shrunk)).rsqrt() * varies)

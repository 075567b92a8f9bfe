"""The chain of reverse distillation in closed form (Algorithm 3 of arXiv 2603.07710), from joint moments.

The fit needs only second-order statistics of the accumulated embedding e_(i-1) and of the levels still to come: its
mean, its scatter C, and its cross-scatter G with [h_i, ..., h_m]. Each step

    W_i = regression of h_i on e_(i-1)                    (from C and G_i, the first columns of G)
    R_i = S_ii - W^T G_i - G_i^T W + W^T C W              (scatter of the residual r_i)
    V_i = leading eigenvectors of R_i

then extends them by the new block b_i = r_i V_i, without touching a single embedding again. Held-out figures come from
a second set of moments, walked through the same bases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch

from rd_hf.bases.moments import JointMoments
from rd_hf.bases.reconstruction import StepScatters, fit_decoder
from rd_hf.bases.regression import RegressionKind, descending_eigh, regress


@dataclass(frozen=True)
class Basis:
    """One step of the chain, all float64; columns of ``directions`` are orthonormal, in order of falling variance."""

    prefix_mean: torch.Tensor  # mean(e_(i-1)), (p,)
    backbone_mean: torch.Tensor  # mean(h_i), (k,)
    regression: torch.Tensor  # W_i, (p, k)
    directions: torch.Tensor  # V_i, (k, d)


@dataclass(frozen=True)
class StepFigures:
    """How well one basis does on one set of residues."""

    residues: int  # n
    r2: float  # variance-weighted, of h_i predicted from e_(i-1): 1 - sum of squared residuals / total
    r2_uniform: float  # mean over channels of each one's R^2 (those without variance left out)
    residual_variance_kept: float  # share of the residual's second moment that the kept directions hold
    reconstruction_error: float  # share of h_i's variance that e_(i-1) W_i + b_i V_i^T does not reconstruct
    # By least squares on the training residues (rd_hf/bases/reconstruction.py); reports of earlier versions lack them.
    decoder_error: float | None = None  # share of h_i's variance that the best linear decoder of e_i leaves
    block_r2: float | None = None  # share of the block's variance that is a linear function of the prefix


@dataclass(frozen=True)
class OnePassFigures:
    """How near a level of the one-pass readout comes to the exact one: variance-weighted R^2, on held-out residues."""

    level: str
    strength: float | None  # lambda of its block's ridge; None for the last level, fitted as the chain's steps are
    state_r2: float | None = None  # of its backbone's own final state, read out of the largest backbone's layers
    block_r2: float | None = None  # of the block that the level adds
    level_r2: float | None = None  # of its whole embedding
    cosine: float | None = None  # inner product of both embeddings' (residues x width) deviations over their norms
    reconstruction_error: float | None = None  # of the last level, as in StepFigures


@dataclass(frozen=True)
class FitReport:
    """One level of a fitted family; the first level, which is copied, has widths only."""

    level: str
    backbone_width: int  # k_i
    nested_width: int  # of e_i
    directions: int = 0  # residual directions kept
    regression: str | None = None
    selected_components: int | None = None  # of e_(i-1), used in the regression
    components: int | None = None
    sigma_squared: float | None = None  # noise variance of the spectrum of e_(i-1)
    edge: float | None = None  # its Johnstone edge
    training: StepFigures | None = None
    heldout: StepFigures | None = None
    eigenvalues: list[float] = field(default_factory=list)  # of the covariance of e_(i-1), descending
    residual_eigenvalues: list[float] = field(default_factory=list)  # of that of the residual, descending
    one_pass: OnePassFigures | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain types, for JSON."""
        return {name: value for name, value in asdict(self).items() if name != "one_pass" or value is not None}


class ChainWalk:
    """Second-order statistics of e_(i-1) and of the levels still to come, for one set of residues.

    It takes from S what a step needs when the step comes, so that no matrix is larger than those of one level.
    """

    def __init__(self, moments: JointMoments) -> None:
        self.moments, self.widths, self.count = moments, moments.widths, moments.count
        self.level = 0
        mean = moments.mean()
        self.mean, self.mean_ahead = mean[: self.widths[0]], mean[self.widths[0] :]
        self.totals = moments.scatter_diagonal().split(self.widths)  # diagonal of S_ii, per level
        self.own = moments.scatter_between(0, 0)  # C
        self.cross = self._ahead(0)  # G, columns of the levels ahead

    def _ahead(self, level: int) -> torch.Tensor:
        """Scatter of a level with all levels beyond it."""
        return self.moments.scatter_between(level, level + 1, len(self.widths))

    @property
    def next_width(self) -> int:
        """k_i."""
        return self.widths[self.level + 1]

    @property
    def next_cross(self) -> torch.Tensor:
        """G_i, scatter of e_(i-1) with h_i."""
        return self.cross[:, : self.next_width]

    def residual_scatter(self, coefficients: torch.Tensor) -> torch.Tensor:
        """R_i, about the residual's own mean."""
        # S - W^T (G - C W) - G^T W, accumulated in the one matrix that is wanted.
        cross = self.next_cross
        residual = self.moments.scatter_between(self.level + 1, self.level + 1)
        residual.addmm_(coefficients.T, cross - self.own @ coefficients, alpha=-1.0)
        residual.addmm_(cross.T, coefficients, alpha=-1.0)
        return _symmetric(residual)

    def residual_mean(self, basis: Basis) -> torch.Tensor:
        """Mean of r_i: zero on the fitting residues, not on others."""
        ahead = self.mean_ahead[: self.next_width] - basis.backbone_mean
        return ahead - (self.mean - basis.prefix_mean) @ basis.regression

    def extend(self, basis: Basis, along: torch.Tensor) -> None:
        """Append b_i = r_i V_i to the embedding, given R_i V_i."""
        width, w, v = self.next_width, basis.regression, basis.directions
        mean_block = self.residual_mean(basis) @ v
        # cov(b, e) = V^T (G_i^T - W^T C); cov(b, h_j) = V^T (S_ij - W^T G_j)
        block_own = v.T @ (self.cross[:, :width].T - w.T @ self.own)
        block_ahead = v.T @ (self._ahead(self.level + 1) - w.T @ self.cross[:, width:])
        corner = _symmetric(v.T @ along)
        self.own = torch.cat((torch.cat((self.own, block_own.T), dim=1), torch.cat((block_own, corner), dim=1)), dim=0)
        self.cross = torch.cat((self.cross[:, width:], block_ahead), dim=0)
        self.mean = torch.cat((self.mean, mean_block))
        self.mean_ahead = self.mean_ahead[width:]
        self.level += 1

    def scatters(self, basis: Basis, along: torch.Tensor) -> StepScatters:
        """Second moments of e_(i-1), b_i and h_i, given R_i V_i."""
        w, v = basis.regression, basis.directions
        prefix_block = (self.next_cross - self.own @ w) @ v
        return StepScatters(
            self.count,
            self.own,
            self.next_cross,
            prefix_block,
            _symmetric(v.T @ along),
            # h_i is r_i + e_(i-1) W_i.
            along.T + prefix_block.T @ w,
            self.totals[self.level + 1].sum(),
            self.mean - basis.prefix_mean,
            self.residual_mean(basis) @ v,
            self.mean_ahead[: self.next_width] - basis.backbone_mean,
        )

    def step(
        self, basis: Basis, variances: torch.Tensor, along: torch.Tensor, decoder_error: float, block_r2: float
    ) -> StepFigures:
        """Judge a basis, fitted on these residues or on others, and go on to the next level.

        Given the diagonal of R_i, R_i V_i, and what its linear decoder does here.
        """
        offset = self.residual_mean(basis)
        # Second moments about zero: a prediction that is off by a constant is wrong by that constant.
        lost = variances + self.count * offset**2
        kept = (along * basis.directions).sum() + self.count * (offset @ basis.directions).square().sum()
        total = self.totals[self.level + 1]
        varies = total > 0
        if self.level < len(self.widths) - 2:
            self.extend(basis, along)
        return StepFigures(
            residues=self.count,
            r2=float(1 - lost.sum() / total.sum()),
            r2_uniform=float((1 - lost[varies] / total[varies]).mean()),
            residual_variance_kept=float(kept / lost.sum()) if lost.sum() > 0 else 1.0,
            reconstruction_error=float((lost.sum() - kept) / total.sum()),
            decoder_error=decoder_error,
            block_r2=block_r2,
        )


def _symmetric(matrix: torch.Tensor) -> torch.Tensor:
    """Make a matrix exactly symmetric, in place, that is so but for rounding: eigh reads one triangle of it."""
    return matrix.add_(matrix.T.clone()).mul_(0.5)


def fit_chain(
    moments: JointMoments,
    names: Sequence[str],
    residual_directions: Sequence[int],
    kind: RegressionKind = "pcr",
    ridge_alpha: float = 1.0,
    heldout: JointMoments | None = None,
) -> tuple[list[Basis], list[FitReport]]:
    """Fit every basis of the family from the joint moments of its levels (Algorithm 3): m - 1 bases, m reports.

    ``residual_directions`` are d_i for each level after the first, ``heldout`` moments of residues that took no part;
    ``kind`` and ``ridge_alpha`` are those of :func:`rd_hf.bases.regression.regress`.

    Raises:
        ValueError: numbers of levels differ, or fewer residues than the first level is wide.
    """
    widths = moments.widths
    if not len(names) == len(widths) == len(residual_directions) + 1:
        raise ValueError(f"{len(names)} names, {len(widths)} widths and {len(residual_directions)} directions disagree")
    if moments.count <= widths[0]:
        raise ValueError(
            f"{moments.count} residues are too few to fit on: the first level ({names[0]}) is {widths[0]} wide, "
            f"so that its covariance needs more than {widths[0]} residues; give more sequences"
        )
    walk = ChainWalk(moments)
    # Held-out figures need variance to compare with, hence two residues.
    check = ChainWalk(heldout) if heldout is not None and heldout.count > 1 else None
    bases: list[Basis] = []
    reports = [FitReport(names[0], widths[0], widths[0])]
    for name, directions in zip(names[1:], residual_directions, strict=True):
        width, degrees = walk.next_width, walk.count - 1
        fitted = regress(walk.own / degrees, walk.next_cross / degrees, walk.count, kind, ridge_alpha)
        residual = walk.residual_scatter(fitted.coefficients)
        spectrum, vectors = descending_eigh(residual, directions)
        basis = Basis(
            # The blocks' training means are zero by construction; walk.mean holds rounding there.
            prefix_mean=torch.cat((walk.mean[: widths[0]], torch.zeros_like(walk.mean[widths[0] :]))),
            backbone_mean=walk.mean_ahead[:width].clone(),
            regression=fitted.coefficients,
            directions=vectors,
        )
        # The directions are eigenvectors of this R_i, so that R_i V_i needs no product.
        along = vectors * spectrum[:directions]
        variances = residual.diagonal().clone()
        # The largest matrix here: the decoder needs the room.
        del residual
        decoder = fit_decoder(fitted, walk.scatters(basis, along))
        training = walk.step(basis, variances, along, decoder.fitted_error, decoder.fitted_block_r2)
        held = None
        if check is not None:
            residual = check.residual_scatter(basis.regression)
            along, variances = residual @ vectors, residual.diagonal().clone()
            scatters = check.scatters(basis, along)
            held = check.step(basis, variances, along, decoder.error(scatters), decoder.block_r2(scatters))
        bases.append(basis)
        reports.append(
            FitReport(
                level=name,
                backbone_width=width,
                nested_width=len(basis.prefix_mean) + directions,
                directions=directions,
                regression=kind,
                selected_components=fitted.selection.selected,
                components=len(fitted.eigenvalues),
                sigma_squared=fitted.selection.sigma_squared,
                edge=fitted.selection.edge,
                training=training,
                heldout=held,
                eigenvalues=fitted.eigenvalues.tolist(),
                residual_eigenvalues=(spectrum.clamp_min(0.0) / degrees).tolist(),
            )
        )
    return bases, reports

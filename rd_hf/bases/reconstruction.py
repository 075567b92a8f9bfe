"""How well a linear decoder of the nested embedding reconstructs a backbone's state, from second moments alone.

Theorem 1 of arXiv 2603.07710: among all [e_(i-1), X] of the width of e_i, X = r_i V_i reconstructs h_i best, by
e_(i-1) W_i + (r_i V_i) V_i^T. It holds for W_i of ordinary least squares, whose residual r_i has no linear part in
e_(i-1). Principal component regression (the paper's default) and ridge leave one in the block b_i = r_i V_i, and then
the best linear decoder of e_i = [e_(i-1), b_i] is another one. With deviations from the means,

    B = C^+ cov(e, b)               what the prefix says of the block
    W = C^+ cov(e, h)               ... and of the state: ordinary least squares
    u = b - e B                     what the block says beyond the prefix
    T = cov(u)^+ cov(u, h)
    h ~ e W + u T                   (Frisch, Waugh and Lovell: least squares on [e, b])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rd_hf.bases.regression import Regression, least_squares


@dataclass(frozen=True)
class StepScatters:
    """Second moments of one step for one set of n residues: e_(i-1) is p wide, b_i d and h_i k; all float64.

    Scatters are about the means of the set; offsets are its means less those of the residues that were fitted on.
    """

    count: int
    prefix: torch.Tensor  # of e_(i-1): C, (p, p)
    prefix_state: torch.Tensor  # of e_(i-1) with h_i: G, (p, k)
    prefix_block: torch.Tensor  # of e_(i-1) with b_i, (p, d)
    block: torch.Tensor  # of b_i, (d, d)
    block_state: torch.Tensor  # of b_i with h_i, (d, k)
    total: torch.Tensor  # sum of squared deviations of all channels of h_i, ()
    prefix_offset: torch.Tensor  # (p,)
    block_offset: torch.Tensor  # (d,)
    state_offset: torch.Tensor  # (k,)


@dataclass(frozen=True)
class LinearDecoder:
    """The best linear decoder of h_i from e_i on the residues that it was fitted on; the equations stand above."""

    state_from_prefix: torch.Tensor  # W, (p, k)
    block_from_prefix: torch.Tensor  # B, (p, d)
    state_from_rest: torch.Tensor  # T, (d, k)
    # On those residues, where what least squares explains is the product of coefficients and covariances.
    fitted_error: float
    fitted_block_r2: float

    def block_r2(self, of: StepScatters) -> float:
        """Share of the block's variance that is a linear function of the prefix: its R^2 by B."""
        b = self.block_from_prefix
        explained = 2 * (b * of.prefix_block).sum() - (b * (of.prefix @ b)).sum()
        off = of.block_offset - of.prefix_offset @ b
        total = of.block.trace()
        return float((explained - of.count * off.square().sum()) / total) if total > 0 else 0.0

    def error(self, of: StepScatters) -> float:
        """Share of the variance of h_i that the decoder leaves."""
        w, b, t = self.state_from_prefix, self.block_from_prefix, self.state_from_rest
        along = of.prefix @ w
        lost = of.total - 2 * (w * of.prefix_state).sum() + (w * along).sum()
        of_block = b.T @ of.prefix_block
        rest = of.block - of_block - of_block.T + b.T @ (of.prefix @ b)
        rest_state = of.block_state - b.T @ of.prefix_state
        # With what the prefix says of h_i taken off: cov(u, h - e W), where cov(u, e) vanishes on the fitted set only.
        rest_state -= (of.prefix_block.T @ w).sub_(b.T @ along)
        lost += (t * (rest @ t)).sum() - 2 * (t * rest_state).sum()
        off = of.state_offset - of.prefix_offset @ w - (of.block_offset - of.prefix_offset @ b) @ t
        return float((lost + of.count * off.square().sum()) / of.total)


def fit_decoder(prefix: Regression, of: StepScatters) -> LinearDecoder:
    """Fit the decoder to a set of residues, given the regression that was fitted on its prefix."""
    degrees = of.count - 1
    w = least_squares(prefix.eigenvalues, prefix.vectors, of.prefix_state / degrees)
    b = least_squares(prefix.eigenvalues, prefix.vectors, of.prefix_block / degrees)
    rest = of.block - b.T @ of.prefix_block  # of residues of least squares
    rest_state = of.block_state - b.T @ of.prefix_state
    values, vectors = torch.linalg.eigh((rest + rest.T) / 2)
    t = least_squares(values, vectors, rest_state)
    explained, of_block = (w * of.prefix_state).sum() + (t * rest_state).sum(), (b * of.prefix_block).sum()
    block = of.block.trace()
    return LinearDecoder(w, b, t, float(1 - explained / of.total), float(of_block / block) if block > 0 else 0.0)

"""The whole nested embedding from the largest backbone alone, in closed form.

Let f = [h_m, x_1, ..., x_n] be what the largest backbone has after its last and some earlier layers, F wide, and
e = e_(m-1) the nested embedding of the level below, p wide. It is affine in the smaller levels' states,

    e - mean(e) = (z - mean(z)) A,      A_1 = I_1,  A_i = [ A_(i-1) , (I_i - A_(i-1) W_i) V_i ]

so that a ridge regression of e on f needs only the joint scatter of [z, f], which the fit gathers anyway:

    B   = D^-1 (D^-1 S_ff D^-1 + lambda n I)^-1 D^-1 S_fz A,      D^2 = diag(S_ff) / n
    e~  = mean(e) + (f - mean(f)) B

with one lambda for each level's block of columns, chosen on residues that took no part in the solution. The last step
of the chain is then fitted on e~ as any other is on e,

    e~_m = [ e~ , r V ],      r = (h_m - mean(h_m)) - (e~ - mean(e~)) W

so that what e~ gets wrong of e is not lost of h_m: the moments of [e~, h_m] are linear in those of f too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch

from rd_hf.bases.chain import Basis, OnePassFigures, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import RegressionKind

# On features of unit variance: from as good as none to as strong as the features themselves.
STRENGTHS = tuple(10.0**power for power in range(-7, 1))


@dataclass(frozen=True)
class Readout:
    """A fitted readout, all float64."""

    feature_mean: torch.Tensor  # mean(f), (F,); the last layer's state comes first
    embedding_mean: torch.Tensor  # mean(e_(m-1)), (p,)
    weights: torch.Tensor  # B, (F, p)
    last: Basis  # the last step, on e~
    strengths: tuple[float, ...]  # lambda of each level's block, smallest first


def embedding_map(bases: Sequence[Basis], widths: Sequence[int]) -> torch.Tensor:
    """A, (k_1 + ... + k_i, width of e_i) float64: the embedding's deviation is that of [h_1, ..., h_i] times A.

    Of the first i - 1 bases of a chain, and the widths k_1, ..., k_i.
    """
    like = bases[0].regression if bases else torch.empty(0, dtype=torch.float64)
    total, start = sum(widths), widths[0]
    mapped = torch.eye(total, start, dtype=like.dtype, device=like.device)
    for basis, width in zip(bases, widths[1:], strict=True):
        step = -mapped @ basis.regression
        step[start : start + width].diagonal().add_(1.0)
        mapped = torch.cat((mapped, step @ basis.directions), dim=1)
        start += width
    return mapped


class _Scatters:
    """Means and scatters of z and f, for one set of residues."""

    def __init__(self, moments: JointMoments, below: int) -> None:
        two = moments.as_two(below)
        self.count = two.count
        self.mean, self.feature_mean = two.mean().split(two.widths)
        self.own = two.scatter_between(0, 0)  # S_zz, (K, K)
        self.features = two.scatter_between(1, 1)  # S_ff, (F, F)
        self.cross = two.scatter_between(0, 1).T  # S_fz, (F, K)

    def ridge(self, cross: torch.Tensor, strength: float) -> torch.Tensor:
        """B, (F, q), of targets whose scatter with the features is ``cross``; a constant feature gets weight zero."""
        scale = (self.features.diagonal() / self.count).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        system = self.features / torch.outer(scale, scale)
        system.diagonal().add_(strength * self.count)
        factor = torch.linalg.cholesky(system)
        return torch.cholesky_solve(cross / scale[:, None], factor) / scale[:, None]

    def judge(self, fitted_on: _Scatters, targets: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Second moments, per column, of a readout B with targets A that was fitted on other residues.

        Of the error; of the target; of the target about these residues' own mean; of the readout; of the target with
        the readout. All are of deviations: the error's from zero and the others' from the means of the residues that
        were fitted on, so that being off by a constant counts.
        """
        target_shift = (self.mean - fitted_on.mean) @ targets
        readout_shift = (self.feature_mean - fitted_on.feature_mean) @ weights
        target = (targets * (self.own @ targets)).sum(dim=0)
        readout = (weights * (self.features @ weights)).sum(dim=0)
        both = (weights * (self.cross @ targets)).sum(dim=0)
        error = target - 2 * both + readout + self.count * (target_shift - readout_shift) ** 2
        shifted = self.count * torch.stack((target_shift**2, readout_shift**2, target_shift * readout_shift))
        return error, target + shifted[0], target, readout + shifted[1], both + shifted[2]


def choose_strengths(
    fitting: JointMoments, tuning: JointMoments, targets: torch.Tensor, columns: Sequence[slice], below: int
) -> list[float]:
    """lambda for each set of columns of targets A, (K, q): the one with the smallest error on ``tuning``.

    Moments are of [z, f], of different sequences; ``below`` is the number of smaller levels.
    """
    if not fitting.count or not tuning.count:
        raise ValueError("choosing the ridge of --one-pass takes two sequences or more to fit on: give more sequences")
    known, other = _Scatters(fitting, below), _Scatters(tuning, below)
    cross = known.cross @ targets
    errors = []
    for strength in STRENGTHS:
        error, *_ = other.judge(known, targets, known.ridge(cross, strength))
        errors.append([float(error[chosen].sum()) for chosen in columns])
    best = torch.tensor(errors).argmin(dim=0).tolist()
    return [STRENGTHS[index] for index in best]


def fit_readout(
    training: JointMoments,
    tuning: JointMoments,
    bases: Sequence[Basis],
    names: Sequence[str],
    kind: RegressionKind = "pcr",
    ridge_alpha: float = 1.0,
    heldout: JointMoments | None = None,
) -> tuple[Readout, list[OnePassFigures]]:
    """Read e_(m-1) out of the largest backbone's layers, and fit the last step on it, as ``kind`` says.

    Moments are of [h_1, ..., h_m, x_1, ..., x_n]: ``tuning`` of other sequences, by which the strengths of the ridge
    are chosen, before they are merged into ``training`` and both are fitted together; ``heldout`` of residues that took
    no part. Bases are the m - 1 of the exact chain.

    Returns:
        The readout, and figures per level (the last level's are of its own last step).

    Raises:
        ValueError: one level only, or nothing to choose the ridge by.
    """
    below = len(bases)
    if not below:
        raise ValueError("one pass takes the place of smaller backbones, and this family has one level only")
    widths, largest = training.widths[:below], training.widths[below]
    embedding = embedding_map(bases[:-1], widths)
    # Whole states are read out too, for the figures: how well the layers tell a smaller backbone's own state.
    states = torch.eye(len(embedding), dtype=embedding.dtype, device=embedding.device)
    targets = torch.cat((embedding, states), dim=1)
    # Each level's block, then each smaller backbone's state.
    counts = [widths[0], *(basis.directions.shape[1] for basis in bases[:-1]), *widths]
    columns = [slice(low, high) for low, high in pairwise([0, *accumulate(counts)])]
    strengths = choose_strengths(training, tuning, targets, columns, below)
    training.merge(tuning)

    known = _Scatters(training, below)
    cross = known.cross @ targets
    weights = torch.empty_like(cross)
    of_columns = torch.tensor(strengths, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
    for strength in sorted(set(strengths)):
        chosen = (of_columns == strength).to(cross.device)
        weights[:, chosen] = known.ridge(cross[:, chosen], strength)
    readout = weights[:, : embedding.shape[1]]

    embedding_mean = torch.zeros(embedding.shape[1], dtype=embedding.dtype, device=embedding.device)
    embedding_mean[: widths[0]] = known.mean[: widths[0]]
    other = _Scatters(heldout, below) if heldout is not None and heldout.count > 1 else None
    fitted = _read_moments(known, known, readout, embedding_mean, largest)
    held = None if other is None else _read_moments(other, known, readout, embedding_mean, largest)
    (last,), reports = fit_chain(fitted, names[-2:], [bases[-1].directions.shape[1]], kind, ridge_alpha, held)
    figures = [OnePassFigures(name, strength) for name, strength in zip(names, [*strengths[:below], None], strict=True)]
    if other is not None and reports[-1].heldout is not None:
        figures[:-1] = _judged(figures[:-1], columns, *other.judge(known, targets, weights))
        figures[-1] = replace(figures[-1], reconstruction_error=reports[-1].heldout.reconstruction_error)
    return Readout(known.feature_mean, embedding_mean, readout, last, tuple(strengths[:below])), figures


def _read_moments(
    of: _Scatters, fitted_on: _Scatters, readout: torch.Tensor, embedding_mean: torch.Tensor, largest: int
) -> JointMoments:
    """Moments of [e~, h_m], from those of the features, of which h_m is the first ``largest``."""
    mean = embedding_mean + (of.feature_mean - fitted_on.feature_mean) @ readout
    along = of.features @ readout
    own, cross = readout.T @ along, along[:largest].T
    top = torch.cat((own, cross), dim=1)
    bottom = torch.cat((cross.T, of.features[:largest, :largest]), dim=1)
    return JointMoments.of(
        [readout.shape[1], largest], of.count, torch.cat((mean, of.feature_mean[:largest])), torch.cat((top, bottom))
    )


def _judged(
    figures: Sequence[OnePassFigures],
    columns: Sequence[slice],
    error: torch.Tensor,
    target: torch.Tensor,
    about_mean: torch.Tensor,
    readout: torch.Tensor,
    both: torch.Tensor,
) -> Iterator[OnePassFigures]:
    """Figures of the smaller levels, given their columns and the sums of :meth:`_Scatters.judge`."""

    def r2(chosen: slice) -> float:
        return float(1 - error[chosen].sum() / about_mean[chosen].sum())

    for one, block, state in zip(figures, columns, columns[len(figures) :], strict=False):
        level = slice(0, block.stop)
        cosine = float(both[level].sum() / (target[level].sum() * readout[level].sum()).sqrt())
        yield replace(one, state_r2=r2(state), block_r2=r2(block), level_r2=r2(level), cosine=cosine)

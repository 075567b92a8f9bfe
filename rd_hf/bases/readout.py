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

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from rd_hf.bases.chain import Basis, FitReport, OnePassFigures, fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import RegressionKind

# On features of unit variance: from as good as none to as strong as the features themselves.
STRENGTHS = tuple(10.0**power for power in range(-7, 1))


@dataclass(frozen=True)
class Readout:
    """A fitted readout, all float64.

    Attributes:
        feature_mean: mean(f), (F,); the last layer's state comes first.
        embedding_mean: mean(e_(m-1)), (p,).
        weights: B, (F, p).
        last: the last step, on e~.
        strengths: lambda of each level's block, smallest first.
    """

    feature_mean: torch.Tensor
    embedding_mean: torch.Tensor
    weights: torch.Tensor
    last: Basis
    strengths: tuple[float, ...]


def embedding_map(bases: Sequence[Basis], widths: Sequence[int]) -> torch.Tensor:
    """A of the level that ``bases`` lead to: the embedding's deviation is that of [h_1, ..., h_i] times A.

    Args:
        bases: the first i - 1 of a chain.
        widths: k_1, ..., k_i.

    Returns:
        (k_1 + ... + k_i, width of e_i) float64.
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


@dataclass(frozen=True)
class _Second:
    """What a readout needs to know of one set of residues.

    Attributes:
        count: n.
        mean: of the targets' states z, (K,), and of the features f, (F,).
        own: S_zz, (K, K); features: S_ff, (F, F); cross: S_fz, (F, K).
    """

    count: int
    mean: torch.Tensor
    feature_mean: torch.Tensor
    own: torch.Tensor
    features: torch.Tensor
    cross: torch.Tensor

    @classmethod
    def of(cls, moments: JointMoments, below: int) -> _Second:
        """From joint moments of levels whose first ``below`` are the smaller ones and the others features."""
        cut = moments.offsets[below]
        mean = moments.mean()
        rows = [moments.scatter_between(level, below, len(moments.widths)) for level in range(below)]
        return cls(
            moments.count,
            mean[:cut],
            mean[cut:],
            moments.part(0, below).scatter(),
            moments.part(below).scatter(),
            torch.cat(rows).T,
        )


def _ridge(features: torch.Tensor, cross: torch.Tensor, count: int, strength: float) -> torch.Tensor:
    """B, (F, q), of targets whose scatter with the features is ``cross``; a constant feature gets weight zero."""
    scale = (features.diagonal() / count).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    system = features / torch.outer(scale, scale)
    system.diagonal().add_(strength * count)
    factor = torch.linalg.cholesky(system)
    return torch.cholesky_solve(cross / scale[:, None], factor) / scale[:, None]


def _judge(
    on: _Second, fitted_on: _Second, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Second moments, a column of the targets each: of the error, the target, the readout, and target with readout.

    All are of deviations: the error's from zero and the others' from the means of the residues that were fitted on,
    so that being off by a constant counts.

    Args:
        on: residues to judge on.
        fitted_on: those of the solution.
        targets: A, (K, q).
        weights: B, (F, q).
    """
    target_shift = (on.mean - fitted_on.mean) @ targets
    readout_shift = (on.feature_mean - fitted_on.feature_mean) @ weights
    target = (targets * (on.own @ targets)).sum(dim=0)
    readout = (weights * (on.features @ weights)).sum(dim=0)
    both = (weights * (on.cross @ targets)).sum(dim=0)
    error = target - 2 * both + readout + on.count * (target_shift - readout_shift) ** 2
    shifted = on.count * torch.stack((target_shift**2, readout_shift**2, target_shift * readout_shift))
    return error, target + shifted[0], readout + shifted[1], both + shifted[2]


def _r2(error: torch.Tensor, target: torch.Tensor, shift: torch.Tensor) -> float:
    """1 - sum of squared errors / sum of squares about the judged residues' own mean."""
    return float(1 - error.sum() / (target - shift).sum())


def _blocks(widths: Sequence[int]) -> list[slice]:
    ends = [0, *torch.tensor(widths).cumsum(0).tolist()]
    return [slice(low, high) for low, high in pairwise(ends)]


def choose_strengths(
    fitting: JointMoments, tuning: JointMoments, targets: torch.Tensor, blocks: Sequence[slice], below: int
) -> list[float]:
    """lambda for each block of columns: the one with the smallest error on ``tuning`` of a fit to ``fitting``.

    Args:
        fitting, tuning: moments of [z, f], of different sequences.
        targets: A, (K, q).
        blocks: columns of the targets that share a lambda.
        below: number of smaller levels.

    Raises:
        ValueError: either is empty, so that there is nothing to choose by.
    """
    if not fitting.count or not tuning.count:
        raise ValueError("choosing the ridge of --one-pass takes two sequences or more to fit on: give more sequences")
    known, other = _Second.of(fitting, below), _Second.of(tuning, below)
    cross = known.cross @ targets
    errors = []
    for strength in STRENGTHS:
        weights = _ridge(known.features, cross, known.count, strength)
        error, *_ = _judge(other, known, targets, weights)
        errors.append([float(error[block].sum()) for block in blocks])
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
    """Read e_(m-1) out of the largest backbone's layers, and fit the last step on it.

    Args:
        training: moments of [h_1, ..., h_m, x_1, ..., x_n]; on return ``tuning`` is part of them.
        tuning: of other sequences, by which the strengths of the ridge are chosen before both are fitted together.
        bases: of the exact chain, m - 1.
        names: of the levels, smallest first.
        kind, ridge_alpha: of the last step; see :func:`rd_hf.bases.regression.regress`.
        heldout: of residues that took no part.

    Returns:
        The readout, and figures a level (the last level's are of its own last step).

    Raises:
        ValueError: one level only, or nothing to choose the ridge by.
    """
    below = len(bases)
    if not below:
        raise ValueError("one pass takes the place of smaller backbones, and this family has one level only")
    widths = training.widths[:below]
    targets = embedding_map(bases[:-1], widths)
    blocks = _blocks([widths[0], *(basis.directions.shape[1] for basis in bases[:-1])])
    # Whole states are read out too, for the figures: how well the layers tell a smaller backbone's own state.
    states = torch.eye(len(targets), dtype=targets.dtype, device=targets.device)
    of_states = _blocks(widths)
    both = torch.cat((targets, states), dim=1)
    moved = [slice(part.start + targets.shape[1], part.stop + targets.shape[1]) for part in of_states]
    strengths = choose_strengths(training, tuning, both, [*blocks, *moved], below)
    training.merge(tuning)

    known = _Second.of(training, below)
    cross = known.cross @ both
    weights = torch.empty_like(cross)
    for strength in sorted(set(strengths)):
        columns = [block for block, own in zip([*blocks, *moved], strengths, strict=True) if own == strength]
        chosen = torch.cat([torch.arange(part.start, part.stop, device=both.device) for part in columns])
        weights[:, chosen] = _ridge(known.features, cross[:, chosen], known.count, strength)
    readout = weights[:, : targets.shape[1]]

    embedding_mean = torch.zeros(targets.shape[1], dtype=targets.dtype, device=targets.device)
    embedding_mean[: widths[0]] = known.mean[: widths[0]]
    other = _Second.of(heldout, below) if heldout is not None and heldout.count > 1 else None
    largest = training.widths[below]
    (last,), reports = fit_chain(
        _read_moments(known, known, readout, embedding_mean, largest),
        [names[-2], names[-1]],
        [bases[-1].directions.shape[1]],
        kind,
        ridge_alpha,
        None if other is None else _read_moments(other, known, readout, embedding_mean, largest),
    )
    figures = _figures(names, other, known, both, weights, blocks, moved, strengths, reports[-1])
    return Readout(known.feature_mean, embedding_mean, readout, last, tuple(strengths[:below])), figures


def _read_moments(
    of: _Second, fitted_on: _Second, readout: torch.Tensor, embedding_mean: torch.Tensor, largest: int
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


def _figures(
    names: Sequence[str],
    on: _Second | None,
    fitted_on: _Second,
    targets: torch.Tensor,
    weights: torch.Tensor,
    blocks: Sequence[slice],
    states: Sequence[slice],
    strengths: Sequence[float],
    last: FitReport,
) -> list[OnePassFigures]:
    """Figures of each level, on held-out residues, or where there are none without any."""
    own = [*strengths[: len(blocks)], None]
    if on is None:
        return [OnePassFigures(name, strength) for name, strength in zip(names, own, strict=True)]
    error, target, readout, both = _judge(on, fitted_on, targets, weights)
    shift = on.count * ((on.mean - fitted_on.mean) @ targets) ** 2
    figures = []
    for name, strength, block, state in zip(names, strengths, blocks, states, strict=False):
        level = slice(0, block.stop)
        figures.append(
            OnePassFigures(
                name,
                strength,
                state_r2=_r2(error[state], target[state], shift[state]),
                block_r2=_r2(error[block], target[block], shift[block]),
                level_r2=_r2(error[level], target[level], shift[level]),
                cosine=float(both[level].sum() / (target[level].sum() * readout[level].sum()).sqrt()),
            )
        )
    assert last.heldout is not None
    return [*figures, OnePassFigures(names[-1], None, reconstruction_error=last.heldout.reconstruction_error)]

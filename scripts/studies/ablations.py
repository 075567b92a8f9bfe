"""Ablations of the chain, each in closed form from the same joint moments.

Every variant is a list of bases; what it does to held-out residues follows from a second set of moments, what it
does to a probe from the same pooled states as everything else. Nothing is embedded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rd_hf.bases.chain import Basis
from rd_hf.bases.moments import JointMoments
from rd_hf.bases.regression import RegressionKind, fix_signs, regress
from rd_hf.evaluation.representations import Representation, chain_maps

STUDIES = {
    "chain": "which smaller levels the target is distilled from",
    "regression": "how a level's states are predicted from the smaller embedding",
    "sequences": "how many sequences the bases are fitted on",
    "basis": "accumulated embedding (the paper's algorithm) or raw smaller backbone (its first published code)",
    "order": "which residual directions are kept, at the same width",
    "share": "how much of the residual's variance each level keeps",
}
ChooseDirections = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one variant is fitted.

    Attributes:
        study: key of :data:`STUDIES`.
        name: of the variant.
        levels: positions of the levels in the chain, smallest first; the last is the target.
        regression: kind.
        order: "descending" variance (the paper's), "ascending", or "random" directions.
        share: keep as many directions as hold this share of the residual's variance; None keeps k_i - k_(i-1).
        raw_basis: fit each step on the raw smaller state, and apply it to the accumulated embedding.
        sequences: how many of the fitting sequences, None for all.
    """

    study: str
    name: str
    levels: tuple[int, ...]
    regression: RegressionKind = "pcr"
    order: str = "descending"
    share: float | None = None
    raw_basis: bool = False
    sequences: int | None = None


@dataclass(frozen=True)
class FittedRecipe:
    """A variant, ready to be applied.

    Attributes:
        recipe: how it was fitted.
        representation: map from z to the target's embedding.
        r2: of the target's states on held-out residues, predicted from the smaller embedding as applied.
        reconstruction_error: share of the target's held-out variance that the embedding does not reconstruct.
    """

    recipe: Recipe
    representation: Representation = field(repr=False)
    r2: float
    reconstruction_error: float


def recipes(levels: int, sequences: Sequence[int], studies: Sequence[str]) -> list[Recipe]:
    """Every variant of the studies, for a family of so many levels; the first of each study is the paper's.

    Args:
        sequences: sizes of the "sequences" study, without the whole sample.

    Raises:
        ValueError: unknown study, or a family of one level, in which there is nothing to distil.
    """
    unknown = [study for study in studies if study not in STUDIES]
    if unknown:
        raise ValueError(f"unknown study {', '.join(unknown)}: choose from {', '.join(STUDIES)}")
    if levels < 2:
        raise ValueError("a family of one level has nothing to ablate")
    whole = tuple(range(levels))
    found: list[Recipe] = []
    if "chain" in studies:
        found.append(Recipe("chain", "full chain", whole))
        if levels > 2:
            found.append(Recipe("chain", "direct from the smallest", (0, levels - 1)))
            found.append(Recipe("chain", "from the next smaller alone", (levels - 2, levels - 1)))
    if "regression" in studies:
        found += [Recipe("regression", kind, whole, regression=kind) for kind in ("pcr", "ols", "ridge")]
    if "sequences" in studies:
        found.append(Recipe("sequences", "all", whole))
        found += [Recipe("sequences", f"{size:,}", whole, sequences=size) for size in sorted(sequences, reverse=True)]
    if "basis" in studies:
        found.append(Recipe("basis", "accumulated", whole))
        found.append(Recipe("basis", "raw", whole, raw_basis=True))
    if "order" in studies:
        found += [Recipe("order", order, whole, order=order) for order in ("descending", "random", "ascending")]
    if "share" in studies:
        found.append(Recipe("share", "the paper's widths", whole))
        found += [Recipe("share", f"{share:.0%}", whole, share=share) for share in (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)]
    return found


def _directions(residual: torch.Tensor, number: int | None, recipe: Recipe, seed: int) -> torch.Tensor:
    """Columns to keep of a residual of scatter ``residual``, (k, d)."""
    values, vectors = torch.linalg.eigh(residual)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    if recipe.share is not None:
        held = torch.cumsum(values, 0) / values.sum()
        # Rounding must not cost the last direction its place when everything is asked for.
        number = len(values) if recipe.share >= 1 else int((held < recipe.share).sum()) + 1
    assert number is not None
    if recipe.order == "ascending":
        return fix_signs(vectors.flip(1)[:, :number])
    if recipe.order == "random":
        generator = torch.Generator().manual_seed(seed)
        square = torch.randn(len(values), len(values), dtype=torch.float64, generator=generator)
        return torch.linalg.qr(square).Q[:, :number]
    return fix_signs(vectors[:, :number])


def fit_recipe(moments: JointMoments, recipe: Recipe, seed: int = 0) -> list[Basis]:
    """Fit the bases of one variant.

    Works on affine maps of z, step by step, where :func:`rd_hf.bases.chain.fit_chain` extends covariances; for the
    paper's recipe the two agree.

    Args:
        moments: of the fitting residues, all levels.
        seed: of random directions.
    """
    count, mean, scatter = moments.count, moments.mean(), moments.scatter()
    total, widths, offsets = len(mean), moments.widths, moments.offsets

    def columns(level: int) -> torch.Tensor:
        selected = torch.zeros(total, widths[level], dtype=torch.float64)
        selected[offsets[level] : offsets[level] + widths[level]] = torch.eye(widths[level], dtype=torch.float64)
        return selected

    matrix = columns(recipe.levels[0])
    offset = torch.zeros(widths[recipe.levels[0]], dtype=torch.float64)
    bases = []
    for before, level in zip(recipe.levels, recipe.levels[1:], strict=False):
        own = columns(level)
        # What the step is fitted on, and what it is then applied to.
        fitted_on, shift = (columns(before), torch.zeros(widths[before])) if recipe.raw_basis else (matrix, offset)
        if recipe.raw_basis and fitted_on.shape[1] != matrix.shape[1]:
            raise ValueError("a raw basis fits the accumulated embedding only where both have one width")
        covariance = fitted_on.T @ scatter @ fitted_on / (count - 1)
        cross = fitted_on.T @ scatter @ own / (count - 1)
        w = regress(covariance, cross, count, recipe.regression).coefficients
        residual_map = own - fitted_on @ w
        residual = residual_map.T @ scatter @ residual_map
        v = _directions((residual + residual.T) / 2, widths[level] - widths[before], recipe, seed + level)
        basis = Basis(mean @ fitted_on + shift, mean @ own, w, v)
        bases.append(basis)
        block_offset = ((basis.prefix_mean - offset) @ w - basis.backbone_mean) @ v
        matrix = torch.hstack((matrix, (own - matrix @ w) @ v))
        offset = torch.cat((offset, block_offset))
    return bases


def _expand(representation: Representation, levels: Sequence[int], widths: Sequence[int]) -> Representation:
    """A map of the chosen levels' states as a map of all levels' states."""
    starts = np.cumsum([0, *widths])
    rows = np.concatenate([np.arange(starts[level], starts[level] + widths[level]) for level in levels])
    matrix = np.zeros((int(starts[-1]), representation.width))
    matrix[rows] = representation.matrix
    return Representation(representation.kind, representation.level, matrix, representation.offset)


def apply_recipe(
    recipe: Recipe, bases: Sequence[Basis], names: Sequence[str], widths: Sequence[int], heldout: JointMoments
) -> FittedRecipe:
    """Compose a variant's map and judge its last step on held-out residues.

    With r = z M + c the residual as applied, its second moment about zero is M^T S M + n (mean M + c)^T (mean M + c):
    a prediction that is off by a constant is wrong by that constant.
    """
    chosen_names, chosen_widths = [names[i] for i in recipe.levels], [widths[i] for i in recipe.levels]
    label = f"{recipe.study}: {recipe.name}"
    maps = [
        _expand(representation, recipe.levels, widths)
        for representation in chain_maps(label, chosen_names, chosen_widths, bases)
    ]
    smaller = maps[-2] if len(maps) > 1 else None
    starts = np.cumsum([0, *widths])
    target, first, basis = recipe.levels[-1], recipe.levels[0], bases[-1]
    own = np.zeros((int(starts[-1]), widths[target]))
    own[starts[target] : starts[target] + widths[target]] = np.eye(widths[target])
    if smaller is None:
        prefix, shift = np.zeros((int(starts[-1]), widths[first])), np.zeros(widths[first])
        prefix[starts[first] : starts[first] + widths[first]] = np.eye(widths[first])
    else:
        prefix, shift = smaller.matrix, smaller.offset
    w, v = basis.regression.numpy(), basis.directions.numpy()
    residual = own - prefix @ w
    constant = (basis.prefix_mean.numpy() - shift) @ w - basis.backbone_mean.numpy()
    mean, scatter = heldout.mean().numpy(), heldout.scatter().numpy()
    off = mean @ residual + constant
    lost = float(np.sum(residual * (scatter @ residual)) + heldout.count * off @ off)
    kept = float(np.sum((residual @ v) * (scatter @ (residual @ v))) + heldout.count * (off @ v) @ (off @ v))
    variance = float(np.trace(scatter[starts[target] : starts[target + 1], starts[target] : starts[target + 1]]))
    return FittedRecipe(recipe, maps[-1], 1 - lost / variance, (lost - kept) / variance)

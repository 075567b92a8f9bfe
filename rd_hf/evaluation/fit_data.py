"""The fitting sequences of a model, drawn again: baselines are fitted on what its own bases were fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rd_hf.bases.chain import fit_chain
from rd_hf.bases.moments import JointMoments
from rd_hf.evaluation.embeddings import Family, fitting_moments
from rd_hf.evaluation.representations import model_bases
from rd_hf.fitting import FitOptions, Sample, draw_sample

# Bases are stored in float32 and batches differ: the same sequences refit to about 1e-5, others to 1e-2 and more.
SAME_BASES = 1e-3


def draw_fit_sample(family: Family, sources: Sequence[str], number: int | None, seed: int | None) -> Sample:
    """The sample that a model's config records, or another.

    Args:
        sources: FASTA files, tables or datasets.
        number: distinct sequences, held-out ones included; None takes as many as the model records, else all.
        seed: of the draw; None takes the one that the model records, else 0.

    Raises:
        InputError: a source cannot be read, or holds nothing usable.
    """
    record = family.model.config.bases
    if number is None and record.get("num_sequences"):
        number = record["num_sequences"] + record.get("num_heldout_sequences", 0)
    options = FitOptions(
        num_sequences=number,
        seed=record.get("seed", 0) if seed is None else seed,
        heldout_fraction=record.get("heldout_fraction", 0.1),
        max_length=record.get("max_length", 1022),
    )
    return draw_sample(sources, options, progress=True)


def split_sample(sample: Sample) -> tuple[list[str], list[str]]:
    """Training and held-out sequences."""
    parts: tuple[list[str], list[str]] = ([], [])
    for position, sequence in enumerate(sample.sequences):
        parts[position in sample.heldout].append(sequence)
    return parts


def refit_difference(family: Family, moments: JointMoments) -> float:
    """How far the model's regressions are from those fitted on ``moments``: largest relative norm over levels.

    Judged by the regressions: directions of nearly equal variance may turn within their plane.
    """
    config = family.model.config
    kind, alpha = config.bases.get("regression", "pcr"), config.bases.get("ridge_alpha", 1.0)
    again, _ = fit_chain(moments, family.names, config.residual_directions, kind, alpha)
    return max(
        float(torch.linalg.norm(mine.regression - own.regression) / torch.linalg.norm(mine.regression))
        for mine, own in zip(again, model_bases(family.model), strict=True)
    )


def draw_moments(
    family: Family,
    sources: Sequence[str],
    number: int | None,
    seed: int | None,
    cache: Path | None,
    batch_tokens: int = 4096,
) -> tuple[JointMoments, str]:
    """Moments of the fitting sequences, and a sentence on whether they are those of the model's own bases.

    Args:
        sources, number, seed: see :func:`draw_fit_sample`.
        cache, batch_tokens: see :func:`rd_hf.evaluation.embeddings.fitting_moments`.
    """
    training, _ = split_sample(draw_fit_sample(family, sources, number, seed))
    moments = fitting_moments(family, training, cache, batch_tokens)
    what = "PCA and all-directions chain" if family.fitted else "bases, PCA and all-directions chain"
    note = f"{family.label}: {what} fitted on {len(training):,} sequences"
    note += f" ({moments.count:,} residues)"
    if family.fitted and family.depth == 1:
        difference = refit_difference(family, moments)
        note += ", the same as its own bases" if difference < SAME_BASES else ", NOT those of its own bases"
        note += f" (regressions fitted on them differ from the model's by {difference:.0e})"
    return moments, note + "."

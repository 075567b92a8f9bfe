"""Sequences that bases and baselines are fitted on: those of a model's own bases, drawn again, and their moments."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from rd_hf.bases.chain import Basis, fit_chain
from rd_hf.bases.moments import JointMoments, load_tensors, save_tensors
from rd_hf.data.batching import token_budget_batches
from rd_hf.data.fasta import InputError
from rd_hf.evaluation.families import Family, residue_states
from rd_hf.evaluation.options import EvaluationOptions
from rd_hf.fitting import FitOptions, Sample, draw_sample

CHECKPOINT_SECONDS = 60.0
# Bases are stored in float32 and batches differ: the same sequences refit to about 1e-5, others to 1e-2 and more.
SAME_BASES = 1e-3


def draw_fit_sample(family: Family, options: EvaluationOptions) -> Sample:
    """Draw the sample that a model's config records, or the one that ``--fit-sequences`` and ``--fit-seed`` ask for.

    Raises:
        InputError: a source cannot be read, or holds nothing usable.
    """
    record, number = family.model.config.bases, options.fit_sequences
    if number is None and record.get("num_sequences"):
        number = record["num_sequences"] + record.get("num_heldout_sequences", 0)
    wanted = FitOptions(
        num_sequences=number,
        seed=record.get("seed", 0) if options.fit_seed is None else options.fit_seed,
        heldout_fraction=record.get("heldout_fraction", 0.1),
        max_length=record.get("max_length", 1022),
    )
    return draw_sample(options.fit_data, wanted, progress=True)


def split_sample(sample: Sample) -> tuple[list[str], list[str]]:
    """Training and held-out sequences."""
    parts: tuple[list[str], list[str]] = ([], [])
    for position, sequence in enumerate(sample.sequences):
        parts[position in sample.heldout].append(sequence)
    return parts


def fitting_moments(
    family: Family, sequences: Sequence[str], cache: Path | None, batch_tokens: int = 4096
) -> JointMoments:
    """Joint moments of the family's states over cleaned sequences, of which every residue counts once.

    Args:
        cache: folder where they are kept, also half-way, so that an interrupted reading goes on; or None.
        batch_tokens: budget of a forward pass.

    Raises:
        InputError: a file in ``cache`` is damaged.
    """
    digest = hashlib.sha256("\n".join([family.fingerprint, str(batch_tokens), *sequences]).encode()).hexdigest()[:16]
    path = None if cache is None else cache / f"moments-{digest}.safetensors"
    moments, done = JointMoments(family.widths), 0
    if path is not None and path.exists():
        try:
            tensors = load_tensors(path)
            done = int(tensors.pop("batches"))
            moments = JointMoments.from_state(tensors)
        except (ValueError, KeyError) as error:
            raise InputError(f"{path} holds no whole moments ({error}); delete it to compute them again") from error
    batches = token_budget_batches([len(sequence) for sequence in sequences], batch_tokens)
    saved = time.monotonic()
    with tqdm(total=len(sequences), desc=f"moments of {family.label}", unit="sequence", disable=None) as progress:
        for number, batch in enumerate(batches, start=1):
            progress.update(len(batch))
            if number <= done:
                continue
            states, mask = residue_states(family, [sequences[position] for position in batch])
            moments.update(states[mask].split(family.widths, dim=-1))
            if path is not None and (number == len(batches) or time.monotonic() - saved > CHECKPOINT_SECONDS):
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, {**moments.state(), "batches": torch.tensor(number)})
                saved = time.monotonic()
    return moments


def model_bases(family: Family) -> list[Basis]:
    """The bases that a model holds, as :func:`rd_hf.bases.chain.fit_chain` gives them, float64 on the CPU."""
    names = ("prefix_mean", "backbone_mean", "regression", "directions")
    return [
        Basis(*(getattr(projection, name).detach().double().cpu() for name in names))
        for projection in family.model.projections
    ]


def family_bases(family: Family, moments: JointMoments | None) -> Sequence[Basis]:
    """The chain of one family.

    The model's own bases hold for its final states; at another depth, and where it holds none, the chain is fitted, by
    principal component regression with the model's numbers of directions.

    Raises:
        InputError: there are bases to be fitted, and no moments to fit them on.
    """
    if len(family.names) == 1 or (family.fitted and family.depth == 1):
        return model_bases(family)
    if moments is None:
        what = f"--depth {family.depth:g}" if family.fitted else f"{family.label} (--backbones)"
        raise InputError(f"{what} needs bases of its own; give --fit-data to fit them on")
    return fit_chain(moments, family.names, family.model.config.residual_directions)[0]


def refit_difference(family: Family, moments: JointMoments) -> float:
    """How far the model's regressions are from those fitted on ``moments``: largest relative norm over levels.

    Judged by the regressions: directions of nearly equal variance may rotate within their plane.
    """
    config = family.model.config
    kind, alpha = config.bases.get("regression", "pcr"), config.bases.get("ridge_alpha", 1.0)
    again, _ = fit_chain(moments, family.names, config.residual_directions, kind, alpha)
    return max(
        float(torch.linalg.norm(mine.regression - own.regression) / torch.linalg.norm(mine.regression))
        for mine, own in zip(again, model_bases(family), strict=True)
    )


def draw_moments(family: Family, options: EvaluationOptions, cache: Path | None) -> tuple[JointMoments, str]:
    """Moments of the fitting sequences, and a sentence on whether they are those of the model's own bases."""
    training, _ = split_sample(draw_fit_sample(family, options))
    moments = fitting_moments(family, training, cache, options.batch_tokens)
    what = "PCA and all-directions chain" if family.fitted else "bases, PCA and all-directions chain"
    note = f"{family.label}: {what} fitted on {len(training):,} sequences ({moments.count:,} residues)"
    if family.fitted and family.depth == 1:
        difference = refit_difference(family, moments)
        note += ", the same as its own bases" if difference < SAME_BASES else ", NOT those of its own bases"
        note += f" (regressions fitted on them differ from the model's by {difference:.0e})"
    return moments, f"{note}."

"""Pooled backbone states of variants: one forward pass each, kept on disk by sequence.

What is kept are the concatenated states z = [h_1, ..., h_m] of all backbones, pooled, before any basis: bases can
be refitted and contenders added without running a backbone again. A file is named by the variants in it, and written
whole or not at all, so that any number of runs may share a folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from rd_hf.bases.moments import load_tensors, save_tensors
from rd_hf.data.batching import token_budget_batches
from rd_hf.data.records import InputError
from rd_hf.evaluation.assays import Assay
from rd_hf.evaluation.families import Family, residue_states

# Variants in each cache file: a run that stops loses at most this many forward passes.
SHARD_VARIANTS = 2048
# A cleaned sequence, and the positions that are pooled for "site"; where there are none, "site" repeats the mean.
Variant = tuple[str, tuple[int, ...]]


class PooledStates(NamedTuple):
    """Pooled z of variants, (n, K) float32 each."""

    mean: np.ndarray  # over residues
    site: np.ndarray  # over the substituted positions
    wild_type_site: np.ndarray  # the wild type's, at the positions of each variant

    @property
    def difference(self) -> np.ndarray:
        """Variant less wild type at the substituted positions.

        Over all residues it would be "mean" less a constant, which a ridge with an intercept does not see.
        """
        return self.site - self.wild_type_site


def _site_mean(states: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Mean of (length + 2, K) states over residue positions counted from 0 (cls is token 0)."""
    return states[[position + 1 for position in positions]].mean(dim=0)


def _pooled(family: Family, variants: Sequence[Variant], names: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and site states of one batch, (rows, K) float32 on the CPU; InputError where they are not finite."""
    states, mask = residue_states(family, [sequence for sequence, _ in variants])
    weight = mask[:, :, None].float()
    mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
    site = torch.stack(
        [
            _site_mean(state, positions) if positions else average
            for state, (_, positions), average in zip(states, variants, mean, strict=True)
        ]
    )
    finite = torch.isfinite(torch.cat((mean, site), dim=1)).all(dim=1)
    if not finite.all():
        name = names[int((~finite).nonzero()[0])]
        raise InputError(f"{family.label} returned NaN or infinity for {name}; evaluate in float32")
    return mean.cpu(), site.cpu()


def _embedded(
    family: Family,
    variants: Sequence[Variant],
    names: Sequence[str],
    cache: Path,
    batch_tokens: int,
    progress: tqdm | None,
) -> list[np.ndarray]:
    """Mean and site of every variant, (n, K) float32 each, embedded where there is no whole file of them yet."""
    advance = (lambda count: None) if progress is None else progress.update
    shards = []
    for start in range(0, len(variants), SHARD_VARIANTS):
        own = variants[start : start + SHARD_VARIANTS]
        batches = token_budget_batches([len(sequence) for sequence, _ in own], batch_tokens)
        order = [row for batch in batches for row in batch]  # by length, whatever the budget
        path = cache / family.fingerprint / f"states-{_digest([own[row] for row in order])}.safetensors"
        stored = _stored(path)
        if stored is None:
            pooled = []
            for batch in batches:
                pooled.append(_pooled(family, [own[row] for row in batch], [names[start + row] for row in batch]))
                advance(len(batch))
            stored = dict(zip(("mean", "site"), map(torch.cat, zip(*pooled, strict=True)), strict=True))
            path.parent.mkdir(parents=True, exist_ok=True)
            save_tensors(path, stored)
        else:
            advance(len(own))
        shards.append([stored[name][np.argsort(order)] for name in ("mean", "site")])
    return [torch.cat(parts).numpy() for parts in zip(*shards, strict=True)]


def _digest(variants: Sequence[Variant]) -> str:
    """Of sequences and the positions pooled, in order."""
    described = (f"{sequence} {json.dumps(positions)}".encode() for sequence, positions in variants)
    return hashlib.sha256(b"".join(hashlib.sha256(one).digest()[:16] for one in described)).hexdigest()[:16]


def _stored(path: Path) -> dict[str, torch.Tensor] | None:
    """States of an earlier run; None where there are none, or none that can be read, which is said."""
    try:
        return load_tensors(path, "mean", "site") if path.exists() else None
    except ValueError as error:
        tqdm.write(f"{error}; its variants are embedded again")
        return None


def embed_assay(
    family: Family, assay: Assay, cache: Path, batch_tokens: int = 4096, progress: tqdm | None = None
) -> PooledStates:
    """Pooled states of every variant of an assay, from the folder ``cache`` where they are there.

    Raises:
        InputError: a backbone returns NaN or infinity; the message names the variant.
    """
    variants = list(zip(assay.sequences, assay.positions, strict=True))
    names = [f"{assay.name} {mutant}" for mutant in assay.mutants]
    mean, site = _embedded(family, variants, names, cache, batch_tokens, progress)
    states, _ = residue_states(family, [assay.wild_type])
    wild_type = torch.stack([_site_mean(states[0], positions) for positions in assay.positions])
    return PooledStates(mean, site, wild_type.cpu().numpy())


def embed_proteins(
    family: Family,
    names: Sequence[str],
    sequences: Sequence[str],
    cache: Path,
    batch_tokens: int = 4096,
    progress: tqdm | None = None,
) -> np.ndarray:
    """Mean z over the residues of whole proteins, as :func:`embed_assay` does it: (n, K) float32."""
    return _embedded(family, [(sequence, ()) for sequence in sequences], names, cache, batch_tokens, progress)[0]

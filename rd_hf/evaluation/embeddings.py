"""Pooled backbone states of variants: one forward pass each, kept on disk by sequence.

What is kept are the concatenated states z = [h_1, ..., h_m] of all backbones, pooled, before any basis: bases can
be refitted and contenders added without running a backbone again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from tqdm import tqdm

from rd_hf.bases.moments import save_tensors
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


class StateCache:
    """Pooled states of one family on disk: safetensors files of up to :data:`SHARD_VARIANTS` rows, found by digest.

    Files are written whole or not at all, and are only ever added, so any number of runs may share a folder. A
    file that cannot be read is reported and computed again.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(folder) / fingerprint
        self._where: dict[bytes, tuple[Path, int]] = {}
        for path in sorted(self.folder.glob("states-*.safetensors")):
            try:
                with safe_open(path, framework="np") as file:
                    self._remember(path, file.get_tensor("digests"))
            except (SafetensorError, OSError) as error:
                tqdm.write(f"{path} is damaged ({error}); its variants are embedded again")

    def _remember(self, path: Path, digests: np.ndarray) -> None:
        self._where |= {digest.tobytes(): (path, row) for row, digest in enumerate(digests)}

    @staticmethod
    def digest(variant: Variant) -> bytes:
        """Key of one variant: 16 bytes of the SHA-256 of its sequence and the positions pooled."""
        sequence, positions = variant
        return hashlib.sha256(f"{sequence} {json.dumps(positions)}".encode()).digest()[:16]

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._where

    def read(self, digests: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Rows in the order asked: mean and site, (n, K) float32 each."""
        places = [self._where[digest] for digest in digests]
        files = {path: load_file(path) for path in dict.fromkeys(path for path, _ in places)}
        mean, site = (np.stack([files[path][name][row] for path, row in places]) for name in ("mean", "site"))
        return mean, site

    def add(self, digests: Sequence[bytes], mean: torch.Tensor, site: torch.Tensor) -> None:
        """Keep rows: (n, K) float32 each."""
        self.folder.mkdir(parents=True, exist_ok=True)
        keys = np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(len(digests), 16).copy()
        path = self.folder / f"states-{hashlib.sha256(keys.tobytes()).hexdigest()[:16]}.safetensors"
        save_tensors(path, {"digests": torch.from_numpy(keys), "mean": mean, "site": site})
        self._remember(path, keys)


def _site_mean(states: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """Mean of (length + 2, K) states over residue positions counted from 0 (cls is token 0)."""
    return states[[position + 1 for position in positions]].mean(dim=0)


def _pooled_batches(
    family: Family, variants: Sequence[Variant], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Rows of each batch, and their mean and site states, (rows, K) float32 on the CPU."""
    for batch in token_budget_batches([len(sequence) for sequence, _ in variants], batch_tokens):
        states, mask = residue_states(family, [variants[row][0] for row in batch])
        weight = mask[:, :, None].float()
        mean = (states * weight).sum(dim=1) / weight.sum(dim=1)
        sites = [
            _site_mean(state, variants[row][1]) if variants[row][1] else average
            for state, row, average in zip(states, batch, mean, strict=True)
        ]
        yield batch, mean.cpu(), torch.stack(sites).cpu()


def _embedded(
    family: Family,
    variants: Sequence[Variant],
    name_of: Callable[[int], str],
    cache: StateCache,
    batch_tokens: int,
    progress: tqdm | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Embed what the cache lacks; mean and site of every variant, (n, K) float32 each."""
    digests = [StateCache.digest(variant) for variant in variants]
    # Once each: two rows with one digest are one variant.
    missing = list({digest: row for row, digest in enumerate(digests) if digest not in cache}.values())
    if progress is not None:
        progress.update(len(variants) - len(missing))
    for start in range(0, len(missing), SHARD_VARIANTS):
        rows = missing[start : start + SHARD_VARIANTS]
        keys, means, sites = [], [], []
        for batch, mean, site in _pooled_batches(family, [variants[row] for row in rows], batch_tokens):
            finite = torch.isfinite(mean).all(dim=1) & torch.isfinite(site).all(dim=1)
            if not finite.all():
                name = name_of(rows[batch[int((~finite).nonzero()[0])]])
                raise InputError(f"{family.label} returned NaN or infinity for {name}; evaluate in float32")
            keys += [digests[rows[position]] for position in batch]
            means.append(mean)
            sites.append(site)
            if progress is not None:
                progress.update(len(batch))
        cache.add(keys, torch.cat(means), torch.cat(sites))
    return cache.read(digests)


def embed_assay(
    family: Family, assay: Assay, cache: StateCache, batch_tokens: int = 4096, progress: tqdm | None = None
) -> PooledStates:
    """Pooled states of every variant of an assay, from the cache where they are there.

    Raises:
        InputError: a backbone returns NaN or infinity; the message names the variant.
    """
    variants = list(zip(assay.sequences, assay.positions, strict=True))
    names = [f"{assay.name} {mutant}" for mutant in assay.mutants]
    mean, site = _embedded(family, variants, names.__getitem__, cache, batch_tokens, progress)
    states, _ = residue_states(family, [assay.wild_type])
    wild_type = torch.stack([_site_mean(states[0], positions) for positions in assay.positions])
    return PooledStates(mean, site, wild_type.cpu().numpy())


def embed_proteins(
    family: Family,
    names: Sequence[str],
    sequences: Sequence[str],
    cache: StateCache,
    batch_tokens: int = 4096,
    progress: tqdm | None = None,
) -> np.ndarray:
    """Mean z over the residues of whole proteins, as :func:`embed_assay` does it: (n, K) float32."""
    variants: list[Variant] = [(sequence, ()) for sequence in sequences]
    mean, _ = _embedded(family, variants, names.__getitem__, cache, batch_tokens, progress)
    return mean

"""Embeddings of the largest level, once, and kept until the training is done; smaller levels are cut from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file
from tqdm import tqdm

from rd_hf.bases.moments import save_tensors
from rd_hf.data.records import InputError
from rd_hf.embedding import Embedder
from rd_hf.evaluation.assays import substitutions
from rd_hf.files import Workspace
from rd_hf.training.data import Examples
from rd_hf.training.variants import positions_of


@dataclass(frozen=True)
class Features:
    """What probes are fitted on, of n examples.

    Attributes:
        embedding: (n, width) floats; none wide where substitutions are all there is.
        substitutions: (n, columns) CSR of -1, 0 and 1, see :func:`rd_hf.evaluation.assays.substitutions`; or None.
        columns: position (from 0) and residue that each of these columns stands for.
    """

    embedding: np.ndarray
    substitutions: Any = None
    columns: Sequence[tuple[int, str]] = ()

    def cut(self, width: int) -> Features:
        """Of a smaller level: the first dimensions."""
        return Features(self.embedding[:, :width], self.substitutions, self.columns)

    def __len__(self) -> int:
        return len(self.embedding)


def with_substitutions(embedding: np.ndarray, examples: Examples) -> Features:
    """Embeddings, (n, width) float64, beside the substitutions of the same variants."""
    positions = positions_of(examples.wild_type, examples.sequences)
    return Features(embedding, *substitutions(examples.sequences, positions, examples.wild_type))


# Sequences in a file: a training that is stopped loses at most this many.
CHUNK = 1024


def embed(embedder: Embedder, sequences: Sequence[str], workspace: Workspace, show_progress: bool = True) -> np.ndarray:
    """Embeddings at the embedder's level, float32 and in order: (n, width) means, or (all residues, width).

    Args:
        embedder: with one level, and pooling mean or residue.
        sequences: cleaned, all different.
        workspace: where they are kept, in files that are whole or not there.

    Raises:
        InputError: a sequence cannot be embedded, or its embedding is not finite.
    """
    parts = []
    with tqdm(total=len(sequences), desc="embedding", unit="sequence", disable=None if show_progress else True) as bar:
        for start in range(0, len(sequences), CHUNK):
            chunk = sequences[start : start + CHUNK]
            path = workspace.path / f"embeddings-{_digest(embedder, chunk)}.safetensors"
            found = _read(path)
            if found is None:
                (column,) = embedder.embed(chunk).values()
                join = np.stack if embedder.options.one_row else np.concatenate
                found = join(column).astype(np.float32)
                wrong = np.flatnonzero(~np.isfinite(found).all(axis=1))
                if len(wrong):
                    raise InputError(f"{embedder.checkpoint.name} returned NaN or infinity: check its weights")
                save_tensors(path, {"embeddings": torch.from_numpy(found)})
            parts.append(found)
            bar.update(len(chunk))
    return np.concatenate(parts)


def _digest(embedder: Embedder, sequences: Sequence[str]) -> str:
    """Of all that embeddings depend on."""
    told = [embedder.checkpoint.fingerprint, embedder.widths, embedder.options.pooling, *sequences]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:24]


def _read(path: Path) -> np.ndarray | None:
    """Embeddings that were kept; None where there are none, or the file is damaged."""
    try:
        return load_file(path)["embeddings"]
    except (OSError, SafetensorError, KeyError):
        return None

"""Nested embeddings in scikit-learn: a transformer of lists of sequences.

```python
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline

from rd_hf.sklearn import NestedEmbedding

steps = [("embedding", NestedEmbedding("rd-esm2-mini", embed_at="2.7M")), ("ridge", Ridge())]
search = GridSearchCV(Pipeline(steps), {"embedding__level": ["0.3M", "1.2M", "2.7M"]})
search.fit(sequences, scores)
```

Embeddings are kept in memory, `CACHE_BYTES` of them in a process, the longest unused given up first, and are shared by
all transformers of the same model and choices, clones too: folds and candidates of a search run the model once a
sequence. With `n_jobs` of processes each has a cache of its own, and runs the model on what it is given; with threads
they share one, and wait for each other.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.values import as_list, sequence_text
from rd_hf.embedding.embedder import Embedder
from rd_hf.model.pooling_rd_esm import POOLINGS

# What a process keeps of embeddings.
CACHE_BYTES = 2**30


class _Cache:
    """Vectors by what made them and the sequence; the longest unused are given up first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.rows: OrderedDict[tuple[Hashable, str], np.ndarray] = OrderedDict()
        self.bytes = 0

    def get(self, made_by: Hashable, sequence: str, width: int) -> np.ndarray | None:
        """The first ``width`` numbers of a sequence's vector; None where it is not kept, or is narrower."""
        found = self.rows.get((made_by, sequence))
        if found is None or len(found) < width:
            return None
        self.rows.move_to_end((made_by, sequence))
        return found[:width]

    def put(self, made_by: Hashable, sequence: str, vector: np.ndarray) -> None:
        before = self.rows.pop((made_by, sequence), None)
        self.rows[made_by, sequence] = vector
        self.bytes += vector.nbytes - (0 if before is None else before.nbytes)
        while self.bytes > CACHE_BYTES:
            self.bytes -= self.rows.popitem(last=False)[1].nbytes


_CACHE = _Cache()


def clear_cache() -> None:
    """Forget all embeddings that this process keeps."""
    with _CACHE.lock:
        _CACHE.rows.clear()
        _CACHE.bytes = 0


def _texts(X: Any) -> list[str]:
    """The sequences of a list, an array or a series.

    An InputError if a row is no text, or X is a text or a table; a ValueError if there is none.
    """
    if isinstance(X, (str, bytes)) or len(getattr(X, "shape", (0,))) != 1:
        raise InputError(f"X must be a list of sequences, or one column of them, not {type(X).__name__}")
    texts: list[str] = []
    for row, value in enumerate(as_list(X)):
        try:
            texts.append(sequence_text(value))
        except RejectedSequenceError as error:
            raise _refused(row, value, str(error)) from error
    if not texts:
        raise ValueError("there are no sequences to embed: X is empty")
    return texts


def _refused(row: int, value: Any, why: str) -> InputError:
    return InputError(f"row {row + 1} of X ({str(value)[:30]!r}) cannot be embedded: {why}; correct it or leave it out")


class NestedEmbedding(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """
    Embeds sequences at a level of a reverse-distilled model, one row each.

    Nothing is learnt of the data: `fit` finds the model and checks the choices.

    Args:
        model (`str` or `os.PathLike`): folder or Hub id of a model.
        level (`str`, *optional*): its name; by default the largest.
        pooling (`str`): `"mean"` or `"max"` over residues, or `"cls"`.
        embed_at (`str`, *optional*): the largest level that will be asked for, where several are compared: sequences
            are embedded at it, once, and cut for smaller ones. By default `level`.
        whiten (`bool`): whiten each block by the statistics that came with the bases.
        revision (`str`, *optional*): branch, tag or commit of a Hub model.
        dtype (`str`): what the model computes in.
        device (`str`, *optional*): a torch device; by default a GPU where there is one.

    Attributes:
        level_ (`str`): the level that is returned.
        n_features_out_ (`int`): its width.

    Raises (in `fit` and `transform`):
        InputError: no such model, level or device, or a sequence that cannot be embedded, by its row.
        ValueError: an unknown choice, or no sequences.
    """

    def __init__(
        self,
        model: str | os.PathLike = "rd-esm2-mini",
        level: str | None = None,
        pooling: str = "mean",
        embed_at: str | None = None,
        whiten: bool = False,
        revision: str | None = None,
        dtype: str = "float32",
        device: str | None = None,
    ) -> None:
        self.model = model
        self.level = level
        self.pooling = pooling
        self.embed_at = embed_at
        self.whiten = whiten
        self.revision = revision
        self.dtype = dtype
        self.device = device

    def fit(self, X: Any, y: Any = None) -> NestedEmbedding:
        """Check the choices; of the sequences, a list, an array or a series, nothing is learnt."""
        _texts(X)
        ((self.level_, self.n_features_out_),) = self._embedder(self.level).widths.items()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The embeddings of sequences: `(sequences, width of the level)`, float32."""
        check_is_fitted(self, "level_")
        sequences, width = _texts(X), self.n_features_out_
        embedder = self._embedder(self.level_ if self.embed_at is None else self.embed_at)
        if max(embedder.widths.values()) < width:
            embedder = self._embedder(self.level_)
        checkpoint, options = embedder.checkpoint, replace(embedder.options, levels=())
        made_by = (checkpoint.name, checkpoint.fingerprint, options, self.device)
        with _CACHE.lock:
            kept = {one: _CACHE.get(made_by, one, width) for one in sequences}
            found = {one: vector for one, vector in kept.items() if vector is not None}
            if missing := [one for one in kept if one not in found]:
                columns: dict[str, list[Any]] = dict(embedder.embed(missing))
                for one, why in zip(missing, columns.pop("reject_reason"), strict=True):
                    if why is not None:
                        raise _refused(sequences.index(one), one, why)
                for one, vector in zip(missing, *columns.values(), strict=True):
                    _CACHE.put(made_by, one, vector)
                    found[one] = vector[:width]
        return np.stack([found[one] for one in sequences])

    def _embedder(self, level: str | None) -> Embedder:
        pooling = POOLINGS.get(self.pooling)
        if pooling is None or not pooling.one_row:
            known = ", ".join(name for name, one in POOLINGS.items() if one.one_row)
            raise ValueError(f"pooling must be one of {known}, which give a row a sequence, not {self.pooling!r}")
        return Embedder(
            self.model,
            level=level,
            revision=self.revision,
            device=self.device,
            pooling=self.pooling,
            dtype=self.dtype,
            whiten=self.whiten,
            on_reject="null",
        )

    @property
    def _n_features_out(self) -> int:
        """Where scikit-learn looks for it."""
        return self.n_features_out_

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = True
        return tags

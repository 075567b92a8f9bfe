"""The callable for ``datasets.map``: rows with a sequence in, rows with embeddings out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from rd_hf.data.records import InputError
from rd_hf.data.residues import RejectedSequenceError
from rd_hf.data.values import as_list, column_names, position_numbers, sequence_text
from rd_hf.devices import check_device_is_there, pick_device
from rd_hf.embedding.checkpoint import is_worker, resolve, threads_of_a_worker
from rd_hf.embedding.columns import finish, value_type, why_not_stored
from rd_hf.embedding.options import BYTES, EmbeddingOptions
from rd_hf.embedding.quantization import dequantize, stored_type, stored_width
from rd_hf.embedding.storage import columns_of

if TYPE_CHECKING:
    from datasets import Features

    from rd_hf.embedding.engine import Engine, Request

logger = logging.getLogger(__name__)

# Below any norm that an embedding has: a vector of zeros is divided by it.
_TINY = 1e-12
_BYTES = tuple(map(stored_type, BYTES))


class Embedder:
    """
    Embeds sequences, and batches of rows for `datasets.map`.

    ```python
    embedder = Embedder("rd-esm2-mini")
    vectors = embedder.encode(["MKTAYIAKQR", "GAVLIMFWPS"])  # (2, 192)

    embedder = Embedder("rd-esm2-mini", level=["0.3M", "2.7M"])
    ds = ds.map(embedder, batched=True, with_rank=True, num_proc=4)  # adds embedding_0.3M and embedding_2.7M
    ```

    With `on_reject="null"` pass `features=embedder.features(ds.features)` too: `datasets` takes a column's type from
    the first rows that it writes, and rows without an embedding, or without a reason, have none.

    Each process loads the model once, on first use, on the GPU of its rank (on the CPU with one thread per worker).
    With CUDA and `num_proc` call `multiprocess.set_start_method("spawn")` first. `datasets` finds a second run in its
    cache unless a choice, the revision or the weights changed. Give `map` a `batch_size` of a thousand or more:
    sequences are de-duplicated and sorted by length within a batch.

    Args:
        model (`str` or `os.PathLike`): folder or Hub id of a reverse-distilled model, or `"rd-esm2-mini"`, which the
            package carries.
        level (`str` or `list[str]`, *optional*): level or levels, all from one run; by default the largest.
        revision (`str`, *optional*): branch, tag or commit of a Hub model.
        sequence_column (`str`): where the sequence is.
        positions_column (`str`, *optional*): where each row's positions are, with pooling `"positions"`.
        on_reject (`str`): `"raise"`, or `"null"`: the row gets `None` for its embeddings and the reason in a
            column `reject_reason`.
        attn_implementation (`str`, *optional*): as in transformers.
        device (`str`, *optional*): a torch device, where the choice by rank does not suit.
        one_pass (`bool`): read every level out of the largest backbone alone, of a model that was fitted for it.
        backbones (`dict[str, str]`, *optional*): commits of backbones whose revision the model leaves open, as a
            manifest's `model` has them; by default those of now.
        **options: other fields of [`EmbeddingOptions`].

    Attributes:
        grid (`numpy.ndarray`, *optional*): `(2, width)`, with `output_dtype="int8"`: centre and step of each dimension,
            for [`dequantize`].

    Raises:
        InputError: no such model, level or device.
        ValueError: an unknown choice.
    """

    def __init__(
        self,
        model: str | os.PathLike,
        level: str | Sequence[str] | None = None,
        revision: str | None = None,
        sequence_column: str = "sequence",
        positions_column: str | None = None,
        on_reject: str = "raise",
        attn_implementation: str | None = None,
        device: str | None = None,
        one_pass: bool = False,
        backbones: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        if device is not None:
            check_device_is_there(device)
        levels = () if level is None else (level,) if isinstance(level, str) else tuple(level)
        if on_reject not in ("raise", "null"):
            raise ValueError(f"on_reject must be 'raise' or 'null', not {on_reject!r}")
        self.options = EmbeddingOptions(levels=levels, **options)
        self.checkpoint = resolve(model, revision, one_pass, backbones)
        self.options = self.checkpoint.within(self.options)
        self.widths = self.checkpoint.widths(levels, self.options.width)
        self.checkpoint.refuse_to_store(self.options)
        self.grid = self.checkpoint.grid(self.options)
        self.columns = columns_of(self.options, self.widths, self.checkpoint.nested_dims)
        self.sequence_column = sequence_column
        self.positions_column = positions_column
        self.on_reject = on_reject
        self.attn_implementation = attn_implementation
        self.device = device
        self._engine: Engine | None = None

    def __repr__(self) -> str:
        levels, switches = list(self.widths), {"whiten": self.options.whiten, "one_pass": self.checkpoint.one_pass}
        said: dict[str, Any] = {"level": levels if len(levels) > 1 else levels[0], "pooling": self.options.pooling}
        said |= {name: on for name, on in switches.items() if on}
        shown = ", ".join(f"{name}={value!r}" for name, value in said.items())
        return f"Embedder({self.checkpoint.name!r}, {shown})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in sorted(self.__dict__.items()) if name != "_engine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _engine=None)

    def __call__(self, batch: Mapping[str, Sequence[Any]], rank: int | None = None) -> dict[str, list[Any]]:
        """Embed one batch of rows.

        Args:
            batch: columns, in any format of `datasets`: lists, numpy, torch, pandas, Arrow, ... A cell of the
                positions column is a whole number, a list of them, or text such as `"23;45"`.
            rank: of this process, as `with_rank=True` gives it.

        Returns:
            A column per level (`embedding`, or `embedding_<level>` for several; with `layout="blocks"` one per block,
            `block_<level>`), each a list of arrays: (width,) with one-row pooling, (rows, width) otherwise.

        Raises:
            InputError: no such column, or with `on_reject="raise"` a row that cannot be embedded.
        """
        _check_call(batch, rank)
        names = column_names(batch)
        for column in (self.sequence_column, self.positions_column):
            if column is not None and column not in names:
                raise InputError(f"the dataset has no column {column!r}; its columns are {', '.join(names)}")
        sequences = batch[self.sequence_column]
        if not _is_column(sequences):
            raise InputError(
                f"an Embedder takes batches of rows, and column {self.sequence_column!r} is {_shown(sequences)}: pass "
                "batched=True to map"
            )
        return self._embed(sequences, batch[self.positions_column] if self.positions_column else None, rank)

    def embed(
        self, sequences: Sequence[str], positions: Sequence[Sequence[int]] | None = None
    ) -> dict[str, list[np.ndarray]]:
        """Embed a list, array or series of sequences, with pooling `"positions"` at those of each sequence.

        Returns:
            A column per level, each a list of arrays: (width,) with one-row pooling, (rows, width) otherwise.

        Raises:
            InputError: something else, such as one sequence alone; or a row that cannot be embedded.
        """
        self._check_list("embed", sequences, positions)
        return self._embed(sequences, positions, None)

    def encode(
        self,
        sequences: str | Sequence[str],
        positions: Sequence[Any] | None = None,
        *,
        show_progress_bar: bool | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Embed any number of sequences at one level, as arrays.

        Equal sequences are computed once; batches are put together by tokens (`batch_tokens`), so that there is no
        `batch_size` to choose. All results are held in memory: for millions of sequences there is `rd-hf embed`.

        Args:
            sequences: a list, array or series of sequences, or one sequence.
            positions: with pooling `"positions"` those of each sequence (of one sequence: its own).
            show_progress_bar: whether a bar over residues is shown on standard error; by default where it is a
                terminal.

        Returns:
            With one-row pooling an array (sequences, width); otherwise, as with `"residue"`, a list of arrays (rows,
            width), one per sequence. Of one sequence its own: (width,) or (rows, width). In `output_dtype`, float32
            by default.

        Raises:
            InputError: a sequence cannot be embedded, whatever `on_reject` says; or several levels were asked for.
        """
        if len(self.widths) > 1:
            raise InputError(
                f"encode() gives one level, and {', '.join(self.widths)} were asked for: take embed() for all, or the "
                "largest alone, whose first dimensions are the others"
            )
        if isinstance(sequences, str):
            own = None if positions is None else [positions]
            return self.encode([sequences], own, show_progress_bar=show_progress_bar)[0]
        self._check_list("encode", sequences, positions)
        with tqdm(unit=" residues", disable=None if show_progress_bar is None else not show_progress_bar) as bar:

            def on_batch(residues: int, total: int) -> None:
                bar.total = total
                bar.update(residues)

            columns = self._embed(sequences, positions, None, on_batch)
        reasons = columns.pop("reject_reason", [])
        _refuse_rejected(as_list(sequences), reasons, ", or take embed(), which keeps its place with a null")
        held = [columns[column.name] for column in self.columns]
        # Whole vectors, in whichever columns they would be stored.
        values = held[0] if len(held) == 1 else [np.concatenate(own, axis=-1) for own in zip(*held, strict=True)]
        if not self.options.one_row:
            return values
        (width,), dtype = self.widths.values(), self.options.output_dtype
        return np.stack(values) if values else np.empty((0, stored_width(width, dtype)), stored_type(dtype))

    @staticmethod
    def similarity(a: Any, b: Any) -> np.ndarray:
        """Cosine similarity of each vector in `a` with each in `b`.

        Proteins share a good part of what an embedding says, so that plain cosines are high between unrelated ones
        too: 0.5 in the mean over carried proteins with `rd-esm2-mini`. An Embedder with `whiten=True` (for models
        fitted with whitening) gives vectors that are centred, scaled and weighed by block: 0.1 then. `rd-hf search`
        whitens by the database itself.

        Args:
            a: (n, width), or one vector (width,); numpy, torch on the CPU, or lists. Signs as bytes are unpacked;
                int8 goes through [`dequantize`] first.
            b: (m, width), or one vector (width,), of the same level.

        Returns:
            (n, m) float32. A vector of zeros is like none.

        Raises:
            InputError: vectors of different widths, or no vectors.
            ValueError: int8.
        """
        given = (np.atleast_2d(np.asarray(vectors)) for vectors in (a, b))
        one, other = (dequantize(rows) if rows.dtype in _BYTES else rows.astype(np.float32) for rows in given)
        if one.ndim != 2 or other.ndim != 2 or one.shape[1] != other.shape[1]:
            raise InputError(
                f"similarity() takes vectors of one width, (n, width) and (m, width), not {one.shape} and "
                f"{other.shape}: cut both to the same level"
            )
        one, other = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY) for rows in (one, other))
        return one @ other.T

    def features(self, features: Mapping[str, Any] | None = None) -> Features:
        """Return columns and types of `map`'s result, for its argument `features`.

        Args:
            features (`datasets.Features`, *optional*): of the columns that stay: `ds.features`, less those in
                `remove_columns`. This Embedder's own columns are added to them.
        """
        import pyarrow as pa
        from datasets import Features

        own = {column.name: value_type(column.width, self.options) for column in self.columns}
        if self.on_reject == "null":
            own["reject_reason"] = pa.string()
        return Features({**(features or {}), **Features.from_arrow_schema(pa.schema(own))})

    def _check_list(self, method: str, sequences: Any, positions: Any) -> None:
        """Raise unless these are sequences in order, and positions, or none, for each."""
        if not _is_column(sequences):
            raise InputError(
                f"{method}() takes a list of sequences, not {_shown(sequences)}: write one sequence as [sequence], and "
                "call the Embedder itself with a batch of columns"
            )
        if positions is not None and (not _is_column(positions, several=True) or len(positions) != len(sequences)):
            raise InputError(f"positions must be a list with those of each of the {len(sequences)} sequences")

    def _embed(
        self,
        sequences: Sequence[Any],
        positions: Sequence[Any] | None,
        rank: int | None,
        on_batch: Callable[[int, int], None] = lambda residues, total: None,
    ) -> dict[str, list[Any]]:
        from rd_hf.embedding.engine import embed_requests, prepare

        sequences = as_list(sequences)
        asked = None if positions is None else as_list(positions)
        reasons: list[str | None] = [None] * len(sequences)
        requests: dict[int, Request] = {}
        for row, raw in enumerate(sequences):
            try:
                wanted = self.options.positions if asked is None else position_numbers(asked[row])
                requests[row] = prepare(sequence_text(raw), wanted, self.options)
            except RejectedSequenceError as error:
                reasons[row] = str(error)
        self._check(sequences, reasons)
        found: list[np.ndarray | None] = [None] * len(sequences)
        results = embed_requests(self._started(rank), list(requests.values()), on_batch) if requests else []
        for row, result in zip(requests, results, strict=True):
            if isinstance(result, str) or (reason := why_not_stored(result, self.widths, self.options)):
                reasons[row] = result if isinstance(result, str) else reason
            else:
                found[row] = result
        self._check(sequences, reasons)
        columns: dict[str, list[Any]] = {}
        for column in self.columns:
            columns[column.name] = [
                None if value is None else finish(value, column.width, self.options, column.first, self.grid)
                for value in found
            ]
        if self.on_reject == "null":
            columns["reject_reason"] = reasons
        return columns

    def _started(self, rank: int | None) -> Engine:
        if self._engine is None:
            import torch

            from rd_hf.embedding.engine import load_engine

            device = self.device or str(pick_device(rank))
            if device == "cpu" and is_worker():
                # As many workers as cores is the fastest way to use them.
                torch.set_num_threads(threads_of_a_worker())
            self._engine = load_engine(
                self.checkpoint, self.options, device, self.attn_implementation, report=logger.warning
            )
        return self._engine

    def _check(self, sequences: Sequence[Any], reasons: Sequence[str | None]) -> None:
        """Stop at the first row that cannot be embedded, unless such rows become nulls."""
        if self.on_reject == "raise":
            _refuse_rejected(sequences, reasons, ", or pass on_reject='null' to keep such rows without an embedding")


def _refuse_rejected(sequences: Sequence[Any], reasons: Sequence[str | None], otherwise: str) -> None:
    row = next((row for row, reason in enumerate(reasons) if reason is not None), None)
    if row is not None:
        raise InputError(
            f"row {row + 1} of the batch ({str(sequences[row])[:30]!r}...) cannot be embedded: {reasons[row]}; "
            f"correct it{otherwise}"
        )


def _is_column(values: Any, several: bool = False) -> bool:
    """Whether these are values in order, one per row (or several); text and bytes are none."""
    if isinstance(values, (str, bytes, bytearray, memoryview, Mapping)) or hasattr(values, "columns"):
        return False
    dimensions = len(getattr(values, "shape", (0,)))
    counted = hasattr(values, "__len__") and hasattr(values, "__getitem__")
    return counted and (dimensions == 1 or (several and dimensions > 1))


def _shown(values: Any) -> str:
    text = " ".join(repr(values).split())
    return f"a value of type {type(values).__name__} ({text if len(text) <= 30 else text[:30] + '...'})"


def _check_call(batch: Any, rank: Any) -> None:
    """Raise unless these are a batch of columns and a rank, or none."""
    if isinstance(batch, (str, bytes, list, tuple)):
        raise InputError(f"an Embedder takes a batch of columns, not {_shown(batch)}: for sequences alone use embed()")
    if rank is not None and not isinstance(rank, int):
        raise InputError(f"the second argument is this process's rank, not {_shown(rank)}: leave out with_indices=True")

"""Cleaned sequences in, pooled embeddings out: token-budget batches through the model, in input order."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from rd_hf.data.batching import SPECIAL_TOKENS
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.embedding.algebra import contributions
from rd_hf.embedding.checkpoint import Checkpoint, load_model, prepare_after_fork
from rd_hf.embedding.concurrency import MAX_CONCURRENCY, concurrency_for, in_order, may_share
from rd_hf.embedding.layouts import Padded, layout_of
from rd_hf.embedding.options import ON, EmbeddingOptions
from rd_hf.embedding.transfer import all_moved, current, fetched
from rd_hf.embedding.waiting import DeviceClock
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.pooling_rd_esm import Merging, Piece, cut, pooling_named

# On a CPU a batch should stay in the caches: 2,048 tokens beat 4,096 and 1,024 when measured at 8M + 35M.
CPU_BATCH_TOKENS = 2048
# Enough tokens to keep any one GPU busy; more only costs memory.
GPU_BATCH_TOKENS = 65536
_NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to embed: its cleaned residues, and with pooling ``positions`` which rows to return (from 1)."""

    sequence: str
    positions: tuple[int, ...] = ()


@dataclass(slots=True)
class Work:
    """What the model was given so far: residues asked for, tokens computed, of which padding; batches."""

    residues: int = 0
    tokens: int = 0
    padding: int = 0
    batches: int = 0


@dataclass(slots=True)
class _Call:
    """One call of :meth:`Engine.embed`."""

    requests: Sequence[Request]
    results: list[np.ndarray | str]
    merging: dict[int, Merging] = field(default_factory=dict)  # of each sequence that was cut


@dataclass(slots=True)
class Engine:
    """Runs one model, in eval mode on its device, over any number of calls, and remembers which batch size fits.

    Attributes:
        level: name of the level to compute; smaller ones are its prefixes.
        report: called with one sentence when the batch size had to shrink.
        tokens: tokens of a batch that fit so far.
        group_tokens: tokens for which one backbone is held, in as many batches as that takes: for a model that loads
            each backbone when its turn comes. 0: one batch at a time.
        above: with a level, what the backbones beyond it contribute is computed in place of the embedding, and no
            smaller backbone runs; see :func:`rd_hf.embedding.algebra.contributions`.
        concurrency: batches that a CPU computes, or a GPU has in hand, at once at most; see
            :mod:`rd_hf.embedding.concurrency`.
        turn: in which a GPU is given one batch at a time.
        clock: how long the device waited.
        process: id of the process that last used it; another one was forked, and inherited it.
    """

    model: RDEsmModel
    level: str
    options: EmbeddingOptions
    report: Callable[[str], None] = print
    tokens: int = 0
    group_tokens: int = 0
    above: str | None = None
    concurrency: int = MAX_CONCURRENCY
    layout: Padded = field(init=False)
    turn: AbstractContextManager[Any] = field(init=False, repr=False)
    clock: DeviceClock = field(init=False, repr=False)
    work: Work = field(default_factory=Work)
    process: int = field(default_factory=os.getpid)

    def __post_init__(self) -> None:
        self.tokens = self.tokens or self.options.batch_tokens or default_batch_tokens(self.model)
        self.layout = layout_of(self.model)
        self.clock = DeviceClock(self.model.device)
        kind = self.model.device.type
        # In turns, no table of one batch is seen by another.
        self.turn = threading.Lock() if kind == "cuda" else nullcontext()
        if self.group_tokens or kind == "mps" or (kind == "cpu" and not may_share(self.model)):
            self.concurrency = 1

    def embed(
        self, requests: Sequence[Request], on_batch: Callable[[int, int], None] = lambda residues, total: None
    ) -> list[np.ndarray | str]:
        """Embed different sequences, longest first, and return them in the order given.

        The batches depend on the sequences and the budget alone, so that the same call gives the same bits.

        Args:
            requests: cleaned sequences; :func:`embed_requests` is for those that may repeat.
            on_batch: called after each batch with its number of residues, and that of all batches.

        Returns:
            Per request (width,) float32 with one-row pooling, else (length or number of positions, width); or a
            sentence where even a batch of that sequence alone does not fit in memory.
        """
        if self.process != os.getpid():
            prepare_after_fork(self.model.device)
            self.process = os.getpid()
        size, overlap = self.options.max_length, self.options.overlap
        call = _Call(requests, ["" for _ in requests])
        pieces: list[Piece] = []
        for owner, request in enumerate(requests):
            length = len(request.sequence)
            own = cut(owner, length if self.options.long == "window" else min(length, size), size, overlap)
            pieces += own
            if len(own) > 1:
                call.merging[owner] = Merging(own, overlap)
        total = sum(piece.length for piece in pieces)
        while pieces:
            done: set[int] = set()
            batches = self.layout.plan([piece.length for piece in pieces], self.tokens)
            concurrency = self._lanes(len(batches))
            compute = partial(self._compute, requests, pieces)
            with closing(in_order(compute, self._groups(batches, pieces), concurrency)) as computed:
                for group, (chosen, values) in computed:
                    if values is None:
                        failed = chosen
                        break
                    for batch, members, rows in zip(group, chosen, values, strict=True):
                        self._count([piece.length for piece in members])
                        self._put_away(call, members, rows)
                        done.update(batch)
                        on_batch(sum(piece.length for piece in members), total)
                else:
                    failed = None
            if failed is not None:
                # What is left is planned again, with the smaller budget.
                self._shrink(call, failed, concurrency)
            pieces = [
                piece
                for place, piece in enumerate(pieces)
                # No piece of a sequence that was given up on is worth computing.
                if place not in done and call.results[piece.owner] is not _TOO_LARGE
            ]
        return call.results

    def _lanes(self, batches: int) -> int:
        """How many of so many batches to have in hand at once."""
        if self.model.device.type == "cuda":
            # One is computed while results of the last are put away and the next is made ready.
            return min(2, batches, self.concurrency)
        return concurrency_for(batches, self.concurrency)

    def _groups(self, batches: Sequence[list[int]], pieces: Sequence[Piece]) -> Iterator[list[list[int]]]:
        """Batches for which each backbone is held."""
        group: list[list[int]] = []
        tokens = 0
        for batch in batches:
            size = self.layout.tokens([pieces[place].length for place in batch])
            if group and tokens + size > self.group_tokens:
                yield group
                group, tokens = [], 0
            group.append(batch)
            tokens += size
        yield group

    def _compute(
        self, requests: Sequence[Request], pieces: Sequence[Piece], group: Sequence[Sequence[int]]
    ) -> tuple[list[list[Piece]], list[Sequence[np.ndarray]] | None]:
        """The pieces of a group of batches, and what :meth:`_forward` makes of them: None where memory is short."""
        chosen = [[pieces[place] for place in batch] for batch in group]
        try:
            return chosen, self._forward(requests, chosen)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return chosen, None

    def _count(self, lengths: Sequence[int]) -> None:
        """A batch was computed."""
        tokens = self.layout.tokens(lengths)
        self.work.batches += 1
        self.work.residues += sum(lengths)
        self.work.tokens += tokens
        self.work.padding += tokens - sum(lengths) - SPECIAL_TOKENS * len(lengths)

    @torch.inference_mode()
    def _forward(self, requests: Sequence[Request], batches: Sequence[Sequence[Piece]]) -> list[Sequence[np.ndarray]]:
        """Batches through the model: for each sequence (width,) pooled, or (1 + length or more, width) from cls on."""
        device = self.model.device
        with current(device):
            inputs = []
            for batch in batches:
                sequences = [requests[piece.owner].sequence[piece.start : piece.stop] for piece in batch]
                # What is longer than the options say was cut before; max_length may be more than the model's own limit.
                inputs.append(all_moved(self.layout.arguments(sequences), device) | {"long_input": "whole"})
            with self.turn, self.clock.computing():
                found = [
                    self._pooled(batch, states) for batch, states in zip(batches, self._states(inputs), strict=True)
                ]
            return [
                list(wait()) if pooled else self.layout.rows(wait(), [piece.length for piece in batch])
                for batch, (pooled, wait) in zip(batches, found, strict=True)
            ]

    def _pooled(self, batch: Sequence[Piece], states: torch.Tensor) -> tuple[bool, Callable[[], np.ndarray]]:
        """Whether a batch is pooled on its device, and what waits for its vectors or the rows of all its tokens."""
        if self.options.one_row and all(piece.whole for piece in batch):
            lengths = [piece.length for piece in batch]
            return True, fetched(self.layout.pooled(states, lengths, self.options.pooling))
        return False, fetched(states.float())

    def _states(self, inputs: Sequence[dict[str, Any]]) -> list[torch.Tensor]:
        """What is pooled of each batch: (batch, longest + 2, width), or (1, tokens, width) of a packed one."""
        if self.above is not None:
            return contributions(self.model, inputs, self.above, self.level)
        states = [output.last_hidden_state for output in self.model.forward_window(inputs, self.level)]
        found = [state for state in states if state is not None]
        return [self.model.whiten(state) for state in found] if self.options.whiten else found

    def _shrink(self, call: _Call, batches: Sequence[Sequence[Piece]], concurrency: int) -> None:
        """After what did not fit, leave one thread, halve the group or the budget, or give up on a sequence."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        # Of what a GPU has in hand it computes one at a time anyway.
        if concurrency > 1 and self.model.device.type == "cpu":
            self.concurrency = 1
            self.report(f"out of memory with {concurrency} batches at once: going on with one at a time")
            return
        if len(batches) > 1:
            self.group_tokens //= 2
            self.report(
                f"out of memory with {len(batches):,} batches in a group: going on with {self.group_tokens:,} tokens "
                f"per group"
            )
            return
        (chosen,) = batches
        if len(chosen) == 1:
            call.results[chosen[0].owner] = _TOO_LARGE
            call.merging.pop(chosen[0].owner, None)
            return
        lengths = [piece.length for piece in chosen]
        # Longest first: half of them, and so no less than one.
        self.tokens = self.layout.tokens(lengths[: len(lengths) // 2])
        failed = self.layout.tokens(lengths)
        self.report(f"out of memory with {failed:,} tokens in a batch: going on with {self.tokens:,} per batch")

    def _put_away(self, call: _Call, chosen: Sequence[Piece], values: Sequence[np.ndarray]) -> None:
        """Each piece's rows of a batch to its sequence, as a copy: the batch itself can go."""
        pool = pooling_named(self.options.pooling).pool_rows
        for piece, value in zip(chosen, values, strict=True):
            if value.ndim == 1:
                call.results[piece.owner] = value.copy()
                continue
            first, rows = torch.from_numpy(value[0]), torch.from_numpy(value[1 : piece.length + 1])
            if not piece.whole:
                # Pieces of one sequence are equally long and ties keep their order, so they arrive in order.
                if not call.merging[piece.owner].add(first, rows):
                    continue
                rows, (first,) = call.merging.pop(piece.owner).complete()
            call.results[piece.owner] = pool(first, rows, call.requests[piece.owner].positions).numpy()


_TOO_LARGE = "does not fit in this device's memory even alone: lower --max-length or use a larger device"


def prepare(raw: str, positions: Sequence[int], options: EmbeddingOptions) -> Request:
    """Clean a sequence and check that it can be embedded as asked.

    Raises:
        RejectedSequenceError: no protein, too long under ``long="error"``, or a position it does not have.
    """
    sequence = clean_sequence(raw)
    length = len(sequence)
    if options.long == "error" and length > options.max_length:
        raise RejectedSequenceError(
            f"{length:,} residues, more than --max-length {options.max_length:,}: choose --long window or truncate"
        )
    if not options.takes_positions:
        return Request(sequence)
    if not positions:
        raise RejectedSequenceError("no positions asked for")
    covered = min(length, options.max_length) if options.long == "truncate" else length
    beyond = [position for position in positions if not 1 <= position <= covered]
    if beyond:
        raise RejectedSequenceError(f"position {beyond[0]} is not among its residues 1 to {covered:,}")
    return Request(sequence, tuple(positions))


def embed_requests(
    engine: Engine, requests: Sequence[Request], on_batch: Callable[[int, int], None] = lambda residues, total: None
) -> list[np.ndarray | str]:
    """As :meth:`Engine.embed`, each different sequence computed once and handed back to all that asked.

    Requests for the same sequence at different positions share one pass too.
    """
    positions: dict[str, set[int]] = {}
    for request in requests:
        positions.setdefault(request.sequence, set()).update(request.positions)
    unique = [Request(sequence, tuple(sorted(asked))) for sequence, asked in positions.items()]
    results = dict(zip(positions, engine.embed(unique, on_batch), strict=True))
    if not engine.options.takes_positions:
        return [results[request.sequence] for request in requests]
    row_of = {request.sequence: {asked: row for row, asked in enumerate(request.positions)} for request in unique}
    answers: list[np.ndarray | str] = []
    for request in requests:
        result = results[request.sequence]
        rows = [row_of[request.sequence][position] for position in request.positions]
        answers.append(result if isinstance(result, str) else result[rows])
    return answers


def load_engine(
    checkpoint: Checkpoint,
    options: EmbeddingOptions,
    device: str,
    attn_implementation: str | None = None,
    *,
    report: Callable[[str], None] = print,
    group_tokens: int = 0,
    above: str | None = None,
) -> Engine:
    """Load the model for the levels that options ask for; the other arguments are those of :class:`Engine`."""
    level = checkpoint.largest(options)
    model = load_model(
        checkpoint.name,
        checkpoint.revision,
        checkpoint.fingerprint,
        level,
        options.dtype,
        attn_implementation,
        device,
        sequential=group_tokens > 0,
        above=above,
        one_pass=checkpoint.one_pass,
        backbones=tuple(checkpoint.backbones.items()),
        compiled=options.compile == ON,
    )
    return Engine(model, level, options, report=report, group_tokens=group_tokens, above=above)


def default_batch_tokens(model: RDEsmModel, small: int = CPU_BATCH_TOKENS, held: int = 0, taken: int = 0) -> int:
    """Tokens per batch for the model's device: ``small`` on a CPU, on a GPU what half of its free memory holds.

    ``held``: bytes of a token that the caller holds beyond the forward pass; ``taken``: bytes of memory that it will
    take beside the batches.
    """
    device = model.device
    if device.type != "cuda":
        return small
    free, _ = torch.cuda.mem_get_info(device)
    fits = max(1, int((free - taken) // 2 // (bytes_per_token(model) + held)))
    return max(small, min(GPU_BATCH_TOKENS, 1 << (fits.bit_length() - 1)))


def bytes_per_token(model: RDEsmModel) -> int:
    """What a token takes while a model runs, weights left out.

    Live at once in one layer: hidden, residual, q, k, v, attention output and the 4-fold feed-forward twice; beside
    them the float32 nested embedding, old and new.
    """
    return 16 * max(model.config.backbone_widths) * model.dtype.itemsize + 8 * model.config.hidden_size


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was short: CUDA has an error class for it, the CPU's allocator raises a bare RuntimeError."""
    known = isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError))
    return known or any(words in str(error).lower() for words in _NO_MEMORY)

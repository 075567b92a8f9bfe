"""What lies between a sequence and the rows of its embedding: ESM-2's tokens, windows of a long sequence, poolings.

A sequence of L residues and windows of W that share at least O: there are n = ceil((L - O) / (W - O)) windows, all
W long (no padding among them), their starts spread evenly from 0 to L - W. A residue's embedding is the weighted mean
over the windows it lies in. Its weight in a window grows linearly from 1 / (O + 1) at the window's ends to 1 at O
residues from them, so that a residue counts most where it has context on both sides, and nothing jumps where one
window ends. A residue in one window only keeps its embedding as it is. Of cls (and eos) it is the plain mean.

This file travels to the Hub beside ``modeling_rd_esm.py``. torch is imported where it is used, so that options and
`--help` do not wait for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# ESM-2's vocabulary in token order (Lin et al. 2023): a token's id is its place.
VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")
TOKENS = {token: place for place, token in enumerate(VOCABULARY)}
FIRST_RESIDUE, LAST_RESIDUE = TOKENS["L"], TOKENS["O"]
# Cls and eos.
SPECIAL_TOKENS = 2

# ESM-2 was trained on crops of 1,022 residues and cls and eos (Lin et al. 2023), ESM-C on up to twice that.
MAX_RESIDUES = 1022
# Least number of residues that neighbouring windows share.
OVERLAP = 256
# What becomes of a longer sequence that a model is called with.
LONG_INPUTS = ("error", "window", "whole")
# Windows that are computed at once: more keep no device busier.
_WINDOWS_PER_BATCH = 16


def is_tracing() -> bool:
    """Whether the model is being traced, compiled or exported, so that no number may be looked at."""
    import torch

    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


# How a token is shown; those of no letter as "?".
_LETTERS = {number: token for token, number in TOKENS.items() if len(token) == 1}


def refuse_unknown(input_ids: torch.Tensor) -> None:
    """Raise where a token is `<unk>`: a tokenizer met a character that stands for no residue.

    Nothing is refused while a graph is made of the model.

    Raises:
        ValueError: naming the sequence by its first letters, since whoever made the batch may have sorted it.
    """
    if is_tracing() or input_ids.device.type == "meta":
        return
    unknown = input_ids.eq(TOKENS["<unk>"])
    if unknown.any():
        row, position = unknown.nonzero()[0].tolist()
        ids = input_ids[row].tolist()
        # In a packed row, and in one that is padded on the left, a sequence begins with its own cls.
        before = [place for place in range(position) if ids[place] == TOKENS["<cls>"]]
        start = before[-1] + 1 if before else 0
        raise ValueError(
            f"input_ids hold <unk> (residue {position - start + 1} of {_quoted(ids[start:])}): a character that is no "
            f"residue, such as a stop codon inside the sequence, a digit or (with a tokenizer that does not clean) a "
            f"lower-case letter; correct the sequence, or use the tokenizer that came with this model"
        )


def _quoted(ids: list[int]) -> str:
    """A sequence's first letters and their number, from its tokens; what follows its eos is not its own."""
    stop = next((place for place, token in enumerate(ids) if token in (TOKENS["<eos>"], TOKENS["<pad>"])), len(ids))
    letters = "".join(_LETTERS.get(token, "?") for token in ids[:stop])
    return f"the sequence {letters!r}" if stop <= 20 else f"the sequence of {stop} letters that begins {letters[:20]!r}"


def residue_mask(input_ids: torch.Tensor) -> torch.Tensor:
    """Which tokens are residues: not cls, eos, padding or mask. `(batch, length)`, bool.

    Raises:
        ValueError: a row has none.
    """
    keep = input_ids.ge(FIRST_RESIDUE) & input_ids.le(LAST_RESIDUE)
    if not is_tracing() and not keep.any(dim=1).all():
        raise ValueError(
            "one of the sequences has no residues to take a mean over: leave out those that are empty, or gaps and "
            "stops alone"
        )
    return keep


def mean_over_residues(states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean of each row over the positions kept, the same bits for a channel whatever stands beside it.

    Residues are added one after the other, where a sum or a product takes an order that depends on the width; not in
    bfloat16, in which thousands of numbers do not add up.

    States are `(batch, length, width)` of any float dtype, `keep` is `(batch, length)` bool; what is returned is
    `(batch, width)`, float32.
    """
    import torch

    kept = states.float() * keep.unsqueeze(-1)
    counts = keep.sum(dim=1, keepdim=True).clamp(min=1)
    if kept.device.type != "cpu" or is_tracing():
        return kept.cumsum(dim=1)[:, -1] / counts
    # As cumsum adds on a CPU, in float64, and some ten times as fast.
    total = torch.zeros(kept.shape[0], kept.shape[2], dtype=torch.float64)
    for row in kept.unbind(dim=1):
        total += row
    return total.float() / counts


@dataclass(frozen=True)
class Pooling:
    """One way to turn the rows of a sequence into what is stored of it."""

    name: str  # as users give it
    one_row: bool  # whether it gives one row per sequence, not one per residue or position
    affine: bool  # whether rows are means whose weights sum to one: they commute with the bases and with whitening
    # Pools one sequence: of its cls, (width,), its residues, (length, width), both float32, and positions, from 1.
    pool_rows: Callable[[torch.Tensor, torch.Tensor, Sequence[int]], torch.Tensor]
    # Pools padded rows, (batch, length, width) of any float dtype with cls first, by the mask of their residues,
    # (batch, length) bool, to (batch, width) float32. None where there is more than one row.
    pool_batch: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None


def _mean_of_rows(first: torch.Tensor, rows: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    return mean_over_residues(rows[None], rows.new_ones(1, len(rows)).bool())[0]


POOLINGS = {
    pooling.name: pooling
    for pooling in (
        Pooling("mean", one_row=True, affine=True, pool_rows=_mean_of_rows, pool_batch=mean_over_residues),
        Pooling(
            "max",
            one_row=True,
            affine=False,
            pool_rows=lambda first, rows, positions: rows.amax(dim=0),
            pool_batch=lambda states, keep: states.float().masked_fill(~keep[:, :, None], -math.inf).amax(dim=1),
        ),
        Pooling(
            "cls",
            one_row=True,
            affine=True,
            pool_rows=lambda first, rows, positions: first.clone(),
            pool_batch=lambda states, keep: states[:, 0].float().clone(),
        ),
        Pooling("residue", one_row=False, affine=True, pool_rows=lambda first, rows, positions: rows.clone()),
        Pooling(
            "positions",
            one_row=False,
            affine=True,
            pool_rows=lambda first, rows, positions: rows[[position - 1 for position in positions]],
        ),
    )
}


def pooling_named(name: str) -> Pooling:
    """Return the pooling of a name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {name!r}")
    return POOLINGS[name]


@dataclass(frozen=True)
class Piece:
    """Residues `start` to `stop` (exclusive) of sequence number `owner`; `whole` if that is all of it."""

    owner: int
    start: int
    stop: int
    whole: bool

    @property
    def length(self) -> int:
        """Residues in the piece."""
        return self.stop - self.start


def cut(owner: int, length: int, size: int, overlap: int) -> list[Piece]:
    """Pieces of at most `size` residues that cover a sequence and share at least `overlap`."""
    if length <= size:
        return [Piece(owner, 0, length, True)]
    count = -((overlap - length) // (size - overlap))  # ceil((length - overlap) / (size - overlap))
    starts = [round(index * (length - size) / (count - 1)) for index in range(count)]
    return [Piece(owner, start, start + size, False) for start in starts]


def taper(length: int, overlap: int) -> torch.Tensor:
    """Weight of each residue of a window: `(length,)` float32 in (0, 1]."""
    import torch

    places = torch.arange(length, dtype=torch.float64)
    return ((torch.minimum(places, places.flip(0)) + 1) / (overlap + 1)).clamp(max=1).float()


def merge_weights(pieces: Sequence[Piece], overlap: int) -> list[torch.Tensor]:
    """Share of each piece in each of its residues, the shares of a residue adding up to one: `(length,)` float32."""
    import torch

    total = torch.zeros(max(piece.stop for piece in pieces), dtype=torch.float64)
    for piece in pieces:
        total[piece.start : piece.stop] += taper(piece.length, overlap)
    return [(taper(piece.length, overlap) / total[piece.start : piece.stop]).float() for piece in pieces]


@dataclass
class Merging:
    """A long sequence whose windows are still coming in, in order."""

    pieces: Sequence[Piece]  # all of them
    overlap: int  # as they were cut with
    weights: list[torch.Tensor] = field(init=False)
    rows: torch.Tensor | None = None  # (length, width) float32
    sums: list[torch.Tensor] = field(init=False, default_factory=list)  # of cls (and eos), (width,) float32
    arrived: int = 0

    def __post_init__(self) -> None:
        self.weights = merge_weights(self.pieces, self.overlap)

    def add(self, first: torch.Tensor, rows: torch.Tensor, *last: torch.Tensor) -> bool:
        """Add the next window: its cls `(width,)`, residues `(length, width)` and, where wanted, eos, all float32.

        Returns:
            Whether that was the last one.
        """
        piece, weights = self.pieces[self.arrived], self.weights[self.arrived].to(rows.device)
        if self.rows is None:
            self.rows = rows.new_zeros(self.pieces[-1].stop, rows.shape[-1])
            self.sums = [one.new_zeros(one.shape) for one in (first, *last)]
        self.rows[piece.start : piece.stop] += weights[:, None] * rows
        self.sums = [total + one for total, one in zip(self.sums, (first, *last))]
        self.arrived += 1
        return self.arrived == len(self.pieces)

    def complete(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The sequence's residues, `(length, width)`, and the means of cls (and eos), `(width,)` each, float32."""
        assert self.rows is not None
        return self.rows, [total / self.arrived for total in self.sums]


@dataclass
class LongBatch:
    """A batch with sequences that are longer than the model takes at once, cut into windows."""

    positions: list[torch.Tensor]  # where the tokens of each row lie, (tokens,)
    length: int  # of its rows
    pieces: list[list[Piece]]  # of each row; one that is whole is all of its tokens
    overlap: int  # of windows
    batches: list[dict[str, Any]] = field(default_factory=list)  # what the model is called with in its place
    order: list[list[Piece]] = field(default_factory=list)  # the piece of each row of these

    def join(self, outputs: Sequence[Any]) -> Any:
        """The output of the batch (an `RDEsmModelOutput`), from those of `batches`; zeros at padding."""
        parts = [
            [output.last_hidden_state, *(output.hidden_states or ()), *(output.backbone_states or ())]
            for output in outputs
        ]
        joined = [self._joined(states) for states in zip(*parts)]
        hidden = 1 + len(outputs[0].hidden_states or ())
        return type(outputs[0])(
            last_hidden_state=joined[0],
            hidden_states=tuple(joined[1:hidden]) or None,
            backbone_states=tuple(joined[hidden:]) or None,
        )

    def _joined(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor of the output, `(rows, length, width)`, from that of each of `batches`."""
        import torch

        whole = states[0].new_zeros(len(self.pieces), self.length, states[0].shape[-1])
        merging: dict[int, Merging] = {}
        for order, state in zip(self.order, states):
            for piece, row in zip(order, state):
                places = self.positions[piece.owner].to(row.device)
                if piece.whole:
                    whole[piece.owner, places] = row[: len(places)]
                    continue
                own = merging.setdefault(piece.owner, Merging(self.pieces[piece.owner], self.overlap))
                row = row.float()
                if own.add(row[0], row[1 : piece.length + 1], row[piece.length + 1]):
                    rows, (first, last) = merging.pop(piece.owner).complete()
                    whole[piece.owner, places] = torch.cat((first[None], rows, last[None])).to(whole.dtype)
        return whole


def cut_long(config: Any, batch: dict[str, Any], attentions: bool = False) -> LongBatch | None:
    """Cut what is longer than the model takes at once, where its `RDEsmConfig` has `long_input="window"`.

    The batch is what `RDEsmModel.forward` takes of one, in padded rows; `None` is returned where none is too long.

    Raises:
        ValueError: a long row does not begin with cls and end with eos, or attentions are wanted of one.
    """
    if batch.get("long_input", config.long_input) != "window" or "cu_seq_lens_q" in batch or is_tracing():
        return None
    from torch.nn.utils.rnn import pad_sequence

    ids, mask, size = batch["input_ids"], batch.get("attention_mask"), config.residues_at_once
    if ids.shape[1] <= size + SPECIAL_TOKENS:
        return None
    mask = ids.ne(config.pad_token_id) if mask is None else mask.bool()
    positions = [row.nonzero().flatten() for row in mask]
    if max(map(len, positions)) <= size + SPECIAL_TOKENS:
        return None
    if attentions:
        raise ValueError("attentions of windows are not those of a sequence: load with long_input='whole' to have them")
    overlap = min(OVERLAP, size // 4)
    tokens = [row[places] for row, places in zip(ids, positions)]
    pieces = [_pieces(owner, row, size, overlap) for owner, row in enumerate(tokens)]
    long = LongBatch(positions, ids.shape[1], pieces, overlap)
    # As the windows of a sequence are equally long, they stay in order.
    order = sorted((piece for own in pieces for piece in own), key=lambda piece: -piece.length)
    for start in range(0, len(order), _WINDOWS_PER_BATCH):
        chosen = order[start : start + _WINDOWS_PER_BATCH]
        windows = [_window(tokens[piece.owner], piece) for piece in chosen]
        present = [window.new_ones(window.shape) for window in windows]
        long.batches.append(
            {
                "input_ids": pad_sequence(windows, batch_first=True, padding_value=TOKENS["<pad>"]),
                "attention_mask": pad_sequence(present, batch_first=True),
                "long_input": "whole",
            }
        )
        long.order.append(chosen)
    return long


def _pieces(owner: int, tokens: torch.Tensor, size: int, overlap: int) -> list[Piece]:
    """The pieces of one row's tokens."""
    if len(tokens) <= size + SPECIAL_TOKENS:
        return [Piece(owner, 0, len(tokens), True)]
    if tokens[0] != TOKENS["<cls>"] or tokens[-1] != TOKENS["<eos>"]:
        raise ValueError(
            f"row {owner + 1} of input_ids has {len(tokens):,} tokens, and to be cut into windows it must begin with "
            f"<cls> and end with <eos>, as the tokenizer that came with this model writes it"
        )
    return cut(owner, len(tokens) - SPECIAL_TOKENS, size, overlap)


def _window(tokens: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The tokens of a piece, between cls and eos."""
    import torch

    return tokens if piece.whole else torch.cat((tokens[:1], tokens[1 + piece.start : 1 + piece.stop], tokens[-1:]))

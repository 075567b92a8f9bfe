"""Windows of a long sequence become one sequence again, by a taper; and a model's input, which is cut for that.

A residue's embedding is the weighted mean over the windows it lies in; its weight in a window grows linearly from
1 / (O + 1) at the window's ends to 1 at O residues from them, so that a residue counts most where it has context on
both sides and nothing jumps where one window ends. A residue in one window only keeps its embedding as it is. Of cls
(and eos) it is the plain mean.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .alphabet_rd_esm import TOKENS
from .configuration_rd_esm import RDEsmConfig
from .outputs_rd_esm import RDEsmModelOutput
from .pooling_rd_esm import is_tracing
from .windows_rd_esm import OVERLAP, SPECIAL_TOKENS, Piece, cut

# Windows that are computed at once: more keep no device busier.
_WINDOWS_A_BATCH = 16


def taper(length: int, overlap: int) -> torch.Tensor:
    """Weight of each residue of a window: `(length,)` float32 in (0, 1]."""
    places = torch.arange(length, dtype=torch.float64)
    return ((torch.minimum(places, places.flip(0)) + 1) / (overlap + 1)).clamp(max=1).float()


def merge_weights(pieces: Sequence[Piece], overlap: int) -> list[torch.Tensor]:
    """Share of each piece in each of its residues, the shares of a residue adding up to one: `(length,)` float32."""
    total = torch.zeros(max(piece.stop for piece in pieces), dtype=torch.float64)
    for piece in pieces:
        total[piece.start : piece.stop] += taper(piece.length, overlap)
    return [(taper(piece.length, overlap) / total[piece.start : piece.stop]).float() for piece in pieces]


@dataclass
class Merging:
    """A long sequence whose pieces are still coming in, in order.

    Args:
        pieces: all of them.
        overlap: as they were cut with.
    """

    pieces: Sequence[Piece]
    overlap: int
    weights: list[torch.Tensor] = field(init=False)
    rows: torch.Tensor | None = None  # (length, width) float32
    sums: list[torch.Tensor] = field(init=False, default_factory=list)  # of cls (and eos), (width,) float32
    arrived: int = 0

    def __post_init__(self) -> None:
        self.weights = merge_weights(self.pieces, self.overlap)

    def add(self, first: torch.Tensor, rows: torch.Tensor, *last: torch.Tensor) -> bool:
        """Take in the next piece.

        Args:
            first: its cls, `(width,)` float32.
            rows: its residues, `(length, width)` float32.
            last: its eos, where that is wanted.

        Returns:
            Whether that was the last one.
        """
        piece, weights = self.pieces[self.arrived], self.weights[self.arrived].to(rows.device)
        if self.rows is None:
            self.rows = rows.new_zeros(self.pieces[-1].stop, rows.shape[-1])
            self.sums = [torch.zeros_like(one) for one in (first, *last)]
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
    """A batch with sequences that are longer than the model takes at once, cut.

    Args:
        positions: where the tokens of each row lie, `(tokens,)`.
        length: of its rows.
        pieces: of each row; one that is whole is all of its tokens.
        overlap: of windows.
        batches: what the model is called with in its place.
        order: the piece of each row of these, one batch after the other.
    """

    positions: list[torch.Tensor]
    length: int
    pieces: list[list[Piece]]
    overlap: int
    batches: list[dict[str, Any]] = field(default_factory=list)
    order: list[list[Piece]] = field(default_factory=list)

    def join(self, outputs: Sequence[RDEsmModelOutput]) -> RDEsmModelOutput:
        """The output of the batch, from those of `batches`; zeros at padding."""
        parts = [
            _listed([output.last_hidden_state]) + _listed(output.hidden_states) + _listed(output.backbone_states)
            for output in outputs
        ]
        joined = [self._joined([own[place] for own in parts]) for place in range(len(parts[0]))]
        hidden = len(_listed(outputs[0].hidden_states))
        return type(outputs[0])(
            last_hidden_state=joined[0],
            hidden_states=tuple(joined[1 : 1 + hidden]) or None,
            backbone_states=tuple(joined[1 + hidden :]) or None,
        )

    def _joined(self, states: Sequence[torch.Tensor]) -> torch.Tensor:
        """One tensor of the output, `(rows, length, width)`, from that of each of `batches`."""
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


def _listed(states: Sequence[torch.Tensor | None] | None) -> list[Any]:
    return list(states or ())


def cut_long(config: RDEsmConfig, batch: dict[str, Any], attentions: bool = False) -> LongBatch | None:
    """Cut what is longer than the model takes at once, where it was loaded with `long_input="window"`.

    Args:
        config: of the model.
        batch: what `RDEsmModel.forward` takes of one batch, in padded rows.
        attentions: they are wanted too.

    Returns:
        None where there is nothing to cut.

    Raises:
        ValueError: a long row does not begin with cls and end with eos, or attentions are wanted of one.
    """
    if batch.get("long_input", config.long_input) != "window" or "cu_seq_lens_q" in batch or is_tracing():
        return None
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
    for start in range(0, len(order), _WINDOWS_A_BATCH):
        chosen = order[start : start + _WINDOWS_A_BATCH]
        windows = [_window(tokens[piece.owner], piece) for piece in chosen]
        padded = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True, padding_value=TOKENS["<pad>"])
        present = [torch.ones_like(window) for window in windows]
        long.batches.append(
            {
                "input_ids": padded,
                "attention_mask": torch.nn.utils.rnn.pad_sequence(present, batch_first=True),
                "long_input": "whole",
            }
        )
        long.order.append(chosen)
    return long


def _pieces(owner: int, tokens: torch.Tensor, size: int, overlap: int) -> list[Piece]:
    """Of one row: the windows of its residues, or one piece that is all of its tokens."""
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
    return tokens if piece.whole else torch.cat((tokens[:1], tokens[1 + piece.start : 1 + piece.stop], tokens[-1:]))

"""How sequences of different lengths share a batch: in rows padded to the longest, or in one row without padding.

Padded rows need sequences of like length, and where few are at hand that makes small batches. Packed rows take whatever
comes until the budget is full, and no token is computed in vain; they need attention that keeps sequences apart
(``rd_esm_packed``), which is fast where it is one fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from rd_hf.data.batching import SPECIAL_TOKENS, collate, pack, residue_mask, token_budget_batches
from rd_hf.embedding.transfer import moved
from rd_hf.model.layers_rd_esm import PACKED_ATTENTION, fused_kernel_takes, keeps_apart
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.pooling_rd_esm import pooling_named

# Rows of a batch differ by a sixteenth of the longest at most: then padding is 3 % on average even where few
# sequences are at hand. With thousands at hand it is the budget that closes a batch, well before this does.
SPREAD = 1 / 16


class Padded:
    """A batch in rows padded to the longest, one per sequence. Lengths are residues, without cls and eos."""

    def plan(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        """Return the positions of the sequences of each batch within ``budget`` tokens, the longest first."""
        return token_budget_batches(lengths, budget, SPREAD)

    def plan_all(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        """As :meth:`plan`, where so many sequences are at hand that the budget closes a batch."""
        return token_budget_batches(lengths, budget)

    def tokens(self, lengths: Sequence[int]) -> int:
        """Return the tokens of a batch, padding included."""
        return len(lengths) * (max(lengths) + SPECIAL_TOKENS)

    def arguments(self, sequences: Sequence[str]) -> dict[str, Any]:
        """Return what the model is called with."""
        return dict(zip(("input_ids", "attention_mask"), collate(sequences), strict=True))

    def starts(self, lengths: Sequence[int]) -> list[int]:
        """Return where each sequence's cls is among all tokens of a batch, row after row."""
        return [row * (max(lengths) + SPECIAL_TOKENS) for row in range(len(lengths))]

    def residues(self, lengths: Sequence[int]) -> torch.Tensor:
        """Return where the residues are among all tokens of a batch: (residues,) int64, sequence after sequence."""
        starts = self.starts(lengths)
        return torch.cat([torch.arange(start + 1, start + 1 + n) for start, n in zip(starts, lengths, strict=True)])

    def pooled(self, states: torch.Tensor, lengths: Sequence[int], pooling: str) -> torch.Tensor:
        """Return (batch, width) float32, one row per sequence; see :func:`pool`."""
        return pool(states, lengths, pooling)

    def rows(self, values: np.ndarray, lengths: Sequence[int]) -> Sequence[np.ndarray]:
        """Cut states of all tokens into rows of each sequence, from its cls on: (1 + length or more, width)."""
        return list(values[:, :-1])


class Packed(Padded):
    """A batch in one row, each sequence behind the eos of the one before."""

    def plan(self, lengths: Sequence[int], budget: int) -> list[list[int]]:
        batches: list[list[int]] = []
        held = 0
        for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
            own = lengths[position] + SPECIAL_TOKENS
            if not batches or held + own > budget:
                batches.append([])
                held = 0
            batches[-1].append(position)
            held += own
        return batches

    plan_all = plan

    def tokens(self, lengths: Sequence[int]) -> int:
        return sum(lengths) + SPECIAL_TOKENS * len(lengths)

    def arguments(self, sequences: Sequence[str]) -> dict[str, Any]:
        return pack(sequences)

    def starts(self, lengths: Sequence[int]) -> list[int]:
        return list(accumulate((length + SPECIAL_TOKENS for length in lengths[:-1]), initial=0))

    def pooled(self, states: torch.Tensor, lengths: Sequence[int], pooling: str) -> torch.Tensor:
        # In padded rows of like length, which are pooled at once: to the same bits, as what is padded adds nothing. It
        # is each sequence's own eos: a neighbour may hold what is not finite.
        starts, ends = torch.tensor(self.starts(lengths)), torch.tensor(lengths) + 1
        rows: list[torch.Tensor] = []
        order: list[int] = []
        for group in token_budget_batches(lengths, self.tokens(lengths), SPREAD):
            own = [lengths[place] for place in group]
            within = torch.minimum(torch.arange(own[0] + SPECIAL_TOKENS), ends[group][:, None])
            places = moved(starts[group][:, None] + within, states.device)
            rows.append(pool(states[0][places], own, pooling))
            order += group
        return torch.cat(rows)[moved(torch.tensor(order).argsort(), states.device)]

    def rows(self, values: np.ndarray, lengths: Sequence[int]) -> Sequence[np.ndarray]:
        starts = zip(self.starts(lengths), lengths, strict=True)
        return [values[0][start : start + 1 + length] for start, length in starts]


def layout_of(model: RDEsmModel) -> Padded:
    """Packed where the model's attention keeps sequences apart (ours on a GPU: by the fused kernel), else padded."""
    attention = str(model.config._attn_implementation)
    if attention != PACKED_ATTENTION:
        return Packed() if keeps_apart(attention) else Padded()
    return Packed() if model.device.type != "cuda" or packing_pays(model) else Padded()


def packing_pays(model: RDEsmModel) -> bool:
    """Whether each of the model's backbones has attention over packed rows in one fused kernel."""
    config = model.config
    entries = [config.backbone_config(levels[0]) for levels in config.backbone_groups]
    heads = [own.hidden_size // own.num_attention_heads for own in entries]
    return all(fused_kernel_takes(model.device, model.dtype, width) for width in heads)


def pool(states: torch.Tensor, lengths: Sequence[int], pooling: str) -> torch.Tensor:
    """Pool padded rows to one row per sequence, (batch, width) float32; a ValueError for any other pooling.

    Args:
        states: (batch, padded length, width), any float dtype, row 0 of each sequence its cls.
        lengths: residues of each sequence.
        pooling: its name.
    """
    pool_batch = pooling_named(pooling).pool_batch
    if pool_batch is None:
        raise ValueError(f"pooling {pooling!r} gives more than one row per sequence")
    return pool_batch(states, moved(residue_mask(lengths, states.shape[1]), states.device))

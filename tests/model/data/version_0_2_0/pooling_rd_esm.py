"""The mean over residues, as a module of sentence-transformers.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from typing import Any

import torch
from torch import nn

# ESM-2's token ids: <unk>; from L to O the residues, before them <cls>, <pad>, <eos>, behind them gaps and <mask>.
UNKNOWN = 3
FIRST_RESIDUE, LAST_RESIDUE = 4, 28


def is_tracing() -> bool:
    """Whether the model is being traced, compiled or exported, so that no number may be looked at."""
    return bool(torch.compiler.is_compiling() or torch.jit.is_tracing())  # type: ignore[attr-defined]


def refuse_unknown(input_ids: torch.Tensor) -> None:
    """Raise where a token is `<unk>`: a tokenizer met a character that stands for no residue.

    Nothing is refused while a graph is made of the model.

    Raises:
        ValueError: naming the first row and position.
    """
    if is_tracing() or input_ids.device.type == "meta":
        return
    unknown = input_ids.eq(UNKNOWN)
    if unknown.any():
        row, position = unknown.nonzero()[0].tolist()
        raise ValueError(
            f"input_ids hold <unk> (row {row + 1}, residue {position}): a character that is no residue, such as a stop "
            f"codon inside the sequence, a digit or (with a tokenizer that does not clean) a lower-case letter; "
            f"correct the sequence, or use the tokenizer that came with this model"
        )


def mean_over_residues(states: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean of each row over the positions kept, the same bits for a channel whatever stands beside it.

    Residues are added one after the other, where a sum or a product takes an order that depends on the width; not in
    bfloat16, in which thousands of numbers do not add up.

    Args:
        states (`torch.Tensor` of shape `(batch, length, width)`): any float dtype.
        keep (`torch.Tensor` of shape `(batch, length)`): bool.

    Returns:
        `torch.Tensor` of shape `(batch, width)`, float32.
    """
    kept = states.float() * keep.unsqueeze(-1)
    counts = keep.sum(dim=1, keepdim=True).clamp(min=1)
    if kept.device.type != "cpu" or is_tracing():
        return kept.cumsum(dim=1)[:, -1] / counts
    # As cumsum adds on a CPU, in float64, and some ten times as fast.
    total = torch.zeros(kept.shape[0], kept.shape[2], dtype=torch.float64)
    for row in kept.unbind(dim=1):
        total += row
    return total.float() / counts


class ResiduePooling(nn.Module):
    """Mean over residues, for sentence-transformers, whose own mean takes in cls and eos.

    `modules.json` of a checkpoint names it behind the model. Each channel is averaged for itself, so that
    `truncate_dim` gives exactly the pooled embedding of a smaller level.
    """

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, `(batch, width)`, to features with `input_ids` and `token_embeddings`.

        Raises:
            ValueError: a sequence with `<unk>`, or without residues.
        """
        embeddings, ids = features["token_embeddings"], features["input_ids"]
        refuse_unknown(ids)
        keep = ids.ge(FIRST_RESIDUE) & ids.le(LAST_RESIDUE)
        if not is_tracing() and not keep.any(dim=1).all():
            row = int(keep.any(dim=1).logical_not().nonzero()[0])
            raise ValueError(f"row {row + 1} of the batch has no residues to take a mean over")
        features["sentence_embedding"] = mean_over_residues(embeddings, keep).to(embeddings.dtype)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """There is nothing to save: `modules.json` names the class, this file holds it."""

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "ResiduePooling":
        """As sentence-transformers calls it."""
        return cls()

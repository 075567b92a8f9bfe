"""The mean over residues, as a module of sentence-transformers.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from typing import Any

import torch
from torch import nn


class ResiduePooling(nn.Module):
    """Mean over residues, for sentence-transformers, whose own mean takes in cls and eos.

    `modules.json` of a checkpoint names it behind the model. Each channel is averaged for itself, so that
    `truncate_dim` gives exactly the pooled embedding of a smaller level.
    """

    # ESM-2's token ids of <cls>, <pad>, <eos> and <mask>.
    not_residues = (0, 1, 2, 32)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, `(batch, width)`, to features with `input_ids` and `token_embeddings`."""
        embeddings, ids = features["token_embeddings"], features["input_ids"]
        keep = torch.ones_like(ids, dtype=torch.bool)
        for token in self.not_residues:
            keep &= ids.ne(token)
        # In float32, since thousands of bfloat16 numbers do not add up in bfloat16. cumsum adds one residue after
        # the other in every channel, where sum() takes an order that depends on the width.
        total = (embeddings.float() * keep.unsqueeze(-1)).cumsum(dim=1)[:, -1]
        features["sentence_embedding"] = (total / keep.sum(dim=1, keepdim=True).clamp(min=1)).to(embeddings.dtype)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """There is nothing to save: `modules.json` names the class, this file holds it."""

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "ResiduePooling":
        """As sentence-transformers calls it."""
        return cls()

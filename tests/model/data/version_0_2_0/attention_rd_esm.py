"""Attention for several sequences that share one row, without padding between them.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

# `attn_implementation` under which several sequences may share one row.
PACKED_ATTENTION = "rd_esm_packed"


@cache
def fused_kernel_takes(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether `torch.nn.attention.varlen` computes attention over packed rows there.

    It is in torch 2.10 and later, for 16-bit numbers on GPUs from Ampere on, and heads of a multiple of 8 up to 256.
    """
    return bool(
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and head_width % 8 == 0
        and head_width <= 256
        and find_spec("torch.nn.attention.varlen")
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


def packed_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention within each of the sequences that share one row, registered as `rd_esm_packed`.

    On CUDA the fused kernel of `torch.nn.attention.varlen`, for float16 and bfloat16 (see `fused_kernel_takes`);
    elsewhere one scaled dot product a sequence, which gives what separate rows give. Batches that are not packed
    take scaled dot product attention as usual.

    Args:
        query, key, value (`torch.Tensor` of shape `(batch, heads, length, head width)`).
        cu_seq_lens_q (`torch.Tensor` of shape `(sequences + 1,)`, int32): where each sequence starts, and the end.
        max_length_q (`int`): longest of them.

    Returns:
        `(batch, length, heads, head width)` and no weights.
    """
    if cu_seq_lens_q is None:
        attended = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
        )
        return attended.transpose(1, 2).contiguous(), None
    if fused_kernel_takes(query.device, query.dtype, query.shape[-1]):
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
        longest = int(max_length_q or cu_seq_lens_q.diff().max())
        rows = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, longest, longest, scale=scaling)
        assert isinstance(rows, torch.Tensor)  # it returns more only where asked to
        return rows.unsqueeze(0), None
    parts = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        q, k, v = (states[:, :, start:stop] for states in (query, key, value))
        parts.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
# Not packed, it needs the mask of scaled dot product attention.
AttentionMaskInterface.register(PACKED_ATTENTION, AttentionMaskInterface()["sdpa"])

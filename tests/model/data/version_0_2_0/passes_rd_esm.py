"""One batch on its way up the levels: what backbones are called with, and the embedding that grows.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .alphabet_rd_esm import TOKENS
from .attention_rd_esm import PACKED_ATTENTION
from .configuration_rd_esm import RDEsmConfig
from .families_rd_esm import POSITION_FIELDS, counts_from, longest_input
from .layers_rd_esm import states_after
from .outputs_rd_esm import RDEsmModelOutput, output_class
from .readout_rd_esm import RDEsmReadout


@dataclass
class BackbonePass:
    """One batch on its way up the levels.

    Nothing but what is returned outlives a level: a backbone's state is gone before the next backbone runs.
    """

    arguments: dict[str, Any]
    embedding: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    states: tuple[torch.Tensor, ...] = ()
    hidden_states: tuple[torch.Tensor, ...] = ()
    attentions: tuple[torch.Tensor, ...] = ()

    def advance(
        self,
        backbone: PreTrainedModel,
        depths: Sequence[int],
        projections: Sequence[nn.Module | None],
        keep_state: bool,
    ) -> None:
        """Run one backbone and nest its final state, or those of some of its layers.

        Args:
            depths: layers after which the levels end that it serves.
            projections: theirs; the first level of all, without one, is the prefix.
            keep_state: also return the states.
        """
        output, states = run_backbone(backbone, depths, self.arguments)
        for state, projection in zip(states, projections):
            self.dtype = state.dtype
            if projection is None:
                # The prefix is copied, never centred, scaled or recomputed: widening and narrowing again returns
                # the same bits.
                self.embedding = state.to(torch.promote_types(state.dtype, torch.float32))
            else:
                self.embedding = projection(self.embedding, state)
        if keep_state:
            self.states += tuple(states)
        self.hidden_states += tuple(output.hidden_states or ())
        self.attentions += tuple(output.attentions or ())

    def read_out(self, backbone: PreTrainedModel, depth: int, readout: RDEsmReadout, keep_state: bool) -> None:
        """Run the largest backbone, which ends after `depth` layers, and read every level out of its layers."""
        output, states = run_backbone(backbone, [depth, *readout.layers], self.arguments)
        self.dtype = states[0].dtype
        self.embedding = readout(states)
        if keep_state:
            self.states += (states[0],)
        self.hidden_states += tuple(output.hidden_states or ())
        self.attentions += tuple(output.attentions or ())

    def output(self, dims: dict[str, int]) -> RDEsmModelOutput:
        assert self.embedding is not None
        # In one pass all levels are there, whichever is wanted.
        embedding = self.embedding[..., : max(dims.values())]
        return output_class(dims)(
            last_hidden_state=embedding.to(self.dtype),
            hidden_states=self.hidden_states or None,
            attentions=self.attentions or None,
            backbone_states=self.states or None,
        )


def run_backbone(
    backbone: PreTrainedModel, depths: Sequence[int], arguments: dict[str, Any]
) -> tuple[Any, list[torch.Tensor]]:
    """`states_after`, with positions as this backbone counts them.

    Args:
        backbone, depths: as there.
        arguments: what all backbones are called with; see `backbone_arguments`.

    Raises:
        ValueError: the batch is longer than the backbone's table of positions; a packed row whose sequences would see
            each other.
    """
    # Asked of the backbone: it is its own config that its layers look at.
    attention = str(backbone.config._attn_implementation)
    if "cu_seq_lens_q" in arguments and attention != PACKED_ATTENTION and "flash" not in attention:
        raise ValueError(
            f"with {attention} attention the sequences of a packed row would see each other: load the model with "
            f"attn_implementation={PACKED_ATTENTION!r}, or with flash attention"
        )
    own = {name: getattr(backbone.config, name) for name in POSITION_FIELDS if hasattr(backbone.config, name)}
    longest = longest_input(own)
    length = arguments.get("max_length_q") or arguments["input_ids"].shape[1]
    if longest is not None and length > longest:
        raise ValueError(
            f"a backbone with absolute positions has {longest} of them, cls and eos included, and a sequence here has "
            f"{length}: cut or window longer ones"
        )
    positions = arguments.get("position_ids")
    if longest is not None and positions is not None:
        arguments = {**arguments, "position_ids": positions + counts_from(own)}
    return states_after(backbone, depths, arguments)


def backbone_arguments(
    config: RDEsmConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    **packing: Any,
) -> dict[str, Any]:
    """What every backbone is called with.

    Args:
        config: of the model.
        input_ids (`torch.LongTensor` of shape `(batch, length)`), attention_mask, packing: as `RDEsmModel.forward`.

    Raises:
        TypeError: an argument that is none of these.
        ValueError: a packed row that is none.
    """
    unknown = packing.keys() - {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")
    ends = packing.get("cu_seq_lens_q")
    if ends is None:
        if packing or position_ids is not None:
            # position_ids that start anew would say where sequences meet, and attention would not care.
            raise ValueError("sequences that share a row need cu_seq_lens_q, or they would see each other")
        if attention_mask is None:
            attention_mask = input_ids.ne(config.pad_token_id).long()
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    length = input_ids.shape[1]
    if attention_mask is not None or input_ids.shape[0] != 1 or ends[0] != 0 or ends[-1] != length:
        raise ValueError(
            f"a packed batch is one row of input_ids without attention_mask, cu_seq_lens_q from 0 to its length "
            f"{length}; got input_ids of shape {tuple(input_ids.shape)}"
            f"{'' if attention_mask is None else ' with attention_mask'}, cu_seq_lens_q {ends.tolist()}"
        )
    if input_ids.eq(TOKENS["<mask>"]).any():
        raise ValueError("a packed row cannot hold <mask>: token dropout counts it over the whole row; pad instead")
    lengths = ends.diff()
    longest = packing.get("max_length_q") or int(lengths.max())
    starts = ends[:-1].repeat_interleave(lengths, output_size=length)
    return {
        "input_ids": input_ids,
        "attention_mask": None,
        # Rotary positions are relative, but small numbers make exact angles.
        "position_ids": (torch.arange(length, device=ends.device) - starts).unsqueeze(0),
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": packing.get("cu_seq_lens_k", ends),
        "max_length_q": longest,
        "max_length_k": packing.get("max_length_k") or longest,
    }

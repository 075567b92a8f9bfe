"""Reverse distillation: nested protein embeddings from a chain of backbones.

Reverse distillation (Catrina, Bepler, Sledzieski and Singh, ICLR 2026, arXiv 2603.07710) keeps a smaller
model's embedding as it is and appends what a larger model knows beyond it (Algorithm 3):

    e_1 = h_1
    r_i = (h_i - mean(h_i)) - (e_(i-1) - mean(e_(i-1))) W_i
    e_i = [ e_(i-1) , r_i V_i ]

with h_i the final hidden state of backbone i, W_i the regression of h_i on e_(i-1) and V_i the leading
singular directions of the residual. The first dimensions of a larger embedding are the smaller embedding, bit
for bit.

This file and its neighbours travel to the Hub together: they import public names of torch and transformers only.
"""

import gc
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .alphabet_rd_esm import TOKENS  # noqa: F401
from .attention_rd_esm import PACKED_ATTENTION  # noqa: F401
from .checkpoint_rd_esm import RDEsmPreTrainedModel
from .configuration_rd_esm import RDEsmConfig

# Some are not used here: releases of transformers up to 5.0 bring along only the files that this one itself names,
# and modules.json names modeling_rd_esm.ResiduePooling.
from .families_rd_esm import family_of
from .fields_rd_esm import check_entry  # noqa: F401
from .files_rd_esm import WeightFiles  # noqa: F401
from .layers_rd_esm import encoder_class, settle, watch_layers
from .lean_rd_esm import make_lean
from .origin_rd_esm import decide_form  # noqa: F401
from .outputs_rd_esm import NO_WHITENING, RDEsmModelOutput, output_class
from .passes_rd_esm import BackbonePass, backbone_arguments, run_backbone
from .placement_rd_esm import Placement  # noqa: F401
from .pooling_rd_esm import ResiduePooling, refuse_unknown  # noqa: F401
from .projection_rd_esm import RDEsmProjection
from .readout_rd_esm import RDEsmReadout
from .rotary_rd_esm import turned  # noqa: F401
from .saving_rd_esm import RDEsmSaving  # noqa: F401
from .weights_rd_esm import keep_float32, rotary_modules
from .whitening_rd_esm import RDEsmWhitening


class RDEsmModel(RDEsmPreTrainedModel):
    """
    A stack of backbones whose final hidden states are nested into one embedding.

    Args:
        config ([`RDEsmConfig`]): the family. With `config.level` set, only the levels up to it are built, and
            `model.config` describes just those.
        build_backbones (`bool`, *optional*): build (randomly initialised) backbones; by default where the
            checkpoint is to hold them. `load_backbones` fetches them otherwise.

    Example:

    ```python
    model = AutoModel.from_pretrained("rohitsinghlab/rd-esm2-3B", trust_remote_code=True)
    output = model(**tokenizer(["MKTAYIAKQR"], return_tensors="pt"))
    output.last_hidden_state  # (1, 12, 2560)
    output.nested("35M")      # (1, 12, 480), a view
    ```
    """

    def __init__(self, config: RDEsmConfig, build_backbones: bool | None = None) -> None:
        config = config.as_loaded()
        if not config.levels:
            raise ValueError("an RDEsmConfig without levels describes no model; give it `levels`")
        super().__init__(config)
        if build_backbones is None:
            build_backbones = config.backbones_in_checkpoint
        config.check_release()
        self.backbones = nn.ModuleList(
            self._build(index) for index in range(len(config.backbone_groups) if build_backbones else 0)
        )
        widths = list(config.nested_dims.values())
        for count in range(len(widths)):
            # Made here, so that a compiled forward pass makes no class.
            output_class(dict(list(config.nested_dims.items())[: count + 1]))
        steps = list(zip(widths, config.backbone_widths[1:], config.residual_directions))
        self.projections = nn.ModuleList(RDEsmProjection(*step) for step in steps if not config.one_pass)
        if config.readout is not None:
            self.readout = RDEsmReadout(
                config.readout["layers"],
                config.backbone_widths[-1],
                config.backbone_widths[0] + sum(config.residual_directions[:-1]),
                config.residual_directions[-1],
            )
        self.whitening = None
        if config.whitening:
            sizes = [wide - narrow for narrow, wide in zip([0, *widths], widths)]
            self.whitening = RDEsmWhitening(sizes, config.whitening["weights"])
        self.post_init()

    def _build(self, index: int) -> PreTrainedModel:
        """A backbone with random weights."""
        levels = self.config.backbone_groups[index]
        own = self.config.backbone_config(levels[0])
        # A bare EsmModel(config) would ignore this model's attention implementation.
        backbone = encoder_class(own, self.config.backbone_depth(index))._from_config(
            own,
            attn_implementation=self.config._attn_implementation,
            **family_of(self.config.levels[levels[0]]["backbone"]).arguments,
        )
        settle(backbone, watch=len(levels) > 1 or self.config.one_pass)
        if not self.config.exact_activation:
            make_lean(backbone)
        return backbone

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmModel":
        # ESM-2 was trained with rotary frequencies rounded to float16; rounded once more by .to(bfloat16) they
        # would turn far positions elsewhere.
        before = {module: module._buffers["inv_freq"] for module in rotary_modules(self)}
        super()._apply(fn, recurse)
        for module, frequencies in before.items():
            keep_float32(module, "inv_freq", frequencies)
        return self

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **kwargs: Any) -> None:
        """As in transformers, whose releases up to 5.17 pass a second change on to no backbone."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        for backbone in self.backbones:
            own: Any = backbone.config
            own._attn_implementation = self.config._attn_implementation

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbones; float32 where there are none."""
        if self._fetch is not None:
            return self.get_buffer("placeholder").dtype
        return next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Of the first backbone; with sequential loading, where they run."""
        tensors = chain(self.parameters(), self.buffers() if self._fetch is None else [self.get_buffer("placeholder")])
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def visit_backbones(
        self, visit: Callable[[list[int], PreTrainedModel], None], last: int | None = None, first: int = 0
    ) -> None:
        """Call `visit(levels, backbone)`, smallest first; with sequential loading each is in memory for its visit.

        Args:
            visit: is given the positions of the levels that the backbone serves, one or (its layers) several, as far
                as they are wanted; `level_states` runs it. Must not keep the backbone.
            last (`int`, *optional*): position of the last level wanted.
            first (`int`): position of the first level wanted.

        Raises:
            ValueError: this model holds bases only, or (see `above`) was loaded without some of these backbones.
        """
        end = len(self.config.levels) if last is None else last + 1
        groups = [[level for level in levels if first <= level < end] for levels in self.config.backbone_groups]
        wanted = [index for index, levels in enumerate(groups) if levels]
        if wanted and wanted[0] < self.first_backbone:
            levels = [level for held in self.config.backbone_groups[self.first_backbone :] for level in held]
            held = ", ".join(self.config.level_names[level] for level in levels) or "none"
            raise ValueError(
                f"of the backbones, this model was loaded with those of {held} only: load it without above= and "
                f"one_pass="
            )
        if self._fetch is None:
            if wanted and len(self.backbones) <= wanted[-1]:
                raise ValueError("this model holds bases only; load it with from_pretrained to fetch its backbones")
            for index in wanted:
                visit(groups[index], self.backbones[index])
            return
        here = self.get_buffer("placeholder")
        for index in wanted:
            # A backbone refers to itself (by its load hook), so that dropping it frees nothing yet.
            gc.collect()
            visit(groups[index], self._fetch(index, dtype=here.dtype).to(here.device))
        gc.collect()

    def level_states(
        self,
        levels: Sequence[int],
        backbone: PreTrainedModel,
        arguments: dict[str, Any],
        layers: Sequence[int] = (),
    ) -> list[torch.Tensor]:
        """Final states of the levels that a backbone serves, `(batch, length, k)` each, from one pass of it.

        Args:
            levels, backbone: as `visit_backbones` gives them.
            arguments: `input_ids` and `attention_mask`.
            layers: of the backbone, whose states are wanted behind those of the levels.
        """
        if layers:
            watch_layers(backbone)
        return run_backbone(backbone, [*(self.config.depth(level) for level in levels), *layers], arguments)[1]

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        return largest.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        largest.set_input_embeddings(value)

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Not possible.

        Raises:
            NotImplementedError: always, before anything is changed.
        """
        raise NotImplementedError(
            "the token embeddings cannot be resized: all backbones share ESM-2's vocabulary, which the bases were "
            "fitted with; resize a backbone by itself (model.backbones[i].resize_token_embeddings), outside this model"
        )

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        level: str | None = None,
        output_backbone_states: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **packing: Any,
    ) -> RDEsmModelOutput | tuple[Any, ...]:
        r"""
        Embed token ids at `level`, running only the backbones it needs.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch, length)`): ESM-2 token ids.
            attention_mask (`torch.Tensor` of shape `(batch, length)`, *optional*): 1 for tokens, 0 for padding;
                by default wherever `input_ids` is not the pad token.
            level (`str`, *optional*): name of the level, by default the largest that was loaded.
            output_backbone_states (`bool`): also return each backbone's own final hidden state.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in transformers.
            packing: `cu_seq_lens_q`, `cu_seq_lens_k` (int32, `(sequences + 1,)`: where each sequence starts, and the
                end), `max_length_q` and `max_length_k`, for sequences (each with its cls and eos) that share one row
                of `input_ids` without padding, `(1, length)`. `position_ids`, which
                `DataCollatorWithFlattening` makes too, follow from them and are not read.

        Raises:
            ValueError: unknown level; the backbones are not there; in eval mode, `<unk>` among the tokens; a sequence
                longer than a backbone's table of positions; or a packed row where sequences would see each other:
                attention other than `rd_esm_packed` or flash attention, or `<mask>` tokens, which token dropout
                counts over the whole row.
        """
        if not self.training:
            # Training may replace residues by tokens at random.
            refuse_unknown(input_ids)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **packing}
        (result,) = self.forward_window([batch], level, output_backbone_states, output_hidden_states, output_attentions)
        if return_dict is None:
            # A traced graph returns tensors.
            traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
            return_dict = getattr(self.config, "return_dict", True) and not traced
        return result if return_dict else result.to_tuple()

    def forward_window(
        self,
        batches: Sequence[dict[str, Any]],
        level: str | None = None,
        output_backbone_states: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> list[RDEsmModelOutput]:
        """As `forward` over each of several batches, level by level.

        With sequential loading each backbone is loaded once for all of them. What is held meanwhile is the
        embedding of every position, 4 bytes times the level's width (and the states asked for).

        Args:
            batches: `input_ids` and what else `forward` takes of one batch.

        Returns:
            One output a batch, the same bits as `forward` gives.
        """
        last = self.config.level_index(level or self.config.level)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        extras: dict[str, bool] = {}
        if output_hidden_states:
            extras["output_hidden_states"] = True
        if output_attentions:
            extras["output_attentions"] = True
        passes = [BackbonePass(backbone_arguments(self.config, **batch) | extras) for batch in batches]

        def advance(levels: list[int], backbone: PreTrainedModel) -> None:
            depths = [self.config.depth(level) for level in levels]
            projections = [self.projections[level - 1] if level else None for level in levels]
            for one in passes:
                one.advance(backbone, depths, projections, output_backbone_states)

        def read_out(levels: list[int], backbone: PreTrainedModel) -> None:
            for one in passes:
                one.read_out(backbone, self.config.depth(levels[-1]), self.readout, output_backbone_states)

        if self.config.one_pass:
            self.visit_backbones(read_out, first=len(self.config.levels) - 1)
        else:
            self.visit_backbones(advance, last)
        dims = dict(list(self.config.nested_dims.items())[: last + 1])
        outputs = [one.output(dims) for one in passes]
        if self.whitening is not None:
            for output in outputs:
                output.whitening = self.whitening  # type: ignore[misc]
        return outputs

    def whiten(self, embedding: torch.Tensor) -> torch.Tensor:
        """Whiten an embedding of any level, of residues or means of them: see [`RDEsmWhitening`].

        Args:
            embedding (`torch.Tensor` of shape `(..., width of the level)`): as `forward` returns it.

        Returns:
            `torch.Tensor` of the same shape, float32; its first dimensions are the whitened smaller level.

        Raises:
            ValueError: the checkpoint has no statistics to whiten by, or the width is that of no level.
        """
        if self.whitening is None:
            raise ValueError(NO_WHITENING)
        whitened: torch.Tensor = self.whitening(embedding)
        return whitened


RDEsmConfig.register_for_auto_class()
RDEsmModel.register_for_auto_class("AutoModel")

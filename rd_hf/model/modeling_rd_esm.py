"""Reverse distillation: nested protein embeddings from a chain of backbones.

Reverse distillation (Catrina, Bepler, Sledzieski and Singh, ICLR 2026, arXiv 2603.07710) keeps a smaller
model's embedding as it is and appends what a larger model knows beyond it (Algorithm 3):

    e_1 = h_1
    r_i = (h_i - mean(h_i)) - (e_(i-1) - mean(e_(i-1))) W_i
    e_i = [ e_(i-1) , r_i V_i ]

with h_i the final hidden state of backbone i, W_i the regression of h_i on e_(i-1) and V_i the leading
singular directions of the residual. The first dimensions of a larger embedding are the smaller embedding, bit
for bit.

This file and its neighbours travel to the Hub together: they import public names of torch, transformers and
safetensors only.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .bases_rd_esm import RDEsmProjection, RDEsmReadout, RDEsmWhitening, keep_float32
from .checkpoint_rd_esm import RDEsmPreTrainedModel
from .configuration_rd_esm import RDEsmConfig
from .families_rd_esm import family_of

# Some are not used here: releases of transformers up to 5.0 bring along only the files that this one itself names.
from .files_rd_esm import WeightFiles  # noqa: F401
from .fused_rd_esm import fuse_layers  # noqa: F401
from .layers_rd_esm import (
    LayerGraph,
    backbone_arguments,
    compile_layers,
    encoder_class,
    record_layers,
    register_attention,
    rotary_modules,
    run_backbone,
)
from .pooling_rd_esm import cut_long, mean_over_residues, refuse_unknown, residue_mask
from .saving_rd_esm import RDEsmSaving  # noqa: F401
from .staging_rd_esm import staging  # noqa: F401

NO_WHITENING = (
    "there is nothing to whiten by: this checkpoint holds no statistics of its blocks, as those imported or fitted "
    "before rd_hf 0.2 do not; fit again with `rd-hf fit`, or whiten by a set of your own (rd_hf.bases.whitening; "
    "`rd-hf search` does by the database)"
)


@dataclass
class RDEsmModelOutput(ModelOutput):
    """
    Output of [`RDEsmModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, length, width of the level)`):
            The nested embedding of every position (cls, eos, mask and padding included), in the backbones' dtype.
        hidden_states (`tuple(torch.FloatTensor)`, on request):
            Those of every backbone that ran, smallest first: for each the embedding output and one tensor per
            layer, each as wide as that backbone.
        attentions (`tuple(torch.FloatTensor)`, on request, eager attention):
            One tensor per layer of every backbone that ran, smallest first.
        backbone_states (`tuple(torch.FloatTensor)`, on request):
            The final hidden state h_i of each backbone that ran, `(batch, length, k_i)`.

    Attributes:
        nested_dims (`dict[str, int]`): width of each level that `last_hidden_state` holds; no field, since whatever
            gathers, concatenates, traces or exports outputs takes fields for tensors.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    backbone_states: tuple[torch.Tensor, ...] | None = None

    nested_dims: ClassVar[dict[str, int]] = {}
    # Set on outputs of a model that can: no field either, and the same for all of that model's outputs.
    whitening: ClassVar[Any] = None

    def nested(self, level: str, whiten: bool = False) -> torch.Tensor:
        """The embedding of a smaller level: a view of `last_hidden_state`, `(batch, length, its width)`.

        With `whiten` each block of it is whitened by the statistics that came with the bases: no view, float32.

        Raises:
            ValueError: `last_hidden_state` does not hold that level, or there is nothing to whiten by.
        """
        if level not in self.nested_dims:
            raise ValueError(f"level {level!r} is not in this output, which holds {', '.join(self.nested_dims)}")
        assert self.last_hidden_state is not None
        cut = self.last_hidden_state[..., : self.nested_dims[level]]
        if not whiten:
            return cut
        if self.whitening is None:
            raise ValueError(
                f"{NO_WHITENING}; where the model has them, this output was taken apart and put together since: call "
                f"model.whiten(embedding)"
            )
        whitened: torch.Tensor = self.whitening(cut)
        return whitened

    def __reduce__(self) -> tuple[Any, ...]:
        values = tuple(getattr(self, field.name) for field in fields(self))
        return _rebuild, (dict(self.nested_dims), values, self.whitening)


# By the widths of the levels.
_CLASSES: dict[tuple[tuple[str, int], ...], type[RDEsmModelOutput]] = {}


def output_class(dims: dict[str, int]) -> type[RDEsmModelOutput]:
    """The output class of a level.

    What takes an output apart and puts it together again (pytrees, `DataParallel`, accelerate) passes on its class and
    its tensors, and nothing else: so it is the class that knows the widths.
    """
    key = tuple(dims.items())
    if key not in _CLASSES:
        name = f"RDEsmModelOutput[{', '.join(f'{level}: {width}' for level, width in key)}]"
        _CLASSES[key] = type(name, (RDEsmModelOutput,), {"__module__": __name__, "nested_dims": dict(dims)})
    return _CLASSES[key]


def _rebuild(dims: dict[str, int], values: tuple[Any, ...], whitening: Any = None) -> RDEsmModelOutput:
    """An output that was pickled or copied."""
    output = output_class(dims)(*values)
    if whitening is not None:
        output.whitening = whitening  # type: ignore[misc]
    return output


@dataclass
class BackbonePass:
    """One batch on its way up the levels, and the embedding that grows.

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
        """Run one backbone, and nest the states after `depths`, where the levels that it serves end; the first level of
        all, without a projection, is the prefix."""
        states = self._run(backbone, depths)
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

    def read_out(self, backbone: PreTrainedModel, depth: int, readout: RDEsmReadout, keep_state: bool) -> None:
        """Run the largest backbone, which ends after `depth` layers, and read every level out of its layers."""
        states = self._run(backbone, [depth, *readout.layers])
        self.dtype = states[0].dtype
        self.embedding = readout(states)
        if keep_state:
            self.states += (states[0],)

    def _run(self, backbone: PreTrainedModel, depths: Sequence[int]) -> list[torch.Tensor]:
        output, states = run_backbone(backbone, depths, self.arguments)
        self.hidden_states += tuple(output.hidden_states or ())
        self.attentions += tuple(output.attentions or ())
        return states

    def output(self, dims: dict[str, int], dtype: torch.dtype | None = None) -> RDEsmModelOutput:
        """What the model returns of it, at the largest of the levels in `dims`; by default in the backbones' dtype."""
        assert self.embedding is not None
        # In one pass all levels are there, whichever is wanted.
        embedding = self.embedding[..., : max(dims.values())]
        return output_class(dims)(
            last_hidden_state=embedding.to(dtype or self.dtype),
            hidden_states=self.hidden_states or None,
            attentions=self.attentions or None,
            backbone_states=self.states or None,
        )


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

    # `forward` takes arguments by any name for packed rows; without this, Trainer would pass what a loss needs.
    accepts_loss_kwargs = False
    # Of what is returned; None for that of the backbones.
    embedding_dtype: torch.dtype | None = None
    # What its heads are of; those of another kind are no part of the model.
    heads_of: str | None = None
    # One per backbone, once `compile_layers` was called.
    layer_graphs: tuple[LayerGraph, ...] = ()

    def __init__(self, config: RDEsmConfig, build_backbones: bool | None = None) -> None:
        config = config.as_loaded()
        if not config.levels:
            raise ValueError("an RDEsmConfig without levels describes no model; give it `levels`")
        if config.heads and config.heads["of"] != self.heads_of:
            config.heads = None
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
            self.whitening = RDEsmWhitening(sizes, config.whitening["weights"], bool(config.whitening.get("grids")))
        self.post_init()

    @staticmethod
    def _saved_classes() -> tuple[Any, ...]:
        # Not above: that file imports this one.
        from .heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification

        return RDEsmModel, RDEsmForSequenceClassification, RDEsmForTokenClassification

    def _named_parts(self) -> list[tuple[str, nn.Module]]:
        """What was fitted, each part with what messages call it."""
        names = self.config.level_names
        parts = [(f"the basis of level {name}", step) for name, step in zip(names[1:], self.projections)]
        if self.config.readout is not None:
            parts.append(("the one-pass readout", self.readout))
        whitened = zip(names, self.whitening or ())
        return parts + [(f"what level {name} is whitened by", block) for name, block in whitened]

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
        self._prepare(backbone, levels)
        return backbone

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from a pickle, in which the backbones' modules are the library's."""
        super().__setstate__(state)
        for levels, backbone in zip(self.config.backbone_groups, self.backbones):
            if isinstance(backbone, PreTrainedModel):
                self._prepare(backbone, levels)
        self._compile()

    def compile_layers(self) -> None:
        """Compile the layers of the backbones (`torch.compile`): one graph per backbone, for all of its layers and for
        batches of every size, padded or packed.

        A graph is made at the first batch of each kind, which takes seconds to a minute. Layers run as they are under
        gradients, in training mode, where a module within has hooks, and where the whole model is compiled or traced.
        Parameters, their names and classes stay; embeddings are those of a model that is not compiled within rounding.
        Needs what `torch.compile` needs: Triton on a GPU, a C++ compiler on a CPU.
        """
        # Earlier versions' attention would end a graph: it looks at numbers.
        register_attention()
        self.layer_graphs = self.layer_graphs or tuple(LayerGraph() for _ in self.config.backbone_groups)
        self._compile()

    def _compile(self) -> None:
        for index, backbone in enumerate(self.backbones):
            if isinstance(backbone, PreTrainedModel):
                self._compiled(index, backbone)

    def _compiled(self, index: int, backbone: PreTrainedModel) -> PreTrainedModel:
        if self.layer_graphs:
            compile_layers(backbone, self.layer_graphs[index])
        return backbone

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmModel":
        # ESM-2 was trained with rotary frequencies rounded to float16; rounded once more by .to(bfloat16) they would
        # rotate far positions by other angles.
        before = {module: module._buffers["inv_freq"] for module in rotary_modules(self)}
        super()._apply(fn, recurse)
        for module, frequencies in before.items():
            keep_float32(module, "inv_freq", frequencies)
        return self

    def set_attn_implementation(self, attn_implementation: str | dict[str, str], **kwargs: Any) -> None:
        """As in transformers, and passed on to the backbones, which releases up to 5.17 do the first time only."""
        super().set_attn_implementation(attn_implementation, **kwargs)
        for backbone in self.backbones:
            own: Any = backbone.config
            own._attn_implementation = self.config._attn_implementation

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the backbones; float32 where there are none."""
        if self._fetch is not None:
            return self.get_buffer("placeholder").dtype
        return next((weight.dtype for weight in self.parameters() if weight.is_floating_point()), torch.float32)

    @property
    def device(self) -> torch.device:
        """Device of the first backbone; with sequential loading, where they run."""
        tensors = chain(self.parameters(), self.buffers() if self._fetch is None else [self.get_buffer("placeholder")])
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def visit_backbones(
        self, visit: Callable[[list[int], PreTrainedModel], None], last: int | None = None, first: int = 0
    ) -> None:
        """Call `visit(levels, backbone)`, smallest first; with sequential loading each is in memory for its visit.

        This takes a callback, and is no generator: the variable of a loop over backbones would still hold one while
        the next is loaded, and two would be in memory at a time.

        Args:
            visit: is given the positions of the levels that the backbone serves, one or (its layers) several, as far
                as they are wanted; `level_states` runs it. Must not keep the backbone.
            last, first (`int`): positions of the last level wanted, by default the largest, and of the first.

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
            visit(groups[index], self._compiled(index, self._fetch(index, dtype=here.dtype).to(here.device)))
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
            arguments: see `backbone_arguments`.
            layers: further layers of the backbone, whose states come behind those of the levels.
        """
        if layers:
            record_layers(backbone)
        return run_backbone(backbone, [*(self.config.depth(level) for level in levels), *layers], arguments)[1]

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        return largest.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        largest.set_input_embeddings(value)

    def enable_input_require_grads(self) -> None:
        """As in transformers, of every backbone: before 5.0 the library reaches the largest alone, and with
        checkpointing the adapters of the others would not learn."""
        for backbone in self.backbones:
            if isinstance(backbone, PreTrainedModel):
                backbone.enable_input_require_grads()

    def disable_input_require_grads(self) -> None:
        """Undo `enable_input_require_grads`."""
        for backbone in self.backbones:
            if isinstance(backbone, PreTrainedModel):
                backbone.disable_input_require_grads()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Always raises `NotImplementedError`, before anything is changed."""
        raise NotImplementedError(
            "the token embeddings cannot be resized: all backbones share ESM-2's vocabulary, which the bases were "
            "fitted with; resize a backbone by itself (model.backbones[i].resize_token_embeddings), outside this model"
        )

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
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
            packing: `long_input`, by default the config's: what becomes of a sequence of more than `max_residues`
                residues, `"error"`, `"window"` or `"whole"`. And `cu_seq_lens_q`, `cu_seq_lens_k` (int32,
                `(sequences + 1,)`: where each sequence starts, and the end), `max_length_q` and `max_length_k`, for
                sequences (each with its cls and eos) that share one row of `input_ids` without padding, `(1, length)`.
                `position_ids`, which `DataCollatorWithFlattening` makes too, follow from them and are not read.

        Raises:
            ValueError: unknown level; the backbones are not there; in eval mode, `<unk>` among the tokens; a sequence
                longer than `max_residues` or than a backbone's table of positions; or a packed row where sequences
                would see each other: attention other than `rd_esm_packed` or flash attention, or `<mask>` tokens,
                which token dropout counts over the whole row.
        """
        # Wrappers pass on what they were not given (PEFT: inputs_embeds, labels, start_positions, ...).
        packing = {name: value for name, value in packing.items() if value is not None}
        if input_ids is None or "inputs_embeds" in packing:
            raise ValueError(
                "give input_ids, and no inputs_embeds: each backbone has token embeddings of its own (of PEFT's "
                "methods, those that learn a prompt cannot be used)"
            )
        if "labels" in packing:
            raise ValueError(
                "this model returns embeddings and no loss: leave out labels, or load it with a head "
                "(AutoModelForSequenceClassification, AutoModelForTokenClassification)"
            )
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
        """As `forward` over each of several batches, level by level: the same bits.

        With sequential loading each backbone is loaded once for all of them. What is held meanwhile is the
        embedding of every position, 4 bytes times the level's width (and the states asked for).

        Args:
            batches: `input_ids` and what else `forward` takes of one batch.
        """
        last = self.config.level_index(level or self.config.level)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        extras = {name: True for name, wanted in asked.items() if wanted}
        long = [cut_long(self.config, batch, bool(output_attentions)) for batch in batches]
        runs = [own for batch, cut in zip(batches, long) for own in (cut.batches if cut else [batch])]
        passes = [BackbonePass(backbone_arguments(self.config, **batch) | extras) for batch in runs]

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
        found = iter([one.output(dims, self.embedding_dtype) for one in passes])
        outputs = [cut.join([next(found) for _ in cut.batches]) if cut else next(found) for cut in long]
        if self.whitening is not None:
            for output in outputs:
                output.whitening = self.whitening  # type: ignore[misc]
        return outputs

    def whiten(self, embedding: torch.Tensor) -> torch.Tensor:
        """Whiten an embedding of any level, `(..., its width)`, of residues or means of them: see [`RDEsmWhitening`].

        Returns:
            `torch.Tensor` of the same shape, float32; its first dimensions are the whitened smaller level.

        Raises:
            ValueError: the checkpoint has no statistics to whiten by, or the width is that of no level.
        """
        if self.whitening is None:
            raise ValueError(NO_WHITENING)
        whitened: torch.Tensor = self.whitening(embedding)
        return whitened


class ResiduePooling(nn.Module):
    """Mean over residues, for sentence-transformers, whose own mean takes in cls and eos.

    `modules.json` of a checkpoint names it, in this file. Each channel is averaged for itself, so that `truncate_dim`
    gives exactly the pooled embedding of a smaller level.
    """

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Adds `sentence_embedding`, `(batch, width)`, to features with `input_ids` and `token_embeddings`.

        Raises:
            ValueError: a sequence with `<unk>`, or without residues.
        """
        embeddings, ids = features["token_embeddings"], features["input_ids"]
        refuse_unknown(ids)
        features["sentence_embedding"] = mean_over_residues(embeddings, residue_mask(ids)).to(embeddings.dtype)
        return features

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """There is nothing to save: `modules.json` names the class, this file holds it."""

    @classmethod
    def load(cls, model_name_or_path: str, **kwargs: Any) -> "ResiduePooling":
        """As sentence-transformers calls it."""
        return cls()


RDEsmConfig.register_for_auto_class()
RDEsmModel.register_for_auto_class("AutoModel")

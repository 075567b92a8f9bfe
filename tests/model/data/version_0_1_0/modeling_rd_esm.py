"""Reverse-distilled ESM-2: nested protein embeddings from a chain of backbones.

Reverse distillation (Catrina, Bepler, Sledzieski and Singh, ICLR 2026, arXiv 2603.07710) keeps a smaller
model's embedding as it is and appends what a larger model knows beyond it (Algorithm 3):

    e_1 = h_1
    r_i = (h_i - mean(h_i)) - (e_(i-1) - mean(e_(i-1))) W_i
    e_i = [ e_(i-1) , r_i V_i ]

with h_i the final hidden state of backbone i, W_i the regression of h_i on e_(i-1) and V_i the leading
singular directions of the residual. The first dimensions of a larger embedding are the smaller embedding, bit
for bit.

This file travels to the Hub beside ``configuration_rd_esm.py``: it imports public names of torch and
transformers only.
"""

import copy
import gc
import json
import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    EsmConfig,
    EsmModel,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput, cached_file, logging

from .configuration_rd_esm import RDEsmConfig

# Where a download comes from and how; the backbones are fetched with the same.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")
# How weights are laid out; said of the backbones, since the projections are small and always float32.
_WEIGHT_ARGUMENTS = (
    *("dtype", "torch_dtype", "attn_implementation", "device_map", "max_memory", "offload_folder"),
    *("offload_buffers", "quantization_config", "tp_plan", "disable_mmap"),
)
# What a repo holds beside config, code and weights.
_COMPANIONS = (
    *("README.md", "fit_report.json", "fit_report.png", "modules.json"),
    *("vocab.txt", "tokenizer_config.json", "special_tokens_map.json"),
)
# `attn_implementation` under which several sequences may share one row.
PACKED_ATTENTION = "rd_esm_packed"
_WEIGHT_FILE = re.compile(r"model(\..+)?(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index(\..+)?\.json")


@dataclass
class RDEsmModelOutput(ModelOutput):
    """
    Output of [`RDEsmModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, length, width of the level)`):
            The nested embedding of every position (cls, eos, mask and padding included), in the backbones'
            dtype.
        hidden_states (`tuple(torch.FloatTensor)`, on request):
            Those of every backbone that ran, smallest first: for each the embedding output and one tensor a
            layer, each as wide as that backbone.
        attentions (`tuple(torch.FloatTensor)`, on request, eager attention):
            One tensor a layer of every backbone that ran, smallest first.
        backbone_states (`tuple(torch.FloatTensor)`, on request):
            The final hidden state h_i of each backbone that ran, `(batch, length, k_i)`.
        nested_dims (`dict[str, int]`):
            Width of each level that `last_hidden_state` holds.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    backbone_states: tuple[torch.Tensor, ...] | None = None
    nested_dims: dict[str, int] | None = None

    def nested(self, level: str) -> torch.Tensor:
        """The embedding of a smaller level: a view of `last_hidden_state`, `(batch, length, its width)`.

        Raises:
            ValueError: `last_hidden_state` does not hold that level.
        """
        dims = self.nested_dims or {}
        if level not in dims:
            raise ValueError(f"level {level!r} is not in this output, which holds {', '.join(dims)}")
        assert self.last_hidden_state is not None
        return self.last_hidden_state[..., : dims[level]]


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

    On CUDA the fused kernel of `torch.nn.attention.varlen`, for float16 and bfloat16; elsewhere (and in float32)
    one scaled dot product a sequence, which gives what separate rows give. Batches that are not packed take
    scaled dot product attention as usual.

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
    if query.device.type == "cuda" and query.dtype.itemsize == 2:
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


class RDEsmProjection(nn.Module):
    """One step of the chain: appends the residual block of backbone i to the embedding of level i-1.

    All of it is linear algebra in float32, whichever dtype the backbones have: ESM-2's final states have
    channels whose mean is a hundred times their deviation, and bfloat16 would round away what is left after
    the mean is taken off.

    Args:
        prefix_width (`int`): p, width of the embedding e_(i-1).
        backbone_width (`int`): k, width of the hidden state h_i.
        directions (`int`): d, width of the block that is appended.
    """

    prefix_mean: torch.Tensor
    backbone_mean: torch.Tensor
    regression: torch.Tensor
    directions: torch.Tensor

    def __init__(self, prefix_width: int, backbone_width: int, directions: int) -> None:
        super().__init__()
        fp32 = torch.float32
        self.register_buffer("prefix_mean", torch.zeros(prefix_width, dtype=fp32))  # mean(e_(i-1))
        self.register_buffer("backbone_mean", torch.zeros(backbone_width, dtype=fp32))  # mean(h_i)
        self.register_buffer("regression", torch.zeros(prefix_width, backbone_width, dtype=fp32))  # W_i
        self.register_buffer("directions", torch.zeros(backbone_width, directions, dtype=fp32))  # V_i

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmProjection":
        # .to(bfloat16) and .half() reach buffers too; keep the values and follow the device only.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            _keep_float32(self, name, buffer)
        return self

    def predict(self, prefix: torch.Tensor) -> torch.Tensor:
        """What the smaller level says of the larger state: mean(h_i) + (e_(i-1) - mean) W_i, `(..., k)`."""
        return self.backbone_mean + (prefix - self.prefix_mean) @ self.regression

    def forward(self, prefix: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """e_i = [e_(i-1), r_i V_i].

        Args:
            prefix (`torch.Tensor` of shape `(..., p)`): float32 embedding of the smaller level.
            state (`torch.Tensor` of shape `(..., k)`): hidden state of this level's backbone, any float dtype.

        Returns:
            `torch.Tensor` of shape `(..., p + d)`, float32.
        """
        # With several devices, each projection sits beside its backbone.
        device = self.regression.device
        prefix, state = prefix.to(device), state.to(device)
        with torch.autocast(device_type=device.type, enabled=False):
            # Means come off before the products, so that large channel means cost no precision.
            centred = state.to(self.backbone_mean.dtype) - self.backbone_mean
            residual = centred - (prefix.to(self.regression.dtype) - self.prefix_mean) @ self.regression
            return torch.cat((prefix, residual @ self.directions), dim=-1)

    def reconstruct(self, embedding: torch.Tensor) -> torch.Tensor:
        """Best reconstruction of h_i from e_i (Theorem 1): mean + (e_(i-1) - mean) W_i + (r_i V_i) V_i^T.

        Args:
            embedding (`torch.Tensor` of shape `(..., p + d)`): nested embedding of this level.

        Returns:
            `torch.Tensor` of shape `(..., k)`.
        """
        prefix, block = embedding.split([self.prefix_mean.shape[0], self.directions.shape[1]], dim=-1)
        return self.predict(prefix) + block @ self.directions.transpose(0, 1)


def _rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with rotary frequencies: one a layer before transformers 5.6, one a backbone since."""
    return [module for module in model.modules() if module._buffers.get("inv_freq") is not None]


def _set_rotary_frequencies(backbone: nn.Module, frequencies: torch.Tensor) -> None:
    for module in _rotary_modules(backbone):
        device = module._buffers["inv_freq"].device  # type: ignore[union-attr]
        module._buffers["inv_freq"] = frequencies.to(
            device="cpu" if device.type == "meta" else device, dtype=torch.float32, copy=True
        )


def _keep_float32(module: nn.Module, name: str, before: torch.Tensor | None) -> None:
    """Undo a cast to a narrower dtype, and keep a move to another device."""
    now = module._buffers[name]
    if now is not None and before is not None and now.dtype.itemsize < torch.float32.itemsize:
        module._buffers[name] = before.to(device=now.device, dtype=torch.float32)


class RDEsmPreTrainedModel(PreTrainedModel):
    """Flags that transformers reads; weights are initialised by the backbones themselves."""

    config_class = RDEsmConfig
    base_model_prefix = "rd_esm"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Behind a ModuleList these are not collected from the backbones, so they are said again here.
    _no_split_modules = ["EsmLayer", "EsmEmbeddings", "RDEsmProjection"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # A smaller level leaves the projections of the larger ones alone.
    _keys_to_ignore_on_load_unexpected = [r"^backbones\.\d+\.", r"^projections\.\d+\."]


@dataclass
class _Pass:
    """One batch on its way up the levels.

    Nothing but what is returned outlives a level: a backbone's state is gone before the next backbone runs.
    """

    arguments: dict[str, Any]
    embedding: torch.Tensor | None = None
    dtype: torch.dtype = torch.float32
    states: tuple[torch.Tensor, ...] = ()
    hidden_states: tuple[torch.Tensor, ...] = ()
    attentions: tuple[torch.Tensor, ...] = ()

    def advance(self, backbone: nn.Module, projection: nn.Module | None, keep_state: bool) -> None:
        """Run one backbone and nest its final state; the first level, without a projection, is the prefix."""
        output = backbone(**self.arguments, return_dict=True)
        state = output.last_hidden_state
        self.dtype = state.dtype
        if projection is None:
            # The prefix is copied, never centred, scaled or recomputed: widening and narrowing again returns the
            # same bits.
            self.embedding = state.to(torch.promote_types(state.dtype, torch.float32))
        else:
            self.embedding = projection(self.embedding, state)
        if keep_state:
            self.states += (state,)
        self.hidden_states += tuple(output.hidden_states or ())
        self.attentions += tuple(output.attentions or ())

    def output(self, dims: dict[str, int]) -> RDEsmModelOutput:
        assert self.embedding is not None
        return RDEsmModelOutput(
            last_hidden_state=self.embedding.to(self.dtype),
            hidden_states=self.hidden_states or None,
            attentions=self.attentions or None,
            backbone_states=self.states or None,
            nested_dims=dims,
        )


class RDEsmModel(RDEsmPreTrainedModel):
    """
    A stack of ESM-2 backbones whose final hidden states are nested into one embedding.

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

    _companions: tuple[str, ...] = _COMPANIONS

    def __init__(self, config: RDEsmConfig, build_backbones: bool | None = None) -> None:
        config = config.up_to(config.level)
        if not config.levels:
            raise ValueError("an RDEsmConfig without levels describes no model; give it `levels`")
        super().__init__(config)
        if build_backbones is None:
            build_backbones = config.backbones_in_checkpoint
        # Loads a backbone by position, where they are held one at a time only.
        self._fetch: Callable[..., PreTrainedModel] | None = None
        # A bare EsmModel(config) would ignore this model's attention implementation.
        self.backbones = nn.ModuleList(
            EsmModel._from_config(config.backbone_config(index), attn_implementation=config._attn_implementation)
            for index in range(len(config.levels) if build_backbones else 0)
        )
        widths = list(config.nested_dims.values())
        self.projections = nn.ModuleList(
            RDEsmProjection(prefix_width, backbone_width, directions)
            for prefix_width, backbone_width, directions in zip(
                widths, config.backbone_widths[1:], config.residual_directions
            )
        )
        self.post_init()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "RDEsmModel":
        # ESM-2 was trained with rotary frequencies rounded to float16; rounded once more by .to(bfloat16) they
        # would turn far positions elsewhere.
        before = {module: module._buffers["inv_freq"] for module in _rotary_modules(self)}
        super()._apply(fn, recurse)
        for module, frequencies in before.items():
            _keep_float32(module, "inv_freq", frequencies)
        return self

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

    def visit_backbones(self, visit: Callable[[int, PreTrainedModel], None], last: int | None = None) -> None:
        """Call `visit(position, backbone)`, smallest first; with sequential loading each is in memory for its visit.

        Args:
            visit: must not keep the backbone.
            last (`int`, *optional*): position of the last one wanted.

        Raises:
            ValueError: this model holds bases only.
        """
        wanted = len(self.config.levels) if last is None else last + 1
        if self._fetch is None:
            if len(self.backbones) < wanted:
                raise ValueError("this model holds bases only; load it with from_pretrained to fetch its backbones")
            for index, backbone in enumerate(self.backbones[:wanted]):
                visit(index, backbone)
            return
        here = self.get_buffer("placeholder")
        for index in range(wanted):
            # A backbone refers to itself (by its load hook), so that dropping it frees nothing yet.
            gc.collect()
            visit(index, self._fetch(index, dtype=here.dtype).to(here.device))

    def get_input_embeddings(self) -> nn.Module:
        """Token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        return largest.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the largest backbone."""
        largest: PreTrainedModel = self.backbones[-1]
        largest.set_input_embeddings(value)

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
            level (`str`, *optional*): name of the level, by default the largest.
            output_backbone_states (`bool`): also return each backbone's own final hidden state.
            output_hidden_states, output_attentions, return_dict (`bool`, *optional*): as in transformers.
            packing: `cu_seq_lens_q`, `cu_seq_lens_k` (int32, `(sequences + 1,)`: where each sequence starts, and the
                end), `max_length_q` and `max_length_k`, for sequences (each with its cls and eos) that share one row
                of `input_ids` without padding, `(1, length)`. `position_ids`, which
                `DataCollatorWithFlattening` makes too, follow from them and are not read.

        Raises:
            ValueError: unknown level; the backbones are not there; or a packed row where sequences would see each
                other: attention other than `rd_esm_packed` or flash attention, or `<mask>` tokens, which token
                dropout counts over the whole row.
        """
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, **packing}
        (result,) = self.forward_window([batch], level, output_backbone_states, output_hidden_states, output_attentions)
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
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
        last = self.config.level_index(level)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        extras: dict[str, bool] = {}
        if output_hidden_states:
            extras["output_hidden_states"] = True
        if output_attentions:
            extras["output_attentions"] = True
        passes = [_Pass(self._arguments(**batch) | extras) for batch in batches]

        def advance(index: int, backbone: PreTrainedModel) -> None:
            for one in passes:
                one.advance(backbone, self.projections[index - 1] if index else None, output_backbone_states)

        self.visit_backbones(advance, last)
        dims = dict(list(self.config.nested_dims.items())[: last + 1])
        return [one.output(dims) for one in passes]

    def _arguments(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **packing: Any,
    ) -> dict[str, Any]:
        """What every backbone is called with."""
        unknown = packing.keys() - {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
        if unknown:
            raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")
        ends = packing.get("cu_seq_lens_q")
        if ends is None:
            if packing or position_ids is not None:
                # position_ids that start anew would say where sequences meet, and attention would not care.
                raise ValueError("sequences that share a row need cu_seq_lens_q, or they would see each other")
            if attention_mask is None:
                attention_mask = input_ids.ne(self.config.pad_token_id).long()
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        attention = self.config._attn_implementation
        if attention != PACKED_ATTENTION and "flash" not in str(attention):
            raise ValueError(
                f"with {attention} attention the sequences of a packed row would see each other: load the model with "
                f"attn_implementation={PACKED_ATTENTION!r}, or with flash attention"
            )
        length = input_ids.shape[1]
        if attention_mask is not None or input_ids.shape[0] != 1 or ends[0] != 0 or ends[-1] != length:
            raise ValueError(
                f"a packed batch is one row of input_ids without attention_mask, cu_seq_lens_q from 0 to its length "
                f"{length}; got input_ids of shape {tuple(input_ids.shape)}"
                f"{'' if attention_mask is None else ' with attention_mask'}, cu_seq_lens_q {ends.tolist()}"
            )
        if input_ids.eq(self.config.backbone_config(0).mask_token_id).any():
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `level="150M"` to fetch, load and hold that level's backbones only.

        The bases come from this checkpoint. Each backbone comes from here too where the checkpoint holds them,
        and from its own `repo_id` at its pinned `revision` otherwise, with the same `dtype` (by default as
        saved), `attn_implementation`, `device_map`, `max_memory`, `cache_dir`, `token`, `local_files_only`, ...

        With `sequential=True` no backbone is held: each is loaded when its turn comes and released after it, so
        that a family runs where its largest backbone alone would. Give `forward_window` many batches at a time.

        Weights are read from safetensors; a checkpoint that has only pickled weights is refused.

        Raises:
            OSError: a repo, revision or file cannot be had.
            ValueError: weights are missing, damaged, not finite, or do not fit the config.
        """
        path = os.fspath(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        sequential = kwargs.pop("sequential", False)
        # Weights that do not fit are an error here, never a random start.
        for refused in ("ignore_mismatched_sizes", "use_safetensors", "weights_only", "variant", "key_mapping"):
            kwargs.pop(refused, None)
        weights = {name: kwargs.pop(name) for name in _WEIGHT_ARGUMENTS if name in kwargs}
        hub = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
        if os.path.isdir(path):
            _refuse_links(path)
        elif os.path.isabs(path) or path.startswith(".") or path.count("/") > 1:
            raise OSError(f"{path}: no such folder (and no Hub id, which is owner/name)")
        else:
            # One commit for everything that follows, even where the repo moves on meanwhile.
            kwargs["revision"] = _commit_of(path, kwargs.get("revision"), kwargs.get("subfolder", ""), hub)
        own = {name: kwargs[name] for name in ("revision", "subfolder") if name in kwargs}
        config = kwargs.pop("config", None)
        if isinstance(config, PretrainedConfig):
            config = copy.deepcopy(config)
            config.level = kwargs.pop("level", config.level)
        else:
            config, kwargs = RDEsmConfig.from_pretrained(
                path if config is None else config, return_unused_kwargs=True, **kwargs
            )
            kwargs = dict(kwargs) | hub | own
        if "attn_implementation" in weights:
            kwargs["attn_implementation"] = weights.pop("attn_implementation")

        full = config.backbones_in_checkpoint
        if config.level_index(config.level) == 0:
            # The first level has no basis, so there is nothing to read of this checkpoint itself.
            model = cls._from_config(
                config, build_backbones=False, attn_implementation=kwargs.get("attn_implementation")
            )
            model.config.name_or_path = path
            model.eval()
            info: dict[str, Any] = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        else:
            with _Reading(f"the bases of {path}"):
                model, info = super().from_pretrained(
                    path,
                    *args,
                    config=config,
                    build_backbones=False,
                    variant="projections" if full else None,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype=torch.float32,
                    **kwargs,
                )
        _check_loaded(f"the bases of {path}", info)
        _check_finite(model)
        dtype = weights.pop("torch_dtype", None)
        dtype = weights.pop("dtype", None) or dtype or "auto"
        if dtype == "auto":
            # Also where a release leaves the `dtype` that was asked for in the config and nowhere else.
            dtype = getattr(config, "dtype", None) or dtype
        model.config.backbones_in_checkpoint = full
        source = path if full else None
        model.load_backbones(source, dtype=dtype, sequential=sequential, **weights, **hub, **(own if full else {}))
        return (model, info) if wants_info else model

    def load_backbones(
        self,
        source: str | os.PathLike | None = None,
        revision: str | None = None,
        subfolder: str = "",
        dtype: str | torch.dtype = "auto",
        device_map: Any = None,
        max_memory: dict[Any, Any] | None = None,
        offload_folder: str | os.PathLike | None = None,
        sequential: bool = False,
        **kwargs: Any,
    ) -> None:
        """Fetch the backbones that the config names and attach them; none is initialised first.

        Args:
            source: folder or repo of this project's full form to take them from; by default each backbone comes
                from its own `repo_id` at its `revision`.
            revision, subfolder: of `source`.
            dtype: of the backbones; "auto" keeps what their files have.
            device_map, max_memory, offload_folder: as in transformers. With "auto" and its like the backbones
                are placed in turn, smallest first, and each projection on the device where its backbone ends.
            sequential: attach none, and load each whenever it is its turn, in the dtype of the first and on the
                device that the model is moved to.
            kwargs: passed to `from_pretrained` of each backbone (`token`, `cache_dir`, ...).

        Raises:
            OSError, ValueError: a backbone cannot be had or does not fit; the message names its level.
        """

        def fetch(index: int, dtype: str | torch.dtype = dtype, **placed: Any) -> PreTrainedModel:
            return self._load_backbone(index, source, revision or "main", subfolder, dtype=dtype, **placed, **kwargs)

        if sequential:
            if device_map is not None:
                raise ValueError("sequential loading runs one backbone at a time: move the model with .to(device)")
            found = fetch(0).dtype
            # It follows .to(): where backbones go, and in which dtype.
            self.register_buffer("placeholder", torch.empty(0, dtype=found), persistent=False)
            self._fetch = fetch
            self.backbones = nn.ModuleList()
            self.config.dtype = found
            return
        loaded: list[PreTrainedModel] = []
        placement = _Placement(device_map, max_memory)
        for index, entry in enumerate(self.config.levels):
            placed: dict[str, Any] = {}
            if device_map is not None:
                placed = placement.arguments(index)
                if offload_folder is not None:
                    placed["offload_folder"] = os.path.join(offload_folder, f"backbone-{entry['name']}")
            loaded.append(fetch(index, **placed))
            placement.add(index, loaded[-1])
        self.backbones = nn.ModuleList(loaded)
        self._fetch = None
        if device_map is not None:
            for index, projection in enumerate(self.projections):
                projection.to(placement.device(index + 1))
            self.hf_device_map = placement.merged()
        self.config.dtype = loaded[0].dtype

    def _load_backbone(
        self, index: int, source: str | os.PathLike | None, revision: str, subfolder: str, **kwargs: Any
    ) -> PreTrainedModel:
        """One backbone, from `source` or from its own repo; `kwargs` as `from_pretrained` takes them."""
        entry = self.config.levels[index]
        name = entry["name"]
        if source is None:
            where, pinned, what = entry["repo_id"], entry["revision"], f"{entry['repo_id']}, the backbone of {name}"
            if where is None:
                raise ValueError(f"level {name} names no repo_id in config.json, so its backbone cannot be fetched")
            if os.path.isdir(where):
                _refuse_links(where)
            extra: dict[str, Any] = {"revision": pinned or "main"}
        else:
            where, what = os.fspath(source), f"the backbone of {name} in {source}"
            extra = {
                "revision": revision,
                "subfolder": subfolder,
                "variant": f"backbone-{name}",
                "key_mapping": {rf"^backbones\.{index}\.": ""},
            }
        with _Reading(what):
            settings = {
                "config": self.config.backbone_config(index),
                "attn_implementation": self.config._attn_implementation,
                "add_pooling_layer": False,
                "use_safetensors": True,
                "ignore_mismatched_sizes": True,
                "output_loading_info": True,
                **extra,
                **kwargs,
            }
            # The library's own class, so that its renamings of older checkpoints' keys apply.
            try:
                backbone, info = EsmModel.from_pretrained(where, **settings)
            except Exception as error:
                if "device disk is invalid" not in str(error):
                    raise
                # Before 5.0 a whole model cannot go to disk, but all of its parts can.
                settings["device_map"] = dict.fromkeys(("embeddings", "encoder", "contact_head"), "disk")
                backbone, info = EsmModel.from_pretrained(where, **settings)
            _check_loaded(what, info)
            on_disk = "disk" in map(str, getattr(backbone, "hf_device_map", {}).values())
            lost = on_disk or any("inv_freq" in key for key in info["missing_keys"])
            if _rotary_modules(backbone) and (lost or backbone.dtype != torch.float32):
                _set_rotary_frequencies(backbone, _read_rotary_frequencies(where, backbone.config, extra, kwargs))
        backbone.train(self.training)
        return backbone

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "5GB",
        backbones: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Write config, remote code and weights, as safetensors.

        Args:
            save_directory: folder; weights of an earlier save in it are replaced.
            backbones: `False` writes the bases only (`model.safetensors`), for backbones that are published at
                their `repo_id`; `True` writes the full form too, each backbone in files of its own
                (`model.projections.safetensors`, `model.backbone-150M.safetensors`, ..., and the usual
                `model.safetensors.index.json` over all of them). By default as the config says.
            is_main_process, state_dict, push_to_hub, max_shard_size, kwargs: as in transformers.

        Raises:
            ValueError: bases only, but a level names no `repo_id`; or full, but the backbones are not there.
        """
        for ours in ("variant", "safe_serialization", "save_original_format"):
            kwargs.pop(ours, None)
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state_dict, **kwargs)
            return
        if not is_main_process:
            return
        folder = os.fspath(save_directory)
        os.makedirs(folder, exist_ok=True)
        full = self.config.backbones_in_checkpoint if backbones is None else backbones
        parts = self._parts(self.state_dict() if state_dict is None else state_dict, full)
        before, self.config.backbones_in_checkpoint = self.config.backbones_in_checkpoint, full
        try:
            # Written beside the old files and moved over them: these may be what the model's tensors map.
            with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as staging:
                for variant, part in parts.items():
                    super().save_pretrained(
                        staging,
                        state_dict=part,
                        max_shard_size=max_shard_size,
                        variant=variant,
                        # The keys are already those that every release reads.
                        save_original_format=False,
                    )
                if full:
                    _write_index(staging)
                fresh = os.listdir(staging)
                for name in fresh:
                    os.replace(os.path.join(staging, name), os.path.join(folder, name))
            for name in os.listdir(folder):
                if _WEIGHT_FILE.fullmatch(name) and name not in fresh:
                    os.remove(os.path.join(folder, name))
        finally:
            self.config.backbones_in_checkpoint = before
        if push_to_hub:
            self.push_to_hub(kwargs.pop("repo_id", os.path.basename(os.path.abspath(folder))), backbones=full, **kwargs)

    def push_to_hub(self, repo_id: str, *args: Any, backbones: bool = False, **kwargs: Any) -> Any:
        """As in transformers: bases only, or with `backbones=True` the backbones too.

        Tokenizer, fit report, figure and card come along from the folder or repo that the model was loaded
        from. `scripts/push_to_hub.py` pushes a folder, makes its card afresh, and checks what arrived.
        """
        before, self.config.backbones_in_checkpoint = self.config.backbones_in_checkpoint, backbones
        # A card that describes the other form stays behind.
        self._companions = _COMPANIONS if before == backbones else _COMPANIONS[1:]
        try:
            return super().push_to_hub(repo_id, *args, **kwargs)
        finally:
            self.config.backbones_in_checkpoint = before

    def _upload_modified_files(self, working_dir: str | os.PathLike, repo_id: str, *args: Any, **kwargs: Any) -> Any:
        # transformers has just written a card of its own; one that came with the model says more.
        source = getattr(self.config, "name_or_path", "") or ""
        for name in self._companions if source else ():
            if os.path.isdir(source):
                found = os.path.join(source, name)
                if os.path.islink(found) or not os.path.isfile(found):
                    continue
            else:
                found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
                if found is None:
                    continue
            with open(found, "rb") as file:
                content = file.read()
            if name == "README.md":
                for old in (source, f"your-name/{os.path.basename(os.path.abspath(source))}"):
                    content = content.replace(old.encode(), repo_id.encode())
            with open(os.path.join(working_dir, name), "wb") as file:
                file.write(content)
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)

    def _parts(self, state: dict[str, torch.Tensor], full: bool) -> dict[str | None, dict[str, torch.Tensor]]:
        """The tensors of each file (or set of shards), by variant name."""
        projections = {key: value for key, value in state.items() if key.startswith("projections.")}
        if not full:
            for entry in self.config.levels:
                if entry["repo_id"] is None:
                    raise ValueError(
                        f"level {entry['name']} names no repo_id that its backbone could be fetched from: save the "
                        f"backbones too (backbones=True), or set config.levels[...]['repo_id'] and ['revision']"
                    )
            return {None: projections}
        if len(self.backbones) < len(self.config.levels):
            raise ValueError(
                "this model holds bases only; fetch its backbones (load_backbones) or save backbones=False"
            )
        parts: dict[str | None, dict[str, torch.Tensor]] = {"projections": projections}
        for index, (entry, backbone) in enumerate(zip(self.config.levels, self.backbones)):
            prefix = f"backbones.{index}."
            part = {
                key: value for key, value in state.items() if key.startswith(prefix) and not key.endswith("inv_freq")
            }
            # Under the keys of releases before 5.6 (one a layer) and since (one a model): each finds its own
            # and ignores the other.
            for module in _rotary_modules(backbone)[:1]:
                frequencies = module.get_buffer("inv_freq")
                layers = range(entry["backbone"]["num_hidden_layers"])
                for place in ["", *(f"encoder.layer.{layer}.attention.self." for layer in layers)]:
                    part[f"{prefix}{place}rotary_embeddings.inv_freq"] = frequencies.detach().clone()
            parts[f"backbone-{entry['name']}"] = part
        return parts


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


def _write_index(folder: str) -> None:
    """`model.safetensors.index.json` over the files of all parts, for tools that read sharded checkpoints."""
    weight_map: dict[str, str] = {}
    size = 0
    for name in sorted(os.listdir(folder)):
        if name.endswith(".safetensors"):
            header = _read_header(os.path.join(folder, name))
            for key, tensor in header.items():
                if key != "__metadata__":
                    weight_map[key] = name
                    size += tensor["data_offsets"][1] - tensor["data_offsets"][0]
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    with open(os.path.join(folder, "model.safetensors.index.json"), "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _read_header(path: str) -> dict[str, Any]:
    """JSON header of a safetensors file: 8 bytes of length, then that many of JSON."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length))


def _read_rotary_frequencies(
    where: str, config: EsmConfig, source: dict[str, Any], options: dict[str, Any]
) -> torch.Tensor:
    """Rotary `inv_freq` of a checkpoint as it is stored, float32 `(head width / 2,)`.

    They are lost where the weights are loaded in a narrower dtype or left on disk, or with a release before 5.6
    from a file that a later one wrote (which names its key with a literal `*`). They are read through a model so
    small that nothing else in the checkpoint has its shapes; a checkpoint without them gets base^(-2 j / d)
    (Su et al. 2021).
    """
    head_width = config.hidden_size // config.num_attention_heads
    probe_config = copy.deepcopy(config)
    probe_config.hidden_size, probe_config.num_attention_heads = head_width, 1
    probe_config.intermediate_size = probe_config.num_hidden_layers = 1
    hub = {name: options[name] for name in _HUB_ARGUMENTS if name in options}
    per_layer = {**source.get("key_mapping", {}), r"encoder\.layer\.\*\.attention": "encoder.layer.0.attention"}
    for mapping in (source.get("key_mapping"), per_layer):
        probe, info = EsmModel.from_pretrained(
            where,
            config=probe_config,
            add_pooling_layer=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            dtype=torch.float32,
            **{**source, "key_mapping": mapping},
            **hub,
        )
        if not any("inv_freq" in key for key in info["missing_keys"]):
            frequencies = _rotary_modules(probe)[0]._buffers["inv_freq"]
            assert frequencies is not None
            return frequencies
    base = getattr(config, "rope_theta", None) or 10000.0
    return torch.as_tensor(1.0 / base ** (torch.arange(0, head_width, 2, dtype=torch.float) / head_width))


class _Reading:
    """Reads one part of a checkpoint: quietly, since what it holds is checked here, and naming it when that fails."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        self.verbosity = logging.get_verbosity()
        # A backbone's repo holds a language model's head too; that this is left out is no news.
        logging.set_verbosity_error()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        logging.set_verbosity(self.verbosity)
        if kind is not None and kind.__name__ == "SafetensorError":
            raise ValueError(
                f"{self.what}: a weights file is cut short or is no safetensors file ({error}); fetch it again"
            ) from error
        if isinstance(error, OSError):
            raise OSError(f"{self.what} cannot be loaded: {error}") from error


def _check_loaded(what: str, info: dict[str, Any]) -> None:
    """Raise unless every weight was there, in its shape; contacts are not predicted here, and some encoders are
    published without the head for them."""
    missing = sorted(key for key in info["missing_keys"] if not re.search(r"inv_freq|^contact_head\.", key))
    mismatched = sorted((key[0] if isinstance(key, tuple) else key) for key in info["mismatched_keys"])
    if missing or mismatched:
        wrong = [f"{len(missing)} are missing ({missing[0]}, ...)"] if missing else []
        wrong += [f"{len(mismatched)} have another shape ({mismatched[0]}, ...)"] if mismatched else []
        raise ValueError(
            f"{what}: its weights are not those that config.json describes: {' and '.join(wrong)}; "
            f"check that config, revision and weights belong together, or fetch them again"
        )


def _check_finite(model: RDEsmModel) -> None:
    for name, projection in zip(model.config.level_names[1:], model.projections):
        for key, buffer in projection.named_buffers():
            if buffer.device.type != "meta" and not torch.isfinite(buffer).all():
                raise ValueError(
                    f"the basis of level {name} holds NaN or infinite numbers ({key}): fit it again, or fetch it again"
                )


def _refuse_links(folder: str) -> None:
    """Raise if a file of a local checkpoint is a link that leads out of it.

    The Hub's own cache is made of links from `snapshots/<commit>/` to `blobs/`, which are let through.
    """
    home = os.path.realpath(folder)
    blobs = os.path.join(os.path.dirname(os.path.dirname(home)), "blobs")
    in_cache = os.path.basename(os.path.dirname(home)) == "snapshots"
    for root, directories, files in os.walk(folder):
        for name in directories + files:
            path = os.path.join(root, name)
            if not os.path.islink(path):
                continue
            target = os.path.realpath(path)
            if os.path.commonpath((home, target)) == home:
                continue
            if in_cache and os.path.commonpath((blobs, target)) == blobs:
                continue
            raise ValueError(f"{path} is a link out of its folder (to {target}): put the file itself there")


def _commit_of(repo: str, revision: str | None, subfolder: str, hub: dict[str, Any]) -> str | None:
    """The commit a revision stands for, from where the Hub's cache puts its config.json."""
    file = cached_file(repo, "config.json", revision=revision, subfolder=subfolder, **hub)
    parts = os.path.normpath(file).split(os.sep) if file is not None else []
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else revision


class _Placement:
    """Where backbones and projections go under a `device_map`."""

    def __init__(self, device_map: Any, max_memory: dict[Any, Any] | None) -> None:
        self.device_map = device_map
        self.left = {device: _bytes(size) for device, size in (max_memory or {}).items()}
        self.maps: dict[int, dict[str, Any]] = {}

    def arguments(self, index: int) -> dict[str, Any]:
        """`device_map` (and `max_memory`) of one backbone."""
        if isinstance(self.device_map, str) and self.device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
            return {"device_map": self.device_map, "max_memory": dict(self.left) or None}
        if not isinstance(self.device_map, dict):
            return {"device_map": {"": self.device_map}}
        prefix = f"backbones.{index}"
        inside = {key[len(prefix) + 1 :]: to for key, to in self.device_map.items() if key.startswith(f"{prefix}.")}
        for whole in ("", "backbones", prefix):
            if whole in self.device_map and not inside.keys() - {""}:
                inside[""] = self.device_map[whole]
        if not inside:
            raise ValueError(
                f"device_map has no entry for {prefix}; its keys are {', '.join(map(repr, self.device_map))}"
            )
        return {"device_map": inside}

    def add(self, index: int, backbone: nn.Module) -> None:
        """Note where a backbone went, and what it takes there."""
        given = getattr(backbone, "hf_device_map", None)
        if given is None:
            given = {"": next(backbone.parameters()).device}
        self.maps[index] = dict(given)
        for name, to in given.items():
            size = sum(
                parameter.nbytes
                for key, parameter in backbone.named_parameters()
                if not name or key == name or key.startswith(f"{name}.")
            )
            if to in self.left:
                self.left[to] = max(0, self.left[to] - size)

    def device(self, index: int) -> Any:
        """Where the backbone's last layer computes: what is kept in memory or on disk computes on an accelerator."""
        if isinstance(self.device_map, dict) and f"projections.{index - 1}" in self.device_map:
            return self.device_map[f"projections.{index - 1}"]
        accelerators = [to for to in self.maps[index].values() if str(to) not in ("cpu", "disk")]
        return accelerators[-1] if accelerators else "cpu"

    def merged(self) -> dict[str, Any]:
        """One map over the whole model."""
        merged = {
            f"backbones.{index}{'.' if name else ''}{name}": to
            for index, names in self.maps.items()
            for name, to in names.items()
        }
        return merged | {f"projections.{index - 1}": self.device(index) for index in self.maps if index}


def _bytes(size: int | str) -> int:
    """ "8GB", "500MiB" or a number, in bytes."""
    if isinstance(size, int):
        return size
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", size, flags=re.IGNORECASE)
    if match is None:
        raise ValueError(f"max_memory {size!r} is no size: write it as 500MB, 8GiB or a number of bytes")
    unit = 1024 if match[3] else 1000
    return int(float(match[1]) * unit ** " KMGT".index(match[2].upper() or " "))


RDEsmConfig.register_for_auto_class()
RDEsmModel.register_for_auto_class("AutoModel")

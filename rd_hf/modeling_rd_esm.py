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

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import EsmModel, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_rd_esm import RDEsmConfig


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
        for name, buffer in self._buffers.items():
            if buffer is not None and buffer.dtype.itemsize < torch.float32.itemsize:
                self._buffers[name] = before[name].to(  # type: ignore[union-attr]
                    device=buffer.device, dtype=torch.float32
                )
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
        with torch.autocast(device_type=prefix.device.type, enabled=False):
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
    # A smaller level is loaded out of a larger checkpoint by leaving the rest of its weights alone; rotary
    # frequencies are computed, their keys differ between releases.
    _keys_to_ignore_on_load_unexpected = [r"^backbones\.\d+\.", r"^projections\.\d+\.", r"inv_freq"]
    _keys_to_ignore_on_load_missing = [r"inv_freq"]


class RDEsmModel(RDEsmPreTrainedModel):
    """
    A stack of ESM-2 backbones whose final hidden states are nested into one embedding.

    Args:
        config ([`RDEsmConfig`]): the family. With `config.level` set, only the levels up to it are built, and
            `model.config` describes just those.

    Example:

    ```python
    model = AutoModel.from_pretrained("rohitsinghlab/rd-esm2-3B", trust_remote_code=True)
    output = model(**tokenizer(["MKTAYIAKQR"], return_tensors="pt"))
    output.last_hidden_state  # (1, 12, 2560)
    output.nested("35M")      # (1, 12, 480), a view
    ```
    """

    def __init__(self, config: RDEsmConfig) -> None:
        config = config.up_to(config.level)
        if not config.levels:
            raise ValueError("an RDEsmConfig without levels describes no model; give it `levels`")
        super().__init__(config)
        # A bare EsmModel(config) would ignore this model's attention implementation.
        self.backbones = nn.ModuleList(
            EsmModel._from_config(
                config.backbone_config(index),
                attn_implementation=config._attn_implementation,
                add_pooling_layer=False,
            )
            for index in range(len(config.levels) if config.backbones_in_checkpoint else 0)
        )
        widths = list(config.nested_dims.values())
        self.projections = nn.ModuleList(
            RDEsmProjection(prefix_width, backbone_width, directions)
            for prefix_width, backbone_width, directions in zip(
                widths, config.backbone_widths[1:], config.residual_directions
            )
        )
        self.post_init()

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

        Raises:
            ValueError: unknown level, or the backbones are not there.
        """
        last = self.config.level_index(level)
        if len(self.backbones) <= last:
            raise ValueError("this model holds bases only; load it with from_pretrained to fetch its backbones")
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id).long()
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        extras: dict[str, bool] = {}
        if output_hidden_states:
            extras["output_hidden_states"] = True
        if output_attentions:
            extras["output_attentions"] = True

        states: list[torch.Tensor] = []
        hidden_states: list[torch.Tensor] = []
        attentions: list[torch.Tensor] = []
        embedding: torch.Tensor | None = None
        for index, backbone in enumerate(self.backbones[: last + 1]):
            output = backbone(input_ids=input_ids, attention_mask=attention_mask, return_dict=True, **extras)
            state = output.last_hidden_state
            if embedding is None:
                # The prefix is copied, never centred, scaled or recomputed: widening and narrowing again
                # returns the same bits.
                embedding = state.to(torch.promote_types(state.dtype, torch.float32))
            else:
                embedding = self.projections[index - 1](embedding, state)
            if output_backbone_states:
                states.append(state)
            if output_hidden_states:
                hidden_states.extend(output.hidden_states)
            if output_attentions:
                attentions.extend(output.attentions)

        assert embedding is not None
        dims = dict(list(self.config.nested_dims.items())[: last + 1])
        result = RDEsmModelOutput(
            last_hidden_state=embedding.to(state.dtype),
            hidden_states=tuple(hidden_states) or None,
            attentions=tuple(attentions) or None,
            backbone_states=tuple(states) or None,
            nested_dims=dims,
        )
        if return_dict is None:
            return_dict = getattr(self.config, "return_dict", True)
        return result if return_dict else result.to_tuple()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """As in transformers, with `level="150M"` to load a smaller level only.

        Weights are read from safetensors; a checkpoint that has only pickled weights is refused.

        Raises:
            ValueError: the checkpoint lacks weights that its config asks for, or theirs have other shapes.
        """
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs.setdefault("use_safetensors", True)
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        missing = sorted(key for key in info["missing_keys"] if "inv_freq" not in key)
        mismatched = sorted(str(key) for key in info["mismatched_keys"])
        if missing or mismatched:
            wrong = [f"{len(missing)} missing ({missing[0]}, ...)"] if missing else []
            wrong += [f"{len(mismatched)} of another shape ({mismatched[0]}, ...)"] if mismatched else []
            raise ValueError(
                f"{pretrained_model_name_or_path} does not hold the weights its config.json describes: "
                f"{' and '.join(wrong)}; fetch it again or check that config and weights belong together"
            )
        _fill_rotary_frequencies(model)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in transformers; rotary frequencies are left out, since their keys differ between releases."""
        state = kwargs.pop("state_dict", None) or self.state_dict()
        state = {key: value for key, value in state.items() if not key.endswith("inv_freq")}
        super().save_pretrained(save_directory, *args, state_dict=state, **kwargs)


def _fill_rotary_frequencies(model: RDEsmModel) -> None:
    """Compute every rotary `inv_freq` (Su et al. 2021: base^(-2 j / d)): no checkpoint of ours holds them."""
    for backbone in model.backbones:
        config: Any = backbone.config
        head_width = config.hidden_size // config.num_attention_heads
        base = getattr(config, "rope_theta", None) or 10000.0
        steps = torch.arange(0, head_width, 2, dtype=torch.float) / head_width
        for module in backbone.modules():
            frequencies = module._buffers.get("inv_freq")
            if frequencies is not None:
                module._buffers["inv_freq"] = (1.0 / base**steps).to(
                    device="cpu" if frequencies.device.type == "meta" else frequencies.device
                )


RDEsmConfig.register_for_auto_class()
RDEsmModel.register_for_auto_class("AutoModel")

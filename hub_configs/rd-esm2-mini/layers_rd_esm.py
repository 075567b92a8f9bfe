"""One pass of one backbone: what it is called with, its attention, and the states of several of its layers.

The state of a level that is layer n of a backbone is what that backbone would return if it ended there: the output of
layer n under the final norm. The config of a shorter backbone stays that of the whole one, since ESM-C's residuals are
scaled by its number of layers, and ESM-2's contact head has a weight for each of them.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import copy
import copyreg
import functools
import threading
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.functional import scaled_dot_product_attention
from transformers import MODEL_MAPPING, AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from .configuration_rd_esm import RDEsmConfig, check_long
from .families_rd_esm import FAMILIES, POSITION_FIELDS, counts_from, longest_input
from .pooling_rd_esm import SPECIAL_TOKENS, TOKENS, is_tracing

# `attn_implementation` under which several sequences may share one row.
PACKED_ATTENTION = "rd_esm_packed"


class HiddenStateRecorder:
    """Records the states after some of a backbone's layers, in one pass.

    It goes through the backbone as a keyword argument, so that nothing of a pass stays in the model: passes of several
    threads do not meet, a model can be pickled, and a compiler sees plain code. (It is no dict, of which a copy is made
    where a call's arguments are moved to another device.)
    """

    def __init__(self, depths: Sequence[int]) -> None:
        self.last = max(depths)
        self.wanted = frozenset(depths) - {self.last}
        self.states: dict[int, torch.Tensor] = {}


class InPlaceOf:
    """A mixin that stands before a class of the library among the bases of a module's class.

    A copy has the same class. A pickle holds the library's own module, so that a backbone by itself loads wherever
    transformers is; the model that it belongs to changes its class anew.
    """

    library: ClassVar[Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: Any = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self._held(), memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copyreg._reconstructor, (self.library, object, None), self._held()  # type: ignore[attr-defined]

    def _held(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "graph"}


@functools.cache
def in_place_of(library: Any, mixin: Any) -> type[nn.Module]:
    """The class of the library with `mixin` before it, under its name, by which device maps and others know it."""
    around = {"__module__": library.__module__, "__qualname__": library.__qualname__, "library": library}
    return type(library.__name__, (mixin, library), around)


class LayerGraph:
    """The layers of one backbone, compiled: one graph for all of them and for batches of every size.

    torch compiles for the shapes that it is shown, so an example of a fixed shape goes before the first batch of each
    kind: what is compiled does not depend on which batch came first. A copy or a pickle compiles anew.
    """

    def __init__(self) -> None:
        self.kinds: set[tuple[Any, ...]] = set()
        self.lock = threading.RLock()
        # Code of its own: torch keeps eight graphs of one code, and those of other backbones would be among them.
        own = FunctionType(_as_written.__code__.replace(), globals())
        self.run: Any = torch.compile(own, dynamic=True)

    def __reduce__(self) -> Any:
        return LayerGraph, ()

    def prepare(self, backbone: PreTrainedModel, depths: Sequence[int], arguments: dict[str, Any]) -> None:
        """Compile what a batch needs, where it is the first of its kind."""
        ids, mask = arguments["input_ids"], arguments["attention_mask"]
        packed = "cu_seq_lens_q" in arguments
        # Of one row, and without padding, layers are called otherwise.
        shape = (3 if len(ids) > 1 else 1, 7)
        padded = not packed and not bool(mask.all())
        attention, inference = str(backbone.config._attn_implementation), torch.is_inference_mode_enabled()
        kind = (packed, padded, shape, ids.device, backbone.dtype, attention, inference)
        # Of several threads none goes on before what it needs is there.
        with self.lock:
            if kind not in self.kinds:
                self.kinds.add(kind)
                run_backbone(backbone, depths, _example(ids, shape, padded, arguments.get("cu_seq_lens_q")))


def _example(ids: torch.Tensor, shape: tuple[int, int], padded: bool, ends: torch.Tensor | None) -> dict[str, Any]:
    """What a backbone is called with for a batch of this shape, of two sequences in one row where it is packed."""
    tokens = ids.new_full(shape, TOKENS["A"])
    if ends is not None:
        ends = ends.new_tensor([0, 4, 7])
        bounds = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4}
        return {
            "input_ids": tokens,
            "attention_mask": None,
            "position_ids": ids.new_tensor([[0, 1, 2, 3, 0, 1, 2]]),
            **bounds,
        }
    mask = torch.ones_like(tokens)
    mask[0, 6:] = 0 if padded else 1
    return {"input_ids": tokens, "attention_mask": mask}


def _as_written(layer: Any, *args: Any, **kwargs: Any) -> Any:
    return type(layer).library.__call__(layer, *args, **kwargs)


class _RecordedLayer(InPlaceOf):
    """A layer that gives its state to the recorder, and does nothing beyond the deepest layer wanted."""

    depth: int
    graph: LayerGraph | None = None

    def __call__(
        self, hidden_states: torch.Tensor, *args: Any, recorder: HiddenStateRecorder | None = None, **kwargs: Any
    ) -> Any:
        call = _as_written if self.graph is None or not _is_compiled(self) else self.graph.run
        if recorder is None:
            return call(self, hidden_states, *args, **kwargs)
        if self.depth > recorder.last:
            return hidden_states
        if self.depth == 1 and 0 in recorder.wanted:
            recorder.states[0] = hidden_states
        state = call(self, hidden_states, *args, **kwargs)
        if self.depth in recorder.wanted:
            recorder.states[self.depth] = state
        return state


def compile_layers(backbone: PreTrainedModel, graph: LayerGraph) -> None:
    """Let the layers of a backbone run as `graph`, where nobody looks at what is in between."""
    record_layers(backbone)
    for layer in stack_of(backbone):
        layer.graph = graph  # type: ignore[assignment]


def runs_as_written() -> bool:
    """Whether operations are computed and no more: nothing records them, counts them or takes derivatives."""
    if is_tracing():
        return False
    try:
        return not (
            torch._C._are_functorch_transforms_active()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._len_torch_function_stack()
            or forward_ad._current_level >= 0
        )
    except AttributeError:
        # Of no documented part of torch: where one is gone, the library's own code runs.
        return False


def _is_compiled(layer: Any) -> bool:
    """Whether a layer runs as its graph: without gradients, dropout and hooks, which see the library's own code."""
    return not (
        torch.is_grad_enabled()
        or layer.training
        or not runs_as_written()
        or any(
            module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
            for module in layer.modules()
        )
    )


def stack_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The layers of a backbone."""
    found = backbone.get_submodule(FAMILIES[backbone.config.model_type].layers)
    assert isinstance(found, nn.ModuleList)
    return found


def record_layers(backbone: PreTrainedModel) -> None:
    """Let `states_after` ask for states within; what the backbone computes for others is unchanged."""
    for number, layer in enumerate(stack_of(backbone), start=1):
        if not isinstance(layer, _RecordedLayer):
            layer.__class__ = in_place_of(type(layer), _RecordedLayer)  # type: ignore[arg-type]
        layer.depth = number  # type: ignore[assignment]


def states_after(
    backbone: PreTrainedModel, depths: Sequence[int], arguments: dict[str, Any]
) -> tuple[Any, list[torch.Tensor]]:
    """Run a backbone once, up to the deepest layer wanted.

    Args:
        backbone: one that was built to end there, or whose layers are recorded (`record_layers`).
        depths: numbers of layers, from 1, in any order; 0 is what the first is given.

    Returns:
        Its output, and its state after each of `depths` under the final norm, `(batch, length, k)`.
    """
    if list(depths) == [len(stack_of(backbone))]:
        output = backbone(**arguments, return_dict=True)
        return output, [output.last_hidden_state]
    recorder = HiddenStateRecorder(depths)
    output = backbone(**arguments, recorder=recorder, return_dict=True)
    norm = backbone.get_submodule(FAMILIES[backbone.config.model_type].final_norm)
    return output, [
        output.last_hidden_state if depth == recorder.last else norm(recorder.states[depth]) for depth in depths
    ]


def encoder_class(config: PretrainedConfig, depth: int | None = None) -> type[PreTrainedModel]:
    """The library's own class for a backbone; with `depth`, one that is built with so many of its layers.

    Once built, `set_class_and_recording` gives it the library's class, so that it can be pickled.
    """
    encoder: Any = MODEL_MAPPING[type(config)]
    if depth is None or depth == config.num_hidden_layers:
        return encoder

    class Shorter(encoder):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            del stack_of(self)[depth:]

    Shorter.__name__, Shorter.__qualname__, Shorter.__module__ = encoder.__name__, encoder.__name__, encoder.__module__
    return Shorter


def set_class_and_recording(backbone: PreTrainedModel, record: bool) -> None:
    """Give a backbone that was built the library's class, and with `record` make it ready for `states_after`."""
    backbone.__class__ = MODEL_MAPPING[type(backbone.config)]
    # Saved by itself it is a plain model of its family: nothing is renamed back to what its file had.
    backbone._weight_conversions = []
    if record:
        record_layers(backbone)


def rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules with rotary frequencies: one per layer before transformers 5.6, one per backbone since."""
    return [module for module in model.modules() if module._buffers.get("inv_freq") is not None]


def set_rotary_frequencies(modules: list[nn.Module], frequencies: torch.Tensor) -> None:
    """Replace rotary frequencies, in float32, where each module computes."""
    for module in modules:
        device = module._buffers["inv_freq"].device  # type: ignore[union-attr]
        module._buffers["inv_freq"] = frequencies.to(
            device="cpu" if device.type == "meta" else device, dtype=torch.float32, copy=True
        )


def run_backbone(
    backbone: PreTrainedModel, depths: Sequence[int], arguments: dict[str, Any]
) -> tuple[Any, list[torch.Tensor]]:
    """`states_after`, of what `backbone_arguments` gives, with positions as this backbone counts them.

    Raises:
        ValueError: the batch is longer than the backbone's table of positions; a packed row whose sequences would see
            each other.
    """
    # Asked of the backbone: it is its own config that its layers look at.
    attention = str(backbone.config._attn_implementation)
    if "cu_seq_lens_q" in arguments and not keeps_apart(attention):
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
    first: Any = stack_of(backbone)[0] if len(stack_of(backbone)) else None
    graph = getattr(first, "graph", None)
    if graph is not None and _is_compiled(first):
        graph.prepare(backbone, depths, arguments)
    found = states_after(backbone, depths, arguments)
    # Angles of one batch are no part of a graph for all.
    if not torch.compiler.is_compiling() and (graph is not None or torch.is_inference_mode_enabled()):
        _forget_angles(backbone)
    return found


def _forget_angles(backbone: PreTrainedModel) -> None:
    """Drop the angles that modules of releases up to 5.0 keep of their last input: made in inference mode, they would
    stop a later pass with gradients."""
    for module in rotary_modules(backbone):
        if getattr(module, "_cos_cached", None) is not None:
            module._cos_cached = module._sin_cached = module._seq_len_cached = None  # type: ignore[assignment]


def backbone_arguments(
    config: RDEsmConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    long_input: str | None = None,
    **packing: Any,
) -> dict[str, Any]:
    """What every backbone is called with, of what `RDEsmModel.forward` takes.

    Raises:
        TypeError: an argument that is none of these.
        ValueError: a packed row that is none; a sequence longer than the model takes at once.
    """
    unknown = packing.keys() - {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}
    if unknown:
        raise TypeError(f"forward() got an unexpected keyword argument {min(unknown)!r}")
    limit = _limit(config, long_input)
    ends = packing.get("cu_seq_lens_q")
    if ends is None:
        if packing or position_ids is not None:
            # position_ids that start anew would say where sequences meet, and attention would not care.
            raise ValueError("sequences that share a row need cu_seq_lens_q, or they would see each other")
        if attention_mask is None:
            attention_mask = input_ids.ne(config.pad_token_id).long()
        if limit is not None and input_ids.shape[1] > limit:
            # Rows may be padded to more than their longest sequence; within a graph no number is looked at.
            seen = attention_mask.ndim == 2 and attention_mask.device.type != "meta" and not is_tracing()
            _refuse_long(limit, int(attention_mask.sum(1).max()) if seen else input_ids.shape[1])
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
    _refuse_long(limit, longest)
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


def _limit(config: RDEsmConfig, long_input: str | None) -> int | None:
    """Tokens of a sequence at most; None for any number, as in what is traced or exported: a graph cannot refuse."""
    # torch has the second from 2.7 on.
    exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)
    if torch.jit.is_tracing() or exporting():  # type: ignore[attr-defined]
        return None
    check_long(long_input or config.long_input, config.max_residues)
    return None if (long_input or config.long_input) == "whole" else config.max_residues + SPECIAL_TOKENS


def _refuse_long(limit: int | None, tokens: int) -> None:
    """Raise `ValueError` for a sequence of more tokens than the model takes at once."""
    if limit is not None and tokens > limit:
        # No thousands separators: in a compiled model these are no plain numbers.
        raise ValueError(
            f"a sequence here has {tokens - SPECIAL_TOKENS} residues, and the model takes {limit - SPECIAL_TOKENS} at "
            f"once: load it with long_input='window' for merged windows (as SentenceTransformer, and rd_hf's Embedder "
            f"and rd-hf embed, make them unasked), or with long_input='whole' to run it as it is"
        )


def keeps_apart(attention: str) -> bool:
    """Whether an attention, by its name, keeps sequences of a packed row apart: ours, and flash attention, of the
    package or (`owner/kernel`, which a user has to name, since compiled code is fetched) of the Hub."""
    return attention == PACKED_ATTENTION or "flash" in attention


@functools.cache
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


def _kernel_takes(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """As `fused_kernel_takes`, which no compiler could look into."""
    return fused_kernel_takes(device, dtype, head_width)


torch.compiler.assume_constant_result(_kernel_takes)


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

    On CUDA by the fused kernel of `torch.nn.attention.varlen`, where `fused_kernel_takes` it; elsewhere by one scaled
    dot product per sequence, which gives what separate rows give, or in a graph, which has no loop over sequences, by
    one under a mask over the row. Batches that are not packed take scaled dot product attention as usual.

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
    if _kernel_takes(query.device, query.dtype, query.shape[-1]):
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
        longest = int(max_length_q or cu_seq_lens_q.diff().max())
        rows = varlen_attn(q, k, v, cu_seq_lens_q, cu_seq_lens_q, longest, longest, scale=scaling)
        assert isinstance(rows, torch.Tensor)  # it returns more only where asked to
        return rows.unsqueeze(0), None
    if torch.compiler.is_compiling():
        number = torch.bucketize(torch.arange(query.shape[2], device=query.device), cu_seq_lens_q, right=True)
        own = number[:, None] == number
        attended = scaled_dot_product_attention(query, key, value, attn_mask=own, dropout_p=dropout, scale=scaling)
        return attended.transpose(1, 2).contiguous(), None
    parts = []
    for start, stop in pairwise(cu_seq_lens_q.tolist()):
        q, k, v = (states[:, :, start:stop] for states in (query, key, value))
        parts.append(scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=scaling))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def register_attention() -> None:
    """Give the name to this file's function, and not to that of a checkpoint with code of its own in this process."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention)
    # Not packed, it needs the mask of scaled dot product attention.
    AttentionMaskInterface.register(PACKED_ATTENTION, AttentionMaskInterface()["sdpa"])


register_attention()

"""Backbones that end after some of their layers, and one pass that returns the states of several.

The state of a level that is layer n of a backbone is what that backbone would return if it ended there: the output of
layer n under the final norm. The config of a shorter backbone stays that of the whole one, since ESM-C's residuals are
scaled by its number of layers, and ESM-2's contact head has a weight for each of them.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import copy
import copyreg
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from .families_rd_esm import FAMILIES


class HiddenStateRecorder:
    """What one pass wants of a backbone's layers, and what they made.

    It goes through the backbone as a keyword argument, so that nothing of a pass stays in the model: passes of several
    threads do not meet, a model can be pickled, and a compiler sees plain code. (No dict: what moves a call's arguments
    to another device would copy one.)
    """

    def __init__(self, depths: Sequence[int]) -> None:
        self.last = max(depths)
        self.wanted = frozenset(depths) - {self.last}
        self.states: dict[int, torch.Tensor] = {}


class InPlaceOf:
    """Before a class of the library among the bases of a module's class.

    A copy has the same class. A pickle holds a module of the library's, so that a backbone by itself loads wherever
    transformers is; the model that it belongs to changes its class anew.
    """

    library: ClassVar[Any]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin: Any = object.__new__(type(self))
        memo[id(self)] = twin
        twin.__setstate__(copy.deepcopy(self.__dict__, memo))
        return twin

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copyreg._reconstructor, (self.library, object, None), dict(self.__dict__)  # type: ignore[attr-defined]


@functools.cache
def in_place_of(library: Any, mixin: Any) -> type[nn.Module]:
    """The class of the library's, by its name and with `mixin` before it.

    (By its name device maps and checkpointing know it.)
    """
    around = {"__module__": library.__module__, "__qualname__": library.__qualname__, "library": library}
    return type(library.__name__, (mixin, library), around)


class _RecordedLayer(InPlaceOf):
    """A layer that tells a recorder what it made, and does nothing beyond its end."""

    depth: int

    def __call__(
        self, hidden_states: torch.Tensor, *args: Any, recorder: HiddenStateRecorder | None = None, **kwargs: Any
    ) -> Any:
        if recorder is None:
            return super().__call__(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if self.depth > recorder.last:
            return hidden_states
        if self.depth == 1 and 0 in recorder.wanted:
            recorder.states[0] = hidden_states
        state = super().__call__(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if self.depth in recorder.wanted:
            recorder.states[self.depth] = state
        return state


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
        backbone: one that was built to end there, or whose layers are watched.
        depths: numbers of layers, from 1, in any order; 0 is what the first is given.
        arguments: of its call.

    Returns:
        Its output, and its state after each of `depths`, `(batch, length, k)`: under the final norm, as if it ended
        there.
    """
    layers = stack_of(backbone)
    if list(depths) == [len(layers)]:
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

    A model that was built is given the library's class back by `set_class_and_recording`, so that it can be pickled.
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


def set_class_and_recording(backbone: PreTrainedModel, watch: bool) -> PreTrainedModel:
    """What a backbone is once it is built: of the library's class, and with `watch` ready for `states_after`."""
    backbone.__class__ = MODEL_MAPPING[type(backbone.config)]
    # Saved by itself it is a plain model of its family: nothing is renamed back to what its file had.
    backbone._weight_conversions = []
    if watch:
        record_layers(backbone)
    return backbone

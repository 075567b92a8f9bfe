"""Backbones that end after some of their layers, and one pass that returns the states of several.

The state of a level that is layer n of a backbone is what that backbone would return if it ended there: the output of
layer n under the final norm. The config of a shorter backbone stays that of the whole one, since ESM-C's residuals are
scaled by its number of layers, and ESM-2's contact head has a weight for each of them.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import MODEL_MAPPING, PretrainedConfig, PreTrainedModel

from .families_rd_esm import FAMILIES


class Climb:
    """What one pass wants of a backbone's layers, and what they made.

    It goes through the backbone as a keyword argument, so that nothing of a pass stays in the model: passes of several
    threads do not meet, a model can be pickled, and a compiler sees plain code. (No dict: what moves a call's arguments
    to another device would copy one.)
    """

    def __init__(self, depths: Sequence[int]) -> None:
        self.last = max(depths)
        self.wanted = frozenset(depths) - {self.last}
        self.states: dict[int, torch.Tensor] = {}


class _Watched:
    """Before a class of layers among its bases: tells a climb what it made, and does nothing beyond its end."""

    depth: int

    def __call__(self, hidden_states: torch.Tensor, *args: Any, climb: Climb | None = None, **kwargs: Any) -> Any:
        if climb is None:
            return super().__call__(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if self.depth > climb.last:
            return hidden_states
        if self.depth == 1 and 0 in climb.wanted:
            climb.states[0] = hidden_states
        state = super().__call__(hidden_states, *args, **kwargs)  # type: ignore[misc]
        if self.depth in climb.wanted:
            climb.states[self.depth] = state
        return state

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _again, (type(self).__mro__[2],), dict(self.__dict__)


@functools.cache
def _watched(layer: Any) -> type[nn.Module]:
    # Under the layer's own name, by which device maps and checkpointing know it.
    return type(layer.__name__, (_Watched, layer), {"__module__": layer.__module__})


def _again(layer: type[nn.Module]) -> nn.Module:
    """A layer that was pickled or copied; its state follows."""
    return nn.Module.__new__(_watched(layer))  # type: ignore[arg-type]


def stack_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The layers of a backbone."""
    found = backbone.get_submodule(FAMILIES[backbone.config.model_type].layers)
    assert isinstance(found, nn.ModuleList)
    return found


def watch_layers(backbone: PreTrainedModel) -> None:
    """Let `states_after` ask for states within; what the backbone computes for others is unchanged."""
    for number, layer in enumerate(stack_of(backbone), start=1):
        if not isinstance(layer, _Watched):
            layer.__class__ = _watched(type(layer))  # type: ignore[arg-type]
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
    climb = Climb(depths)
    output = backbone(**arguments, climb=climb, return_dict=True)
    norm = backbone.get_submodule(FAMILIES[backbone.config.model_type].final_norm)
    return output, [output.last_hidden_state if depth == climb.last else norm(climb.states[depth]) for depth in depths]


def encoder_class(config: PretrainedConfig, depth: int | None = None) -> type[PreTrainedModel]:
    """The library's own class for a backbone; with `depth`, one that is built with so many of its layers.

    A model that was built is given the library's class back by `settle`, so that it can be pickled.
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


def settle(backbone: PreTrainedModel, watch: bool) -> PreTrainedModel:
    """What a backbone is once it is built: of the library's class, and with `watch` ready for `states_after`."""
    backbone.__class__ = MODEL_MAPPING[type(backbone.config)]
    # Saved by itself it is a plain model of its family: nothing is renamed back to what its file had.
    backbone._weight_conversions = []
    if watch:
        watch_layers(backbone)
    return backbone

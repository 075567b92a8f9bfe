"""What a reverse-distilled model returns: tensors, and a class that knows where each level ends.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput


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

    Attributes:
        nested_dims (`dict[str, int]`): width of each level that `last_hidden_state` holds; no field, since whatever
            gathers, concatenates, traces or exports outputs takes fields for tensors.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    backbone_states: tuple[torch.Tensor, ...] | None = None

    nested_dims: ClassVar[dict[str, int]] = {}

    def nested(self, level: str) -> torch.Tensor:
        """The embedding of a smaller level: a view of `last_hidden_state`, `(batch, length, its width)`.

        Raises:
            ValueError: `last_hidden_state` does not hold that level.
        """
        if level not in self.nested_dims:
            raise ValueError(f"level {level!r} is not in this output, which holds {', '.join(self.nested_dims)}")
        assert self.last_hidden_state is not None
        return self.last_hidden_state[..., : self.nested_dims[level]]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (dict(self.nested_dims), tuple(getattr(self, field.name) for field in fields(self)))


# By the widths of the levels.
_CLASSES: dict[tuple[tuple[str, int], ...], type[RDEsmModelOutput]] = {}


def output_class(dims: dict[str, int]) -> type[RDEsmModelOutput]:
    """The output class of a level.

    What takes an output apart and puts it together again (pytrees, `DataParallel`, accelerate) makes a new one of
    the same class out of new tensors, and nothing else comes along: so it is the class that knows the widths.
    """
    key = tuple(dims.items())
    if key not in _CLASSES:
        name = f"RDEsmModelOutput[{', '.join(f'{level}: {width}' for level, width in key)}]"
        _CLASSES[key] = type(name, (RDEsmModelOutput,), {"__module__": __name__, "nested_dims": dict(dims)})
    return _CLASSES[key]


def _again(dims: dict[str, int], values: tuple[Any, ...]) -> RDEsmModelOutput:
    """An output that was pickled or copied."""
    return output_class(dims)(*values)

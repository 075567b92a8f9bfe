"""What a reverse-distilled model returns: tensors, and a class that knows where each level ends.

This file travels to the Hub beside ``modeling_rd_esm.py``: it imports public names of torch and transformers only.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from transformers.utils import ModelOutput

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
    # Set on outputs of a model that can: no field either, and the same for all of that model's outputs.
    whitening: ClassVar[Any] = None

    def nested(self, level: str, whiten: bool = False) -> torch.Tensor:
        """The embedding of a smaller level: a view of `last_hidden_state`, `(batch, length, its width)`.

        Args:
            level (`str`): its name.
            whiten (`bool`): whiten each block of it by the statistics that came with the bases: not a view, float32.

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
        return _again, (dict(self.nested_dims), values, self.whitening)


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


def _again(
    dims: dict[str, int],
    values: tuple[Any, ...],
    whitening: Any = None,
) -> RDEsmModelOutput:
    """An output that was pickled or copied."""
    output = output_class(dims)(*values)
    if whitening is not None:
        output.whitening = whitening  # type: ignore[misc]
    return output

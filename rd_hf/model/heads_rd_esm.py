"""Heads: what is predicted from nested embeddings, of a sequence or of each of its residues, by one linear map.

    y = ((x - mean) / scale) W^T + b

with x the mean of the embedding over residues, or the embedding of one. Heads of variants of one protein add a number
for the residue at each position, which is 0 for the wild type's own:

    y = ((x - mean) / scale) W^T + b + sum over positions p of table[:, p, residue at p]

A checkpoint keeps a head for each level that has one, so that a smaller level answers from the backbones that it needs.
Heads are float32, whichever dtype the backbones have.

This file travels to the Hub beside ``modeling_rd_esm.py``.
"""

import hashlib
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

from .bases_rd_esm import Float32Module

# Some are not used here: releases of transformers up to 5.0 bring along only the files that this one itself names.
from .checkpoint_rd_esm import RDEsmPreTrainedModel  # noqa: F401
from .configuration_rd_esm import RDEsmConfig
from .families_rd_esm import family_of  # noqa: F401
from .files_rd_esm import WeightFiles  # noqa: F401
from .fused_rd_esm import fuse_layers  # noqa: F401
from .layers_rd_esm import encoder_class  # noqa: F401
from .modeling_rd_esm import RDEsmModel
from .pooling_rd_esm import TOKENS, VOCABULARY, is_tracing, mean_over_residues, residue_mask
from .saving_rd_esm import RDEsmSaving  # noqa: F401
from .staging_rd_esm import staging  # noqa: F401

# Of a class that is not known, and of a position that has none: as in transformers.
IGNORED = -100
_ANEW = "fit it again on embeddings of this model"
_WITHOUT_LABELS = [TOKENS[token] for token in ("<cls>", "<eos>", "<pad>")]


class RDEsmHead(Float32Module):
    """The head of one level; a new one has small random weights, and standardises nothing.

    Args:
        width (`int`): of the level's embedding.
        num_labels (`int`): numbers that it returns.
        deviation (`float`): of the weights that it starts with.
        positions (`int`): residues of the wild type whose variants it knows; 0 for heads of any protein.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, width: int, num_labels: int, deviation: float, positions: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_labels, width, dtype=torch.float32) * deviation)
        self.bias = nn.Parameter(torch.zeros(num_labels, dtype=torch.float32))
        self._zeros("mean", width)
        self.register_buffer("scale", torch.ones(width, dtype=torch.float32))
        if positions:
            table = torch.zeros(num_labels, positions, len(VOCABULARY), dtype=torch.float32)
            self.substitutions = nn.Parameter(table)

    def forward(self, embedding: torch.Tensor, residues: torch.Tensor | None = None) -> torch.Tensor:
        """`(..., width)` of any float dtype to `(..., num_labels)`, float32, on the head's device.

        Of variants also their `residues`, token ids of shape `(batch, positions)`.
        """
        device = self.weight.device
        with torch.autocast(device_type=device.type, enabled=False):
            standard = (embedding.to(device=device, dtype=self.mean.dtype) - self.mean) / self.scale
            found = functional.linear(standard, self.weight, self.bias)
            if residues is None:
                return found
            places = torch.arange(residues.shape[1], device=device)
            return found + self.substitutions[:, places, residues.to(device)].sum(dim=-1).t()


class RDEsmHeads(nn.Module):
    """Heads by the position of their level. (No list of modules: PEFT saves none of those whole.)

    Args:
        of (`str`): "sequences" or "residues"; part of the tensors' names, so that no head is taken for another kind's.
    """

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of
        self.add_module(of, nn.ModuleDict())

    def __getitem__(self, level: int) -> nn.Module:
        return self.get_submodule(f"{self.of}.{level}")

    def __setitem__(self, level: int, head: RDEsmHead) -> None:
        self.get_submodule(self.of).add_module(str(level), head)

    def forward(self, embedding: torch.Tensor, level: int, residues: torch.Tensor | None = None) -> torch.Tensor:
        """What the head of the level at a position makes of embeddings, `(..., num_labels)` float32."""
        predicted: torch.Tensor = self[level](embedding, residues)
        return predicted


class _WithHeads(RDEsmModel):
    """An [`RDEsmModel`] with heads, for subclasses that say what they are of."""

    # Heads take the embedding as it was computed, not rounded to a narrower dtype.
    embedding_dtype = torch.float32
    # What is returned.
    _kind: Any

    def __init__(self, config: RDEsmConfig, build_backbones: bool | None = None) -> None:
        super().__init__(config, build_backbones)
        if self.config.num_labels < 1:
            raise ValueError(f"num_labels must be 1 or more for a model with a head, not {self.config.num_labels}")
        self.config.heads = {**(self.config.heads or {"of": self.heads_of, "levels": []})}
        held = self.config.heads["levels"]
        self.config.heads["levels"] = [
            name for name in self.config.nested_dims if name in held or name == self.answering_level
        ]
        assert self.heads_of is not None
        self.classifier = RDEsmHeads(self.heads_of)
        for name in self.config.heads["levels"]:
            self.classifier[self.config.level_index(name)] = self._new_head(name)
        self.post_init()

    def _new_head(self, level: str) -> RDEsmHead:
        config = self.config
        positions = len(config.heads.get("wild_type") or "")
        return RDEsmHead(config.nested_dims[level], config.num_labels, config.initializer_range, positions)

    @property
    def answering_level(self) -> str:
        """The level that answers where none is asked for: the one that was loaded, or chosen, or the largest."""
        chosen: str | None = self.config.level or (self.config.heads or {}).get("level")
        return chosen or self.config.level_names[-1]

    def choose_level(self, level: str) -> None:
        """Let a level answer from now on, here and, unless another is asked for, where the saved model is loaded.

        Raises:
            ValueError: there is no such level, or it has no head.
        """
        self._check_has_head(level)
        self.config.heads["level"] = level
        self.config.level = None

    def _check_has_head(self, level: str) -> int:
        """Position of a level; raises `ValueError` where there is none, or it has no head."""
        index = self.config.level_index(level)
        held = self.config.heads["levels"]
        if level not in held:
            raise ValueError(
                f"level {level} has no head in this model, which has those of {', '.join(held) or 'none'}: load it "
                f"with level={level!r} and train one, or give it one with set_head"
            )
        return index

    def set_head(
        self,
        level: str,
        weight: torch.Tensor,
        bias: torch.Tensor,
        mean: torch.Tensor | None = None,
        scale: torch.Tensor | None = None,
        bases: str | None = None,
        substitutions: torch.Tensor | None = None,
    ) -> None:
        """Give a level a head that was fitted elsewhere, in place of the one that it has, if any.

        Args:
            weight (`torch.Tensor` of shape `(num_labels, width of the level)`): W, of any float dtype.
            bias (`torch.Tensor` of shape `(num_labels,)`): b.
            mean, scale (`torch.Tensor` of shape `(width of the level,)`, *optional*): what embeddings are centred and
                divided by first; by default 0 and 1.
            bases (`str`, *optional*): `bases_fingerprint(level)` of the model whose embeddings it was fitted on.
            substitutions (`torch.Tensor` of shape `(num_labels, residues of the wild type, size of the vocabulary)`,
                *optional*): of a model with a `wild_type` in `config.heads`, what each token adds at each position; by
                default 0.

        Raises:
            ValueError: unknown level, other shapes than this model's, numbers that are not finite, a scale that is not
                above 0, or a head that was fitted on embeddings of other bases.
        """
        index = self.config.level_index(level)
        width, labels, own = self.config.nested_dims[level], self.config.num_labels, self.bases_fingerprint(level)
        if bases is not None and bases != own:
            raise ValueError(f"this head was fitted on embeddings of other bases than level {level}'s: {_ANEW}")
        given: dict[str, Any] = {"weight": weight, "bias": bias, "mean": mean, "scale": scale}
        given["substitutions"] = substitutions
        shapes = {"weight": (labels, width), "bias": (labels,), "mean": (width,), "scale": (width,)}
        shapes["substitutions"] = (labels, len(self.config.heads.get("wild_type") or ""), len(VOCABULARY))
        for name, shape in shapes.items():
            tensor = given[name]
            if tensor is None:
                tensor = given[name] = torch.full(shape, float(name == "scale"))
            if tuple(tensor.shape) != shape:
                raise ValueError(
                    f"the {name} of a head for level {level} has shape {tuple(tensor.shape)}, not {shape}: it was "
                    f"fitted for another number of labels or on embeddings of another model"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(
                    f"the {name} of the head for level {level} holds NaN or infinite numbers: fit it again"
                )
        if not (given["scale"] > 0).all():
            raise ValueError(f"the scale of the head for level {level} must be above 0: leave constant dimensions at 1")
        heads = self.config.heads
        if level not in heads["levels"]:
            self.classifier[index] = self._new_head(level).to(next(self.classifier.parameters()).device)
            heads["levels"] = [name for name in self.config.level_names if name in (*heads["levels"], level)]
        with torch.no_grad():
            for name, tensor in self.classifier[index].state_dict(keep_vars=True).items():
                tensor.copy_(given[name])
        heads["bases"] = {**(heads.get("bases") or {}), level: own}

    def bases_fingerprint(self, level: str) -> str:
        """SHA-256 of the bases that a level's embedding is made by; the first level needs none."""
        digest = hashlib.sha256()
        for step in self.projections[: self.config.level_index(level)]:
            for name, buffer in step.named_buffers():
                digest.update(f"{name}{tuple(buffer.shape)}".encode())
                digest.update(buffer.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @classmethod
    def _choose_level(cls, config: RDEsmConfig) -> None:
        if config.heads is None or config.heads["of"] != cls.heads_of:
            return
        chosen = config.heads.pop("level", None)
        if config.level is None and chosen is not None:
            config.level, config.heads["level"] = chosen, chosen

    def _check_heads(self, path: str) -> None:
        if self.config.one_pass:  # another map of the same backbone, from which the bases cannot be told
            return
        heads = self.config.heads
        for level in heads["levels"]:
            own = self.bases_fingerprint(level)
            if (heads.get("bases") or {}).get(level, own) != own:
                raise ValueError(
                    f"the head of level {level} in {path} was made for other bases than lie there: {_ANEW}"
                )
            heads["bases"] = {**(heads.get("bases") or {}), level: own}

    def _named_parts(self) -> list[tuple[str, nn.Module]]:
        heads = [(name, self.classifier[self.config.level_index(name)]) for name in self.config.heads["levels"]]
        return super()._named_parts() + [(f"the head of level {name}", head) for name, head in heads]

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        level: str | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **packing: Any,
    ) -> SequenceClassifierOutput | TokenClassifierOutput | tuple[Any, ...]:
        r"""
        Predict of token ids.

        Args:
            labels (`torch.Tensor`, *optional*): see `loss`. A row is a sequence, or, of residues, a token; those of
                cls, eos and padding are not read.
            level (`str`, *optional*): whose head answers; by default `answering_level`.
            input_ids, attention_mask, output_hidden_states, output_attentions, return_dict, packing: as of
                [`RDEsmModel`]. Of packed rows each sequence is a row of the result.

        Returns:
            [`SequenceClassifierOutput`] with `logits` of shape `(batch, num_labels)`; or [`TokenClassifierOutput`] with
            `(batch, length, num_labels)`, of every position (those of cls, eos and padding mean nothing). Both float32,
            with `loss`.

        Raises:
            ValueError: as of [`RDEsmModel`]; a sequence without residues; a level without a head; labels that do not
                fit.
        """
        level = level or self.answering_level
        index = self._check_has_head(level)
        asked: dict[str, Any] = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
        output: Any = super().forward(input_ids, attention_mask, level, return_dict=True, **asked, **packing)
        assert input_ids is not None
        ends = packing.get("cu_seq_lens_q")
        rows, residues = self._pooled(output.last_hidden_state, input_ids, attention_mask, ends)
        logits = self.classifier(rows, index, residues)
        loss = None if labels is None else self.loss(*self._labelled(logits, labels, input_ids))
        result = self._kind(loss=loss, logits=logits, hidden_states=output.hidden_states, attentions=output.attentions)
        if return_dict is None:
            # A traced graph returns tensors.
            traced = torch.jit.is_tracing()  # type: ignore[attr-defined]
            return_dict = getattr(self.config, "return_dict", True) and not traced
        return result if return_dict else result.to_tuple()

    def _pooled(self, states: torch.Tensor, ids: torch.Tensor, mask: Any, ends: Any) -> tuple[torch.Tensor, Any]:
        """What a head is given: embeddings of these tokens, `(rows, ..., width)`, and of variants their residues."""
        return states, None

    def _labelled(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Rows that have a label, and their labels."""
        return logits, labels

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean loss over the labels that are there, 0 where none is; by `config.problem_type`.

        Where that is not set it follows from the labels, and is noted, as in transformers: one number is a regression,
        whole numbers are classes, others a number for each of several classes.

        Args:
            logits (`torch.Tensor` of shape `(rows, num_labels)`): float32.
            labels (`torch.Tensor`): of a regression `(rows, num_labels)` (or `(rows,)`) numbers, NaN for one that is
                missing; for one class of several `(rows,)` whole numbers, -100 for one that is missing; for several
                classes at once `(rows, num_labels)` numbers from 0 to 1, NaN or -100 for one that is missing.

        Raises:
            ValueError: labels of another number or range.
        """
        count = self.config.num_labels
        if self.config.problem_type is None:
            whole = not labels.is_floating_point() and labels.dtype != torch.bool
            several = "single_label_classification" if whole else "multi_label_classification"
            self.config.problem_type = "regression" if count == 1 else several
        problem, labels = self.config.problem_type, labels.to(logits.device)
        wanted = len(logits) * (1 if problem == "single_label_classification" else count)
        if labels.numel() != wanted:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit: {problem} with num_labels={count} needs "
                f"{wanted // max(1, len(logits))} a row, for {len(logits)} rows"
            )
        if problem == "single_label_classification":
            labels = labels.reshape(-1).long()
            if not is_tracing() and ((labels >= count) | (labels < 0) & (labels != IGNORED)).any():
                raise ValueError(f"labels must be classes from 0 to {count - 1}, or {IGNORED} for one that is missing")
            known = labels.ne(IGNORED)
            losses = functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
        else:
            labels = labels.reshape(logits.shape).to(logits.dtype)
            known = ~labels.isnan()
            if problem == "multi_label_classification":
                known &= labels.ne(IGNORED)
            # A number in the place of a missing one: NaN times 0 is NaN, in the gradient too.
            labels = torch.where(known, labels, torch.zeros_like(labels))
            if problem == "regression":
                losses = functional.mse_loss(logits, labels, reduction="none")
            else:
                losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return losses.mul(known).sum() / known.sum().clamp(min=1)


class RDEsmForSequenceClassification(_WithHeads):
    """
    Predicts classes or numbers of sequences, from the mean of their embedding over residues.

    `num_labels`, `id2label` and `problem_type` are those of transformers. A head that the checkpoint does not hold
    starts afresh, with a warning. `from_pretrained(..., level="35M")` fetches and holds the backbones up to that level
    and answers with its head; without `level` the level that the checkpoint chose answers. Training trains the head of
    the level that answers; those of other levels stay as they are, also where the backbones change.

    Args:
        config ([`RDEsmConfig`]): the family; `config.heads` says which levels have a head.
        build_backbones (`bool`, *optional*): as of [`RDEsmModel`].
    """

    heads_of = "sequences"
    _kind = SequenceClassifierOutput

    def _residues(self, ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor | None:
        """Of heads of variants the residues of each sequence, `(batch, residues of the wild type)`; else None."""
        wild_type = self.config.heads.get("wild_type")
        if not wild_type:
            return None
        count = len(wild_type)
        residues = ids[:, 1 : count + 1]
        if not is_tracing():
            fits = keep[:, 1 : count + 1].all(dim=1) & keep.sum(dim=1).eq(count).to(keep.device)
            own = torch.tensor([TOKENS.get(letter, TOKENS["<unk>"]) for letter in wild_type], device=ids.device)
            alike = residues.eq(own).sum(dim=1) if residues.shape[1] == count else torch.zeros_like(residues[:, 0])
            wrong = ~(fits.to(ids.device) & (2 * alike >= count))
            if wrong.any():
                row = int(wrong.nonzero()[0])
                raise ValueError(
                    f"these heads know variants of one protein of {count} residues, and sequence {row + 1} of the "
                    f"batch ({int(keep[row].sum())} residues, {int(alike[row])} of them the wild type's) is none: give "
                    "variants of equal length and without gaps"
                )
        return residues

    def _pooled(self, states: torch.Tensor, ids: torch.Tensor, mask: Any, ends: Any) -> tuple[torch.Tensor, Any]:
        if ends is not None:
            cuts = ends[1:-1].tolist()
            states = pad_sequence(list(states[0].tensor_split(cuts)), batch_first=True)
            ids = pad_sequence(list(ids[0].tensor_split(cuts)), batch_first=True, padding_value=TOKENS["<pad>"])
        keep = residue_mask(ids).to(states.device)
        if mask is not None and mask.shape == keep.shape:
            keep = keep & mask.to(states.device).bool()
        return mean_over_residues(states, keep), self._residues(ids, keep)


class RDEsmForTokenClassification(_WithHeads):
    """
    Predicts a class or numbers of each residue, from its embedding; otherwise as [`RDEsmForSequenceClassification`].
    """

    heads_of = "residues"
    _kind = TokenClassifierOutput

    def _labelled(self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if labels.shape[:2] != ids.shape:
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit input_ids of shape {tuple(ids.shape)}: "
                f"give one for every token, with {IGNORED} (or NaN) at cls, eos and padding"
            )
        counted = ~torch.isin(ids, torch.tensor(_WITHOUT_LABELS, device=ids.device))
        return logits[counted.to(logits.device)], labels[counted.to(labels.device)]


RDEsmForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
RDEsmForTokenClassification.register_for_auto_class("AutoModelForTokenClassification")

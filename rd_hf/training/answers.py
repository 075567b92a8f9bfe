"""What the heads of a model say of embeddings, as columns: numbers with intervals, classes with probabilities."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from rd_hf.carried import model_place
from rd_hf.data.batching import collate
from rd_hf.data.records import InputError
from rd_hf.embedding.checkpoint import Checkpoint, pinned_config
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.hub.checkpoint import TRAINING_FILE
from rd_hf.hub.sources import find_file
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from rd_hf.model.pooling_rd_esm import residue_mask


@dataclass(frozen=True)
class Heads:
    """The head of one level of a model, without the backbones.

    Attributes:
        model: with its heads in float32, on the CPU.
        level, width: of the embedding that it answers of.
        training: content of ``training.json``; empty where the heads were trained otherwise.
        probabilities: whether residues get the probability of each class.
    """

    model: Any
    level: str
    width: int
    training: dict[str, Any]
    probabilities: bool

    @property
    def pooling(self) -> str:
        """Of the embeddings that it answers of."""
        return "residue" if self.of_residues else "mean"

    @property
    def of_residues(self) -> bool:
        return bool(self.model.heads_of == "residues")

    @property
    def wild_type(self) -> str:
        """Whose variants it knows; empty for heads of any protein."""
        return str(self.model.config.heads.get("wild_type") or "")

    @property
    def names(self) -> list[str]:
        """Of the classes or targets, in the order of the outputs."""
        return [str(self.model.config.id2label[number]) for number in range(self.model.config.num_labels)]

    def is_of(self, checkpoint: Checkpoint, folder: Checkpoint) -> bool:
        """Whether embeddings of a folder's model are those that the heads answer of.

        Args:
            checkpoint: the model with the heads.
            folder: that embedded.
        """
        known = self.training.get("model") or {}
        fitted_on = known.get("fingerprint") is not None and folder.is_of(
            known["fingerprint"], known.get("backbones") or {}
        )
        return fitted_on or checkpoint.is_of(folder.fingerprint, folder.backbones)

    def why_no_variant(self, sequence: str) -> str | None:
        """Say why heads of variants know nothing of a cleaned sequence; None where they do."""
        ids, mask = collate([sequence])
        try:
            self.model._residues(ids, residue_mask(ids) & mask.bool())
        except ValueError:
            count = len(self.wild_type)
            return (
                f"is no variant of the {count} residues that {TRAINING_FILE} was trained on: it has another length, or "
                "less than half of them"
            )
        return None

    def outputs(self, embeddings: np.ndarray, sequences: Sequence[str] = ()) -> np.ndarray:
        """Outputs (n, labels), float32, of embeddings (n, width or more), of variants with their sequences."""
        index = self.model.config.level_index(self.level)
        residues = None
        if self.wild_type:
            ids, mask = collate(sequences)
            residues = self.model._residues(ids, residue_mask(ids) & mask.bool())
        with torch.inference_mode():
            cut = torch.from_numpy(np.ascontiguousarray(embeddings[:, : self.width], dtype=np.float32))
            found: np.ndarray = self.model.classifier(cut, index, residues).numpy()
        return found

    def columns(self, values: Sequence[np.ndarray], sequences: Sequence[str] = ()) -> dict[str, pa.Array]:
        """Columns of predictions, a row for each embedding: (width or more,), or of residues (rows, width or more)."""
        if self.of_residues:
            return self._of_residues(values)
        outputs = np.zeros((0, len(self.names)), np.float32)
        if values:
            outputs = self.outputs(np.stack(values), sequences)
        if self.model.config.problem_type == "regression":
            return self._numbers(outputs)
        chances = self._chances(outputs)
        return {"label": self._labels(chances)} | {
            f"probability_{name}": pa.array(chances[:, number]) for number, name in enumerate(self.names)
        }

    def _numbers(self, outputs: np.ndarray) -> dict[str, pa.Array]:
        if len(self.names) > 1:
            return {f"prediction_{name}": pa.array(outputs[:, number]) for number, name in enumerate(self.names)}
        columns = {"prediction": pa.array(outputs[:, 0])}
        half = ((self.training.get("levels") or {}).get(self.level) or {}).get("interval_half_width")
        if half is not None:
            half = np.float32(half)
            columns |= {"lower": pa.array(outputs[:, 0] - half), "upper": pa.array(outputs[:, 0] + half)}
        return columns

    @property
    def _several(self) -> bool:
        """Whether several classes may hold at once."""
        return bool(self.model.config.problem_type == "multi_label_classification")

    def _chances(self, outputs: np.ndarray) -> np.ndarray:
        logits = torch.from_numpy(outputs)
        chances: np.ndarray = (torch.sigmoid(logits) if self._several else torch.softmax(logits, dim=-1)).numpy()
        return chances

    def _labels(self, chances: np.ndarray) -> pa.Array:
        names = np.array(self.names, dtype=object)
        if self._several:
            return pa.array([";".join(names[row > 0.5]) for row in chances], pa.string())
        return pa.array(names[chances.argmax(axis=1)].tolist(), pa.string())

    def _of_residues(self, values: Sequence[np.ndarray]) -> dict[str, pa.Array]:
        ends = np.cumsum([0, *map(len, values)])
        outputs = np.zeros((0, len(self.names)), np.float32)
        if values:
            outputs = self.outputs(np.concatenate([rows[:, : self.width] for rows in values]))
        if self.model.config.problem_type == "regression":
            return {
                name: pa.array([part.tolist() for part in np.split(column, ends[1:-1])][: len(values)], _NUMBERS)
                for name, column in ((f"prediction_{n}", outputs[:, c]) for c, n in enumerate(self.names))
            }
        chances = self._chances(outputs)
        letters = np.array(self.names, dtype=object)[chances.argmax(axis=1)] if len(chances) else np.zeros(0, object)
        # Classes of more than one letter are told apart by spaces.
        between = "" if all(len(name) == 1 for name in self.names) else " "
        spans = list(pairwise(ends.tolist()))
        columns = {"labels": pa.array([between.join(letters[start:stop]) for start, stop in spans], pa.string())}
        if self.probabilities:
            rows = [chances[start:stop].tolist() for start, stop in spans]
            columns["probabilities"] = pa.array(rows, pa.list_(pa.list_(pa.float32(), len(self.names))))
        return columns


_NUMBERS = pa.list_(pa.float32())


def load_heads(checkpoint: Checkpoint, level: str | None, probabilities: bool) -> Heads:
    """Load the heads of a model, and no backbone.

    Args:
        checkpoint: the model.
        level: whose head answers; by default the one that the training chose.
        probabilities: as of :class:`Heads`.

    Raises:
        InputError: it has no head, or none of this level; or its ``training.json`` is damaged.
    """
    place = model_place(checkpoint.name)
    config = pinned_config(place, checkpoint.revision, checkpoint.backbones)
    heads = config.heads
    if not heads or not heads["levels"]:
        raise InputError(f"{checkpoint.name} has no head that could predict: train one with rd-hf train")
    level = level or heads.get("level") or heads["levels"][-1]
    if level not in heads["levels"]:
        raise InputError(
            f"{checkpoint.name} has no head of level {level!r}: give --level {' or '.join(heads['levels'])}"
        )
    kind = RDEsmForTokenClassification if heads["of"] == "residues" else RDEsmForSequenceClassification
    if probabilities and kind is RDEsmForSequenceClassification:
        raise InputError(
            f"--probabilities is of heads of residues, and {checkpoint.name} predicts of sequences, whose "
            "probabilities are always written: leave it out"
        )
    revision = {} if checkpoint.revision is None else {"revision": checkpoint.revision}
    try:
        # Sequential: backbones are loaded when their turn comes, which is never.
        model = kind.from_pretrained(place, config=config, level=level, sequential=True, **revision).eval()
    except (OSError, ValueError) as error:
        raise InputError(" ".join(str(error).split())) from error
    found = find_file(place, TRAINING_FILE, checkpoint.revision)
    training: Any = {}
    if found is not None:
        try:
            training = json.loads(found.read_bytes())
            half = (training.get("levels") or {}).get(level, {}).get("interval_half_width")
            if half is not None:
                float(half)
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{found} is damaged ({error}): train again") from error
    return Heads(model, level, config.nested_dims[level], training, probabilities)


def open_embeddings(path: str, checkpoint: Checkpoint, heads: Heads) -> EmbeddingFolder:
    """Open a finished folder of embeddings; raise an InputError unless the head answers of what it holds."""
    name, folder = checkpoint.name, EmbeddingFolder(path)
    if heads.wild_type:
        raise InputError(
            f"the heads of {name} are of variants of one protein and need their sequences, which {path} does not hold: "
            "give them with --input"
        )
    mend = "embed the proteins for it, or give them with --input"
    if not heads.is_of(checkpoint, folder.model):
        raise InputError(
            f"{path} was made with {folder.model.name}, which is another model than {name} was trained on: {mend}"
        )
    options = folder.options
    binary = options.output_dtype == "binary"
    for said, is_so in (("binary", binary), ("whitened", options.whiten), ("normalised", options.normalize)):
        if is_so:
            raise InputError(f"{path} holds {said} embeddings, and the head of {name} was fitted on plain ones: {mend}")
    if options.pooling != heads.pooling:
        raise InputError(
            f"{path} was made with --pooling {options.pooling}, and the head of {name} needs {heads.pooling}: {mend}"
        )
    held = folder.model.nested_dims.get(folder.level), folder.width
    if folder.width < heads.width or heads.level not in folder.model.nested_dims:
        at = f"level {folder.level}" if held[0] == held[1] else f"{folder.width} dimensions"
        raise InputError(
            f"{path} holds {at}, which is less than level {heads.level} of the head ({heads.width} dimensions): {mend}"
        )
    return folder

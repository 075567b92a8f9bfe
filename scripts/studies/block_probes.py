"""What the residual blocks of one model hold: how predictable each level is, and what each block alone knows.

A reverse-distilled embedding is [h_1, r_2 V_2, ..., r_m V_m]. Each block is probed alone for properties that every
residue has: which amino acid it is, where in its chain it stands, and, where labels are given, its secondary structure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score

from rd_hf.data.residues import STANDARD_RESIDUES
from rd_hf.evaluation.options import STRENGTHS, ResidueOptions
from rd_hf.evaluation.probe import ridge_predictions
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.residues import known_labels, logistic_probe
from rd_hf.evaluation.tasks import TEST, TRAIN, UNLABELLED, VALIDATION, Chain, ResidueTask


@dataclass(frozen=True)
class Block:
    """Columns that one level adds to the nested embedding.

    Attributes:
        level: name.
        start, stop: columns of the largest embedding.
    """

    level: str
    start: int
    stop: int


def blocks(nested_dims: Mapping[str, int]) -> list[Block]:
    """Blocks of a family, from its config's ``nested_dims``."""
    start, found = 0, []
    for level, stop in nested_dims.items():
        found.append(Block(level, start, stop))
        start = stop
    return found


def identity_task(task: ResidueTask) -> ResidueTask:
    """The same chains, labelled with their amino acids; letters beyond the twenty are unlabelled."""
    index = {letter: number for number, letter in enumerate(STANDARD_RESIDUES)}

    def relabel(chain: Chain) -> Chain:
        labels = np.array([index.get(letter, UNLABELLED) for letter in chain.sequence], dtype=np.int8)
        return Chain(chain.id, chain.sequence, labels)

    splits = {name: [relabel(chain) for chain in chains] for name, chains in task.splits.items()}
    return ResidueTask("amino acid", tuple(STANDARD_RESIDUES), splits)


def relative_positions(chains: Sequence[Chain]) -> np.ndarray:
    """0 at the first residue of a chain, 1 at its last: (residues,) float64."""
    return np.concatenate([np.linspace(0, 1, len(chain.sequence)) for chain in chains])


def classification_accuracy(
    task: ResidueTask, features: Mapping[str, np.ndarray], options: ResidueOptions
) -> tuple[float, float]:
    """Test accuracy of a logistic probe, and of the most frequent training class.

    Args:
        features: (residues, p) of each set, every residue of every chain.
    """
    known, labels = known_labels(task)
    chosen = {name: values[known[name]].astype(np.float32) for name, values in features.items()}
    predicted, _ = logistic_probe(chosen, labels, len(task.classes), options)
    truth = labels[TEST]
    frequent = np.bincount(labels[TRAIN]).argmax()
    return float(accuracy_score(truth, predicted[TEST].argmax(axis=1))), float((truth == frequent).mean())


def position_r2(task: ResidueTask, features: Mapping[str, np.ndarray]) -> float:
    """R^2 of the relative position on test chains, by a ridge whose strength the validation chains choose."""
    targets = {name: relative_positions(chains) for name, chains in task.splits.items()}
    x, y = features[TRAIN].astype(np.float64), targets[TRAIN]
    validation = ridge_predictions(x, y, features[VALIDATION].astype(np.float64), STRENGTHS)
    errors = ((validation - targets[VALIDATION][:, None]) ** 2).sum(axis=0)
    best = STRENGTHS[int(np.argmin(errors))]
    test = ridge_predictions(x, y, features[TEST].astype(np.float64), (best,))[:, 0]
    truth = targets[TEST]
    return float(1 - ((test - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def block_table(
    task: ResidueTask,
    states: Mapping[str, np.ndarray],
    largest: Representation,
    found: Sequence[Block],
    options: ResidueOptions,
) -> pd.DataFrame:
    """Probe every block alone, and the whole embedding.

    Args:
        task: secondary structure, or any task of residues.
        states: z of each set, (residues, K).
        largest: map to the largest level's nested embedding.
        found: its blocks.

    Returns:
        Columns: block, width, amino acid (accuracy), position (R^2), the task's name (accuracy); a last row "chance"
        with the most frequent class's accuracy.
    """
    embedded = {name: largest(values) for name, values in states.items()}
    identity = identity_task(task)
    rows, chance = [], {}
    for block in [*found, Block("whole", 0, largest.width)]:
        features = {name: values[:, block.start : block.stop] for name, values in embedded.items()}
        row: dict[str, object] = {"block": block.level, "width": block.stop - block.start}
        for own in (identity, task):
            row[own.name], chance[own.name] = classification_accuracy(own, features, options)
        row["position"] = position_r2(task, features)
        rows.append(row)
    rows.append({"block": "chance", "width": 0, "position": 0.0, **chance})
    return pd.DataFrame(rows)

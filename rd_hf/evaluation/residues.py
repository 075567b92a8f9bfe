"""Logistic probes of residues, judged by accuracy and area under the precision-recall curve.

The unit of inference is the protein: residues of one chain are not independent, so intervals resample chains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, log_loss
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from rd_hf.bases.moments import save_tensors
from rd_hf.data.batching import token_budget_batches
from rd_hf.evaluation.embeddings import Family, residue_states
from rd_hf.evaluation.representations import Representation
from rd_hf.evaluation.tasks import TRAIN, UNLABELLED, VALIDATION, Chain, ResidueTask

# Inverse strengths, from strong to weak, so that each fit starts from the last; scikit-learn's ``C``.
INVERSE_STRENGTHS = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
WINDOW = 15  # residues of the one-hot baseline, as in the first secondary-structure predictors
CHUNK_CHAINS = 256


@dataclass(frozen=True)
class ResidueOptions:
    """How residues are probed.

    Attributes:
        inverse_strengths: candidates, compared by log loss on the validation chains.
        resamples: bootstrap resamples of the test chains.
        max_iterations: of L-BFGS, a candidate.
        seed: of the resamples.
    """

    inverse_strengths: tuple[float, ...] = INVERSE_STRENGTHS
    resamples: int = 500
    max_iterations: int = 200
    seed: int = 0


def chain_states(family: Family, chains: Sequence[Chain], cache: Path, batch_tokens: int = 4096) -> np.ndarray:
    """States of every residue of every chain, in order: (residues, K) float32, kept on disk chunk by chunk."""
    folder = cache / family.fingerprint
    parts = []
    with tqdm(total=len(chains), desc=f"residues with {family.label}", unit="chain", disable=None) as progress:
        for start in range(0, len(chains), CHUNK_CHAINS):
            sequences = [chain.sequence for chain in chains[start : start + CHUNK_CHAINS]]
            digest = hashlib.sha256("\n".join(sequences).encode()).hexdigest()[:16]
            path = folder / f"residues-{digest}.safetensors"
            if not path.exists():
                rows: list[torch.Tensor] = [torch.empty(0)] * len(sequences)
                for batch in token_budget_batches([len(sequence) for sequence in sequences], batch_tokens):
                    states, mask = residue_states(family, [sequences[position] for position in batch])
                    for position, state, own in zip(batch, states, mask, strict=True):
                        rows[position] = state[own].cpu()
                folder.mkdir(parents=True, exist_ok=True)
                save_tensors(path, {"states": torch.cat(rows)})
            parts.append(load_file(path)["states"].numpy())
            progress.update(len(sequences))
    return np.concatenate(parts)


def window_one_hot(chains: Sequence[Chain], window: int = WINDOW) -> np.ndarray:
    """Residues at and around each position: (residues, window x letters) float32; blank beyond the ends."""
    letters = sorted({letter for chain in chains for letter in chain.sequence} | set("ACDEFGHIKLMNPQRSTVWY"))
    half = window // 2
    parts = []
    for chain in chains:
        codes = np.array([letters.index(letter) for letter in chain.sequence])
        own = np.eye(len(letters), dtype=np.float32)[codes]
        padded = np.pad(own, ((half, half), (0, 0)))
        parts.append(np.hstack([padded[shift : shift + len(own)] for shift in range(window)]))
    return np.concatenate(parts)


def logistic_probe(
    features: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], classes: int, options: ResidueOptions
) -> tuple[dict[str, np.ndarray], float]:
    """Fit on "train", choose the strength by log loss on "validation", predict every other set.

    Args:
        features: (residues, p) float32 of each set.
        labels: (residues,) of each set, without unlabelled residues.
        classes: number of them.

    Returns:
        Probabilities, (residues, classes), of each test set, and the inverse strength chosen.

    Raises:
        ValueError: the training residues lack a class.
    """
    if len(np.unique(labels[TRAIN])) < classes:
        raise ValueError("the training chains lack a class; give more of them")
    scaler = StandardScaler().fit(features[TRAIN])
    scaled = {name: scaler.transform(values) for name, values in features.items()}
    model = LogisticRegression(warm_start=True, max_iter=options.max_iterations)
    best = (np.inf, 0.0, {})  # type: tuple[float, float, dict[str, np.ndarray]]
    for strength in options.inverse_strengths:
        model.set_params(C=strength).fit(scaled[TRAIN], labels[TRAIN])
        probabilities = model.predict_proba(scaled[VALIDATION])
        loss = float(log_loss(labels[VALIDATION], probabilities, labels=model.classes_))
        if loss < best[0]:
            tests = {
                name: model.predict_proba(values) for name, values in scaled.items() if name not in (TRAIN, VALIDATION)
            }
            best = (loss, strength, tests)
    return best[2], best[1]


def precision_recall_area(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> float:
    """Average precision of the positive class, or its mean over classes where there are more than two.

    Classes that the weighted residues lack are left out.
    """
    positive = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [
        average_precision_score(labels == number, probabilities[:, number], sample_weight=weights)
        for number in positive
        if weights[labels == number].sum() > 0
    ]
    return float(np.mean(areas)) if areas else float("nan")


def bootstrap_figures(
    labels: np.ndarray, probabilities: np.ndarray, chain_of: np.ndarray, options: ResidueOptions
) -> pd.DataFrame:
    """Accuracy and area on the test set (draw 0) and on resamples of its chains (draws 1 and up).

    The draws depend on the chains and the seed alone, so that contenders can be compared draw by draw.

    Args:
        labels: (residues,).
        probabilities: (residues, classes).
        chain_of: (residues,) number of each residue's chain.

    Returns:
        Columns: figure ("accuracy", "AUPR"), draw, value.
    """
    generator = np.random.default_rng(options.seed)
    number = int(chain_of.max()) + 1
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    rows = []
    for draw in range(options.resamples + 1):
        picked = np.arange(number) if draw == 0 else generator.integers(0, number, number)
        weights = np.bincount(picked, minlength=number)[chain_of].astype(np.float64)
        rows.append(("accuracy", draw, float(np.average(right, weights=weights))))
        rows.append(("AUPR", draw, precision_recall_area(labels, probabilities, weights)))
    return pd.DataFrame(rows, columns=["figure", "draw", "value"])


@dataclass(frozen=True)
class ResidueContender:
    """What is probed; see :class:`rd_hf.evaluation.runs.Contender`."""

    model: str
    depth: float
    representation: str
    level: str


def evaluate_contender(
    task: ResidueTask,
    contender: ResidueContender,
    states: Mapping[str, np.ndarray],
    how: Representation | None,
    options: ResidueOptions,
) -> pd.DataFrame:
    """Probe one contender on one task.

    Args:
        states: (residues, K) of each set, every residue of every chain.
        how: map from states to features, or None where the states are the features.

    Returns:
        Tidy rows: task, set, contender, width, strength, chains, residues, figure, draw, value.
    """
    labels = {name: np.concatenate([chain.labels for chain in chains]) for name, chains in task.splits.items()}
    known = {name: values != UNLABELLED for name, values in labels.items()}
    features = {
        name: (values if how is None else how(values)).astype(np.float32)[known[name]]
        for name, values in states.items()
    }
    probabilities, strength = logistic_probe(
        features, {name: labels[name][known[name]] for name in labels}, len(task.classes), options
    )
    tables = []
    for name, predicted in probabilities.items():
        sizes = [len(chain.labels) for chain in task.splits[name]]
        chain_of = np.repeat(np.arange(len(sizes)), sizes)[known[name]]
        table = bootstrap_figures(labels[name][known[name]], predicted, chain_of, options)
        described = {
            "task": task.name,
            "set": name,
            **asdict(contender),
            "width": features[TRAIN].shape[1],
            "inverse_strength": strength,
            "chains": len(sizes),
            "residues": int(known[name].sum()),
        }
        tables.append(table.assign(**described)[[*described, "figure", "draw", "value"]])
    return pd.concat(tables, ignore_index=True)


def contender_digest(
    task: ResidueTask, contender: ResidueContender, feature_digest: str, options: ResidueOptions
) -> str:
    """Name of the file of results: of everything they depend on."""
    digest = hashlib.sha256(json.dumps([task.name, asdict(contender), feature_digest, asdict(options)]).encode())
    for name, chains in task.splits.items():
        digest.update(name.encode())
        for chain in chains:
            digest.update(chain.sequence.encode() + chain.labels.tobytes())
    return digest.hexdigest()[:24]


KEYS = ["task", "set", "figure", "model", "depth", "representation", "level"]


def summarise(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Value on the test set with its percentile interval over resamples, for every contender and figure."""
    tail = (1 - confidence) / 2
    point = results[results["draw"] == 0].set_index(KEYS)
    draws = results[results["draw"] > 0].groupby(KEYS, sort=False)["value"]
    table = point[["width", "inverse_strength", "chains", "residues", "value"]]
    return table.assign(low=draws.quantile(tail), high=draws.quantile(1 - tail)).reset_index()


def paired_differences(results: pd.DataFrame, first: str, second: str, confidence: float = 0.95) -> pd.DataFrame:
    """First kind less second at each level that both have, resample by resample.

    Returns:
        Columns: task, set, figure, model, depth, level, difference, low, high.
    """
    keys = [key for key in KEYS if key != "representation"]
    tail = (1 - confidence) / 2
    wide = results.pivot(index=[*keys, "draw"], columns="representation", values="value")
    if not {first, second} <= set(wide.columns):
        return pd.DataFrame()
    difference = (wide[first] - wide[second]).dropna().rename("difference").reset_index()
    point = difference[difference["draw"] == 0].set_index(keys)[["difference"]]
    draws = difference[difference["draw"] > 0].groupby(keys)["difference"]
    return point.assign(low=draws.quantile(tail), high=draws.quantile(1 - tail)).reset_index()

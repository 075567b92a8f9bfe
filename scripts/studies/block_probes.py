"""What does a level's block know that its prefix does not? Labels that have to do with neither.

A reverse-distilled embedding is [h_1, r_2 V_2, ..., r_m V_m]. For each label, probes are fitted on every nested prefix,
and on [prefix, r_i Q] with Q random orthonormal directions, as many as V_i has. A block knows something new where
[prefix, block] predicts better than the prefix, and the method's choice of directions pays where it predicts better
than random ones. Rows are residues or means over sequences; what is resampled are sequences.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from sklearn.metrics import r2_score

from rd_hf.bases.chain import Basis
from rd_hf.carried import PROTEINS
from rd_hf.data.fasta import read_fasta
from rd_hf.data.residues import STANDARD_RESIDUES, clean_sequence
from rd_hf.evaluation.embeddings import embed_proteins
from rd_hf.evaluation.families import Family
from rd_hf.evaluation.homology import DEPTHS, Domains, read_domains
from rd_hf.evaluation.homology_runs import domain_states
from rd_hf.evaluation.options import STRENGTHS, ResidueOptions
from rd_hf.evaluation.plots import legend_below
from rd_hf.evaluation.probe import ridge_predictions
from rd_hf.evaluation.representations import Representation, chain_maps, raw_maps
from rd_hf.evaluation.residues import chain_states, logistic_probe, precision_recall_area, resampled_weights
from rd_hf.evaluation.tables import SIGNED, between, number, table_of
from rd_hf.evaluation.tasks import (
    TEST,
    TRAIN,
    UNLABELLED,
    VALIDATION,
    ResidueTask,
    read_metal_binding,
    read_secondary_structure,
    subsample,
)
from studies.options import BlockOptions

SETS = (TRAIN, VALIDATION, TEST)
LONGEST = 1022  # residues of a carried protein that a backbone sees
DRAWS = 3  # of random directions for each block
# Rarer classes are left out: few test sequences would have them.
LEAST_DOMAINS, LEAST_PROTEINS = 40, 20
# How predictions (probabilities of classes, or numbers) are judged against the truth, under weights.
FIGURES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda truth, found, weights: float(np.average(found.argmax(axis=1) == truth, weights=weights)),
    "AUPR": precision_recall_area,
    "R²": lambda truth, found, weights: r2_score(truth, found, sample_weight=weights),
}


@dataclass(frozen=True)
class Label:
    """One thing that is to be predicted, of residues or of whole sequences."""

    name: str
    figure: str  # key of FIGURES; R² is of numbers, the others of classes
    states: Mapping[str, np.ndarray] = field(repr=False)  # z of each set, (rows, K)
    values: Mapping[str, np.ndarray] = field(repr=False)  # (rows,); below 0: not labelled
    sequence_of: np.ndarray = field(repr=False)  # number of each test row's sequence, (rows,)


def residue_labels(task: ResidueTask, states: Mapping[str, np.ndarray], everywhere: bool) -> list[Label]:
    """A task's own labels and, with ``everywhere``, those that every residue has: amino acid and place in the chain."""
    chains = {name: task.splits[name] for name in SETS}
    owner = np.repeat(np.arange(len(chains[TEST])), [len(chain.sequence) for chain in chains[TEST]])
    values = {task.name: {name: np.concatenate([chain.labels for chain in own]) for name, own in chains.items()}}
    if everywhere:
        numbers = {letter: place for place, letter in enumerate(STANDARD_RESIDUES)}
        values["amino acid"] = {
            name: np.array([numbers.get(letter, UNLABELLED) for chain in own for letter in chain.sequence])
            for name, own in chains.items()
        }
        values["place in the chain"] = {
            name: np.concatenate([np.linspace(0, 1, len(chain.sequence)) for chain in own])
            for name, own in chains.items()
        }
    figures = {"place in the chain": "R²", task.name: "AUPR" if len(task.classes) == 2 else "accuracy"}
    return [Label(name, figures.get(name, "accuracy"), states, own, owner) for name, own in values.items()]


def sequence_label(
    name: str, figure: str, states: np.ndarray, values: np.ndarray, groups: Sequence | np.ndarray, seed: int = 0
) -> Label:
    """A label of whole sequences, (n,), of their mean z, (n, K); sequences of one group stay in one set.

    Three fifths of the groups are fitted on, a fifth chooses the strength of a probe, a fifth judges.
    """
    names, which = np.unique(groups, return_inverse=True)
    place = np.random.default_rng(seed).permutation(len(names))[which] / len(names)
    rows = {part: np.flatnonzero(np.digitize(place, (0.6, 0.8)) == at) for at, part in enumerate(SETS)}
    states_of = {part: states[own] for part, own in rows.items()}
    return Label(name, figure, states_of, {part: values[own] for part, own in rows.items()}, np.arange(len(rows[TEST])))


def class_label(
    name: str, states: np.ndarray, classes: Sequence[str], groups: Sequence | np.ndarray, least: int, seed: int = 0
) -> Label:
    """As :func:`sequence_label`, of classes by name; sequences of classes with fewer than ``least`` are left out."""
    _, which, counts = np.unique(classes, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[which] >= least)
    numbers = np.unique(which[kept], return_inverse=True)[1]
    name = f"{name} ({(counts >= least).sum()})"
    return sequence_label(name, "accuracy", states[kept], numbers, np.asarray(groups)[kept], seed)


def domain_labels(domains: Domains, states: np.ndarray) -> list[Label]:
    """Class and fold of SCOP domains, and their length; no superfamily (of a fold: no family) is in two sets."""

    families, superfamilies = domains.groups("family"), domains.groups("superfamily")
    folds = [".".join(text.split(".")[: DEPTHS["fold"]]) for text in domains.classes]
    lengths = np.log([len(sequence) for sequence in domains.sequences])
    return [
        class_label("SCOPe class", states, [fold[0] for fold in folds], superfamilies, LEAST_DOMAINS),
        class_label("SCOPe fold", states, folds, families, LEAST_DOMAINS),
        sequence_label("logarithm of the length", "R²", states, lengths, superfamilies),
    ]


def read_labels(family: Family, options: BlockOptions, cache: Path) -> Iterator[Label]:
    """Every label that the options name, and the compartments of the carried proteins; states are kept in the cache."""
    for read, folder in (
        (read_secondary_structure, options.secondary_structure),
        (read_metal_binding, options.metal_binding),
    ):
        if folder is not None:
            task = subsample(read(folder), options.train_chains, options.validation_chains)
            states = {name: chain_states(family, task.splits[name], cache, options.batch_tokens) for name in SETS}
            yield from residue_labels(task, states, everywhere=read is read_secondary_structure)
    if options.data is not None:
        domains = read_domains(options.data)
        yield from domain_labels(domains, domain_states(family, domains, cache, options.batch_tokens))
    # Their headers read ">Q8NFJ6 Cell.membrane-M test": the test set of DeepLoc, with its compartments.
    proteins = [record for record in read_fasta(PROTEINS["example"]) if record.description.endswith(" test")]
    names, sequences = [one.id for one in proteins], [clean_sequence(one.sequence)[:LONGEST] for one in proteins]
    means = embed_proteins(family, names, sequences, cache, options.batch_tokens)
    compartments = [record.description.split()[1].rpartition("-")[0] for record in proteins]
    yield class_label("compartment", means, compartments, names, LEAST_PROTEINS)


def predicted(label: Label, how: Representation, options: ResidueOptions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the labelled test rows: the truth, what a probe on an embedding predicts, and the number of the sequence."""
    known = {name: values >= 0 for name, values in label.values.items()}
    values = {name: own[known[name]] for name, own in label.values.items()}
    features = {name: how(label.states[name][known[name]]) for name in SETS}
    if label.figure == "R²":
        tried = ridge_predictions(features[TRAIN], values[TRAIN], features[VALIDATION], STRENGTHS)
        best = STRENGTHS[int(((tried - values[VALIDATION][:, None]) ** 2).sum(axis=0).argmin())]
        found = ridge_predictions(features[TRAIN], values[TRAIN], features[TEST], (best,))[:, 0]
    else:
        features = {name: own.astype(np.float32) for name, own in features.items()}
        found = logistic_probe(features, values, int(values[TRAIN].max()) + 1, options)[0][TEST]
    return values[TEST], found, label.sequence_of[known[TEST]]


def contenders(
    names: Sequence[str], widths: Sequence[int], bases: Sequence[Basis]
) -> dict[tuple[str, int], Representation]:
    """By level and draw of random directions: the nested embedding (draw -1), and its prefix with random directions."""
    maps = [raw_maps(names, widths)[0], *chain_maps("rd", names, widths, bases)]
    found = {(name, -1): how for name, how in zip(names, maps, strict=True)}
    for level, basis in enumerate(bases):
        width, kept = basis.directions.shape
        for draw in range(DRAWS):
            square = np.random.default_rng(draw).standard_normal((width, width))
            directions = torch.from_numpy(np.linalg.qr(square)[0][:, :kept])
            changed = [*bases[:level], replace(basis, directions=directions), *bases[level + 1 :]]
            found[names[level + 1], draw] = chain_maps("random", names, widths, changed)[level]
    return found


def digest(label: Label, embeddings: Mapping[tuple[str, int], Representation], options: ResidueOptions) -> str:
    """Name of the file of results: of everything they depend on."""
    probe = {name: getattr(options, name) for name in ("inverse_strengths", "resamples", "seed")}
    found = hashlib.sha256(json.dumps([label.name, probe, *(how.digest for how in embeddings.values())]).encode())
    for name in SETS:
        found.update(np.ascontiguousarray(label.states[name]).tobytes() + label.values[name].tobytes())
    return found.hexdigest()[:24]


def probe_label(
    label: Label, embeddings: Mapping[tuple[str, int], Representation], options: ResidueOptions
) -> pd.DataFrame:
    """The figure of each embedding on the test sequences, and on resamples of them that all embeddings share.

    Columns: label, figure, sequences, rows, level, random (draw of directions, -1 for the block), draw (of sequences,
    0 for the test set itself), value.
    """
    tables = []
    for (level, random), how in embeddings.items():
        truth, found, owner = predicted(label, how, options)
        judge = FIGURES[label.figure]
        values = [judge(truth, found, weights) for weights in resampled_weights(owner, options)]
        named = {"label": label.name, "figure": label.figure, "sequences": len(set(owner)), "rows": len(owner)}
        named |= {"level": level, "random": random}
        tables.append(pd.DataFrame({**named, "draw": range(len(values)), "value": values}))
    return pd.concat(tables, ignore_index=True)


def summarise(results: pd.DataFrame, names: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """One row per label and level after the first: prefix, with its block, with random directions, and differences.

    Columns: label, figure, sequences, rows, level, prefix, block, random, and of "new" (block less prefix), "any"
    (random less prefix) and "chosen" (block less random) the value, its low and its high over resamples.
    """
    tail, rows = (1 - confidence) / 2, []
    for key, own in results.groupby(["label", "figure", "sequences", "rows"], sort=False):
        # One value per resample: random directions count as the mean over their draws.
        chain = own[own["random"] < 0].pivot(index="draw", columns="level", values="value")
        random = own[own["random"] >= 0].groupby(["draw", "level"])["value"].mean().unstack()
        for before, level in pairwise(names):
            row = {**dict(zip(("label", "figure", "sequences", "rows"), key, strict=True)), "level": level}
            prefix, block = chain[before], chain[level]
            row |= {"prefix": prefix[0], "block": block[0], "random": random[level][0]}
            differences = {"new": block - prefix, "any": random[level] - prefix, "chosen": block - random[level]}
            for name, values in differences.items():
                low, high = values[1:].quantile([tail, 1 - tail])
                row |= {name: values[0], f"{name}_low": low, f"{name}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)


def render(family: str, table: pd.DataFrame, figure: str) -> str:
    """The report, of :func:`summarise`'s table."""
    note = (
        f"{family}: probes on the prefix, on [prefix, block], and on [prefix, as many random directions of the same "
        f"residual] (mean of {DRAWS} draws). 95 % intervals resample test sequences, which all probes share."
    )

    def difference(name: str) -> Callable[[dict], str]:
        return lambda row: f"{number(row[name], SIGNED)} {between(row[f'{name}_low'], row[f'{name}_high'], SIGNED)}"

    columns: dict[str, Callable[[dict], str]] = {
        "label, figure": lambda row: f"{row['label']}, {row['figure']}",
        "test sequences": lambda row: f"{row['sequences']:,}",
        "rows": lambda row: f"{row['rows']:,}",
        "block": lambda row: row["level"],
        "prefix": lambda row: number(row["prefix"]),
        "and block": lambda row: number(row["block"]),
        "and random": lambda row: number(row["random"]),
        "block beyond prefix": difference("new"),
        "random beyond prefix": difference("any"),
        "block beyond random": difference("chosen"),
    }
    return (
        "\n\n".join(["# What the appended directions know", note, f"![{figure}]({figure})", table_of(table, columns)])
        + "\n"
    )


def draw(table: pd.DataFrame) -> Figure:
    """What block and random directions add to the prefix, with intervals; a panel a level."""
    panels = list(table.groupby("level", sort=False))
    figure = Figure(figsize=(1.6 + 3.4 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (level, own) in zip(axes, panels, strict=True):
        for name, text, shift, color in (
            ("new", "block", -0.15, "#D55E00"),
            ("any", "random directions", 0.15, "#7F7F7F"),
        ):
            places = np.arange(len(own)) + shift
            reach = np.abs(own[[f"{name}_low", f"{name}_high"]].to_numpy().T - own[name].to_numpy())
            axis.errorbar(own[name], places, xerr=reach, fmt="o", color=color, markersize=4, label=text)
        axis.axvline(0, color="grey", linewidth=0.8)
        axis.set_yticks(range(len(own)), own["label"] + ", " + own["figure"])
        axis.set_xlabel("beyond the prefix")
        axis.set_title(f"block of {level}", fontsize="medium")
    axes[0].invert_yaxis()
    legend_below(figure, axes[0], 2)
    return figure

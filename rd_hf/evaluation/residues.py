"""The evaluation on residue-level tasks: logistic probes, judged by accuracy and area under the precision-recall curve.

The unit of inference is the protein: residues of one chain are not independent, so intervals resample chains.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.metrics import average_precision_score
from threadpoolctl import threadpool_limits

from rd_hf.bases.moments import save_tensors
from rd_hf.data.batching import token_budget_batches
from rd_hf.data.residues import STANDARD_RESIDUES
from rd_hf.evaluation import plots
from rd_hf.evaluation.families import Family, load_families, residue_states
from rd_hf.evaluation.frame import Evaluated, Evaluation, stored_table
from rd_hf.evaluation.logistic import MOST_ITERATIONS, JudgedFits, choose_strength
from rd_hf.evaluation.options import KINDS, ResidueOptions
from rd_hf.evaluation.progress import progress_bar
from rd_hf.evaluation.representations import Representation, family_maps
from rd_hf.evaluation.tables import SIGNED, between, markdown_table, number, several_of, short_name, table_of
from rd_hf.evaluation.tasks import (
    TRAIN,
    UNLABELLED,
    VALIDATION,
    Chain,
    ResidueTask,
    read_metal_binding,
    read_secondary_structure,
    subsample,
)

WINDOW = 15  # residues of the one-hot baseline, as in the first secondary-structure predictors
CHUNK_CHAINS = 256
CONTENDER = ["model", "depth", "representation", "level"]
KEYS = ["task", "set", "figure", *CONTENDER]


def evaluate_residues(options: ResidueOptions) -> Evaluated:
    """Probe every contender on every task, and write the report."""
    evaluation = Evaluation(options, "an evaluation of residues", "results.parquet", "residues.png")
    readers = ((read_secondary_structure, options.secondary_structure), (read_metal_binding, options.metal_binding))
    tasks = [read(folder) for read, folder in readers if folder]
    if not tasks:
        raise ValueError("there is nothing to evaluate: give --secondary-structure, --metal-binding or both")
    tasks = [subsample(task, options.train_chains, options.validation_chains) for task in tasks]
    evaluation.claim()
    tables = []

    def probe(
        task: ResidueTask, contender: tuple, digest: str, states: Mapping[str, np.ndarray], how: Representation | None
    ) -> None:
        named = dict(zip(CONTENDER, contender, strict=True))
        path = evaluation.runs / f"{contender_digest(task, named, digest, options)}.parquet"
        with threadpool_limits(limits=options.threads):
            tables.append(stored_table(path, lambda: evaluate_contender(task, named, states, how, options)))

    families = load_families(options)
    for family in families:
        maps = family_maps(family, evaluation.moments(family), options.representations, options.seed)
        for task in tasks:
            states = {
                name: chain_states(family, chains, evaluation.cache, options.batch_tokens)
                for name, chains in task.splits.items()
            }
            for how in progress_bar(maps, desc=f"{task.name} with {family.label}", unit="probe"):
                contender = (family.label, family.depth, how.kind, how.level)
                probe(task, contender, f"{family.fingerprint} {how.digest}", states, how)
    if "one_hot" in options.representations:
        for task in progress_bar(tasks, desc="one-hot", unit="probe"):
            # Of all sets, so that their columns are the same.
            everything = [chain.sequence for chains in task.splits.values() for chain in chains]
            letters = set(STANDARD_RESIDUES).union(*everything)
            windows = {name: window_one_hot(chains, letters) for name, chains in task.splits.items()}
            probe(task, ("", 1.0, "one_hot", ""), "window", windows, None)

    results = pd.concat(tables, ignore_index=True)
    evaluation.write_table("results.parquet", results)
    table, first = summarise(results), families[0]
    evaluation.write_figures({"residues.png": plots.residue_figure(table, first.label, first.depth, first.names)})
    return evaluation.finish(render(results, evaluation.notes, ["residues.png"]))


def chain_states(family: Family, chains: Sequence[Chain], cache: Path, batch_tokens: int = 4096) -> np.ndarray:
    """States of every residue of every chain, in order: (residues, K) float32, kept on disk chunk by chunk."""
    parts = []
    with progress_bar(total=len(chains), desc=f"residues with {family.label}", unit="chain") as progress:
        for start in range(0, len(chains), CHUNK_CHAINS):
            sequences = [chain.sequence for chain in chains[start : start + CHUNK_CHAINS]]
            digest = hashlib.sha256("\n".join(sequences).encode()).hexdigest()[:16]
            path = cache / family.fingerprint / f"residues-{digest}.safetensors"
            if not path.exists():
                rows: dict[int, torch.Tensor] = {}
                for batch in token_budget_batches([len(sequence) for sequence in sequences], batch_tokens):
                    states, mask = residue_states(family, [sequences[position] for position in batch])
                    rows |= {
                        position: state[own].cpu() for position, state, own in zip(batch, states, mask, strict=True)
                    }
                path.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(path, {"states": torch.cat([rows[position] for position in range(len(sequences))])})
            parts.append(load_file(path)["states"].numpy())
            progress.update(len(sequences))
    return np.concatenate(parts)


def window_one_hot(chains: Sequence[Chain], alphabet: Collection[str], window: int = WINDOW) -> np.ndarray:
    """Residues at and around each position: (residues, window x letters) float32; blank beyond the ends."""
    letters = sorted(alphabet)
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

    Features are (residues, p) float32 of each set, labels (residues,) without unlabelled residues. Returns the
    probabilities, (residues, classes), of each test set, and the inverse strength chosen.
    """
    if len(np.unique(labels[TRAIN])) < classes:
        raise ValueError("the training chains lack a class; give more of them")
    split = JudgedFits(features[TRAIN], labels[TRAIN], features[VALIDATION], labels[VALIDATION], np.arange(classes))
    strength = choose_strength([split], options.inverse_strengths)
    (model,) = split.kept
    tests = [name for name in features if name not in (TRAIN, VALIDATION)]
    return {name: model.predict_proba(split.scaler.transform(features[name])) for name in tests}, strength


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


def resampled_weights(chain_of: np.ndarray, options: ResidueOptions) -> Iterator[np.ndarray]:
    """How often each row counts, (rows,) float64: once, then as its chain was drawn, for each resample of chains.

    The draws depend on the number of chains and the seed alone; ``chain_of``, (rows,), numbers each row's chain.
    """
    generator = np.random.default_rng(options.seed)
    number = int(chain_of.max()) + 1
    yield np.ones(len(chain_of))
    for _ in range(options.resamples):
        picked = generator.integers(0, number, number)
        yield np.bincount(picked, minlength=number)[chain_of].astype(np.float64)


def bootstrap_figures(
    labels: np.ndarray, probabilities: np.ndarray, chain_of: np.ndarray, options: ResidueOptions
) -> pd.DataFrame:
    """Accuracy and area on the test set (draw 0) and on resamples of its chains (draws 1 and up).

    Contenders can be compared draw by draw. Labels and ``chain_of``, the number of each residue's chain, are
    (residues,), probabilities (residues, classes). Columns: figure ("accuracy", "AUPR"), draw, value.
    """
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    rows = []
    for draw, weights in enumerate(resampled_weights(chain_of, options)):
        rows.append(("accuracy", draw, float(np.average(right, weights=weights))))
        rows.append(("AUPR", draw, precision_recall_area(labels, probabilities, weights)))
    return pd.DataFrame(rows, columns=["figure", "draw", "value"])


def known_labels(task: ResidueTask) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Of every set: which residues are labelled, (residues,) bool, and the labels of these."""
    labels = {name: np.concatenate([chain.labels for chain in chains]) for name, chains in task.splits.items()}
    known = {name: values != UNLABELLED for name, values in labels.items()}
    return known, {name: values[known[name]] for name, values in labels.items()}


def evaluate_contender(
    task: ResidueTask,
    contender: Mapping[str, object],
    states: Mapping[str, np.ndarray],
    how: Representation | None,
    options: ResidueOptions,
) -> pd.DataFrame:
    """Probe one contender, given by its columns, on one task.

    States are (residues, K) of each set, every residue of every chain; ``how`` maps them to features, or is None where
    they are the features. Columns: task, set, contender, width, inverse_strength, chains, residues, figure, draw and
    value.
    """
    known, labels = known_labels(task)
    features = {
        name: (values if how is None else how(values)).astype(np.float32)[known[name]]
        for name, values in states.items()
    }
    probabilities, strength = logistic_probe(features, labels, len(task.classes), options)
    tables = []
    for name, predicted in probabilities.items():
        sizes = [len(chain.labels) for chain in task.splits[name]]
        chain_of = np.repeat(np.arange(len(sizes)), sizes)[known[name]]
        table = bootstrap_figures(labels[name], predicted, chain_of, options)
        described = {"task": task.name, "set": name, **contender, "width": features[TRAIN].shape[1]}
        described |= {"inverse_strength": strength, "chains": len(sizes), "residues": int(known[name].sum())}
        tables.append(table.assign(**described)[[*described, "figure", "draw", "value"]])
    return pd.concat(tables, ignore_index=True)


def contender_digest(
    task: ResidueTask, contender: Mapping[str, object], feature_digest: str, options: ResidueOptions
) -> str:
    """Name of the file of results: of everything they depend on."""
    probe = {name: getattr(options, name) for name in ("inverse_strengths", "resamples", "seed")}
    probe["max_iterations"] = MOST_ITERATIONS
    digest = hashlib.sha256(json.dumps([task.name, contender, feature_digest, probe]).encode())
    for name, chains in task.splits.items():
        digest.update(name.encode())
        for chain in chains:
            digest.update(chain.sequence.encode() + chain.labels.tobytes())
    return digest.hexdigest()[:24]


def _with_interval(point: pd.DataFrame, draws: pd.Series, keys: list[str], confidence: float) -> pd.DataFrame:
    """A table of values on the test set, with percentile intervals over resamples."""
    tail, grouped = (1 - confidence) / 2, draws.groupby(level=keys, sort=False)
    return point.assign(low=grouped.quantile(tail), high=grouped.quantile(1 - tail)).reset_index()


def summarise(results: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Value on the test set with its percentile interval over resamples, for every contender and figure."""
    table = results.set_index(KEYS)
    columns = ["width", "inverse_strength", "chains", "residues", "value"]
    return _with_interval(
        table.loc[table["draw"] == 0, columns], table.loc[table["draw"] > 0, "value"], KEYS, confidence
    )


def paired_differences(results: pd.DataFrame, first: str, second: str, confidence: float = 0.95) -> pd.DataFrame:
    """First kind less second at each level that both have, resample by resample.

    Returns:
        Columns: task, set, figure, model, depth, level, difference, low, high.
    """
    keys = [key for key in KEYS if key != "representation"]
    wide = results.pivot(index=[*keys, "draw"], columns="representation", values="value")
    if not {first, second} <= set(wide.columns):
        return pd.DataFrame()
    table = (wide[first] - wide[second]).dropna().rename("difference").reset_index("draw")
    drawn = table.loc[table["draw"] > 0, "difference"]
    return _with_interval(table.loc[table["draw"] == 0, ["difference"]], drawn, keys, confidence)


def render(results: pd.DataFrame, notes: Sequence[str], figures: Sequence[str]) -> str:
    """The report, of tidy rows, sentences on how the run was done, and names of figures beside it."""
    several = several_of(results)
    parts = ["# Evaluation on residues", *notes, *(f"![{name}]({name})" for name in figures)]
    order = list(KINDS)
    for (task, part), group in summarise(results).groupby(["task", "set"], sort=False):
        first = group.iloc[0]
        parts.append(f"## {task}, {part} set")
        parts.append(f"{first['chains']} chains, {first['residues']:,} residues; 95 % intervals resample chains.")
        wide = group.pivot(index=[*CONTENDER, "width"], columns="figure", values=["value", "low", "high"])
        rows = []
        for key in sorted(wide.index, key=lambda key: (key[0], key[1], order.index(key[2]), key[4])):
            row = wide.loc[key]
            cells = [short_name(dict(zip(CONTENDER, key, strict=False)), several), KINDS[key[2]], str(key[4])]
            for figure in ("AUPR", "accuracy"):
                cells += [number(row["value", figure]), between(row["low", figure], row["high", figure])]
            rows.append(cells)
        parts.append(markdown_table(["contender", "", "width", "AUPR", "95 %", "accuracy", "95 %"], rows))
    pairs = [
        paired_differences(results, first, second).assign(first=first, second=second)
        for first, second in (("rd", "raw"), ("rd", "pca"), ("pca", "raw"), ("rd_all", "concat"))
    ]
    pairs = [table[table["figure"] == "AUPR"] for table in pairs if len(table)]
    if pairs:
        columns = {
            "pair": lambda row: f"{row['first']}.{row['level']} - {row['second']}.{row['level']}",
            "task": lambda row: f"{row['task']}, {row['set']}",
            "difference": lambda row: number(row["difference"], SIGNED),
            "95 %": lambda row: between(row["low"], row["high"], SIGNED),
        }
        parts += ["## Paired differences of AUPR", table_of(pd.concat(pairs), columns)]
    return "\n\n".join(parts) + "\n"

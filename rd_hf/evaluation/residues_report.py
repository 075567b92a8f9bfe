"""The evaluation on residue-level tasks: every contender of a run, and the report made of their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from rd_hf.evaluation import plots
from rd_hf.evaluation.families import load_families
from rd_hf.evaluation.frame import Evaluated, Evaluation, stored_table
from rd_hf.evaluation.options import KINDS, ResidueOptions
from rd_hf.evaluation.representations import Representation, family_maps
from rd_hf.evaluation.residues import chain_states, contender_digest, evaluate_contender, window_one_hot
from rd_hf.evaluation.tables import (
    between,
    markdown_table,
    number,
    several_of,
    short_name,
    signed,
    signed_between,
    table_of,
)
from rd_hf.evaluation.tasks import ResidueTask, read_metal_binding, read_secondary_structure, subsample

CONTENDER = ["model", "depth", "representation", "level"]
KEYS = ["task", "set", "figure", *CONTENDER]


def evaluate_residues(options: ResidueOptions) -> Evaluated:
    """Probe every contender on every task, and write the report.

    Raises:
        InputError: an input cannot be read, or a model cannot be loaded.
        ValueError: there is no task, or its training chains lack a class.
    """
    evaluation = Evaluation(options, "an evaluation of residues", "results.parquet", "residues.png")
    readers = ((read_secondary_structure, options.secondary_structure), (read_metal_binding, options.metal_binding))
    tasks = [read(folder) for read, folder in readers if folder]
    if not tasks:
        raise ValueError("there is nothing to evaluate: give --secondary-structure, --metal-binding or both")
    tasks = [subsample(task, options.train_chains, options.validation_chains) for task in tasks]
    evaluation.output.claim()
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
            for how in tqdm(maps, desc=f"{task.name} with {family.label}", unit="probe", disable=None):
                contender = (family.label, family.depth, how.kind, how.level)
                probe(task, contender, f"{family.fingerprint} {how.digest}", states, how)
    if "one_hot" in options.representations:
        for task in tqdm(tasks, desc="one-hot", unit="probe", disable=None):
            windows = {name: window_one_hot(chains) for name, chains in task.splits.items()}
            probe(task, ("", 1.0, "one_hot", ""), "window", windows, None)

    results = pd.concat(tables, ignore_index=True)
    evaluation.write_table("results.parquet", results)
    table, first = summarise(results), families[0]
    evaluation.write_figures({"residues.png": plots.residue_figure(table, first.label, first.depth, first.names)})
    return evaluation.finish(render(results, evaluation.notes, ["residues.png"]))


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
    """The report of the residue-level tasks.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.residues.evaluate_contender`.
        notes: sentences on how the run was done.
        figures: file names of plots beside the report.
    """
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
            "difference": lambda row: signed(row["difference"]),
            "95 %": lambda row: signed_between(row["low"], row["high"]),
        }
        parts += ["## Paired differences of AUPR", table_of(pd.concat(pairs), columns)]
    return "\n\n".join(parts) + "\n"

"""The report on deep mutational scans: Markdown tables, each a plain average of the tidy Parquet's rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rd_hf.data.records import InputError
from rd_hf.evaluation import statistics
from rd_hf.evaluation.assays import LOW_N
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.tables import (
    CHANCE,
    CONTENDER,
    SIGNED,
    between,
    groups_of,
    markdown_table,
    number,
    several_of,
    share,
    short_name,
    table_of,
)

# ProteinGym's published supervised baselines that are quoted beside ours, most alike first.
PUBLISHED = (
    "One-Hot Encodings",
    "ESM-1v Embeddings",
    "MSA Transformer Embeddings",
    "Tranception Embeddings",
    "ProteinNPT",
    "Kermut",
)
LADDERS = ("raw", "rd", "pca", "pca_chain", "concat", "rd_all")
Levels = Mapping[str, Sequence[str]]  # level names of each model, smallest first


def condition(scores: pd.DataFrame, split: str, size: int = 0, mutations: str = "all") -> pd.DataFrame:
    """The rows of one condition."""
    chosen = (scores["split"] == split) & (scores["size"] == size) & (scores["mutations"] == mutations)
    return scores[chosen]


def main_split(scores: pd.DataFrame) -> str:
    """The split that figures and comparisons use: "random" where it was run."""
    splits = [split for split in scores["split"].unique() if split != LOW_N]
    return "random" if "random" in splits or not splits else str(splits[0])


def _one_hot(table: pd.DataFrame) -> tuple | None:
    """The column of one-hot in a table of :func:`rd_hf.evaluation.statistics.wide`."""
    return next((key for key in table.columns if key[CONTENDER.index("representation")] == "one_hot"), None)


def means_table(scores: pd.DataFrame) -> str:
    """Mean over assays of each contender, for one condition."""
    several = several_of(scores)
    columns = {
        "contender": lambda row: short_name(row, several),
        "": lambda row: KINDS[row["representation"]],
        "width": lambda row: str(row["width"]),
        "mean Spearman": lambda row: number(row["mean"]),
        "95 % interval": lambda row: between(row["low"], row["high"]),
        "median": lambda row: number(row["median"]),
        "seed spread": lambda row: number(row["spread"], ".4f"),
        "assays": lambda row: str(row["assays"]),
    }
    return table_of(statistics.summary(scores), columns)


def comparison_table(scores: pd.DataFrame, levels: Levels) -> str:
    """The pairs that a reader asks about, on the same assays, for one condition.

    At each level: reverse-distilled against raw, against concatenation + PCA, and, with all directions, against
    the full concatenation. For each kind: a level against the one before it. The largest against one-hot.
    """
    several = several_of(scores)
    table = statistics.wide(scores)
    one_hot = _one_hot(table)
    rows = []
    for group in groups_of(scores):
        names = levels[str(group["model"])]
        pairs: list[tuple[str, tuple[str, str], tuple[str, str] | None]] = []
        for level in names[1:]:
            pairs += [("same width", (one, level), (other, level)) for one, other in (("rd", "raw"), ("rd", "pca"))]
            pairs += [
                ("same width", ("pca", level), ("raw", level)),
                ("full width", ("rd_all", level), ("concat", level)),
            ]
        for kind in LADDERS:
            for before, after in itertools.pairwise(names):
                pairs.append(("larger level", (kind, after), ("raw" if before == names[0] else kind, before)))
        pairs += [("baseline", (kind, names[-1]), None) for kind in ("raw", "rd", "concat") if one_hot]
        for question, *both in pairs:
            keys = [one_hot or () if one is None else (*group.values(), *one, "true") for one in both]
            if all(key in table.columns for key in keys):
                first, second = (short_name(key, several) for key in keys)
                figures = statistics.compare(*(table[key].to_numpy() for key in keys))
                rows.append({"question": question, "first": first, "second": second, **figures})
    columns = {
        "pair": lambda pair: f"{pair['first']} > {pair['second']}",
        "question": lambda pair: pair["question"],
        "wins": lambda pair: share(pair["wins"], pair["assays"]),
        "95 %": lambda pair: between(100 * pair["wins_low"], 100 * pair["wins_high"], ".0f"),
        "mean difference": lambda pair: number(pair["difference"], SIGNED),
        "95 % interval": lambda pair: between(pair["difference_low"], pair["difference_high"], SIGNED),
        "p": lambda pair: number(pair["p"], CHANCE),
        "q": lambda pair: number(pair["q"], CHANCE),
    }
    return table_of(statistics.with_q(pd.DataFrame(rows)), columns)


def monotonicity_table(scores: pd.DataFrame, levels: Levels) -> str:
    """Share of assays on which every larger level is at least as good as the one before it."""
    several = several_of(scores)
    table = statistics.wide(scores)
    rows = []
    for group, kind in itertools.product(groups_of(scores), LADDERS):
        names = levels[str(group["model"])]
        steps = statistics.ladder(table, names, kind, **group)
        if steps.shape[1] == len(names) > 1:
            monotone = statistics.monotonicity(steps)
            low, high = statistics.interval(monotone)
            extras = [str(group[key]) for key in group if several[key]]
            name = KINDS[kind] + (f" ({', '.join(extras)})" if extras else "")
            figures = [share(monotone.mean(), len(monotone)), between(100 * low, 100 * high, ".0f")]
            rows.append([name, " ≤ ".join(names), *figures])
    return markdown_table(["", "levels", "monotone assays", "95 %"], rows)


def _means_by(scores: pd.DataFrame, column: str, titles: Mapping[Any, str]) -> str:
    """Mean Spearman of each contender for each value of a column."""
    several = several_of(scores)
    rows = []
    for key, group in scores.groupby(CONTENDER, sort=False):
        means = group.groupby(column)["score"].mean().reindex(list(titles))
        rows.append([short_name(key, several), *map(number, means), str(group["assay"].nunique())])
    return markdown_table(["contender", *titles.values(), "assays"], rows)


def low_n_table(scores: pd.DataFrame) -> str:
    """Mean Spearman for each number of training variants, over the assays that have all of them."""
    sizes = sorted(scores["size"].unique())
    found = scores.groupby([*CONTENDER, "assay"])["score"].transform("count")
    whole = scores[found == len(sizes)].sort_values([*CONTENDER, "assay"], kind="stable")
    return _means_by(whole, "size", {size: f"{size} variants" for size in sizes})


def mutations_table(scores: pd.DataFrame) -> str:
    """Mean Spearman by number of mutations of the test variants, for one split."""
    counts = sorted(scores["mutations"].unique(), key=lambda name: (name != "all", name.zfill(3)))
    titles = {count: f"{count} mutation{'s' * (count != '1')}" for count in counts}
    return _means_by(scores, "mutations", titles | ({"all": "all"} if "all" in titles else {}))


def read_published(path: str | Path) -> pd.DataFrame:
    """Read ProteinGym's table of supervised Spearman, DMS_id in the index."""
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; leave --reference out, or fetch ProteinGym's supervised table")
    table = pd.read_csv(path, dtype={"DMS_id": str})
    if not {"DMS_id", PUBLISHED[0]} <= set(table.columns):
        raise InputError(f"{path} lacks the column DMS_id or {PUBLISHED[0]}; give ProteinGym's supervised table")
    return table.set_index("DMS_id")


def published_table(scores: pd.DataFrame, published: pd.DataFrame) -> str:
    """Published means and ours over the assays that both have, and how far the two one-hot figures are apart."""
    several = several_of(scores)
    table = statistics.wide(scores[scores["labels"] == "true"])
    both = table.index.intersection(published.index)
    if not len(both):
        return "None of these assays is in the published table."
    theirs = [column for column in PUBLISHED if column in published.columns]
    rows = [[f"{column} (ProteinGym)", number(published.loc[both, column].mean())] for column in theirs]
    rows += [[f"{short_name(key, several)} (here)", number(table.loc[both, key].mean())] for key in table.columns]
    text = markdown_table(["", f"mean Spearman, {len(both)} assays"], rows)
    one_hot = _one_hot(table)
    if one_hot is None:
        return text
    apart = (table.loc[both, one_hot] - published.loc[both, PUBLISHED[0]]).dropna()
    if not len(apart):
        return text
    worst = apart.abs().idxmax()
    mean, median = (number(value, SIGNED) for value in (apart.mean(), apart.median()))
    return (
        f"{text}\n\nOur one-hot less the published one: mean {mean}, median {median}, within 0.03 on "
        f"{int((apart.abs() <= 0.03).sum())} of {len(apart)} assays, furthest on {worst} ({apart[worst]:+.3f})."
    )


def assay_table(scores: pd.DataFrame) -> str:
    """Every assay and contender: mean over folds and seeds ± spread over seeds."""
    several = several_of(scores)
    keys = list(statistics.wide(scores).columns)
    means = scores.pivot(index="assay", columns=CONTENDER, values="score")
    spreads = scores.pivot(index="assay", columns=CONTENDER, values="spread")

    def cell(assay: str, key: tuple) -> str:
        mean, spread = means.loc[assay, key], spreads.loc[assay, key]
        return number(mean) + ("" if np.isnan(spread) else f" ± {number(spread)}")

    rows = [[assay, *(cell(assay, key) for key in keys)] for assay in means.index]
    return markdown_table(["assay", *(short_name(key, several) for key in keys)], rows)


def render(
    results: pd.DataFrame,
    levels: Levels,
    notes: Sequence[str],
    failed: Mapping[str, str],
    published: pd.DataFrame | None,
    figures: Sequence[str],
) -> str:
    """The whole report, of tidy rows, sentences on how the run was done, and names of figures beside it."""
    scores = statistics.assay_scores(results)
    split = main_split(scores)
    chosen = condition(scores, split)
    true = chosen[chosen["labels"] == "true"]
    parts = ["# Evaluation on deep mutational scans", *notes]
    if failed:
        parts += ["## Left out", "\n".join(f"- {message}" for message in failed.values())]
    parts += [f"## Mean Spearman ({split} folds)", means_table(chosen)]
    parts += [f"![{name}]({name})" for name in figures]
    few = statistics.few(true.loc[true["score"].notna(), "assay"].nunique())
    parts += [*([few] if few else []), "## Who wins", comparison_table(true, levels)]
    parts += ["## Does bigger win?", monotonicity_table(true, levels)]
    if published is not None:
        parts += ["## Beside published figures", published_table(chosen, published)]
    multiple = {
        "by_mutations": "## Multiple mutants",
        "singles_to_multiples": "## Trained on single mutants, tested on multiple",
    }
    for other in scores["split"].unique():
        rows = scores[(scores["split"] == other) & (scores["labels"] == "true")]
        if other in multiple:
            parts += [multiple[other], mutations_table(rows)]
        elif other not in (LOW_N, split):
            parts += [f"## Mean Spearman ({other} folds)", means_table(rows)]
    low = scores[(scores["split"] == LOW_N) & (scores["labels"] == "true")]
    if len(low):
        parts += ["## Few training variants", low_n_table(low)]
    return "\n\n".join([*parts, f"## Every assay ({split} folds)", assay_table(true)]) + "\n"

"""The report of a run: Markdown tables, each a plain average of the tidy Parquet's rows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rd_hf.data.fasta import InputError
from rd_hf.evaluation import statistics
from rd_hf.evaluation.representations import KINDS
from rd_hf.evaluation.statistics import CONTENDER
from rd_hf.evaluation.tables import between, groups_of, markdown_table, number, percent, several_of, short_name

# ProteinGym's published supervised baselines that are quoted beside ours, most alike first.
PUBLISHED = (
    "One-Hot Encodings",
    "ESM-1v Embeddings",
    "MSA Transformer Embeddings",
    "Tranception Embeddings",
    "ProteinNPT",
    "Kermut",
)
LADDERS = ("raw", "rd", "pca", "concat", "rd_all")


def condition(scores: pd.DataFrame, split: str, size: int = 0, mutations: str = "all") -> pd.DataFrame:
    """The rows of one condition."""
    chosen = (scores["split"] == split) & (scores["size"] == size) & (scores["mutations"] == mutations)
    return scores[chosen]


def main_split(scores: pd.DataFrame) -> str:
    """The split that figures and comparisons use: "random" where it was run."""
    splits = [split for split in scores["split"].unique() if split != "low_n"]
    return "random" if "random" in splits or not splits else str(splits[0])


def means_table(scores: pd.DataFrame) -> str:
    """Mean over assays of each contender, for one condition."""
    several = several_of(scores)
    rows = []
    for row in statistics.summary(scores).to_dict("records"):
        rows.append(
            [
                short_name(row, several),
                KINDS[str(row["representation"])],
                str(row["width"]),
                number(row["mean"]),
                between(row["low"], row["high"]),
                number(row["median"]),
                number(row["spread"], 4),
                str(row["assays"]),
            ]
        )
    header = ["contender", "", "width", "mean Spearman", "95 % interval", "median", "seed spread", "assays"]
    return markdown_table(header, rows)


def comparisons(scores: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """The pairs that a reader asks about, on the same assays.

    At each level: reverse-distilled against raw, against concatenation + PCA, and, with all directions, against
    the full concatenation. For each kind: a level against the one before it. The largest against one-hot.

    Args:
        scores: one condition of :func:`rd_hf.evaluation.statistics.assay_scores`.
        levels: level names of each model, smallest first.

    Returns:
        Columns: question, first, second, and those of :func:`rd_hf.evaluation.statistics.compare` with q, p
        adjusted for all pairs.
    """
    several = several_of(scores)
    table = statistics.wide(scores)
    one_hot = next((column for column in table.columns if column[CONTENDER.index("representation")] == "one_hot"), None)
    rows = []

    def add(question: str, first: tuple, second: tuple) -> None:
        if first in table.columns and second in table.columns:
            names = [short_name(dict(zip(CONTENDER, key, strict=True)), several) for key in (first, second)]
            figures = statistics.compare(table[first].to_numpy(), table[second].to_numpy())
            rows.append({"question": question, "first": names[0], "second": names[1], **figures})

    for group in groups_of(scores):

        def key(kind: str, level: str, group: Mapping[str, object] = group) -> tuple:
            return (group["model"], group["depth"], group["pooling"], kind, level, "true")

        names = levels[str(group["model"])]
        for level in names[1:]:
            add("same width", key("rd", level), key("raw", level))
            add("same width", key("rd", level), key("pca", level))
            add("same width", key("pca", level), key("raw", level))
            add("full width", key("rd_all", level), key("concat", level))
        for kind in LADDERS:
            for before, after in itertools.pairwise(names):
                smaller = key("raw" if before == names[0] else kind, before)
                add("larger level", key(kind, after), smaller)
        if one_hot is not None:
            for kind in ("raw", "rd", "concat"):
                add("baseline", key(kind, names[-1]), one_hot)
    result = pd.DataFrame(rows)
    return result.assign(q=statistics.adjusted(result["p"].tolist())) if len(result) else result


def comparison_table(pairs: pd.DataFrame) -> str:
    """Markdown of :func:`comparisons`."""
    rows = [
        [
            f"{pair['first']} > {pair['second']}",
            pair["question"],
            percent(pair["wins"]),
            between(100 * pair["wins_low"], 100 * pair["wins_high"], 0),
            f"{pair['difference']:+.4f}",
            f"[{pair['difference_low']:+.4f}, {pair['difference_high']:+.4f}]",
            f"{pair['p']:.1e}",
            f"{pair['q']:.1e}",
        ]
        for pair in pairs.to_dict("records")
    ]
    header = ["pair", "question", "wins", "95 %", "mean difference", "95 % interval", "p", "q"]
    return markdown_table(header, rows)


def monotonicity_table(scores: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> str:
    """Share of assays on which every larger level is at least as good as the one before it."""
    several = several_of(scores)
    table = statistics.wide(scores)
    rows = []
    for group in groups_of(scores):
        names = levels[str(group["model"])]
        for kind in LADDERS:
            steps = statistics.ladder(table, names, kind, **group)
            if steps.shape[1] == len(names) > 1:
                share = statistics.monotonicity(steps)
                low, high = statistics.interval(share)
                extras = [str(group[key]) for key in group if several[key]]
                name = KINDS[kind] + (f" ({', '.join(extras)})" if extras else "")
                rows.append([name, " ≤ ".join(names), percent(share.mean()), between(100 * low, 100 * high, 0)])
    return markdown_table(["", "levels", "monotone assays", "95 %"], rows)


def low_n_table(scores: pd.DataFrame) -> str:
    """Mean Spearman for each number of training variants, over the assays that have all of them."""
    several = several_of(scores)
    chosen = scores[(scores["split"] == "low_n") & (scores["labels"] == "true")]
    sizes = sorted(chosen["size"].unique())
    table = chosen.pivot(index=[*CONTENDER, "assay"], columns="size", values="score").dropna().reset_index()
    rows = []
    for key, group in table.groupby(CONTENDER, sort=False):
        name = short_name(dict(zip(CONTENDER, key, strict=True)), several)
        rows.append([name, *(number(group[size].mean()) for size in sizes), str(len(group))])
    return markdown_table(["contender", *(f"{size} variants" for size in sizes), "assays"], rows)


def mutations_table(scores: pd.DataFrame, split: str) -> str:
    """Mean Spearman by number of mutations of the test variants."""
    several = several_of(scores)
    chosen = scores[(scores["split"] == split) & (scores["labels"] == "true")]
    counts = sorted(chosen["mutations"].unique(), key=lambda name: (name != "all", name.zfill(3)))
    rows = []
    for key, group in chosen.groupby(CONTENDER, sort=False):
        means = group.groupby("mutations")["score"].mean()
        name = short_name(dict(zip(CONTENDER, key, strict=True)), several)
        rows.append([name, *(number(means.get(count, np.nan)) for count in counts), str(group["assay"].nunique())])
    header = [count if count == "all" else f"{count} mutation{'s' * (count != '1')}" for count in counts]
    return markdown_table(["contender", *header, "assays"], rows)


def read_published(path: str | Path) -> pd.DataFrame:
    """ProteinGym's table of supervised Spearman, DMS_id in the index.

    Raises:
        InputError: no such file, or no DMS_id or one-hot column.
    """
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
    rows = [
        [f"{column} (ProteinGym)", number(published.loc[both, column].mean())]
        for column in PUBLISHED
        if column in published.columns
    ]
    rows += [
        [f"{short_name(dict(zip(CONTENDER, key, strict=True)), several)} (here)", number(table.loc[both, key].mean())]
        for key in table.columns
    ]
    text = markdown_table(["", f"mean Spearman, {len(both)} assays"], rows)
    one_hot = next((key for key in table.columns if key[CONTENDER.index("representation")] == "one_hot"), None)
    if one_hot is not None:
        apart = (table.loc[both, one_hot] - published.loc[both, PUBLISHED[0]]).dropna()
        worst = apart.abs().idxmax()
        text += (
            f"\n\nOur one-hot less the published one: mean {apart.mean():+.4f}, median {apart.median():+.4f}, within "
            f"0.03 on {int((apart.abs() <= 0.03).sum())} of {len(apart)} assays, furthest on {worst} "
            f"({apart[worst]:+.3f})."
        )
    return text


def assay_table(scores: pd.DataFrame) -> str:
    """Every assay and contender: mean over folds and seeds ± spread over seeds."""
    several = several_of(scores)
    keys = list(statistics.wide(scores).columns)
    means = scores.pivot(index="assay", columns=CONTENDER, values="score")
    spreads = scores.pivot(index="assay", columns=CONTENDER, values="spread")
    header = ["assay", *(short_name(dict(zip(CONTENDER, key, strict=True)), several) for key in keys)]
    rows = []
    for assay in means.index:
        cells = [number(means.loc[assay, key]) for key in keys]
        cells = [
            cell + (f" ± {number(spreads.loc[assay, key])}" if not np.isnan(spreads.loc[assay, key]) else "")
            for cell, key in zip(cells, keys, strict=True)
        ]
        rows.append([assay, *cells])
    return markdown_table(header, rows)


def render(
    results: pd.DataFrame,
    levels: Mapping[str, Sequence[str]],
    notes: Sequence[str],
    failed: Mapping[str, str],
    published: pd.DataFrame | None,
    figures: Sequence[str],
) -> str:
    """The whole report.

    Args:
        results: tidy table.
        levels: level names of each model, smallest first.
        notes: sentences on how the run was done.
        failed: message for each assay left out.
        published: ProteinGym's supervised table, or None.
        figures: file names of plots beside the report.
    """
    scores = statistics.assay_scores(results)
    split = main_split(scores)
    chosen = condition(scores, split)
    true = chosen[chosen["labels"] == "true"]
    parts = ["# Evaluation on deep mutational scans", *notes]
    if failed:
        parts += ["## Left out", "\n".join(f"- {message}" for message in failed.values())]
    parts += [f"## Mean Spearman ({split} folds)", means_table(chosen)]
    parts += [f"![{name}]({name})" for name in figures]
    parts += ["## Who wins", comparison_table(comparisons(true, levels))]
    parts += ["## Does bigger win?", monotonicity_table(true, levels)]
    if published is not None:
        parts += ["## Beside published figures", published_table(chosen, published)]
    for other in scores["split"].unique():
        rows = scores[(scores["split"] == other) & (scores["labels"] == "true")]
        if other in ("by_mutations", "singles_to_multiples"):
            title = "Multiple mutants" if other == "by_mutations" else "Trained on single mutants, tested on multiple"
            parts += [f"## {title}", mutations_table(rows, other)]
        elif other not in ("low_n", split):
            parts += [f"## Mean Spearman ({other} folds)", means_table(rows)]
    if (scores["split"] == "low_n").any():
        parts += ["## Few training variants", low_n_table(scores)]
    parts += [f"## Every assay ({split} folds)", assay_table(true)]
    return "\n\n".join(parts) + "\n"

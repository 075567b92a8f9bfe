"""The report on remote homology: Markdown tables, each an average of the tidy Parquet's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rd_hf.evaluation import statistics
from rd_hf.evaluation.homology import FIGURES, Published
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.plots import draw_levels, legend_below
from rd_hf.evaluation.tables import CHANCE, SIGNED, between, markdown_table, number, table_of
from rd_hf.evaluation.treatments import LABELLED, TREATMENTS, unweighted

WORDS = {
    **KINDS,
    "block": "one block of reverse-distilled, alone",
    "block_all": "one block of all directions, alone",
}
FIGURE_NAMES = {"hit1": "hit@1", "hit10": "hit@10", "auroc": "AUROC", "auprc": "AUPRC"}
# Beside published lines: chosen beforehand, for to take the best of many would be a choice that labels made.
QUOTED = ("raw", "rd", "pca", "rd_all")
SHOWN = ("plain", "whitened", "whitened + weights")


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Means over queries with intervals over clusters: for each figure FIGURE, FIGURE_low and FIGURE_high."""
    keys = ["model", "representation", "level", "treatment", "width", "weights", "relation"]
    rows = []
    for key, group in results.groupby(keys, sort=False, observed=True):
        row = dict(zip(keys, key, strict=True)) | {"queries": len(group), "clusters": group["cluster"].nunique()}
        values = group[list(FIGURES)].to_numpy(np.float64)
        ends = statistics.cluster_intervals(values, group["cluster"].to_numpy())
        for figure, mean, low, high in zip(FIGURES, values.mean(axis=0), *ends, strict=True):
            row |= {figure: mean, f"{figure}_low": low, f"{figure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _name(row: Mapping[str, object]) -> str:
    return f"{row['representation']}.{row['level']}"


def _hits(group: pd.DataFrame, treatment: str) -> str:
    """hit@1 / hit@10 of a group's row under one treatment, if it has one."""
    row = group[group["treatment"] == treatment]
    figures = ("exact_hit1", "exact_hit10") if treatment in LABELLED else ("hit1", "hit10")
    return " / ".join(number(row[figure].iloc[0]) for figure in figures) if len(row) else ""


def in_short(table: pd.DataFrame, level: str) -> str:
    """The largest level alone: plain, whitened, as a search does it, and with the weights that labels would choose."""
    rows, columns = table[table["level"] == level], (*SHOWN, "whitened + labels")
    return markdown_table(
        [f"level {level}", "width", *columns], [line[1:] for line in _lines(rows, "superfamily", columns)]
    )


def overview(table: pd.DataFrame, relation: str) -> str:
    """hit@1 / hit@10 of each representation under each treatment that no label chose."""
    known = set(table.loc[table["relation"] == relation, "treatment"])
    columns = [name for name in TREATMENTS if name in known]
    return markdown_table(["contender", "", "width", *columns], _lines(table, relation, columns))


def _lines(table: pd.DataFrame, relation: str, treatments: Sequence[str]) -> list[list[str]]:
    """Name, kind, width and hits of each representation under each treatment."""
    keys = ["representation", "level", "width"]
    groups = table[table["relation"] == relation].groupby(keys, sort=False, observed=True)
    return [
        [f"{kind}.{level}", WORDS[str(kind)], str(width), *(_hits(group, treatment) for treatment in treatments)]
        for (kind, level, width), group in groups
    ]


def details(table: pd.DataFrame, relation: str) -> str:
    """Every figure of every contender with its interval."""
    rows = table[(table["relation"] == relation) & ~table["treatment"].isin(LABELLED)]
    header, lines = ["contender", "width", "weights"], []
    for title in FIGURE_NAMES.values():
        header += [title, "95 %"]
    for row in rows.to_dict("records"):
        cells = [f"{_name(row)}, {row['treatment']}", str(row["width"]), str(row["weights"])]
        for figure in FIGURE_NAMES:
            cells += [number(row[figure]), between(row[f"{figure}_low"], row[f"{figure}_high"])]
        lines.append(cells)
    return markdown_table(header, lines)


def _pairs(names: Sequence[str]) -> list[tuple[tuple[str, str, str], tuple[str, str, str]]]:
    """Pairs of contenders (representation, level, treatment) that a reader asks about."""
    last = names[-1]
    pairs = []
    for level in names[1:]:
        for treatment in ("plain", "whitened"):
            for one, other in (("rd", "raw"), ("rd", "pca"), ("rd_all", "concat"), ("rd_all", "raw")):
                pairs.append(((one, level, treatment), (other, level, treatment)))
    pairs += [((kind, last, "whitened"), (kind, last, "plain")) for kind in ("raw", "rd", "pca", "rd_all", "concat")]
    for kind in ("rd", "rd_all", "concat"):
        for name in (name for name, how in TREATMENTS.items() if how.weights):
            pairs.append(((kind, last, name), (kind, last, unweighted(name))))
            pairs += [((kind, last, name), (other, last, "whitened")) for other in ("raw", "pca")]
    for treatment in ("plain", "whitened"):
        pairs += [(("block", level, treatment), ("raw", level, treatment)) for level in names[1:]]
    return list(dict.fromkeys(pairs))


def comparison_table(results: pd.DataFrame, names: Sequence[str]) -> str:
    """The pairs that a reader asks about, on the same queries of one family, by hit@10 at the superfamily's level."""
    chosen = results[(results["relation"] == "superfamily") & ~results["treatment"].isin(LABELLED)]
    table = chosen.pivot(index="query", columns=["representation", "level", "treatment"], values="hit10")
    table = table.astype(np.float64)
    owner = chosen.drop_duplicates("query").set_index("query")["cluster"][table.index].to_numpy()
    rows = []
    for one, other in _pairs(names):
        if one in table.columns and other in table.columns:
            figures = statistics.compare_queries(table[one].to_numpy(), table[other].to_numpy(), owner)
            first, second = (f"{kind}.{level} {treatment}" for kind, level, treatment in (one, other))
            rows.append({"first": first, "second": second, **figures})
    columns = {
        "pair": lambda pair: f"{pair['first']} − {pair['second']}",
        "hit@10": lambda pair: number(pair["difference"], SIGNED),
        "95 %": lambda pair: between(pair["difference_low"], pair["difference_high"], SIGNED),
        "superfamilies won": lambda pair: f"{100 * pair['wins']:.0f} %",
        "p": lambda pair: number(pair["p"], CHANCE),
        "q": lambda pair: number(pair["q"], CHANCE),
    }
    return table_of(statistics.with_q(pd.DataFrame(rows)), columns) if rows else ""


def weights_table(table: pd.DataFrame) -> str:
    """Weights chosen without labels beside those that labels would choose, of one model."""
    relevant = table[table["relation"] == "superfamily"]
    names = relevant["representation"] + "." + relevant["level"]
    searched = names.isin(names[relevant["treatment"].isin(LABELLED)])
    columns = {
        "contender": _name,
        "treatment": lambda row: row["treatment"],
        "weights of its blocks": lambda row: row["weights"] or "equal",
        "labels seen": lambda row: "yes" if row["treatment"] in LABELLED else "no",
        "hit@1": lambda row: number(row["exact_hit1"]),
        "hit@10": lambda row: number(row["exact_hit10"]),
    }
    return table_of(relevant[searched], columns)


def rounding_table(table: pd.DataFrame) -> str:
    """What rounding similarities to float16 costs, where it costs most."""
    own = table[(table["relation"] == "superfamily") & ~table["treatment"].isin(LABELLED)]
    order = (own["exact_hit10"] - own["hit10"]).abs().sort_values(ascending=False, kind="stable").index
    figures = ("hit1", "exact_hit1", "hit10", "exact_hit10")
    rows = [
        [f"{_name(row)} {row['treatment']}", *(number(row[figure], ".4f") for figure in figures)]
        for row in own.loc[order[:8]].to_dict("records")
    ]
    return markdown_table(["contender", "hit@1, float16", "as computed", "hit@10, float16", "as computed"], rows)


def published_table(published: Published, table: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> str:
    """Published lines and each family's largest level, in order of hit@10."""
    theirs = published.rows("superfamily", "per_query_mean").sort_values("hit10_mean", ascending=False)
    lines = [
        (f"{row['model']} (published)", [row[f"{name}_mean"] for name in FIGURE_NAMES])
        for row in theirs.to_dict("records")
    ]
    own = table[(table["relation"] == "superfamily") & table["representation"].isin(QUOTED)]
    for row in own[own["treatment"].isin(SHOWN)].to_dict("records"):
        if row["level"] == levels[str(row["model"])][-1]:
            name = f"{_name(row)}, {row['treatment']}, {row['width']} dimensions ({row['model']})"
            lines.append((name, [row[figure] for figure in FIGURE_NAMES]))
    lines.sort(key=lambda line: -line[1][1])
    return markdown_table(["", *FIGURE_NAMES.values()], [[name, *map(number, figures)] for name, figures in lines])


def level_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """hit@10 against level, one panel per treatment, one line per representation."""
    rows = table[table["relation"] == "superfamily"].set_index(["representation", "treatment", "level"])
    there = rows.index.unique("treatment")
    treatments = [name for name in SHOWN if name in there]
    figure = Figure(figsize=(4.2 * len(treatments), 4.4), layout="constrained")
    axes = figure.subplots(1, len(treatments), sharey=True, squeeze=False)[0]
    for axis, treatment in zip(axes, treatments, strict=True):
        lines = {}
        for kind in (kind for kind in KINDS if kind in rows.index.unique("representation")):
            # A treatment of several blocks leaves one block as it is: beside it stand single blocks whitened; and the
            # smallest level of every kind is the raw backbone.
            keys = {}
            for level in names:
                kinds = (kind, "raw") if level == names[0] else (kind,)
                tried = [(one, how, level) for how in (treatment, unweighted(treatment)) for one in kinds]
                keys[level] = next((key for key in tried if key in rows.index), None)
            keys = {level: key for level, key in keys.items() if key is not None}
            if keys:
                points = rows.loc[list(keys.values()), ["hit10", "hit10_low", "hit10_high"]]
                lines[kind] = points.set_axis(["value", "low", "high"], axis=1).set_axis(list(keys))
        draw_levels(axis, lines, names, 0.05, 6)
        axis.set_title(treatment, fontsize="medium")
    axes[0].set_ylabel("superfamily hit@10")
    legend_below(figure, axes[0], 6, fontsize="small")
    return figure


def render(
    results: pd.DataFrame,
    table: pd.DataFrame,
    levels: Mapping[str, Sequence[str]],
    published: Published | None,
    check: Mapping[str, float],
    notes: Sequence[str],
    figures: Sequence[str],
) -> str:
    """The whole report, of tidy rows, their :func:`summary`, and names of figures beside it.

    ``check`` is :meth:`rd_hf.evaluation.homology.Published.disagreement`; empty where there is nothing to check.
    """
    parts = ["# Remote homology", *notes, *(f"![{name}]({name})" for name in figures)]
    parts += ["Treatments: " + "; ".join(f"**{name}**, {how.words}" for name, how in TREATMENTS.items()) + "."]
    last = []
    for model, names in levels.items():
        own = table[table["model"] == model]
        title = f" ({model})" if len(levels) > 1 else ""
        parts += [f"## In short, superfamily hit@1 / hit@10{title}", in_short(own, names[-1])]
        parts += [f"## Superfamily, hit@1 / hit@10{title}", overview(own, "superfamily")]
        if (own["relation"] == "fold").any():
            parts += [f"## Fold, hit@1 / hit@10{title}", overview(own, "fold")]
        pairs = comparison_table(results[results["model"] == model], names)
        if pairs:
            parts += [f"## Who wins{title}", pairs]
        if own["treatment"].isin(LABELLED).any():
            parts += [
                f"## Weights without labels, and with{title}",
                "`labels`: chosen by hit@10 on the superfamilies of four folds and judged on the fifth; `best`: chosen "
                "and judged on all of them, a bound that nothing can be held to.",
                weights_table(own),
            ]
        parts += [f"## What rounding costs{title}", rounding_table(own)]
        for relation in own["relation"].unique():
            last += [f"## Every figure, {relation}{title}", details(own, str(relation))]
    if published is not None:
        parts += ["## Beside published figures", published_table(published, table, levels)]
        if check:
            parts.append(
                f"Recomputed from the published figures of single queries, the published means differ by at most "
                f"{check['means']:.0e}; their queries and ours differ in {check['queries']:.0f}, the numbers of "
                f"positives and negatives of a query by at most {check['counts']:.0f}."
            )
    return "\n\n".join([*parts, *last]) + "\n"

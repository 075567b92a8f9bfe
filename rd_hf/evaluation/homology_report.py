"""The report on remote homology: Markdown tables, each an average of the tidy Parquet's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from rd_hf.evaluation import clusters, statistics
from rd_hf.evaluation.homology import Published
from rd_hf.evaluation.homology_runs import COLUMNS
from rd_hf.evaluation.plots import STYLES
from rd_hf.evaluation.representations import KINDS
from rd_hf.evaluation.retrieval import FIGURES
from rd_hf.evaluation.tables import between, chance, markdown_table, number, signed, signed_between
from rd_hf.evaluation.treatments import LABELLED, TREATMENTS, unweighted

WORDS = {
    **KINDS,
    "block": "one block of reverse-distilled, alone",
    "block_all": "one block of all directions, alone",
}
FIGURE_NAMES = {"hit1": "hit@1", "hit10": "hit@10", "auroc": "AUROC", "auprc": "AUPRC"}


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Means over queries with intervals over clusters.

    Args:
        results: tidy table of :mod:`rd_hf.evaluation.homology_runs`.

    Returns:
        Columns: those of :class:`rd_hf.evaluation.homology_runs.Ranked`, relation, queries, clusters, and
        for each figure FIGURE, FIGURE_low and FIGURE_high.
    """
    keys = [*COLUMNS, "relation"]
    rows = []
    for key, group in results.groupby(keys, sort=False, observed=True):
        row = dict(zip(keys, key, strict=True)) | {"queries": len(group), "clusters": group["cluster"].nunique()}
        values = group[list(FIGURES)].to_numpy(np.float64)
        ends = clusters.intervals(values, group["cluster"].to_numpy())
        for figure, mean, low, high in zip(FIGURES, values.mean(axis=0), *ends, strict=True):
            row |= {figure: mean, f"{figure}_low": low, f"{figure}_high": high}
        rows.append(row)
    return pd.DataFrame(rows)


def _name(row: Mapping[str, object]) -> str:
    return f"{row['representation']}.{row['level']}"


def in_short(table: pd.DataFrame, level: str) -> str:
    """The largest level alone: plain, whitened, as a search does it, and with the weights that labels would choose.

    Args:
        table: :func:`summary` of one model.
    """
    own = table[(table["relation"] == "superfamily") & (table["level"] == level)]
    columns = ("plain", "whitened", "whitened + weights", "whitened + labels")
    lines = []
    for (kind, width), group in own.groupby(["representation", "width"], sort=False, observed=True):
        cells = [WORDS[str(kind)], str(width)]
        for treatment in columns:
            row = group[group["treatment"] == treatment]
            figures = ("exact_hit1", "exact_hit10") if treatment in LABELLED else ("hit1", "hit10")
            cells.append(" / ".join(number(row[figure].iloc[0]) for figure in figures) if len(row) else "")
        lines.append(cells)
    return markdown_table([f"level {level}", "width", *columns], lines)


def overview(table: pd.DataFrame, relation: str) -> str:
    """hit@1 / hit@10 of each representation under each treatment that no label chose."""
    rows = table[table["relation"] == relation]
    treatments = [name for name in TREATMENTS if (rows["treatment"] == name).any()]
    lines = []
    for (kind, level, width), group in rows.groupby(["representation", "level", "width"], sort=False, observed=True):
        cells = [f"{kind}.{level}", WORDS[str(kind)], str(width)]
        for treatment in treatments:
            own = group[group["treatment"] == treatment]
            cells.append(f"{number(own['hit1'].iloc[0])} / {number(own['hit10'].iloc[0])}" if len(own) else "")
        lines.append(cells)
    return markdown_table(["contender", "", "width", *treatments], lines)


def details(table: pd.DataFrame, relation: str) -> str:
    """Every figure of every contender with its interval."""
    rows = table[(table["relation"] == relation) & ~table["treatment"].isin(LABELLED)]
    lines = []
    for row in rows.to_dict("records"):
        cells = [f"{_name(row)}, {row['treatment']}", str(row["width"]), str(row["weights"])]
        for figure in FIGURE_NAMES:
            cells += [number(row[figure]), between(row[f"{figure}_low"], row[f"{figure}_high"])]
        lines.append(cells)
    header = ["contender", "width", "weights"]
    for title in FIGURE_NAMES.values():
        header += [title, "95 %"]
    return markdown_table(header, lines)


def values_of(results: pd.DataFrame, relation: str, figure: str) -> tuple[pd.DataFrame, np.ndarray]:
    """Queries in rows, contenders (representation, level, treatment) in columns; and each query's cluster."""
    chosen = results[(results["relation"] == relation) & ~results["treatment"].isin(LABELLED)]
    wide = chosen.pivot(index="query", columns=["representation", "level", "treatment"], values=figure)
    owner = chosen.drop_duplicates("query").set_index("query")["cluster"]
    return wide.astype(np.float64), owner[wide.index].to_numpy()


def comparisons(results: pd.DataFrame, names: Sequence[str], relation: str, figure: str = "hit10") -> pd.DataFrame:
    """The pairs that a reader asks about, on the same queries of one family.

    Args:
        results: of one family.
        names: its levels, smallest first.

    Returns:
        Columns: first, second, and those of :func:`rd_hf.evaluation.clusters.compare` with q, p adjusted for all pairs.
    """
    table, owner = values_of(results, relation, figure)
    last = names[-1]
    pairs: list[tuple[tuple[str, str, str], tuple[str, str, str]]] = []
    for level in names[1:]:
        for treatment in ("plain", "whitened"):
            pairs += [
                (("rd", level, treatment), ("raw", level, treatment)),
                (("rd", level, treatment), ("pca", level, treatment)),
                (("rd_all", level, treatment), ("concat", level, treatment)),
                (("rd_all", level, treatment), ("raw", level, treatment)),
            ]
    for kind in ("raw", "rd", "pca", "rd_all", "concat"):
        pairs.append(((kind, last, "whitened"), (kind, last, "plain")))
    for kind in ("rd", "rd_all", "concat"):
        for name, how in TREATMENTS.items():
            if how.weights:
                pairs.append(((kind, last, name), (kind, last, unweighted(name))))
                pairs += [((kind, last, name), (other, last, "whitened")) for other in ("raw", "pca")]
    pairs += [(("block", level, "plain"), ("raw", level, "plain")) for level in names[1:]]
    pairs += [(("block", level, "whitened"), ("raw", level, "whitened")) for level in names[1:]]
    rows = []
    for first, second in dict.fromkeys(pairs):
        if first in table.columns and second in table.columns:
            figures = clusters.compare(table[first].to_numpy(), table[second].to_numpy(), owner)
            titles = [f"{kind}.{level} {treatment}" for kind, level, treatment in (first, second)]
            rows.append({"first": titles[0], "second": titles[1], **figures})
    found = pd.DataFrame(rows)
    return found.assign(q=statistics.adjusted(found["p"].tolist())) if len(found) else found


def comparison_table(pairs: pd.DataFrame) -> str:
    """Markdown of :func:`comparisons`."""
    rows = [
        [
            f"{pair['first']} − {pair['second']}",
            signed(pair["difference"]),
            signed_between(pair["difference_low"], pair["difference_high"]),
            f"{100 * pair['wins']:.0f} %",
            chance(pair["p"]),
            chance(pair["q"]),
        ]
        for pair in pairs.to_dict("records")
    ]
    return markdown_table(["pair", "hit@10", "95 %", "superfamilies won", "p", "q"], rows)


def weights_table(table: pd.DataFrame) -> str:
    """Weights chosen without labels beside those that labels would choose."""
    rows = []
    relevant = table[table["relation"] == "superfamily"]
    for (_, kind, level), group in relevant.groupby(["model", "representation", "level"], sort=False, observed=True):
        if not group["treatment"].isin(LABELLED).any():
            continue
        for row in group.to_dict("records"):
            rows.append(
                [
                    f"{kind}.{level}",
                    str(row["treatment"]),
                    str(row["weights"]) or "equal",
                    "yes" if row["treatment"] in LABELLED else "no",
                    number(row["exact_hit1"]),
                    number(row["exact_hit10"]),
                ]
            )
    return markdown_table(["contender", "treatment", "weights of its blocks", "labels seen", "hit@1", "hit@10"], rows)


def rounding_table(table: pd.DataFrame) -> str:
    """What rounding similarities to float16 costs, where it costs most."""
    own = table[(table["relation"] == "superfamily") & ~table["treatment"].isin(LABELLED)]
    order = (own["exact_hit10"] - own["hit10"]).abs().sort_values(ascending=False, kind="stable").index
    rows = []
    for row in own.loc[order[:8]].to_dict("records"):
        figures = ("hit1", "exact_hit1", "hit10", "exact_hit10")
        rows.append([f"{_name(row)} {row['treatment']}", *(number(row[figure], 4) for figure in figures)])
    return markdown_table(["contender", "hit@1, float16", "as computed", "hit@10, float16", "as computed"], rows)


# Beside published lines: chosen beforehand, for to take the best of many would be a choice that labels made.
QUOTED = ("raw", "rd", "pca", "rd_all")
SHOWN = ("plain", "whitened", "whitened + weights")


def published_table(published: Published, table: pd.DataFrame, levels: Mapping[str, Sequence[str]]) -> str:
    """Published lines and each family's largest level, in order of hit@10."""
    rows = [
        (row["hit10_mean"], [f"{model} (published)", *(number(row[f"{name}_mean"]) for name in FIGURE_NAMES)])
        for model, row in published.means("superfamily").iterrows()
    ]
    own = table[(table["relation"] == "superfamily") & table["representation"].isin(QUOTED)]
    own = own[own["treatment"].isin(SHOWN)]
    for row in own.to_dict("records"):
        if row["level"] == levels[str(row["model"])][-1]:
            name = f"{_name(row)}, {row['treatment']}, {row['width']} dimensions ({row['model']})"
            rows.append((row["hit10"], [name, *(number(row[figure]) for figure in FIGURE_NAMES)]))
    rows.sort(key=lambda row: -row[0])
    return markdown_table(["", *FIGURE_NAMES.values()], [cells for _, cells in rows])


def level_figure(table: pd.DataFrame, names: Sequence[str]) -> Figure:
    """hit@10 against level, one panel a treatment, one line a representation."""
    rows = table[table["relation"] == "superfamily"]
    treatments = [name for name in SHOWN if (rows["treatment"] == name).any()]
    figure = Figure(figsize=(4.2 * len(treatments), 4.4), layout="constrained")
    axes = figure.subplots(1, len(treatments), sharey=True, squeeze=False)[0]
    for axis, treatment in zip(axes, treatments, strict=True):
        for number_, kind in enumerate(name for name in KINDS if name in set(rows["representation"])):
            # A treatment of several blocks leaves one block as it is: beside it stand single blocks whitened.
            own = rows[rows["representation"] == kind].set_index(["treatment", "level"])
            first = rows[(rows["representation"] == "raw") & (rows["level"] == names[0])].set_index("treatment")
            colour, marker, line = STYLES[kind]
            found = []
            for position, level in enumerate(names):
                for name in (treatment, unweighted(treatment)):
                    if (name, level) in own.index:
                        found.append((position, own.loc[(name, level)]))
                        break
                    if position == 0 and name in first.index:
                        found.append((position, first.loc[name]))
                        break
            if found:
                x = np.array([position for position, _ in found]) + 0.05 * (number_ - 2.5)
                y = np.array([row["hit10"] for _, row in found])
                ends = np.array([[row["hit10_low"], row["hit10_high"]] for _, row in found]).T
                axis.errorbar(
                    x, y, np.abs(ends - y), label=KINDS[kind], color=colour, marker=marker, linestyle=line, capsize=2
                )
        axis.set_xticks(range(len(names)), names)
        axis.set_xlabel("level of the family")
        axis.set_title(treatment, fontsize="medium")
        axis.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    axes[0].set_ylabel("superfamily hit@10")
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize="small"
    )
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
    """The whole report.

    Args:
        results: tidy table.
        table: its :func:`summary`.
        levels: level names of each model, smallest first.
        published: figures of others, or None.
        check: :meth:`rd_hf.evaluation.homology.Published.disagreement`; empty where there is nothing to check.
        notes: sentences on how the run was done.
        figures: file names of plots beside the report.
    """
    parts = ["# Remote homology", *notes, *(f"![{name}]({name})" for name in figures)]
    parts += ["Treatments: " + "; ".join(f"**{name}**, {how.words}" for name, how in TREATMENTS.items()) + "."]
    for model, names in levels.items():
        own = table[table["model"] == model]
        title = f" ({model})" if len(levels) > 1 else ""
        parts += [f"## In short, superfamily hit@1 / hit@10{title}", in_short(own, names[-1])]
        parts += [f"## Superfamily, hit@1 / hit@10{title}", overview(own, "superfamily")]
        if (own["relation"] == "fold").any():
            parts += [f"## Fold, hit@1 / hit@10{title}", overview(own, "fold")]
        pairs = comparisons(results[results["model"] == model], names, "superfamily")
        if len(pairs):
            parts += [f"## Who wins{title}", comparison_table(pairs)]
        if own["treatment"].isin(LABELLED).any():
            parts += [
                f"## Weights without labels, and with{title}",
                "`labels`: chosen by hit@10 on the superfamilies of four folds and judged on the fifth; `best`: chosen "
                "and judged on all of them, a bound that nothing can be held to.",
                weights_table(own),
            ]
        parts += [f"## What rounding costs{title}", rounding_table(own)]
    if published is not None:
        parts += ["## Beside published figures", published_table(published, table, levels)]
        if check:
            parts.append(
                f"Recomputed from the published figures of single queries, the published means differ by at most "
                f"{check['means']:.0e}; their queries and ours differ in {check['queries']:.0f}, the numbers of "
                f"positives and negatives of a query by at most {check['counts']:.0f}."
            )
    for model in levels:
        own = table[table["model"] == model]
        for relation in own["relation"].unique():
            title = f" ({model})" if len(levels) > 1 else ""
            parts += [f"## Every figure, {relation}{title}", details(own, str(relation))]
    return "\n\n".join(parts) + "\n"

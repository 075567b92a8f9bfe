"""The report of the ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from rd_hf.evaluation import statistics
from rd_hf.evaluation.options import KINDS
from rd_hf.evaluation.report import condition
from rd_hf.evaluation.tables import CHANCE, SIGNED, between, markdown_table, number, percent, share
from studies.ablations import STUDIES, FittedRecipe


def render_ablations(
    results: pd.DataFrame, fitted: Sequence[FittedRecipe], notes: Sequence[str], failed: Mapping[str, str]
) -> str:
    """The report of the ablations: a table a study, its first variant the reference.

    Args:
        results: tidy table; the representation of a variant is "study: name".
        fitted: the variants.
        notes: sentences on how the run was done.
        failed: message for each assay left out.
    """
    scores = condition(statistics.assay_scores(results), "random")
    table = scores.pivot(index="assay", columns=["representation", "level"], values="score").dropna()
    level = fitted[0].representation.level
    parts = ["# Ablations", *notes]
    if failed:
        parts.append("\n".join(f"- left out: {message}" for message in failed.values()))
    header = [
        "variant",
        "width",
        "R² held out",
        "not reconstructed",
        "mean Spearman",
        "difference",
        "95 %",
        "wins",
        "p",
    ]
    references = ", ".join(f"{KINDS[kind]} {number(table[kind, level].mean())}" for kind in ("raw", "pca", "pca_chain"))
    parts.append(f"At the same level: {references}.")
    for study in dict.fromkeys(variant.recipe.study for variant in fitted):
        rows = []
        chosen = [variant for variant in fitted if variant.recipe.study == study]
        base = table[chosen[0].representation.kind, level].to_numpy()
        for variant in chosen:
            own = table[variant.representation.kind, level].to_numpy()
            cells = [variant.recipe.name, str(variant.representation.width), number(variant.r2)]
            cells += [percent(variant.reconstruction_error), number(own.mean())]
            if variant is chosen[0]:
                cells += ["reference", "", "", ""]
            else:
                pair = statistics.compare(own, base)
                cells += [number(pair["difference"], SIGNED)]
                cells += [between(pair["difference_low"], pair["difference_high"], SIGNED)]
                cells += [share(pair["wins"], len(own)), number(pair["p"], CHANCE)]
            rows.append(cells)
        parts += [f"## {study}: {STUDIES[study]}", markdown_table(header, rows)]
    return "\n\n".join(parts) + "\n"

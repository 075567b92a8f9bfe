"""The report of the residue-level tasks."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from rd_hf.evaluation import residues
from rd_hf.evaluation.representations import KINDS
from rd_hf.evaluation.tables import between, markdown_table, number, short_name, signed, signed_between


def render_residues(results: pd.DataFrame, notes: Sequence[str], figures: Sequence[str]) -> str:
    """The report of the residue-level tasks.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.residues.evaluate_contender`.
        notes: sentences on how the run was done.
        figures: file names of plots beside the report.
    """
    several = {key: results.loc[results["model"] != "", key].nunique() > 1 for key in ("model", "depth")}
    table = residues.summarise(results)
    parts = ["# Evaluation on residues", *notes, *(f"![{name}]({name})" for name in figures)]
    for (task, part), group in table.groupby(["task", "set"], sort=False):
        first = group.iloc[0]
        parts.append(f"## {task}, {part} set")
        parts.append(f"{first['chains']} chains, {first['residues']:,} residues; 95 % intervals resample chains.")
        wide = group.pivot(
            index=["model", "depth", "representation", "level", "width"],
            columns="figure",
            values=["value", "low", "high"],
        )
        order = {kind: number for number, kind in enumerate(KINDS)}
        rows = []
        for key in sorted(wide.index, key=lambda key: (key[0], key[1], order[key[2]], key[4])):
            name = dict(zip(("model", "depth", "representation", "level"), key, strict=False)) | {"labels": "true"}
            cells = [short_name(name, several), KINDS[key[2]], str(key[4])]
            for figure in ("AUPR", "accuracy"):
                row = wide.loc[key]
                cells += [number(row["value", figure]), between(row["low", figure], row["high", figure])]
            rows.append(cells)
        parts.append(markdown_table(["contender", "", "width", "AUPR", "95 %", "accuracy", "95 %"], rows))
    rows = []
    for first, second in (("rd", "raw"), ("rd", "pca"), ("pca", "raw"), ("rd_all", "concat")):
        for row in residues.paired_differences(results, first, second).to_dict("records"):
            if row["figure"] == "AUPR":
                rows.append(
                    [
                        f"{first}.{row['level']} - {second}.{row['level']}",
                        f"{row['task']}, {row['set']}",
                        signed(row["difference"]),
                        signed_between(row["low"], row["high"]),
                    ]
                )
    if rows:
        parts += ["## Paired differences of AUPR", markdown_table(["pair", "task", "difference", "95 %"], rows)]
    return "\n\n".join(parts) + "\n"

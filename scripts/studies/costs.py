"""Cost against score: chains of models, layers of one model as levels, and one pass, beside raw backbones.

Every contender is one way to an embedding of a protein. What it costs is what has to run for it: the backbones (up to
the layer at which a level ends) and the bases or the readout.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from rd_hf.data.batching import collate
from rd_hf.evaluation import statistics
from rd_hf.evaluation.assays import Assay
from rd_hf.evaluation.embeddings import Family
from rd_hf.evaluation.plots import STYLES
from rd_hf.evaluation.representations import KINDS
from rd_hf.evaluation.tables import between, markdown_table, number
from rd_hf.hub.describe import backbone_cost
from rd_hf.model.layers_rd_esm import backbone_arguments, record_layers, run_backbone

# Timings taken of each contender, of which the fastest counts: what is added by others on the machine is never less.
REPEATS = 3


@dataclass(frozen=True)
class Cost:
    """What an embedding of a residue takes.

    Attributes:
        flop: multiplications and additions of all linear maps; attention between residues comes on top.
        seconds: for 1,000 residues: of the processor on a CPU (not of the clock, so that other work on the machine
            does not count), of the clock elsewhere.
    """

    flop: int
    seconds: float


def sample_variants(assay: Assay, count: int | None, seed: int) -> Assay:
    """An assay with at most so many of its variants, drawn by seed, in their order."""
    if count is None or count >= len(assay.mutants):
        return assay
    rows = np.sort(np.random.default_rng(seed).choice(len(assay.mutants), count, replace=False))
    digest = hashlib.sha256(f"{assay.digest} {rows.tolist()}".encode()).hexdigest()
    return replace(
        assay,
        mutants=tuple(assay.mutants[row] for row in rows),
        sequences=tuple(assay.sequences[row] for row in rows),
        positions=tuple(assay.positions[row] for row in rows),
        scores=assay.scores[rows],
        digest=digest,
    )


@torch.inference_mode()
def measure_costs(family: Family, sequences: Sequence[str], repeats: int = REPEATS) -> dict[tuple[str, str], Cost]:
    """Cost of every contender of a family, by representation and level.

    Args:
        family: an exact one gives raw backbones and nested levels, one that was loaded for one pass its levels.
        sequences: cleaned: one batch, on which all are timed.
        repeats: timings of each, of which the fastest counts.
    """
    model, config = family.model, family.model.config
    ids, mask = (tensor.to(model.device) for tensor in collate(sequences))
    batch = [{"input_ids": ids, "attention_mask": mask, "long_input": "whole"}]
    residues = sum(map(len, sequences))

    def seconds(run: Callable[[], object]) -> float:
        cpu = model.device.type == "cpu"
        clock = time.process_time if cpu else time.perf_counter
        taken = []
        for _ in range(repeats + 1):
            started = clock()
            run()
            if model.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(clock() - started)
        return 1000 * min(taken[1:]) / residues

    costs: dict[tuple[str, str], Cost] = {}
    if config.one_pass:
        linear = [model.readout.weights, model.readout.last.regression, model.readout.last.directions]
        flop = backbone_cost(model.backbones[-1], config.depth(len(family.names) - 1))[1]
        cost = Cost(flop + 2 * sum(buffer.numel() for buffer in linear), seconds(partial(model.forward_window, batch)))
        # All levels are read out whichever is wanted.
        return {("one_pass", name): cost for name in family.names}
    arguments = backbone_arguments(config, ids, mask, long_input="whole")
    bases = 0
    ran: dict[int, int] = {}
    for index, levels in enumerate(config.backbone_groups):
        backbone = model.backbones[index]
        record_layers(backbone)
        for level in levels:
            name, depth = family.names[level], config.depth(level)
            own = backbone_cost(backbone, depth)[1]
            ran[index] = max(ran.get(index, 0), own)
            raw = seconds(partial(run_backbone, backbone, [depth], arguments))
            costs["raw", name] = Cost(own, raw)
            if level:
                step = model.projections[level - 1]
                bases += 2 * (step.regression.numel() + step.directions.numel())
                nested = seconds(partial(model.forward_window, batch, name))
                costs["rd", name] = Cost(sum(ran.values()) + bases, nested)
    return costs


def frontier_table(results: pd.DataFrame, costs: Mapping[str, Mapping[tuple[str, str], Cost]]) -> pd.DataFrame:
    """One row a contender: what it costs and how it scores.

    Args:
        results: tidy table of :func:`rd_hf.evaluation.runs.evaluate_unit`, of one split.
        costs: by label of the family, from :func:`measure_costs`.

    Returns:
        Columns: model, representation, level, width, flop, seconds, score (mean over assays), low, high (95 %
        bootstrap interval over assays), frontier: no other contender is as good for less; those of equal cost and
        score count once. Sorted by cost.
    """
    rows = []
    for row in statistics.summary(statistics.assay_scores(results)).to_dict("records"):
        cost = costs[row["model"]][row["representation"], row["level"]]
        names = ("model", "representation", "level", "width", "low", "high")
        rows.append({**{name: row[name] for name in names}, "score": row["mean"], **vars(cost)})
    table = pd.DataFrame(rows).sort_values(["flop", "score"], ascending=[True, False], ignore_index=True)
    best = table["score"].cummax().shift(fill_value=-np.inf)
    return table.assign(frontier=table["score"] > best)


def frontier_figure(table: pd.DataFrame) -> Figure:
    """Score against FLOP a residue, a marker a representation, the frontier as a line."""
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    axis = figure.subplots()
    for kind, group in table.groupby("representation", sort=False):
        colour, marker, _ = STYLES[str(kind)]
        axis.scatter(group["flop"] / 1e6, group["score"], color=colour, marker=marker, label=KINDS[str(kind)])
    for row in table.to_dict("records"):
        axis.annotate(row["level"], (row["flop"] / 1e6, row["score"]), xytext=(4, 3), textcoords="offset points")
    best = table[table["frontier"]]
    axis.plot(best["flop"] / 1e6, best["score"], color="#999999", linewidth=0.8, zorder=0, label="frontier")
    axis.set_xscale("log")
    axis.set_xlabel("million FLOP a residue")
    axis.set_ylabel("Spearman, mean over assays")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.legend()
    return figure


def render_frontier(table: pd.DataFrame, notes: Sequence[str], figures: Sequence[str]) -> str:
    """The report: a table a model, cheapest first.

    Args:
        table: from :func:`frontier_table`.
        notes: sentences on how the run was done.
        figures: file names of plots beside the report.
    """
    parts = ["# Cost against score", *notes, *(f"![{name}]({name})" for name in figures)]
    header = ["embedding", "level", "width", "MFLOP a residue", "seconds", "mean Spearman", "95 %", "frontier"]
    for model, group in table.groupby("model", sort=False):
        rows = [
            [
                KINDS[row["representation"]],
                row["level"],
                str(row["width"]),
                f"{row['flop'] / 1e6:.2f}",
                f"{row['seconds']:.3f}",
                number(row["score"]),
                between(row["low"], row["high"]),
                "yes" if row["frontier"] else "",
            ]
            for row in group.to_dict("records")
        ]
        parts += [f"## {model}", markdown_table(header, rows)]
    return "\n\n".join(parts) + "\n"

"""Draw what a nested family is for: score by cost beside the alternatives, and what it takes to have every level.

    python scripts/study.py overview --model hub_configs/rd-esm2-mini --output overview.png

Scores are read from the family's report of `rd-hf evaluate dms`; FLOP and bytes follow from its config. "Raw" is a
backbone as it was pretrained, "nested" the reverse-distilled embedding, whose levels are prefixes of one vector.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rd_hf.commands._arguments import command, command_parser
from rd_hf.data.records import InputError
from rd_hf.options import add_options, option, options_from

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Kinds of the report that are drawn as lines over the levels, and how their points are called.
LINES = {"raw": "raw", "rd": "nested", "rd_all": "nested, all directions", "concat": "raw, concatenated"}
CAPTION = (
    "Raw: the hidden states of a pretrained backbone. Nested: one reverse-distilled vector, whose first dimensions are "
    "the smaller levels."
)
# Mean, low and high end of a score, by kind and level.
Scores = dict[tuple[str, str], tuple[float, float, float]]
_ROW = re.compile(r"\| (\w+)(?:\.(\S+))? \| [^|]* \| (\d+) \| ([0-9.]+) \| \[([0-9.]+), ([0-9.]+)\] \|")


@dataclass(frozen=True)
class OverviewOptions:
    """The family, its report and the picture."""

    output: str = option(MISSING, "the picture, such as overview.png", required=True, metavar="FILE")
    model: str = option("hub_configs/rd-esm2-mini", "folder of the family", metavar="DIR")
    report: str | None = option(None, "of its assays (default: DIR/evaluation/report.md)", metavar="FILE")


@dataclass(frozen=True)
class LevelCost:
    """What one level takes.

    Attributes:
        level, width: of the family; ``raw_width`` of its backbone alone.
        raw: FLOP per residue of the linear maps of its backbone.
        nested: the same of all backbones up to it, bases included.
    """

    level: str
    width: int
    raw_width: int
    raw: int
    nested: int


def level_costs(model: str) -> list[LevelCost]:
    """Count what each level of a family takes, smallest first."""
    import torch

    from rd_hf.hub.describe import backbone_cost, describe_model
    from rd_hf.model.configuration_rd_esm import RDEsmConfig
    from rd_hf.model.modeling_rd_esm import RDEsmModel

    config = RDEsmConfig.from_pretrained(model)
    with torch.device("meta"):
        backbones: list[Any] = list(RDEsmModel(config, build_backbones=True).backbones)
    raw = [backbone_cost(backbone, backbone.config.num_hidden_layers)[1] for backbone in backbones]
    return [
        LevelCost(facts.level, facts.width, backbone.config.hidden_size, flop, facts.flop_per_residue)
        for facts, backbone, flop in zip(describe_model(model).levels, backbones, raw, strict=True)
    ]


def read_scores(path: Path) -> Scores:
    """Read mean, low and high end of each contender's score from a report, by kind and level ("" where it has none).

    Raises:
        InputError: no such file, or it has no table of mean scores.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be read: run rd-hf evaluate dms, or give --report its report.md") from error
    table = text.partition("## Mean Spearman (random folds)")[2].partition("\n## ")[0]
    found = {(kind, level or ""): tuple(map(float, ends)) for kind, level, _, *ends in _ROW.findall(table)}
    if not found:
        raise InputError(f"{path} has no table of mean scores on random folds: run rd-hf evaluate dms --splits random")
    return found  # type: ignore[return-value]


def overview_figure(costs: list[LevelCost], scores: Scores) -> Figure:
    """Score against cost on the left; bytes and FLOP for all levels, one level and a later one on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.3), layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    _draw_scores(left, costs, scores)
    _draw_savings(right, costs)
    figure.supxlabel(CAPTION, fontsize=9, x=0.01, ha="left")
    return figure


def _draw_scores(axis: Axes, costs: list[LevelCost], scores: Scores) -> None:
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter

    from rd_hf.evaluation.plots import STYLES

    together = np.cumsum([cost.raw for cost in costs])  # the backbones up to a level, without bases
    nested = [cost.nested for cost in costs]
    spent = {"raw": [cost.raw for cost in costs], "rd": nested, "rd_all": nested, "concat": together}
    for kind, name in LINES.items():
        # The first level is the smallest backbone, whatever is built on it.
        contenders = [("raw" if not place else kind, cost.level) for place, cost in enumerate(costs)]
        if not set(contenders) <= set(scores):
            continue
        x, points = np.array(spent[kind]) / 1e6, np.array([scores[one] for one in contenders])
        colour, marker, line = STYLES[kind]
        errors = np.abs(points[:, 1:] - points[:, :1]).T
        axis.errorbar(x, points[:, 0], errors, color=colour, fmt="none", elinewidth=0.8, alpha=0.35)
        axis.plot(x, points[:, 0], color=colour, marker=marker, linestyle=line, label=name, markersize=6)
        offset = {"raw": (-8, 7), "rd": (7, -13)}.get(kind)
        for at, value, cost in zip(x, points[:, 0], costs, strict=True):
            # The first point is that of both.
            if offset and (kind == "rd" or cost is not costs[0]):
                style: dict[str, Any] = {"textcoords": "offset points", "color": colour, "fontsize": 9}
                axis.annotate(cost.level, (at, value), xytext=offset, **style)
    if ("one_hot", "") in scores:
        axis.axhline(scores["one_hot", ""][0], color=STYLES["one_hot"][0], linestyle=":", label="one-hot letters")
    axis.set_xscale("log")
    axis.set_xlim(0.8 * costs[0].raw / 1e6, 1.5 * costs[-1].nested / 1e6)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("cost: million FLOP per residue")
    axis.set_ylabel("score: mean Spearman, 95 % intervals")
    axis.set_title("What a level is worth, by its cost", fontsize=11, loc="left")
    axis.grid(color="#DDDDDD", linewidth=0.6)
    axis.legend(frameon=False, fontsize=9, loc="lower right")


def _bars(costs: list[LevelCost]) -> list[tuple[str, float, float, str]]:
    """Rows of the right panel: what is compared, separate raw backbones, nested, unit."""
    largest, every = costs[-1], sum(cost.raw for cost in costs)
    smaller = costs[-2]
    number = {2: "both", 3: "all three"}.get(len(costs), f"all {len(costs)}")
    return [
        (f"stored, {number} levels", 4 * sum(cost.raw_width for cost in costs), 4 * largest.width, "bytes"),
        (f"computed, {number} levels", every / 1e6, largest.nested / 1e6, "MFLOP"),
        (f"computed, {largest.level} alone", largest.raw / 1e6, largest.nested / 1e6, "MFLOP"),
        (f"computed, {smaller.level} later,\nfrom a stored {largest.level}", smaller.raw / 1e6, 0.0, "MFLOP"),
    ]


def _draw_savings(axis: Axes, costs: list[LevelCost]) -> None:
    """Pairs of bars, each in units of the longer one of its pair."""
    from rd_hf.evaluation.plots import STYLES

    rows = _bars(costs)
    names = {"raw": "raw, each backbone by itself", "rd": "nested, one vector for all levels"}
    for place, (_, separate, nested, unit) in enumerate(rows):
        longest = max(separate, nested)
        for value, kind, shift in ((separate, "raw", -0.19), (nested, "rd", 0.19)):
            said = f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
            if kind == "rd":
                change = f" ({100 * (nested / separate - 1):+.0f} %)".replace("-", "\N{MINUS SIGN}")
                said = said + change if value else "nothing: the vector is cut"
            label = None if place else names[kind]
            axis.barh(place + shift, value / longest, 0.34, color=STYLES[kind][0], label=label)
            axis.text(value / longest + 0.02, place + shift, said, va="center", fontsize=9)
    axis.set_yticks(range(len(rows)), [row[0] for row in rows])
    axis.set_ylim(len(rows) + 0.35, -0.6)
    axis.set_xlim(0, 1.62)
    axis.set_xticks([])
    axis.set_title("Stored per protein, computed per residue", fontsize=11, loc="left")
    axis.legend(frameon=False, fontsize=9, loc="lower left")
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("overview", __doc__, prog="python scripts/study.py overview")
    add_options(parser, OverviewOptions)
    return parser


def run(args: argparse.Namespace) -> int:
    from rd_hf.files import replacing

    options = options_from(OverviewOptions, args)
    report = Path(options.report) if options.report else Path(options.model) / "evaluation" / "report.md"
    figure = overview_figure(level_costs(options.model), read_scores(report))
    output = Path(options.output)
    with replacing(output) as temporary:
        # Without the library's version the same numbers give the same file.
        figure.savefig(temporary, format="png", dpi=150, metadata={"Software": None})
    print(f"{output} drawn from {report} and {options.model}")
    return 0


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

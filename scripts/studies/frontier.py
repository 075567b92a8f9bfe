"""What is an embedding worth for what it costs? Score against FLOP, of chains, layers as levels, and one pass.

    python scripts/study.py frontier --model chain layers --assays ProteinGym/*.csv --variants 300 --output frontier
    python scripts/study.py frontier --model my-650M --assays dms/ --device cuda --output frontier

Each model gives its raw backbones (or layers) and its nested levels, and where it was fitted with --one-pass also
its levels read out of the largest backbone alone. All are probed by ridge regression with nested cross-validation,
on the same variants and folds; what each costs is counted in FLOP a residue and timed on one batch.

--output then holds report.md (tables), frontier.png, frontier.parquet (the tables' numbers) and results.parquet (one
row a fold). A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_run_arguments
from rd_hf.options import whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("frontier", __doc__, prog="python scripts/study.py frontier")
    what = parser.add_argument_group("what is evaluated")
    what.add_argument("--model", required=True, nargs="+", help="reverse-distilled families: folders or Hub ids")
    what.add_argument(
        "--assays",
        required=True,
        nargs="+",
        type=Path,
        help="CSV files in ProteinGym's format (mutant, mutated_sequence, DMS_score), or folders of them",
    )
    what.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    test = parser.add_argument_group("how it is tested")
    test.add_argument(
        "--variants", type=whole(1), metavar="N", help="draw at most N variants of each assay (default: all)"
    )
    test.add_argument("--seeds", type=whole(1), default=3, help="repeats of the random folds (default 3)")
    test.add_argument(
        "--inner-folds", type=whole(2), default=5, help="folds that choose the ridge strength (default 5)"
    )
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--jobs", type=whole(1), default=os.cpu_count() or 1, help="processes that probe (default: all cores)"
    )
    run.add_argument("--threads", type=whole(1), default=1, help="threads that embed, and are timed (default 1)")
    add_run_arguments(run)
    return parser


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import torch
    import transformers

    from rd_hf.evaluation.chains import load_families
    from rd_hf.evaluation.plan import EvaluationOptions, count_units, family_maps, plan_units, read_assays
    from rd_hf.evaluation.probe import ProbeOptions
    from rd_hf.evaluation.runs import run_units
    from rd_hf.files import Workspace
    from studies import costs

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "a report on cost against score")
    output.refuse("report.md", "frontier.png", "frontier.parquet", "results.parquet")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    options = EvaluationOptions(
        representations=("raw", "rd"),
        schemes=("random",),
        repeats=args.seeds,
        low_n=(),
        control=False,
        probe=ProbeOptions(inner_folds=args.inner_folds),
        batch_tokens=args.batch_tokens,
    )
    assays, failed = read_assays(args.assays)
    assays = [costs.sample_variants(assay, args.variants, options.seed) for assay in assays]
    families = load_families(args.model, (1.0,), None, args.device, passes=True)
    labels = [family.label for family in families]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two models are called {max(labels, key=labels.count)}: rename the folder of one of them")
    output.claim()
    # As many copies of one protein as make a batch of like rows: nothing is padding.
    wild_type = assays[0].wild_type
    batch = [wild_type] * max(1, args.batch_tokens // (len(wild_type) + 2))
    spent = {family.label: costs.measure_costs(family, batch) for family in families}
    maps = [family_maps(family, None, options) for family in families]
    units = plan_units(families, maps, assays, None, options, args.cache or args.output / "cache")
    total = count_units(families, maps, options) * len(assays)
    results, broken = run_units(units, args.output / "runs", args.jobs, total)
    failed |= broken
    if results.empty:
        raise ValueError(f"no assay could be evaluated: {'; '.join(failed.values())}")
    table = costs.frontier_table(results, spent)
    with output.writing("results.parquet") as path:
        results.to_parquet(path, index=False)
    with output.writing("frontier.parquet") as path:
        table.to_parquet(path, index=False)
    with output.writing("frontier.png") as path:
        costs.frontier_figure(table).savefig(path, dpi=110, format="png")
    left = [assay for assay in assays if assay.name not in broken]
    kind = "processor" if args.device == "cpu" else "wall-clock"
    seeds, threads = f"{args.seeds} seed{'s' * (args.seeds > 1)}", f"{args.threads} thread{'s' * (args.threads > 1)}"
    notes = [
        f"{len(left)} assays ({', '.join(assay.name for assay in left)}), {sum(len(a.mutants) for a in left):,} "
        f"variants, random folds, {seeds}. FLOP are those of linear maps; seconds are {kind} seconds for 1,000 "
        f"residues, on {args.device} with {threads}.",
        "On the frontier: no other embedding of all tables is as good for fewer FLOP.",
    ]
    report = costs.render_frontier(table, notes, ["frontier.png"])
    with output.writing("report.md") as path:
        path.write_text(report, encoding="utf-8")
    print(report)
    for message in failed.values():
        print(f"left out: {message}", file=sys.stderr)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

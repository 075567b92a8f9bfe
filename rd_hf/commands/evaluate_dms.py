"""Does bigger win? Evaluate reverse-distilled families and their baselines on deep mutational scans.

    rd-hf evaluate dms --model hub_configs/rd-esm2-mini --assays ProteinGym/*.csv --output evaluation
    rd-hf evaluate dms --model rd-esm2-650M --assays dms/ --folds cv_folds_singles.tsv.gz \\
        --fit-data uniref50.fasta.gz --reference Spearman_DMS_level_supervised_random5.csv --output evaluation
    rd-hf evaluate dms --backbones hub_configs/rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D --assays dms/ \\
        --fit-data rd_hf/data/examples/proteins_1000.fasta.gz --output evaluation

Each level's raw backbone, each reverse-distilled level, concatenation, concatenation + PCA, reverse distillation
that keeps all directions, a random projection and one-hot are probed by ridge regression with nested
cross-validation, on the same variants and folds. The PCA and the chain that keeps all directions are fitted on
--fit-data, never on an assay; give the data the model's bases were fitted on, and the same sequences are drawn
from it as the model's config records. --backbones makes a chain of any models, whose bases are fitted there too.

--output then holds report.md (tables), the figures it shows, and results.parquet (one row a fold: every table is
an average of its rows). A run that was stopped goes on with the same command; a run with one more option computes
only what is new. An assay that cannot be used is named and left out; the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_family_arguments, add_fit_arguments, add_run_arguments
from rd_hf.options import real, whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate dms", __doc__)
    what = parser.add_argument_group("what is evaluated")
    add_family_arguments(what)
    what.add_argument(
        "--assays",
        required=True,
        nargs="+",
        type=Path,
        help="CSV files in ProteinGym's format (mutant, mutated_sequence, DMS_score), or folders of them",
    )
    what.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    what.add_argument(
        "--representations",
        nargs="+",
        default=("raw", "rd", "pca", "concat", "rd_all", "random", "one_hot"),
        help="contenders (default: raw rd pca concat rd_all random one_hot)",
    )
    what.add_argument(
        "--pooling",
        nargs="+",
        default=("mean",),
        help="mean over residues (default), site (mean over the mutated positions), difference (to the wild type, "
        "there)",
    )
    what.add_argument(
        "--depth",
        nargs="+",
        type=real(0, most=1),
        default=(1.0,),
        help="relative depth of the backbone layer: 1 is the final state (default), 0.5 half-way; other depths than 1 "
        "refit the bases on --fit-data",
    )
    fit = parser.add_argument_group("fitting sequences (for pca and rd_all)")
    add_fit_arguments(fit, required=False)
    test = parser.add_argument_group("how it is tested")
    test.add_argument("--folds", type=Path, help="ProteinGym's fold labels of single mutants (cv_folds_singles.tsv.gz)")
    test.add_argument(
        "--splits",
        nargs="+",
        default=("random", "by_mutations", "singles_to_multiples"),
        help="random, modulo, contiguous (ProteinGym's folds of single mutants; random is redrawn for each seed after "
        "the first), by_mutations (all variants), singles_to_multiples; default: all but modulo and contiguous",
    )
    test.add_argument("--seeds", type=whole(1), default=3, help="repeats of every split that is drawn (default 3)")
    test.add_argument(
        "--low-n",
        nargs="*",
        type=whole(1),
        default=(24, 96, 384),
        help="training variants of the low-n curves (24 96 384)",
    )
    test.add_argument(
        "--inner-folds", type=whole(2), default=5, help="folds that choose the ridge strength (default 5)"
    )
    test.add_argument("--no-control", dest="control", action="store_false", help="leave out the shuffled-score control")
    test.add_argument("--reference", type=Path, help="ProteinGym's supervised Spearman table, quoted beside ours")
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--jobs", type=whole(1), default=os.cpu_count() or 1, help="processes that probe (default: all cores)"
    )
    run.add_argument("--threads", type=whole(1), help="threads that embed meanwhile (default: half the cores)")
    add_run_arguments(run)
    return parser


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import torch
    import transformers

    from rd_hf.evaluation import plots, statistics
    from rd_hf.evaluation.chains import load_families
    from rd_hf.evaluation.fit_data import draw_moments
    from rd_hf.evaluation.plan import EvaluationOptions, count_units, family_maps, plan_units, read_assays
    from rd_hf.evaluation.probe import ProbeOptions
    from rd_hf.evaluation.report import condition, main_split, read_published, render
    from rd_hf.evaluation.representations import FITTED_KINDS
    from rd_hf.evaluation.runs import run_units
    from rd_hf.evaluation.splits import read_fold_labels
    from rd_hf.files import Workspace

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "an evaluation")
    output.refuse("report.md", "results.parquet")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // 2))
    options = EvaluationOptions(
        representations=tuple(args.representations),
        poolings=tuple(args.pooling),
        schemes=tuple(args.splits),
        repeats=args.seeds,
        low_n=tuple(args.low_n),
        control=args.control,
        probe=ProbeOptions(inner_folds=args.inner_folds),
        batch_tokens=args.batch_tokens,
    )
    labels = read_fold_labels(args.folds) if args.folds else None
    published = read_published(args.reference) if args.reference else None
    assays, failed = read_assays(args.assays)
    output.claim()
    cache = args.cache or args.output / "cache"
    families = load_families(args.model, args.depth, args.backbones, args.device)
    maps, notes = [], []
    for family in families:
        moments = None
        if args.fit_data and len(family.names) > 1:
            moments, note = draw_moments(
                family, args.fit_data, args.fit_sequences, args.fit_seed, cache, args.batch_tokens
            )
            notes.append(note)
        elif set(FITTED_KINDS) & set(options.representations) and len(family.names) > 1:
            notes.append(f"{family.label}: no {' and '.join(FITTED_KINDS)}, for want of --fit-data.")
        maps.append(family_maps(family, moments, options))
    total = count_units(families, maps, options) * len(assays)
    units = plan_units(families, maps, assays, labels, options, cache)
    results, broken = run_units(units, args.output / "runs", args.jobs, total)
    failed |= broken
    if results.empty:
        raise ValueError(f"no assay could be evaluated: {'; '.join(failed.values())}")
    with output.writing("results.parquet") as path:
        results.to_parquet(path, index=False)

    levels = {family.label: family.names for family in families}
    scores = statistics.assay_scores(results)
    true = scores[scores["labels"] == "true"]
    figures = {}
    for number, family in enumerate(families):
        suffix = "" if len(families) == 1 else f"_{number + 1}"
        for pooling in options.poolings:
            group = {"model": family.label, "depth": family.depth, "pooling": pooling}
            tag = suffix + ("" if len(options.poolings) == 1 else f"_{pooling}")
            main = condition(true, main_split(true))
            figures[f"score_by_level{tag}.png"] = plots.score_figure(main, family.names, group)
            if (true["split"] == "low_n").any():
                low = true[true["split"] == "low_n"]
                figures[f"low_n{tag}.png"] = plots.low_n_figure(low, family.names[-1], group)
    figures["win_rates.png"] = plots.win_figure(condition(true, main_split(true)))
    for name, figure in figures.items():
        with output.writing(name) as path:
            figure.savefig(path, dpi=110, format="png")

    variants = sum(len(assay.mutants) for assay in assays)
    notes.insert(
        0,
        f"{len(assays) - len(broken)} assays, {variants:,} variants. Ridge on standardised features, strength of "
        f"{len(options.probe.strengths)} chosen by {args.inner_folds}-fold cross-validation inside the training folds; "
        f"a score is the mean over folds, then over {args.seeds} seeds; intervals are 95 % bootstrap intervals over "
        "assays, p is Wilcoxon's signed-rank test, q its false discovery rate over all pairs shown.",
    )
    report = render(results, levels, notes, failed, published, list(figures))
    with output.writing("report.md") as path:
        path.write_text(report, encoding="utf-8")
    print(report.split("\n## Every assay")[0])
    for message in failed.values():
        print(f"left out: {message}", file=sys.stderr)
    print(f"{len(results):,} rows in {(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

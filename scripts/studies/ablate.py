"""What each choice in the chain is worth: ablations of one family, on held-out residues and on assays.

    python scripts/study.py ablate --model hub_configs/rd-esm2-mini --study chain --assays dms/ \\
        --fit-data rd_hf/data/examples/proteins_1000.fasta.gz --output ablations

Studies, one command each (or several, or all):

    chain       direct from the smallest level, from the next smaller alone, or the full chain
    regression  principal components above the noise edge, ordinary least squares, ridge
    sequences   bases fitted on 500 sequences up to all
    basis       fitted on the accumulated embedding, or on the raw smaller one (the first published code), as applied
    order       residual directions of largest variance, at random, of smallest variance
    share       residual directions that hold 50 % to all of the residual's variance

Every variant is fitted in closed form from the same moments and judged by R^2 on held-out sequences and by the ridge
probe of rd-hf evaluate dms on --assays (share --cache with it and nothing is embedded twice). The first variant of a
study is the paper's; the others are compared with it, assay by assay.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_fit_arguments, add_run_arguments
from rd_hf.options import whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("ablate", __doc__, prog="python scripts/study.py ablate")
    parser.add_argument("--model", required=True, help="the family: folder or Hub id")
    parser.add_argument("--study", nargs="+", help="which ablations (default: all)")
    parser.add_argument("--assays", required=True, nargs="+", type=Path, help="ProteinGym CSV files or folders of them")
    add_fit_arguments(parser, required=True)
    parser.add_argument(
        "--sizes",
        nargs="+",
        type=whole(1),
        default=(500, 1000, 2000, 5000),
        help="of the sequences study; beyond all: left out",
    )
    parser.add_argument("--folds", type=Path, help="ProteinGym's fold labels of single mutants")
    parser.add_argument("--seeds", type=whole(1), default=1, help="repeats of the random folds (default 1)")
    parser.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    parser.add_argument(
        "--jobs", type=whole(1), default=os.cpu_count() or 1, help="processes that probe (default: all cores)"
    )
    parser.add_argument("--threads", type=whole(1), help="threads that embed meanwhile (default: half the cores)")
    add_run_arguments(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    import torch
    import transformers

    from rd_hf.bases.moments import JointMoments
    from rd_hf.evaluation.embeddings import fitting_moments, load_family
    from rd_hf.evaluation.fit_data import draw_fit_sample, split_sample
    from rd_hf.evaluation.plan import EvaluationOptions, plan_units, read_assays
    from rd_hf.evaluation.representations import pca_maps, raw_maps
    from rd_hf.evaluation.runs import run_units
    from rd_hf.evaluation.splits import read_fold_labels
    from rd_hf.files import Workspace
    from studies import ablations
    from studies.reports import render_ablations

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "an ablation")
    output.refuse("report.md", "results.parquet")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // 2))
    labels = read_fold_labels(args.folds) if args.folds else None
    assays, failed = read_assays(args.assays)
    family = load_family(args.model, device=args.device)
    output.claim()
    cache = args.cache or args.output / "cache"
    chosen = args.study or list(ablations.STUDIES)
    training, heldout = split_sample(draw_fit_sample(family, args.fit_data, args.fit_sequences, args.fit_seed))
    if not heldout:
        raise ValueError("no sequence is held out to judge the variants on; give more --fit-data")
    sizes = [size for size in args.sizes if size < len(training)]
    variants = ablations.recipes(len(family.names), sizes, chosen)
    # Moments add up, so the sizes of the study are prefixes of one pass.
    steps = sorted(sizes) if "sequences" in chosen else []
    moments = JointMoments(family.widths)
    by_size: dict[int | None, JointMoments] = {}
    for start, stop in zip([0, *steps], [*steps, len(training)], strict=True):
        moments.merge(fitting_moments(family, training[start:stop], cache, args.batch_tokens))
        by_size[stop] = JointMoments.from_state({name: value.clone() for name, value in moments.state().items()})
    by_size[None] = moments
    judged = fitting_moments(family, heldout, cache, args.batch_tokens)
    fitted = [
        ablations.apply_recipe(
            recipe, ablations.fit_recipe(by_size[recipe.sequences], recipe), family.names, family.widths, judged
        )
        for recipe in variants
    ]
    references = [raw_maps(family.names, family.widths)[-1], pca_maps(family.names, moments)[-1]]
    options = EvaluationOptions(
        representations=("raw",), schemes=("random",), repeats=args.seeds, low_n=(), control=False
    )
    maps = [*references, *(variant.representation for variant in fitted)]
    units = plan_units([family], [maps], assays, labels, options, cache)
    results, broken = run_units(units, args.output / "runs", args.jobs, len(maps) * len(assays) * args.seeds)
    if results.empty:
        raise ValueError(f"no assay could be evaluated: {'; '.join((failed | broken).values())}")
    with output.writing("results.parquet") as path:
        results.to_parquet(path, index=False)
    notes = [
        f"{family.label}, target level {family.names[-1]}: bases fitted on {len(training):,} sequences "
        f"({moments.count:,} residues), R² on {len(heldout):,} held-out ones ({judged.count:,} residues), Spearman on "
        f"{results['assay'].nunique()} assays (random folds, {args.seeds} seed{'s' * (args.seeds > 1)})."
    ]
    text = render_ablations(results, fitted, notes, failed | broken)
    with output.writing("report.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

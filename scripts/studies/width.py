"""What is an embedding worth at any number of dimensions? Score against width, on assays and in retrieval.

    python scripts/study.py width --model hub_configs/rd-esm2-mini --assays dms/ --data scope208/ \\
        --fit-data rd_hf/data/examples/proteins_1000.fasta.gz --output width
    python scripts/study.py width --backbones hub_configs/rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D \\
        --data scope208/ --fit-data rd_hf/data/examples/proteins_1000.fasta.gz \\
        --widths 32 64 128 256 512 --output width

The reverse-distilled embedding, the one that keeps all directions, principal components and a random projection of the
concatenation are cut after their first N dimensions; raw backbones stand at their own widths. --assays (ProteinGym's
format) gives a panel of ridge probes on five folds and one a size of --low-n; --data (SCOP domains, see rd-hf evaluate
homology) one of hit@10 as embeddings are and one whitened and weighted.

--output then holds score_by_width.png, scores.parquet (one row a point of it) and report.md. A run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_family_arguments, add_fit_arguments, add_run_arguments
from rd_hf.options import whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("width", __doc__, prog="python scripts/study.py width")
    what = parser.add_argument_group("what is evaluated")
    add_family_arguments(what)
    what.add_argument("--assays", nargs="+", type=Path, help="CSV files in ProteinGym's format, or folders of them")
    what.add_argument("--folds", type=Path, help="ProteinGym's fold labels of single mutants (cv_folds_singles.tsv.gz)")
    what.add_argument("--data", type=Path, help="folder with one FASTA file of SCOP domains")
    what.add_argument("--widths", nargs="+", type=whole(1), help="where to cut (default: where levels end, and below)")
    what.add_argument("--output", required=True, type=Path, help="folder for the figure and its data")
    what.add_argument("--seeds", type=whole(1), default=1, help="repeats of every split (default 1)")
    what.add_argument(
        "--low-n", nargs="*", type=whole(1), default=(96,), help="training variants of the low-n panels (96)"
    )
    add_fit_arguments(parser.add_argument_group("fitting sequences"), required=True)
    run = parser.add_argument_group("the run")
    run.add_argument(
        "--jobs", type=whole(1), default=os.cpu_count() or 1, help="processes that probe (default: all cores)"
    )
    run.add_argument("--threads", type=whole(1), help="threads that embed and rank (default: half the cores)")
    add_run_arguments(run)
    return parser


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import pandas as pd
    import torch
    import transformers

    from rd_hf.evaluation.chains import load_families
    from rd_hf.evaluation.fit_data import draw_moments
    from rd_hf.evaluation.homology import read_domains, relations
    from rd_hf.evaluation.homology_runs import domain_states
    from rd_hf.evaluation.plan import EvaluationOptions, plan_units, read_assays
    from rd_hf.evaluation.runs import run_units
    from rd_hf.evaluation.splits import read_fold_labels
    from rd_hf.evaluation.treatments import DOMAINS, RESIDUES, mean_moments
    from rd_hf.files import Workspace
    from studies.cuts import probe_scores, retrieval_scores, width_figure, width_lines, width_table

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "an evaluation of widths")
    output.refuse("report.md", "scores.parquet", "score_by_width.png")
    if not args.assays and not args.data:
        raise ValueError("there is nothing to judge by: give --assays, --data or both")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // 2))
    options = EvaluationOptions(
        schemes=("random",),
        representations=("raw", "rd", "rd_all"),
        repeats=args.seeds,
        low_n=tuple(args.low_n),
        control=False,
        batch_tokens=args.batch_tokens,
    )
    assays, failed = read_assays(args.assays) if args.assays else ([], {})
    labels = read_fold_labels(args.folds) if args.folds else None
    domains = read_domains(args.data) if args.data else None
    families = load_families(args.model, (1.0,), args.backbones, args.device)
    if len(families) != 1 or len(families[0].names) < 2:
        raise ValueError("a figure shows one family of two levels or more: give one --model or --backbones")
    family = families[0]
    output.claim()
    cache = args.cache or args.output / "cache"
    moments, note = draw_moments(family, args.fit_data, args.fit_sequences, args.fit_seed, cache, args.batch_tokens)
    lines = width_lines(family, moments, options, args.widths)
    tables = []
    if assays:
        cuts = [line.cut(number) for line in lines for number in line.widths]
        units = plan_units([family], [cuts], assays, labels, options, cache)
        results, broken = run_units(units, args.output / "runs", args.jobs, len(cuts) * len(assays) * args.seeds)
        failed |= broken
        if results.empty:
            raise ValueError(f"no assay could be evaluated: {'; '.join(failed.values())}")
        tables.append(probe_scores(results))
    if domains is not None:
        wanted = relations(domains, ["superfamily"])[0]
        states = domain_states(family, domains, cache, args.batch_tokens)
        known = {DOMAINS: mean_moments(states, family.widths), RESIDUES: moments}
        tables.append(retrieval_scores(lines, states, family.label, domains, wanted, args.output / "runs", known))
    scores = pd.concat(tables, ignore_index=True)
    with output.writing("scores.parquet") as path:
        scores.to_parquet(path, index=False)
    with output.writing("score_by_width.png") as path:
        width_figure(scores, f"{family.label}: {', '.join(family.names)}").savefig(path, dpi=110, format="png")
    counts = [f"{len(assays) - len(failed)} assays"] if assays else []
    counts += [f"{len(domains.ids):,} domains"] if domains is not None else []
    text = "\n\n".join(
        [
            "# Score against width",
            f"{family.label}, {' and '.join(counts)}.",
            note,
            *(f"Left out: {message}" for message in failed.values()),
            "![score_by_width.png](score_by_width.png)",
            width_table(scores),
        ]
    )
    with output.writing("report.md") as path:
        path.write_text(text + "\n", encoding="utf-8")
    print(text)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")
    return 1 if failed else 0


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

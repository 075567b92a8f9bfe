"""Are remote homologues found by similarity, and by which embedding? Domains of SCOPe, all against all.

    rd-hf evaluate homology --model hub_configs/rd-esm2-mini --data scope208/ --output homology
    rd-hf evaluate homology --backbones hub_configs/rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D --data scope208/ \\
        --fit-data rd_hf/data/examples/proteins_1000.fasta.gz --output homology

Protocol of Kabir et al. (2024, doi:10.1093/bioadv/vbae119): cosine of means over residues of final states (no cls, no
eos), rounded to float16; a query's own family is masked, domains of its superfamily in other families are looked for
(and, at the level of the fold, the superfamily is masked). Each level's raw backbone, reverse-distilled embedding, each
of its blocks alone, all directions, concatenation, concatenation + PCA and a random projection compete, plain, whitened
and weighted. Statistics come from the domains' embeddings or from --fit-data, never from labels; what labels would
choose is shown beside it and says so.

--data is a folder with one FASTA file of SCOP domains (">d1asha_ a.1.1.2 ..."); published_summary.tsv and
published_per_query_superfamily_th10.tsv.gz are quoted where they lie beside it. --output then holds report.md, its
figure and results.parquet (one row a query: every table is an average of its rows). A run that was stopped goes on with
the same command.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_family_arguments, add_fit_arguments, add_run_arguments
from rd_hf.options import whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("evaluate homology", __doc__)
    what = parser.add_argument_group("what is evaluated")
    add_family_arguments(what)
    what.add_argument("--data", required=True, type=Path, help="folder with one FASTA file of SCOP domains")
    what.add_argument("--output", required=True, type=Path, help="folder for the report and its data")
    what.add_argument(
        "--representations",
        nargs="+",
        default=("raw", "rd", "pca", "concat", "rd_all", "random"),
        help="contenders (default: raw rd pca concat rd_all random); blocks of rd and rd_all come with them",
    )
    what.add_argument(
        "--levels",
        nargs="+",
        choices=("superfamily", "fold"),
        default=("superfamily", "fold"),
        help="what is looked for (default: superfamily fold)",
    )
    what.add_argument("--max-length", type=whole(1), help="leave longer domains out, as queries and as answers")
    what.add_argument(
        "--no-search", dest="search", action="store_false", help="leave out the weights that labels would choose"
    )
    fit = parser.add_argument_group("fitting sequences (for pca, rd_all, --backbones and whitened_fit)")
    add_fit_arguments(fit, required=False)
    run = parser.add_argument_group("the run")
    run.add_argument("--threads", type=whole(1), help="threads (default: all cores)")
    add_run_arguments(run)
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    import pandas as pd
    import torch
    import transformers

    from rd_hf.evaluation import homology_report
    from rd_hf.evaluation.chains import load_families
    from rd_hf.evaluation.fit_data import draw_moments
    from rd_hf.evaluation.homology import read_domains, read_published, relations
    from rd_hf.evaluation.homology_runs import evaluate_family
    from rd_hf.evaluation.plan import EvaluationOptions
    from rd_hf.evaluation.representations import FITTED_KINDS
    from rd_hf.files import Workspace

    started = time.monotonic()
    output = Workspace(args.output / ".rd_hf", "an evaluation of homology")
    output.refuse("report.md", "results.parquet")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.threads:
        torch.set_num_threads(args.threads)
    options = EvaluationOptions(representations=tuple(args.representations), batch_tokens=args.batch_tokens)
    domains = read_domains(args.data)
    published = read_published(args.data)
    if args.max_length is not None:
        # Another set of domains: what was published holds for it no longer.
        domains, published = domains.up_to(args.max_length), None
    wanted = relations(domains, args.levels)
    output.claim()
    cache = args.cache or args.output / "cache"
    families = load_families(args.model, (1.0,), args.backbones, args.device, passes=True)
    notes, tables = [], []
    for family in families:
        moments = None
        if family.model.config.one_pass:
            # What is read out is no chain of states: there is nothing to fit.
            pass
        elif args.fit_data and len(family.names) > 1:
            moments, note = draw_moments(
                family, args.fit_data, args.fit_sequences, args.fit_seed, cache, args.batch_tokens
            )
            notes.append(note)
        elif len(family.names) > 1:
            notes.append(f"{family.label}: no {', '.join((*FITTED_KINDS, 'whitened_fit'))}, for want of --fit-data.")
        tables.append(
            evaluate_family(family, moments, options, domains, wanted, cache, args.output / "runs", args.search)
        )
    results = pd.concat(tables, ignore_index=True)
    with output.writing("results.parquet") as path:
        results.to_parquet(path, index=False)

    levels = {family.label: family.names for family in families}
    figures = {}
    summary = homology_report.summary(results)
    for number, family in enumerate(families):
        name = "hit10_by_level.png" if len(families) == 1 else f"hit10_by_level_{number + 1}.png"
        figures[name] = homology_report.level_figure(summary[summary["model"] == family.label], family.names)
    for name, figure in figures.items():
        with output.writing(name) as path:
            figure.savefig(path, dpi=110, format="png")
    plural = {"superfamily": "superfamilies", "fold": "folds"}
    counts = ", ".join(
        f"{len(relation.queries):,} queries of {len(set(relation.clusters)):,} {plural[relation.name]}"
        for relation in wanted
    )
    notes.insert(
        0,
        f"{len(domains.ids):,} domains, {counts}. Cosine of means over residues; the query's own family is masked "
        "(superfamily, at the level of the fold). hit@k is its expectation over all orders of ties. Intervals resample "
        "superfamilies (folds, at that level); p flips the signs of their differences, q is its false discovery rate "
        "over all pairs shown. No treatment but those marked `labels` and `best` has seen a label.",
    )
    check = {}
    if published is not None and len(published.per_query) and wanted[0].name == "superfamily":
        check = published.disagreement(wanted[0], domains.ids)
    text = homology_report.render(results, summary, levels, published, check, notes, list(figures))
    with output.writing("report.md") as path:
        path.write_text(text, encoding="utf-8")
    print(text.split("\n## Every figure")[0])
    print(f"{len(results):,} rows in {(time.monotonic() - started) / 60:.1f} minutes: {args.output / 'report.md'}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

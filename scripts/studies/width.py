"""What is an embedding worth at any number of dimensions? Score against width, on assays and in retrieval.

    python scripts/study.py width --model rd-esm2-mini --assays dms/ --domains scope208/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output width
    python scripts/study.py width --backbones rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D \\
        --domains scope208/ --input rd_hf/data/examples/proteins_1000.fasta.gz \\
        --widths 32 64 128 256 512 --output width

The reverse-distilled embedding, the one that keeps all directions, principal components and a random projection of the
concatenation are cut after their first N dimensions; raw backbones stand at their own widths. --assays (ProteinGym's
format) gives a panel of ridge probes on five folds and one a size of --low-n; --domains (of SCOP, see rd-hf evaluate
homology) one of hit@10 as embeddings are and one whitened and weighted.

--output then holds score_by_width.png, scores.parquet (one row per point of it) and report.md. A run that was stopped
goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import WidthOptions

GROUPS = {
    "what is evaluated": ("model", "backbones", "assays", "folds", "data", "widths", "output", "seeds", "low_n"),
    "fitting sequences": FIT,
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("width", __doc__, WidthOptions, GROUPS, prog="python scripts/study.py width")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import pandas as pd

    from rd_hf.evaluation.assays import read_assays, read_fold_labels
    from rd_hf.evaluation.dms import probe_assays
    from rd_hf.evaluation.families import load_families
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.homology import read_domains, relations
    from rd_hf.evaluation.homology_runs import domain_states
    from rd_hf.evaluation.treatments import DOMAINS, RESIDUES, mean_moments
    from studies.cuts import probe_scores, retrieval_scores, width_figure, width_lines, width_table

    options = options_from(WidthOptions, args)
    names, figure = ("scores.parquet", "score_by_width.png"), "score_by_width.png"
    evaluation = Evaluation(options, "an evaluation of widths", *names)
    if not options.assays and not options.data:
        raise ValueError("there is nothing to judge by: give --assays, --domains or both")
    assays, evaluation.failed = read_assays(options.assays) if options.assays else ([], {})
    labels = read_fold_labels(options.folds) if options.folds else None
    domains = read_domains(options.data) if options.data else None
    families = load_families(options)
    if len(families) != 1 or len(families[0].names) < 2:
        raise ValueError("a figure shows one family of two levels or more: give one --model or --backbones")
    family = families[0]
    evaluation.claim()
    moments = evaluation.moments(family)
    assert moments is not None
    lines = width_lines(family, moments, options)
    tables, counts = [], []
    if assays:
        cuts = [line.cut(number) for line in lines for number in line.widths]
        tables.append(probe_scores(probe_assays(evaluation, [(family, cuts)], assays, labels, options)))
        counts.append(f"{sum(assay.name not in evaluation.failed for assay in assays)} assays")
    if domains is not None:
        wanted = relations(domains, ["superfamily"])[0]
        states = domain_states(family, domains, evaluation.cache, options.batch_tokens)
        known = {DOMAINS: mean_moments(states, family.widths), RESIDUES: moments}
        tables.append(retrieval_scores(lines, states, family.label, domains, wanted, evaluation.runs, known))
        counts.append(f"{len(domains.ids):,} domains")
    scores = pd.concat(tables, ignore_index=True)
    evaluation.write_table("scores.parquet", scores)
    evaluation.write_figures({figure: width_figure(scores, f"{family.label}: {', '.join(family.names)}")})
    parts = ["# Score against width", f"{family.label}, {' and '.join(counts)}.", *evaluation.notes]
    parts += [f"Left out: {message}" for message in evaluation.failed.values()]
    return tell(evaluation.finish("\n\n".join([*parts, f"![{figure}]({figure})", width_table(scores)]) + "\n"))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

"""What is an embedding worth for what it costs? Score against FLOP, of chains, layers as levels, and one pass.

    python scripts/study.py frontier --model chain layers --assays ProteinGym/*.csv --variants 300 --output frontier
    python scripts/study.py frontier --model my-650M --assays dms/ --device cuda --output frontier

Each model gives its raw backbones (or layers) and its nested levels, and where it was fitted with --one-pass also
its levels read out of the largest backbone alone. All are probed by ridge regression with nested cross-validation,
on the same variants and folds; what each costs is counted in FLOP per residue and timed on one batch.

--output then holds report.md (tables), frontier.png, frontier.parquet (the tables' numbers) and results.parquet (one
row per fold). A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import RUN
from rd_hf.options import options_from
from studies.options import FrontierOptions

GROUPS = {
    "what is evaluated": ("model", "assays", "output"),
    "how it is tested": ("variants", "seeds", "inner_folds"),
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("frontier", __doc__, FrontierOptions, GROUPS, prog="python scripts/study.py frontier")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.evaluation.assays import read_assays
    from rd_hf.evaluation.dms import probe_assays
    from rd_hf.evaluation.families import load_families
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.representations import family_maps
    from studies import costs

    options = options_from(FrontierOptions, args)
    names = ("frontier.png", "frontier.parquet", "results.parquet")
    evaluation = Evaluation(options, "a report on cost against score", *names)
    assays, evaluation.failed = read_assays(options.assays)
    assays = [costs.sample_variants(assay, options.variants, options.seed) for assay in assays]
    families = load_families(options, one_pass=True)
    labels = [family.label for family in families]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two models are called {max(labels, key=labels.count)}: rename the folder of one of them")
    evaluation.claim()
    # As many copies of one protein as make a batch of like rows: nothing is padding.
    wild_type = assays[0].wild_type
    batch = [wild_type] * max(1, options.batch_tokens // (len(wild_type) + 2))
    spent = {family.label: costs.measure_costs(family, batch) for family in families}
    contenders = [(family, family_maps(family, None, options.representations)) for family in families]
    results = probe_assays(evaluation, contenders, assays, None, options)
    table = costs.frontier_table(results, spent)
    evaluation.write_table("results.parquet", results)
    evaluation.write_table("frontier.parquet", table)
    evaluation.write_figures({"frontier.png": costs.frontier_figure(table)})
    left = [assay for assay in assays if assay.name not in evaluation.failed]
    device = families[0].model.device
    kind = "processor" if device.type == "cpu" else "wall-clock"
    seeds, threads = (
        f"{n} {word}{'s' * (n > 1)}" for n, word in ((options.seeds, "seed"), (options.threads or 1, "thread"))
    )
    evaluation.notes += [
        f"{len(left)} assays ({', '.join(assay.name for assay in left)}), {sum(len(a.mutants) for a in left):,} "
        f"variants, random folds, {seeds}. FLOP are those of linear maps; seconds are {kind} seconds for 1,000 "
        f"residues, on {device} with {threads}.",
        "On the frontier: no other embedding of all tables is as good for fewer FLOP.",
    ]
    return tell(evaluation.finish(costs.render_frontier(table, evaluation.notes, ["frontier.png"])))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

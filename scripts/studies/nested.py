"""At equal width, does another nested form win? Other blocks for the same prefix, chosen on a few assays.

    python scripts/study.py nested --backbones 0.3M=rd-esm2-mini:0.3M 1.2M=rd-esm2-mini:1.2M \\
        2.7M=rd-esm2-mini:2.7M 8M=facebook/esm2_t6_8M_UR50D --assays dms/ --domains scope208/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output nested

Every candidate keeps the smaller level as it is and appends a block of the same width, in closed form from moments of
residues and of proteins' means; nothing is trained. The best on the --development smallest assays is compared with
today's block on all others. The ridge probe is that of rd-hf evaluate dms, on five folds of --variants variants;
--domains adds retrieval.

--output then holds report.md, nested_forms.png, results.parquet (one row per fold) and scores.parquet (one per
assay). A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys
from itertools import pairwise

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import NestedOptions

GROUPS = {
    "what is evaluated": ("backbones", "layers", "assays", "data", "longest", "output"),
    "fitting sequences": (*FIT, "max_length", "means"),
    "how it is tested": ("variants", "longest_assay", "development", "explore", "inner_folds"),
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("nested", __doc__, NestedOptions, GROUPS, prog="python scripts/study.py nested")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    import pandas as pd

    from rd_hf.bases.moments import JointMoments
    from rd_hf.evaluation.assays import read_assays
    from rd_hf.evaluation.dms import probe_assays
    from rd_hf.evaluation.embeddings import embed_proteins
    from rd_hf.evaluation.families import Family, fitting_moments, split_sample
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.homology import read_domains
    from rd_hf.evaluation.treatments import mean_moments
    from rd_hf.fitting import FitOptions, draw_sample
    from studies.costs import sample_variants
    from studies.form_report import choose, development_assays, forms_figure, render_forms, retrieval, scores_of
    from studies.forms import READ_OUT, REFERENCES, TODAY, Covariance, chain_steps, contenders, read_out

    options = options_from(NestedOptions, args)
    names = ("results.parquet", "scores.parquet", "nested_forms.png")
    evaluation = Evaluation(options, "a comparison of nested forms", *names)
    assays, evaluation.failed = read_assays(options.assays)
    assays = [assay for assay in assays if len(assay.wild_type) <= options.longest_assay]
    development = development_assays(assays, options)
    assays = [sample_variants(assay, options.variants, options.seed) for assay in assays]
    domains = read_domains(options.data).up_to(options.longest) if options.data else None
    parts = [word.split("=", 1) for word in options.backbones]
    words = [f"{parts[0][0]}={parts[0][1]}"]
    whole = [0]
    for name, place in parts[1:]:
        words += [f"{name}-{layer}={place}#{layer}" for layer in options.layers] + [f"{name}={place}"]
        whole.append(len(words) - 1)
    family = Family.chain(words, options.device or "cpu", keep="all")
    evaluation.output.claim()
    wanted = FitOptions(num_sequences=options.fit_sequences, seed=options.fit_seed or 0, max_length=options.max_length)
    training, tuning = split_sample(draw_sample(options.fit_data, wanted, progress=True))
    fitting, other = (
        fitting_moments(family, own, evaluation.cache, options.batch_tokens) for own in (training, tuning)
    )
    moments = JointMoments.from_state(fitting.state())
    moments.merge(other)
    proteins = (tuning + training)[: options.means]
    rows = embed_proteins(
        family, [f"protein {n}" for n in range(len(proteins))], proteins, evaluation.cache, options.batch_tokens
    )
    residues, means = Covariance.of(moments), Covariance.of(mean_moments(rows, family.widths))
    growth = [family.widths[after] - family.widths[before] for before, after in pairwise(whole)]
    directions: dict[int, tuple[int, ...]] = {index: (number,) for index, number in enumerate(growth, start=1)}
    directions[len(growth)] = (growth[-1] // 2, growth[-1])
    maps = []
    steps = chain_steps(moments, [name for name, _ in parts], whole, directions)
    for step in steps:
        maps += [*contenders(step, residues, means, options.seed), read_out(step, fitting, other, whole)]
    few, many = ([assay for assay in assays if (assay.name in development) == own] for own in (True, False))
    results = probe_assays(evaluation, [(family, maps)], few, None, options)
    chosen = choose(scores_of(results, development))
    reported = maps if options.explore else [how for how in maps if how.kind in (chosen, TODAY, READ_OUT, *REFERENCES)]
    others = probe_assays(evaluation, [(family, reported)], many, None, options)
    results = pd.concat([results, others], ignore_index=True)
    scores = scores_of(results, development)
    found = None
    if domains is not None:
        own = [how for how in maps if how.level == steps[-1].name]
        widths = [family.widths[0], *growth[:-1]]
        found = retrieval(family, own, widths, domains, evaluation, options.batch_tokens)
    evaluation.write_table("results.parquet", results)
    evaluation.write_table("scores.parquet", scores)
    evaluation.write_figures({"nested_forms.png": forms_figure(scores)})
    evaluation.notes.append(
        f"{'; '.join(step.name for step in steps)}: fitted on {len(training) + len(tuning):,} proteins cut at "
        f"{options.max_length} residues ({moments.count:,} residues), and on the means of {len(proteins):,} of them. "
        f"Spearman of a ridge probe, five random folds of at most {options.variants} variants of an assay; chosen on "
        f"{len(few)} assays, reported on {len(many)} others. Chosen: {chosen}."
    )
    return tell(evaluation.finish(render_forms(scores, found, evaluation.notes, evaluation.failed)))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

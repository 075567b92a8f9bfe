"""What each choice in the chain is worth: ablations of one family, on held-out residues and on assays.

    python scripts/study.py ablate --model rd-esm2-mini --study chain --assays dms/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output ablations

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
import sys

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import AblationOptions

GROUPS = {
    "what is evaluated": ("model", "study", "assays", "output"),
    "fitting sequences": (*FIT, "sizes"),
    "how it is tested": ("folds", "seeds"),
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("ablate", __doc__, AblationOptions, GROUPS, prog="python scripts/study.py ablate")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.bases.moments import JointMoments
    from rd_hf.evaluation.assays import read_assays, read_fold_labels
    from rd_hf.evaluation.dms import probe_assays
    from rd_hf.evaluation.families import draw_fit_sample, fitting_moments, load_families, split_sample
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.representations import pca_chain_maps, pca_maps, raw_maps
    from studies import ablations
    from studies.reports import render_ablations

    options = options_from(AblationOptions, args)
    evaluation = Evaluation(options, "an ablation", "results.parquet")
    labels = read_fold_labels(options.folds) if options.folds else None
    assays, evaluation.failed = read_assays(options.assays)
    (family,) = load_families(options)
    evaluation.claim()
    chosen = options.study or tuple(ablations.STUDIES)
    training, heldout = split_sample(draw_fit_sample(family, options))
    if not heldout:
        raise ValueError("no sequence is held out to judge the variants on; give more --input")
    sizes = [size for size in options.sizes if size < len(training)]
    variants = ablations.recipes(len(family.names), sizes, chosen)
    # Moments add up, so the sizes of the study are prefixes of one reading.
    steps = sorted(sizes) if "sequences" in chosen else []
    moments = JointMoments(family.widths)
    by_size: dict[int | None, JointMoments] = {}
    for start, stop in zip([0, *steps], [*steps, len(training)], strict=True):
        moments.merge(fitting_moments(family, training[start:stop], evaluation.cache, options.batch_tokens))
        by_size[stop] = JointMoments.from_state({name: value.clone() for name, value in moments.state().items()})
    by_size[None] = moments
    judged = fitting_moments(family, heldout, evaluation.cache, options.batch_tokens)
    fitted = [
        ablations.apply_recipe(
            recipe, ablations.fit_recipe(by_size[recipe.sequences], recipe), family.names, family.widths, judged
        )
        for recipe in variants
    ]
    references = [raw_maps(family.names, family.widths)[-1]]
    references += [fit(family.names, moments)[-1] for fit in (pca_maps, pca_chain_maps)]
    maps = [*references, *(variant.representation for variant in fitted)]
    results = probe_assays(evaluation, [(family, maps)], assays, labels, options)
    evaluation.write_table("results.parquet", results)
    seeds = f"{options.seeds} seed{'s' * (options.seeds > 1)}"
    evaluation.notes.append(
        f"{family.label}, target level {family.names[-1]}: bases fitted on {len(training):,} sequences "
        f"({moments.count:,} residues), R² on {len(heldout):,} held-out ones ({judged.count:,} residues), Spearman on "
        f"{results['assay'].nunique()} assays (random folds, {seeds})."
    )
    return tell(evaluation.finish(render_ablations(results, fitted, evaluation.notes, evaluation.failed)))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

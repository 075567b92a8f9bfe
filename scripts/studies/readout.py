"""Does another readout in one pass come nearer to the exact levels? Chain coordinates, and quadratic features.

    python scripts/study.py readout --model rd-esm2-mini --assays dms/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output readout

Today's readout is a ridge regression of each block on some layers of the largest backbone. Beside it: one that reads
the state along a block's directions and takes off what the chain predicts from the prefix that was read, and ones that
have products of the layers' leading components as features too. All are in closed form from moments of the residues of
--input, and judged by their cosine to the exact embedding on proteins that are held out and by the ridge probe of
rd-hf evaluate dms.

--output then holds report.md and results.parquet (one row per fold). A run that was stopped goes on with the same
command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import ReadoutOptions

GROUPS = {
    "what is evaluated": ("model", "components", "assays", "output"),
    "fitting sequences": (*FIT, "max_length"),
    "how it is tested": ("variants", "development", "inner_folds"),
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("readout", __doc__, ReadoutOptions, GROUPS, prog="python scripts/study.py readout")


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.evaluation.assays import folds, read_assays
    from rd_hf.evaluation.dms import Contender, Unit, run_units
    from rd_hf.evaluation.families import load_families
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.fitting import FitOptions, draw_sample
    from rd_hf.fitting.sample import tuning_positions
    from studies.costs import sample_variants
    from studies.form_report import development_assays, render_readouts
    from studies.forms import restricted
    from studies.readouts import EXACT, Products, Reader, cosine, readout_maps

    options = options_from(ReadoutOptions, args)
    evaluation = Evaluation(options, "a comparison of readouts", "results.parquet")
    assays, evaluation.failed = read_assays(options.assays)
    development = development_assays(assays, options)
    assays = [sample_variants(assay, options.variants, options.seed) for assay in assays if assay.name in development]
    (family,) = load_families(options)
    readout = family.model.config.readout
    if readout is None:
        raise ValueError(f"{options.model[0]} has no readout to compare with: fit it with rd-hf fit --one-pass")
    evaluation.output.claim()
    wanted = FitOptions(
        num_sequences=options.fit_sequences,
        seed=options.fit_seed or 0,
        heldout_fraction=0.2,
        max_length=options.max_length,
    )
    sample = draw_sample(options.fit_data, wanted, progress=True)
    tuned = tuning_positions(sample, wanted.seed)
    parts: dict[str, list[str]] = {"fitting": [], "tuning": [], "heldout": []}
    for position, sequence in enumerate(sample.sequences):
        part = "heldout" if position in sample.heldout else "tuning" if position in tuned else "fitting"
        parts[part].append(sequence)
    reader = Reader(family.model, tuple(readout["layers"]), batch_tokens=options.batch_tokens)
    linear = reader.moments(parts["fitting"])
    below = len(family.names) - 1
    products = Products.fit(restricted(linear, range(below, len(linear.widths))), max(options.components))
    reader = replace(reader, products=products, components=tuple(sorted(options.components)))
    moments = [reader.moments(sequences) for sequences in parts.values()]
    maps = readout_maps(reader, family.names, *moments[:2])
    exact = {how.level: how for how in maps if how.kind == EXACT}
    cosines = {(how.kind, how.level): cosine(how, exact[how.level], moments[2]) for how in maps}
    units = []
    for assay in assays:
        rows = reader.means(assay.sequences, evaluation.cache, family.fingerprint).numpy()
        for how in maps:
            contender = Contender(family.label, 1.0, "mean", how.kind, how.level)
            own = folds(assay, "random", options.seeds)
            units.append(Unit(contender, assay, rows, family.fingerprint, how, own, options.probe))
    results, broken = run_units(units, evaluation.runs, options.jobs, len(units))
    evaluation.failed |= broken
    evaluation.write_table("results.parquet", results)
    counts = [len(sequences) for sequences in parts.values()]
    evaluation.notes.append(
        f"{family.label}, layers {', '.join(map(str, readout['layers']))} and the last: fitted on {counts[0]:,} "
        f"proteins cut at {options.max_length} residues ({moments[0].count:,} residues), the ridge chosen on "
        f"{counts[1]}, cosines on {counts[2]} others ({moments[2].count:,} residues). Spearman of a ridge probe, "
        f"five random folds of {options.variants} variants of {len(assays)} assays."
    )
    return tell(evaluation.finish(render_readouts(results, cosines, evaluation.notes, evaluation.failed)))


main = command(build_parser, run, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

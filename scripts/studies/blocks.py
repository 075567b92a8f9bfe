"""What do the residual blocks of a model hold? R^2 of each level, spectra, and what each block alone predicts.

    python scripts/study.py blocks --model rd-esm2-mini --input uniref50.fasta.gz \\
        --secondary-structure tasks/flip_secondary_structure --output blocks

Held-out R^2 and spectra are those of the model's own bases, judged on sequences of --input that are held out of
their fit (the same draw as the model's config records). Then each block [h_1], [r_2 V_2], ... is probed alone: which
amino acid a residue is, where in its chain it stands, and its secondary structure.

--output then holds report.md, blocks.parquet and spectra.png.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.commands._evaluation import add_groups, tell
from rd_hf.evaluation.options import FIT, RUN
from rd_hf.options import options_from
from studies.options import BlockOptions

GROUPS = {
    "what is evaluated": ("model", "secondary_structure", "train_chains", "validation_chains", "output"),
    "fitting sequences": FIT,
    "the run": RUN,
}


def build_parser() -> argparse.ArgumentParser:
    return add_groups(command_parser("blocks", __doc__, prog="python scripts/study.py blocks"), BlockOptions, GROUPS)


def run(args: argparse.Namespace) -> int:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.bases.chain import fit_chain
    from rd_hf.bases.figure import draw_fit
    from rd_hf.evaluation.families import (
        draw_fit_sample,
        fitting_moments,
        load_families,
        model_bases,
        refit_difference,
        split_sample,
    )
    from rd_hf.evaluation.frame import Evaluation
    from rd_hf.evaluation.representations import chain_maps
    from rd_hf.evaluation.residues import chain_states
    from rd_hf.evaluation.tasks import read_secondary_structure, subsample
    from studies import block_probes
    from studies.reports import render_blocks

    options = options_from(BlockOptions, args)
    evaluation = Evaluation(options, "a report on blocks", "blocks.parquet", "spectra.png")
    (family,) = load_families(options)
    config = family.model.config
    if len(family.names) < 2:
        raise ValueError(f"{options.model[0]} has one level and no residual block; give a reverse-distilled family")
    evaluation.claim()
    training, heldout = split_sample(draw_fit_sample(family, options))
    if not heldout:
        raise ValueError("no sequence is held out to judge the bases on; give more --input")
    moments = fitting_moments(family, training, evaluation.cache, options.batch_tokens)
    judged = fitting_moments(family, heldout, evaluation.cache, options.batch_tokens)
    # The chain in closed form is the model's own where the sequences are: the note says whether they are.
    kind, alpha = config.bases.get("regression", "pcr"), config.bases.get("ridge_alpha", 1.0)
    _, reports = fit_chain(moments, family.names, config.residual_directions, kind, alpha, judged)
    assert options.secondary_structure is not None
    task = read_secondary_structure(options.secondary_structure)
    task = subsample(task, options.train_chains, options.validation_chains)
    states = {
        name: chain_states(family, chains, evaluation.cache, options.batch_tokens)
        for name, chains in task.splits.items()
    }
    largest = chain_maps("rd", family.names, family.widths, model_bases(family))[-1]
    table = block_probes.block_table(task, states, largest, block_probes.blocks(config.nested_dims), options)
    evaluation.write_table("blocks.parquet", table)
    evaluation.write_figures({"spectra.png": draw_fit(reports)})
    evaluation.notes += [
        f"{family.label}: bases judged on {len(heldout):,} sequences ({judged.count:,} residues) that are held out of "
        f"{len(training):,}; regressions fitted on those differ from the model's by "
        f"{refit_difference(family, moments):.0e}.",
        f"Probes: {len(task.splits['train'])} training, {len(task.splits['validation'])} validation and "
        f"{len(task.splits['test'])} test chains.",
    ]
    return tell(evaluation.finish(render_blocks(reports, table, evaluation.notes, ["spectra.png"])))


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="eval")


if __name__ == "__main__":
    sys.exit(main())

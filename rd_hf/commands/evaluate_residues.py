"""What does an embedding know of single residues? Secondary structure and metal binding, by logistic probes.

    rd-hf evaluate residues --model rd-esm2-mini \\
        --secondary-structure tasks/flip_secondary_structure --metal-binding tasks/bindpredict_metal \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output evaluation_residues

The same contenders as in rd-hf evaluate dms, on states of residues instead of means over them; one-hot is a window of
15 residues. A probe is fitted on training chains, its strength chosen on validation chains, and judged on test
chains by accuracy and area under the precision-recall curve (of the positive class; of three classes, the mean).
Intervals resample test chains, the same for every contender.

--output then holds report.md, residues.png and results.parquet (one row per resample; draw 0 is the test set itself).
A run that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN, ResidueOptions
from rd_hf.options import options_from

GROUPS = {
    "what is evaluated": ("model", "secondary_structure", "metal_binding", "output", "representations", "depth"),
    "fitting sequences (for pca, pca_chain and rd_all)": FIT,
    "how it is tested": ("train_chains", "validation_chains", "resamples"),
    "the run": ("threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("evaluate residues", __doc__, ResidueOptions, GROUPS)


def run(args: argparse.Namespace) -> int:
    from rd_hf.evaluation.residues import evaluate_residues

    return tell(evaluate_residues(options_from(ResidueOptions, args)))


main = command(build_parser, run, extra="eval")

"""Does bigger win? Evaluate reverse-distilled families and their baselines on deep mutational scans.

    rd-hf evaluate dms --model rd-esm2-mini --assays ProteinGym/*.csv --output evaluation
    rd-hf evaluate dms --model rd-esm2-650M --assays dms/ --folds cv_folds_singles.tsv.gz \\
        --input uniref50.fasta.gz --reference Spearman_DMS_level_supervised_random5.csv --output evaluation
    rd-hf evaluate dms --backbones rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D --assays dms/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output evaluation

Each level's raw backbone, each reverse-distilled level, concatenation, concatenation + PCA, reverse distillation
that keeps all directions, a random projection and one-hot are probed by ridge regression with nested
cross-validation, on the same variants and folds. The PCA and the chain that keeps all directions are fitted on
--input, never on an assay; give the data the model's bases were fitted on, and the same sequences are drawn
from it as the model's config records. --backbones makes a chain of any models, whose bases are fitted there too.

--output then holds report.md (tables), the figures it shows, and results.parquet (one row per fold: every table is
an average of its rows). A run that was stopped goes on with the same command; a run with one more option computes
only what is new. An assay that cannot be used is named and left out; the others go on, and the exit status is 1.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN, AssayOptions
from rd_hf.options import options_from

GROUPS = {
    "what is evaluated": ("model", "backbones", "assays", "output", "representations", "pooling", "depth"),
    "fitting sequences (for pca, pca_chain and rd_all)": FIT,
    "how it is tested": ("folds", "splits", "seeds", "low_n", "inner_folds", "control", "reference"),
    "the run": ("jobs", "threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("evaluate dms", __doc__, AssayOptions, GROUPS)


def run(args: argparse.Namespace) -> int:
    from rd_hf.evaluation.dms import evaluate_assays

    return tell(evaluate_assays(options_from(AssayOptions, args)))


main = command(build_parser, run, extra="eval")

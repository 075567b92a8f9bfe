"""Are remote homologues found by similarity, and by which embedding? Domains of SCOPe, all against all.

    rd-hf evaluate homology --model rd-esm2-mini --domains scope208/ --output homology
    rd-hf evaluate homology --backbones rd-esm2-mini 8M=facebook/esm2_t6_8M_UR50D --domains scope208/ \\
        --input rd_hf/data/examples/proteins_1000.fasta.gz --output homology

Protocol of Kabir et al. (2024, doi:10.1093/bioadv/vbae119): cosine of means over residues of final states (no cls, no
eos), rounded to float16; a query's own family is masked, domains of its superfamily in other families are looked for
(and, at the level of the fold, the superfamily is masked). Each level's raw backbone, reverse-distilled embedding, each
of its blocks alone, all directions, concatenation, concatenation + PCA and a random projection compete, plain, whitened
and weighted. Statistics come from the domains' embeddings or from --input, never from labels; what labels would
choose is shown beside it and says so.

--domains is a folder with one FASTA file of SCOP domains (">d1asha_ a.1.1.2 ..."); published_summary.tsv and
published_per_query_superfamily_th10.tsv.gz are quoted where they lie beside it. --output then holds report.md, its
figure and results.parquet (one row per query: every table is an average of its rows). A run that was stopped goes on
with the same command.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser, tell
from rd_hf.evaluation.options import FIT, RUN, HomologyOptions
from rd_hf.options import options_from

GROUPS = {
    "what is evaluated": (
        *("model", "backbones", "data", "output", "representations", "levels", "max_length", "search"),
    ),
    "fitting sequences (for pca, rd_all, --backbones and whitened_fit)": FIT,
    "the run": ("threads", *RUN),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("evaluate homology", __doc__, HomologyOptions, GROUPS)


def run(args: argparse.Namespace) -> int:
    from rd_hf.evaluation.homology_runs import evaluate_homology

    return tell(evaluate_homology(options_from(HomologyOptions, args)))


main = command(build_parser, run, extra="eval")

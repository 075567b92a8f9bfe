"""Train a head on labelled sequences, and find the level that is enough.

    rd-hf train --model rd-esm2-mini --input labelled.csv --target score --output my-head
    rd-hf train --model rd-esm2-mini --input scan.csv --target score --mutant mutant --wild-type wt.fasta --output mine
    rd-hf train --model rd-esm2-mini --input example-labelled --target place --output my-head
    rd-hf train --model rd-esm2-650M --input enzymes.csv --target ec_class --group family --output my-classes
    rd-hf train --model rd-esm2-650M --input sequences.fasta --target secondary_structure.fasta --output my-residues
    rd-hf train --model rd-esm2-650M --input flip.csv --target target --split-column set --output my-flip

All sequences are embedded once, at the largest level; every level is cut from that and judged on the same folds, and
the table says which is enough. Numbers are predicted by ridge, classes and labels (several, with ; between them) by
logistic regression, whose strengths are chosen inside of the training folds. Rows of one sequence are one example.

--output then holds a checkpoint with a head for each level, which AutoModelForSequenceClassification (of residues:
AutoModelForTokenClassification) loads, and of which a level holds only the backbones that it needs; report.md with
figures, out_of_fold.parquet and training.json. A training that was stopped goes on with the same command.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.options import add_options, options_from
from rd_hf.training.settings import TrainingSettings

GROUPS = {
    "what is learnt": ("task", "unknown", "sequence_column", "id_column"),
    "variants of one protein": ("mutant", "wild_type", "features", "scheme"),
    "how it is judged": ("split_column", "group", "folds", "inner_folds", "seed", "score", "interval"),
    "the level that answers": ("rule", "level", "up_to"),
    "the run": ("revision", "device", "batch_tokens"),
}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("train", __doc__)
    add_options(parser, TrainingSettings, "model", "input", "target", "output")
    for title, names in GROUPS.items():
        add_options(parser.add_argument_group(title), TrainingSettings, *names)
    return parser


def run(args: argparse.Namespace) -> None:
    # Imported here, so that --help and a mistyped flag answer at once.
    from rd_hf.lazy import gc_paused

    with gc_paused():
        from transformers.utils import logging as transformers_logging

        from rd_hf.training import run_training

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    report = (lambda _: None) if args.quiet else None
    summary = run_training(options_from(TrainingSettings, args), report, show_progress=not args.quiet)
    if summary.finished_before:
        print(f"{summary.output} holds this training already:\n")
    print(f"{summary}\n\nwritten to {summary.output}; report.md there tells more")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="train")


if __name__ == "__main__":
    sys.exit(main())

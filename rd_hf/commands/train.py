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

from rd_hf.commands._arguments import command, command_parser, heavy_imports
from rd_hf.options import options_from
from rd_hf.training.settings import TrainingSettings

GROUPS = {
    "": ("model", "input", "target", "output"),
    "what is learnt": ("task", "unknown", "sequence_column", "id_column"),
    "variants of one protein": ("mutant", "wild_type", "features", "scheme"),
    "how it is judged": ("split_column", "group", "folds", "inner_folds", "seed", "score", "interval"),
    "the level that answers": ("rule", "level", "up_to"),
    "the run": ("revision", "device", "batch_tokens"),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("train", __doc__, TrainingSettings, GROUPS)


def run(args: argparse.Namespace) -> None:
    with heavy_imports(warnings=False):
        from rd_hf.training import run_training

    report = (lambda _: None) if args.quiet else None
    summary = run_training(options_from(TrainingSettings, args), report, show_progress=not args.quiet)
    if summary.finished_before:
        print(f"{summary.output} holds this training already:\n")
    print(f"{summary}\n\nwritten to {summary.output}; report.md there tells more")


main = command(build_parser, run, extra="train")

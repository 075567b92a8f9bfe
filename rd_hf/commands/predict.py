"""Predict of proteins with a trained head: FASTA, tables or a Hub dataset in, a folder of Parquet files out.

    rd-hf predict --model my-head --input example --output predictions
    rd-hf predict --model my-head --input proteome.fasta.gz --output predictions --level 1.2M
    rd-hf predict --model my-head --embeddings embeddings --output predictions    (no backbone runs)
    rd-hf predict --model my-residues --input proteome.fasta.gz --output predictions --probabilities
    torchrun --nproc_per_node 4 -m rd_hf predict --model my-head --input proteome.fasta.gz --output predictions
    rd-hf predict --engine ray --address auto --model my-head --input shards/*.fasta.gz --output predictions

--model is what rd-hf train wrote, or any checkpoint with heads. The proteins are embedded as rd-hf embed does it, at
the level that answers, in the hidden folder .embeddings of the output, which is removed at the end. Interrupted, by
whatever? Give the same command again: what is finished is kept, and the result is that of an uninterrupted run.

Read the result with load_dataset("parquet", data_files="predictions/*.parquet"). Its columns are record (number in the
input, from 1), id, and of numbers prediction, lower and upper (the interval of the training; several targets:
prediction_<name>), of classes label and probability_<class>, of residues labels, a letter for each. Records that could
not be predicted are in _rejects.tsv with their reason.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser, heavy_imports
from rd_hf.commands.embed import add_engine
from rd_hf.options import options_from
from rd_hf.training.predict_settings import PredictionSettings

GROUPS = {
    "": ("model", "inputs", "embeddings", "output"),
    "what is predicted": ("level", "probabilities", "dtype", "revision"),
    "records": ("long", "max_length", "overlap", "strict", "sequence_column", "id_column"),
    "machine": (
        *("batch_tokens", "group_tokens", "device", "attn_implementation", "part_records", "part_bytes"),
        "keep_embeddings",
    ),
}


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("predict", __doc__, PredictionSettings, GROUPS)
    add_engine(parser)
    return parser


def run(args: argparse.Namespace) -> None:
    with heavy_imports(warnings=False):
        from rd_hf.embedding.ray import RaySettings
        from rd_hf.training.predict import run_launched

    settings = options_from(PredictionSettings, args)
    ray = options_from(RaySettings, args) if args.engine == "ray" else None
    summary = run_launched(settings, ray, show_progress=not args.quiet)
    if summary is not None:
        if summary.finished_before:
            print(f"{args.output} holds these predictions already, nothing is left to do:")
        print(f"{summary}\nwritten to {args.output}")


main = command(build_parser, run)

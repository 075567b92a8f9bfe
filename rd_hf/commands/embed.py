"""Embed proteins: FASTA, tables or a Hub dataset in, a folder of Parquet files out.

    rd-hf embed --model rd-esm2-mini --input example --output embeddings
    rd-hf embed --model DIR --input a.fasta b.csv owner/dataset:train --output out --level S L
    rd-hf embed --model DIR --input proteome.fasta.gz --output out --level 8M 650M --one-pass    (650M's alone runs)
    rd-hf embed --extend embeddings_650M --level 3B --output embeddings_3B    (the 3B backbone alone runs)
    zcat many.fasta.gz | rd-hf embed --model DIR --input - --output out --pooling residue
    accelerate launch --num_processes 4 -m rd_hf embed --model DIR --input proteome.fasta.gz --output out    (GPUs)
    torchrun --nproc_per_node 4 -m rd_hf embed --model DIR --input proteome.fasta.gz --output out            (CPUs)
    rd-hf embed --engine ray --address auto --model DIR --input shards/*.fasta.gz --output out    (a Ray cluster)

Interrupted, by whatever? Give the same command again: finished parts are verified and kept, the rest is done, and
the result is the same as that of an uninterrupted run.

Read the result with load_dataset("parquet", data_files="out/*.parquet"). Its columns are source, record (number
in the input, from 1), id, description, length (residues) and embedding; records that could not be embedded are in
_rejects.tsv with their reason; _manifest.json says which model, options and versions made it, with counts and
checksums.
"""

from __future__ import annotations

import argparse
import os
import sys

from rd_hf.commands._arguments import command, command_parser, heavy_imports
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.ray import RaySettings
from rd_hf.embedding.settings import JobSettings, JobSummary
from rd_hf.options import add_options, option_fields, options_from


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("embed", __doc__)
    parser.usual = ("model", "inputs")
    add_options(parser, JobSettings, "model", "revision", "inputs", "output", "extend")
    what = parser.add_argument_group("what to compute")
    add_options(what, EmbeddingOptions, "levels", "width", "whiten", "pooling")
    add_options(what, JobSettings, "one_pass")
    add_options(what, EmbeddingOptions, "positions", "normalize", "dtype", "compile", "output_dtype", "layout")
    records = parser.add_argument_group("records")
    add_options(records, EmbeddingOptions, "long", "max_length", "overlap")
    add_options(records, JobSettings, "strict", "sequence_column", "id_column", "positions_column")
    machine = parser.add_argument_group("machine")
    add_options(machine, EmbeddingOptions, "batch_tokens")
    add_options(machine, JobSettings, "group_tokens", "device", "attn_implementation", "part_records", "part_bytes")
    add_engine(parser)
    # None: it was not typed. The folder that --extend names decides it then, or the class.
    parser.set_defaults(**{one.name: None for one in (*option_fields(EmbeddingOptions), *option_fields(JobSettings))})
    return parser


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and the options of a cluster, for commands that run an embedding job."""
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process, or those of accelerate launch (default); ray: workers of Ray Data, on this machine "
        "or with --address on a cluster. Either takes up what the other left off: the folder is the same",
    )
    add_options(cluster, RaySettings)


def run(args: argparse.Namespace) -> None:
    if args.extend is None and (args.model is None or args.inputs is None):
        lacking = [flag for flag, value in (("--model", args.model), ("--input", args.inputs)) if value is None]
        build_parser().error(f"{' and '.join(lacking)} must be given, unless --extend names a folder that knows both")
    with heavy_imports():
        from rd_hf.embedding.job import ending, run_launched, settings_from

    settings, notes = settings_from(args)
    if args.engine == "ray":
        # Before anything is read: it may not be installed.
        import ray  # noqa: F401
    if notes and not args.quiet and os.environ.get("RANK", "0") == "0":
        print(*notes, sep="\n", file=sys.stderr)
    if args.engine == "ray":
        from rd_hf.embedding.ray import run_on_ray

        summary: JobSummary | None = run_on_ray(settings, options_from(RaySettings, args), show_progress=not args.quiet)
    else:
        summary = run_launched(settings, show_progress=not args.quiet)
    if summary is not None:
        print(ending(summary, args.output))


main = command(build_parser, run)

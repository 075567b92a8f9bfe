"""Convert raw embeddings of each backbone to nested ones; no backbone is loaded.

    rd-hf convert --model owner/rd-esm2-650M --input esm2_8M.h5 esm2_35M.h5 esm2_150M.h5 esm2_650M.h5 --output nested
    rd-hf convert --model DIR --input embeddings.parquet --output nested     (a column of raw embeddings a backbone)
    rd-hf convert --model DIR --input pt_8M pt_35M --level 35M --output nested   (folders of fair-esm's extract.py)
    rd-hf convert --model DIR --input a.npy b.npy --ids ids.txt --output nested
    rd-hf convert --model DIR --input 8M=a.h5 35M=b.h5 --pooling residue --output nested

Each input holds final hidden states of one backbone, unscaled: a mean over residues (not over cls and eos) for each
protein, or a row a residue. Levels are told by width, proteins by id; every level up to the one wanted is needed.
What is written is what rd-hf embed writes from the sequences, up to rounding, in the same folder of Parquet files;
the column length is empty where the inputs do not tell it. Interrupted? Give the same command again.

A .h5 file holds a dataset a protein, named by its id (or with the id in its attribute original_id); a .npy file has
its ids one a line in a.ids.txt for a.npy; a .pt file is read as tensors only, never unpickled.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.embedding.options import OUTPUT_DTYPES
from rd_hf.lazy import gc_paused
from rd_hf.options import whole


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("convert", __doc__)
    parser.add_argument("--model", required=True, metavar="ID_OR_DIR", help="reverse-distilled model: folder or Hub id")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--input",
        required=True,
        nargs="+",
        metavar="[LEVEL=]PATH",
        help=".parquet, .h5, .npy or .pt files, or folders of .pt files; LEVEL= where two backbones are equally wide",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="a new folder, or that of this same job")
    parser.add_argument(
        "--level", nargs="+", default=[], metavar="L", help="level or levels to write (default: the largest given)"
    )
    parser.add_argument(
        "--pooling",
        choices=("mean", "residue", "cls"),
        default="mean",
        help="what the inputs hold: means over residues, or rows a residue that are averaged (mean, the default); rows "
        "to be kept (residue); states of cls (cls)",
    )
    parser.add_argument("--normalize", action="store_true", help="make vectors of length one, each level for itself")
    parser.add_argument("--output-dtype", choices=OUTPUT_DTYPES, default="float32", help="stored as (default float32)")
    parser.add_argument("--id-column", metavar="NAME", help="column of Parquet files with ids (default: id, name, ...)")
    parser.add_argument("--ids", metavar="FILE", help="ids of .npy files: one a line, or the FASTA file they came from")
    parser.add_argument("--strict", action="store_true", help="stop at the first protein that would be rejected")
    parser.add_argument("--part-records", type=whole(1), default=16384, metavar="N", help="records a file at most")
    parser.add_argument(
        "--part-megabytes",
        type=whole(1),
        default=256,
        metavar="N",
        help="raw embeddings a file at most (default 256 MB)",
    )
    parser.add_argument("--device", metavar="D", help="torch device (default: a GPU where there is one)")
    return parser


def run(args: argparse.Namespace) -> None:
    # Only now what takes seconds to import: --help and typing errors are answered at once.
    with gc_paused():
        from transformers.utils import logging as transformers_logging

        from rd_hf.conversion.convert import convert
        from rd_hf.embedding import EmbeddingOptions, JobSettings
        from rd_hf.embedding.job import ending

    transformers_logging.disable_progress_bar()
    settings = JobSettings(
        model=args.model,
        inputs=tuple(args.input),
        output=args.output,
        options=EmbeddingOptions(
            levels=tuple(args.level),
            pooling=args.pooling,
            output_dtype=args.output_dtype,
            normalize=args.normalize,
        ),
        revision=args.revision,
        id_column=args.id_column,
        strict=args.strict,
        part_records=args.part_records,
        part_bytes=args.part_megabytes << 20,
        device=args.device,
    )
    summary = convert(settings, args.ids, show_progress=not args.quiet)
    words = f"{summary.records:,} proteins: {summary.written:,} written, {summary.rejected:,} rejected\n"
    words += f"{summary.parts:,} parts, {summary.parts_kept:,} of them from an earlier run"
    print(ending(summary, args.output, words))


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="h5")


if __name__ == "__main__":
    sys.exit(main())

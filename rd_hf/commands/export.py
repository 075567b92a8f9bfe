"""Export a folder of embeddings to one h5 file, as biotrainer, protspace and their neighbours read it.

    rd-hf export embeddings --output embeddings.h5
    rd-hf export embeddings --output embeddings_35M.h5 --level 35M
    rd-hf export embeddings --output embeddings.h5 --key hash --input moved/proteome.fasta.gz

The file has a dataset a protein with the original id in its attribute original_id. A dataset's name is the id; where
an id repeats or has a slash in it, it is the hash of the sequence by which biotrainer looks embeddings up, for which
the sequences are read again and compared with what was embedded. Records that share a sequence share a dataset then:
its attribute original_ids lists the ids of all of them, as JSON.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command_parser, run_with_arguments

KEYS = ("auto", "id", "hash")


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__)
    parser.add_argument("embeddings", metavar="DIR", help="finished folder of rd-hf embed or rd-hf convert")
    parser.add_argument("--output", required=True, metavar="FILE", help="h5 file; replaced where it exists")
    parser.add_argument("--level", metavar="L", help="level to export (default: the largest that the folder holds)")
    parser.add_argument(
        "--key",
        choices=KEYS,
        default="auto",
        help="what names a dataset: id, hash (of the sequence), or auto (ids where they serve, the default)",
    )
    parser.add_argument(
        "--input", nargs="+", default=[], metavar="FILE", help="with hash: what was embedded, where it lies now"
    )
    return parser


def run(args: argparse.Namespace) -> None:
    # Only now what takes seconds to import: --help and typing errors are answered at once.
    from tqdm import tqdm

    from rd_hf.conversion.export import export_h5

    with tqdm(unit=" proteins", disable=True if args.quiet else None, leave=False) as bar:
        done = export_h5(args.embeddings, args.output, args.level, args.key, tuple(args.input), bar.update)
    shared = f" ({done.repeated:,} rows repeat a sequence: original_ids)" if done.repeated else ""
    print(f"{done.datasets:,} datasets{shared} named by {done.key}, level {done.level}, {done.width:,} dimensions")
    print(f"written to {args.output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="h5")


if __name__ == "__main__":
    sys.exit(main())

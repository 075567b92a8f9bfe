"""Export a folder of embeddings to one h5 file, as biotrainer, protspace and their neighbours read it.

    rd-hf export embeddings --output embeddings.h5
    rd-hf export embeddings --output embeddings_35M.h5 --level 35M
    rd-hf export embeddings --output embeddings.h5 --key hash --input moved/proteome.fasta.gz

The file has a dataset per protein with the original id in its attribute original_id. A dataset's name is the id; where
an id repeats or has a slash in it, it is the hash of the sequence by which biotrainer looks embeddings up, for which
the sequences are read again and compared with what was embedded. Records that share a sequence share a dataset then:
its attribute original_ids lists the ids of all of them, as JSON.
"""

from __future__ import annotations

import argparse
import sys

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.conversion.settings import ExportSettings
from rd_hf.options import add_options, options_from


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("export", __doc__)
    add_options(parser, ExportSettings)
    return parser


def run(args: argparse.Namespace) -> None:
    # Only now what takes seconds to import: --help and typing errors are answered at once.
    from tqdm import tqdm

    from rd_hf.conversion.export import export_h5

    settings = options_from(ExportSettings, args)
    with tqdm(unit=" proteins", disable=True if args.quiet else None, leave=False) as bar:
        done = export_h5(settings, bar.update)
    print(f"{done}\nwritten to {args.output}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="h5")


if __name__ == "__main__":
    sys.exit(main())

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

from rd_hf.commands._arguments import command, command_parser
from rd_hf.conversion.settings import ExportSettings
from rd_hf.options import options_from


def build_parser() -> argparse.ArgumentParser:
    return command_parser("export", __doc__, ExportSettings)


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from rd_hf.conversion.export import export_h5

    settings = options_from(ExportSettings, args)
    with tqdm(unit=" proteins", disable=True if args.quiet else None, leave=False) as bar:
        done = export_h5(settings, bar.update)
    print(f"{done}\nwritten to {args.output}")


main = command(build_parser, run, extra="h5")

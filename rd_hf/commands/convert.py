"""Convert raw embeddings of each backbone to nested ones, or a folder's layout; no backbone is loaded.

    rd-hf convert --model owner/rd-esm2-650M --input esm2_8M.h5 esm2_35M.h5 esm2_150M.h5 esm2_650M.h5 --output nested
    rd-hf convert --model DIR --input embeddings.parquet --output nested     (a column of raw embeddings per backbone)
    rd-hf convert --model DIR --input pt_8M pt_35M --level 35M --output nested   (folders of fair-esm's extract.py)
    rd-hf convert --model DIR --input a.npy b.npy --ids ids.txt --output nested
    rd-hf convert --model DIR --input 8M=a.h5 35M=b.h5 --pooling residue --output nested
    rd-hf convert --input embeddings --layout blocks --output embeddings_blocks        (of a folder, without a model)

Each input holds final hidden states of one backbone, unscaled: a mean over residues (not over cls and eos) for each
protein, or a row per residue. Levels are told by width, proteins by id; every level up to the one wanted is needed.
What is written is what rd-hf embed writes from the sequences, up to rounding, in the same folder of Parquet files;
the column length is empty where the inputs do not tell it. Interrupted? Give the same command again.

A folder of embeddings as input is written in another --layout: the same numbers, bit for bit, and nothing computed.

A .h5 file holds a dataset per protein, named by its id (or with the id in its attribute original_id); a .npy file has
its ids one per line in a.ids.txt for a.npy; a .pt file is read as tensors only, never unpickled.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser, heavy_imports
from rd_hf.conversion.settings import ConvertSettings
from rd_hf.options import options_from


def build_parser() -> argparse.ArgumentParser:
    return command_parser("convert", __doc__, ConvertSettings)


def run(args: argparse.Namespace) -> None:
    with heavy_imports():
        from rd_hf.conversion.convert import convert
        from rd_hf.embedding.job import ending

    summary = convert(options_from(ConvertSettings, args), show_progress=not args.quiet)
    words = f"{summary.records:,} proteins: {summary.written:,} written, {summary.rejected:,} rejected\n"
    words += f"{summary.parts:,} parts, {summary.parts_kept:,} of them from an earlier run"
    print(ending(summary, args.output, words))


main = command(build_parser, run, extra="h5")

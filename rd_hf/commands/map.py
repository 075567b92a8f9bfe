"""Draw the proteins of an embedding folder: one page to open in a browser, with a slider over the levels.

    rd-hf embed --model rd-esm2-mini --input example --output embeddings
    rd-hf map embeddings --labels labels.tsv --output map.html
    rd-hf map embeddings --labels labels.tsv --color-by family --method umap --output map.html
    rd-hf map embeddings --table map.parquet --output map.html      (coordinates and neighbours as a table too)

labels.tsv is a table of ids and labels, with or without a header; each column of labels can be the colours:

    id          kingdom     family
    O57809      Archaea     aminotransferase

The page holds all that it needs: no server, no network. Proteins are coloured by label; pointing at one names it,
clicking lists its nearest neighbours at the level (cosine similarity, exact, among the proteins drawn), and the
search finds ids, descriptions and labels. A rectangle or a lasso chooses proteins, whose ids the page saves; it also
saves the picture with its legend. Numbers as labels are drawn on a scale. Without --labels the inputs of the folder are
the colours.
"""

from __future__ import annotations

import argparse

from rd_hf.commands._arguments import command, command_parser
from rd_hf.maps.settings import MapSettings
from rd_hf.options import options_from


def build_parser() -> argparse.ArgumentParser:
    return command_parser("map", __doc__, MapSettings)


def run(args: argparse.Namespace) -> None:
    from rd_hf.maps.job import draw_map

    print(draw_map(options_from(MapSettings, args), show_progress=not args.quiet))


main = command(build_parser, run, extra="map")

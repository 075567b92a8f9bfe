"""Draw the proteins of an embedding folder: one page to open in a browser, with a slider over the levels.

    rd-hf embed --model hub_configs/rd-esm2-mini --input proteome.fasta.gz --output embeddings
    rd-hf map embeddings --labels labels.tsv --output map.html
    rd-hf map embeddings --labels labels.tsv --color-by family --method umap --output map.html

labels.tsv is tab-separated; its first line names the columns, of which one is the id, as in the FASTA file:

    id          kingdom     family
    O57809      Archaea     aminotransferase

The page holds all that it needs: no server, no network. Proteins are coloured by label; pointing at one names it,
clicking lists its nearest neighbours at the level (cosine similarity, exact, among the proteins drawn), and the
search finds ids, descriptions and labels. Without --labels the inputs of the folder are the colours.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.options import whole

if TYPE_CHECKING:
    from rd_hf.maps.labels import Column
    from rd_hf.maps.proteins import Proteins

NEIGHBOURS = 10


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("map", __doc__)
    parser.add_argument("embeddings", metavar="DIR", help="finished folder of rd-hf embed: pooling mean, max or cls")
    parser.add_argument("--output", required=True, metavar="FILE", help="the page, such as map.html")
    parser.add_argument("--labels", metavar="TSV", help="table of ids and labels (gzip or not), with a header")
    parser.add_argument(
        "--color-by", metavar="COLUMN", help="column of the labels that the page opens with (default: the first)"
    )
    parser.add_argument("--level", nargs="+", default=[], metavar="L", help="levels to draw (default: all)")
    parser.add_argument(
        "--method",
        choices=("pca", "umap"),
        default="pca",
        help="principal components (default), or UMAP (needs the extra umap)",
    )
    parser.add_argument(
        "--neighbours",
        type=whole(0),
        default=NEIGHBOURS,
        metavar="K",
        help=f"neighbours listed for each protein (default {NEIGHBOURS}; 0: none)",
    )
    parser.add_argument("--sample", type=whole(3), metavar="N", help="draw N proteins chosen at random")
    parser.add_argument("--seed", type=whole(0), default=0, help="of --sample and of UMAP (default 0)")
    parser.add_argument("--title", help="of the page (default: the folder's name)")
    parser.add_argument("--no-descriptions", action="store_true", help="leave the FASTA descriptions out of the page")
    return parser


def run(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from rd_hf.data.records import InputError
    from rd_hf.maps.neighbours import nearest
    from rd_hf.maps.page import Map, render_page, write_page
    from rd_hf.maps.projection import project
    from rd_hf.maps.proteins import read_proteins

    output = Path(args.output)
    # Before minutes of work, not after them.
    if output.is_dir() or not output.parent.is_dir():
        raise InputError(f"{output} cannot be written: give --output a file in a folder that exists")

    def bar(what: str, unit: str, total: int | None = None) -> tqdm:
        return tqdm(desc=what, unit=unit, total=total, disable=True if args.quiet else None, leave=False)

    with bar("reading", " proteins") as shown:

        def on_read(rows: int, total: int) -> None:
            shown.total = total
            shown.update(rows)

        proteins = read_proteins(args.embeddings, args.level, args.sample, args.seed, on_read)
    columns, said = _columns(args, proteins)
    with bar("projecting", " levels", len(proteins.levels)) as shown:
        projections = project(proteins, args.method, args.seed, shown.update)
    neighbours = {}
    if args.neighbours:
        with bar("neighbours", " proteins", len(proteins.ids)) as shown:
            neighbours = nearest(proteins.vectors, proteins.levels, args.neighbours, shown.update)
    content = Map(
        title=args.title or Path(args.embeddings).resolve().name,
        proteins=proteins,
        projections=projections,
        neighbours=neighbours,
        columns=columns,
        method={"pca": "Principal components", "umap": "UMAP"}[args.method],
        descriptions=not args.no_descriptions,
    )
    size = write_page(output, render_page(content))
    lines = [f"{len(proteins.ids):,} proteins of {proteins.total:,} at {', '.join(proteins.levels)}", *said]
    for projection in projections:
        if projection.explained is not None:
            lines.append(f"level {projection.level}: the two axes hold {projection.explained:.1%} of the variance")
    lines.append(f"{size / 1e6:.1f} MB written to {output}")
    print("\n".join(lines))


def _columns(args: argparse.Namespace, proteins: Proteins) -> tuple[list[Column], list[str]]:
    """What to colour by, the column asked for first, and what there is to say about it."""
    from rd_hf.data.records import InputError
    from rd_hf.maps.labels import column, label_columns

    columns: list[Column] = []
    said: list[str] = []
    if args.labels:
        columns, foreign = label_columns(args.labels, proteins.ids)
        for one in columns:
            if one.unlabelled:
                said.append(f"proteins without {one.name} in {args.labels}, drawn grey: {one.unlabelled:,}")
        # Where a sample is drawn, most labels are those of proteins that it leaves out.
        if foreign and proteins.total == len(proteins.ids):
            said.append(f"ids of {args.labels} that belong to no protein of {args.embeddings}: {foreign:,}")
    if len(set(proteins.sources)) > 1 and all(one.name != "input" for one in columns):
        columns.append(column("input", [Path(source).name for source in proteins.sources]))
    if args.color_by is not None:
        names = [one.name for one in columns]
        if args.color_by not in names:
            where = args.labels or args.embeddings
            raise InputError(
                f"{where} has no column {args.color_by!r} to colour by: it has {', '.join(names) or 'none'}"
            )
        columns.sort(key=lambda one: one.name != args.color_by)
    return columns, said


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(build_parser(), run, argv, extra="map")


if __name__ == "__main__":
    sys.exit(main())

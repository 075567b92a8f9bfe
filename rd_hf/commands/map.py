"""Draw the proteins of an embedding folder: one page to open in a browser, with a slider over the levels.

    python scripts/embed.py --model hub_configs/rd-esm2-mini --input proteome.fasta.gz --output embeddings
    python scripts/map.py embeddings --labels labels.tsv --output map.html
    python scripts/map.py embeddings --labels labels.tsv --color-by family --method umap --output map.html

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

from rd_hf.commands.optional import what_to_install

if TYPE_CHECKING:
    from rd_hf.maps.labels import Column
    from rd_hf.maps.proteins import Proteins

NEIGHBOURS = 10


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", metavar="DIR", help="finished folder of embed.py: pooling mean, max or cls")
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
        type=int,
        default=NEIGHBOURS,
        metavar="K",
        help=f"neighbours listed for each protein (default {NEIGHBOURS}; 0: none)",
    )
    parser.add_argument("--sample", type=int, metavar="N", help="draw N proteins chosen at random")
    parser.add_argument("--seed", type=int, default=0, help="of --sample and of UMAP (default 0)")
    parser.add_argument("--title", help="of the page (default: the folder's name)")
    parser.add_argument("--no-descriptions", action="store_true", help="leave the FASTA descriptions out of the page")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no summary")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; 0 if the page is written, 1 with a sentence on standard error if it cannot be."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.neighbours < 0:
        parser.error(f"--neighbours must be 0 or more, not {args.neighbours}")
    if args.sample is not None and args.sample < 3:
        parser.error(f"--sample must be 3 or more, not {args.sample}")
    from rd_hf.data.records import InputError

    try:
        summary = _run(args)
    except ModuleNotFoundError as error:
        print(f"map: {what_to_install(error, 'map')}", file=sys.stderr)
        return 1
    except InputError as error:
        print(f"map: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("map: interrupted; nothing was written", file=sys.stderr)
        return 130
    if not args.quiet:
        print(summary)
    return 0


def _run(args: argparse.Namespace) -> str:
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
    return "\n".join(lines)


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

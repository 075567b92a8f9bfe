"""Search proteins by their embeddings: nearest neighbours, and their labels, at the price of a small level.

    rd-hf search --queries query.fasta --database embeddings --k 10 --output hits.parquet
    rd-hf search --queries embeddings --database embeddings --output neighbours.tsv    (against itself)
    rd-hf search --queries q.fasta --database DIR --shortlist-level 35M --shortlist 200 --output hits.tsv
    rd-hf search --queries q.fasta --database DIR_OF_35M --level 650M --shortlist 200 --output hits.tsv
    rd-hf search --queries q.fasta --database DIR --labels labels.tsv --k 1 --output hits.tsv

--database is a folder that rd-hf embed made, with one row a protein. The third example is the funnel: the small level
picks 200 candidates, the largest that the rows hold scores them, and what that misses is measured and printed. The
fourth is progressive: the database holds the small level only, and the larger backbones run for the candidates alone,
from the sequences that the database was made from; what they compute is kept for the next search.

Columns of the output: query_record, query_id, rank, record, id, similarity (cosine) or distance (euclidean), level.
With --labels (lines of id, tab, label) neighbours are sought among the labelled proteins; the hits say their labels,
and a second file (for hits.tsv hits.labels.tsv) gives each query's labels with the reliability 0.5 / (0.5 + distance),
for k > 1 its mean over the k neighbours (Littmann et al. 2021); a neighbour that is not there counts 0. A query without
any neighbour has one row of empty cells, and is named.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rd_hf.commands._arguments import command_parser, run_with_arguments
from rd_hf.lazy import gc_paused
from rd_hf.options import real, whole
from rd_hf.search.settings import INDICES, METRICS, NEIGHBOURS, RECALL_SAMPLE, WHITENINGS, labels_path


def build_parser() -> argparse.ArgumentParser:
    parser = command_parser("search", __doc__)
    parser.add_argument(
        "--queries",
        required=True,
        metavar="FILE_OR_DIR",
        help="sequences (FASTA or a table, as rd-hf embed reads them) or a folder of embeddings; the database itself "
        "may be given, each protein's own row is then left out",
    )
    parser.add_argument(
        "--database", required=True, metavar="DIR", help="folder that rd-hf embed made, one row a protein"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="hits, as .parquet, .tsv or .csv")
    parser.add_argument(
        "--model", metavar="ID_OR_DIR", help="reverse-distilled model (default: the one that the database names)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a Hub model")
    parser.add_argument(
        "--k", type=whole(1), default=NEIGHBOURS, metavar="N", help=f"neighbours (default {NEIGHBOURS})"
    )
    parser.add_argument("--metric", choices=METRICS, default="cosine", help="default cosine")
    parser.add_argument(
        "--level",
        metavar="L",
        help="level that scores the hits (default: the largest held). One that the database lacks is computed for the "
        "shortlist alone",
    )

    parser.add_argument(
        "--whiten",
        choices=WHITENINGS,
        default="auto",
        help="centre and scale each level's block before vectors are compared: by the database's own proteins, by what "
        "came with the model, or not at all (default auto: by cosine the database where it has enough proteins, else "
        "the model; by Euclidean distance not)",
    )
    parser.add_argument(
        "--block-weights",
        nargs="+",
        type=real(0),
        default=[],
        metavar="W",
        help="what each level's whitened block is multiplied by (default: as the model says)",
    )
    less = parser.add_argument_group("pay for less")
    less.add_argument("--shortlist-level", metavar="L", help="smaller level that picks candidates")
    less.add_argument("--shortlist", type=whole(1), metavar="N", help="candidates a query")
    less.add_argument(
        "--index",
        choices=INDICES,
        default="exact",
        help="what picks candidates: a comparison with every row (exact, the default), or faiss' inverted lists (ivf) "
        "or graph (hnsw), held in memory with one byte a dimension and kept for the next search",
    )
    less.add_argument(
        "--sequences",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what the database was made from, where it has moved (default: as the database names it)",
    )
    less.add_argument("--cache", metavar="DIR", help="what the next search can use (default: DATABASE/.search)")
    less.add_argument(
        "--recall-sample",
        type=whole(0),
        default=RECALL_SAMPLE,
        metavar="N",
        help=f"queries on which a shortlist is held against an exact search; 0 for none (default {RECALL_SAMPLE})",
    )

    labels = parser.add_argument_group("labels")
    labels.add_argument("--labels", metavar="TSV", help="ids and labels; several labels of an id with ; between them")
    labels.add_argument("--label-column", metavar="NAME", help="column with the labels (default: the second)")

    parser.add_argument("--device", metavar="D", help="torch device (default: a GPU where there is one)")
    return parser


def run(args: argparse.Namespace) -> None:
    # Only now what takes seconds to import: --help and typing errors are answered at once.
    with gc_paused():
        from transformers.utils import logging as transformers_logging

        from rd_hf.search import SearchSettings, search

    transformers_logging.disable_progress_bar()
    settings = SearchSettings(
        queries=args.queries,
        database=args.database,
        output=args.output,
        model=args.model,
        revision=args.revision,
        k=args.k,
        metric=args.metric,
        level=args.level,
        shortlist_level=args.shortlist_level,
        shortlist=args.shortlist,
        index=args.index,
        labels=args.labels,
        label_column=args.label_column,
        sequences=tuple(args.sequences),
        cache=args.cache,
        recall_sample=args.recall_sample,
        device=args.device,
        whiten=args.whiten,
        block_weights=tuple(args.block_weights),
    )
    summary = search(settings, show_progress=not args.quiet)
    print(f"{summary}\nwritten to {args.output}")
    if args.labels is not None:
        print(f"labels written to {labels_path(args.output)}")


def _derived(args: argparse.Namespace) -> dict[str, Path]:
    if args.labels is None:
        return {}
    path = labels_path(args.output)
    return {f"{path}, where the labels of --output {args.output} go,": path}


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code (see :mod:`rd_hf.commands._main`)."""
    return run_with_arguments(
        build_parser(),
        run,
        argv,
        extra="search",
        derived=_derived,
        go_on="give the same command again, what was computed is kept,",
    )


if __name__ == "__main__":
    sys.exit(main())

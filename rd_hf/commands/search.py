"""Search proteins by their embeddings: nearest neighbours, and their labels, at the price of a small level.

    rd-hf search embeddings --input query.fasta --neighbours 10 --output hits.parquet
    rd-hf search embeddings --input embeddings --output neighbours.tsv    (against itself)
    rd-hf search DIR --input q.fasta --shortlist-level 35M --shortlist 200 --output hits.tsv
    rd-hf search DIR_OF_35M --input q.fasta --level 650M --shortlist 200 --output hits.tsv
    rd-hf search DIR --input q.fasta --labels labels.tsv --neighbours 1 --output hits.tsv

The database is a folder that rd-hf embed made, one row per protein. The third example is the funnel: the small level
picks 200 candidates, the largest that the rows hold scores them, and what that misses is measured and printed. The
fourth is progressive: the database holds the small level only, and the larger backbones run for the candidates alone,
from the sequences that the database was made from; what they compute is kept for the next search.

Columns of the output: query_record, query_id, rank, record, id, similarity (cosine) or distance (euclidean), level.
With --labels (a table of ids and labels) neighbours are sought among the labelled proteins; the hits have their labels,
and a second file (for hits.tsv hits.labels.tsv) gives each query's labels with the reliability 0.5 / (0.5 + distance),
of several neighbours its mean over all that were asked for (Littmann et al. 2021); one that is not there counts 0. A
query without any neighbour has one row of empty cells, and is named.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rd_hf.commands._arguments import command, command_parser, heavy_imports
from rd_hf.options import options_from
from rd_hf.search.settings import SearchSettings, labels_path

GROUPS = {
    "": (
        *("database", "queries", "output", "model", "revision", "k", "metric", "level", "whiten", "block_weights"),
        "device",
    ),
    "pay for less": ("shortlist_level", "shortlist", "index", "signs", "sequences", "cache", "recall_sample"),
    "labels": ("labels", "label_column"),
}


def build_parser() -> argparse.ArgumentParser:
    return command_parser("search", __doc__, SearchSettings, GROUPS)


def run(args: argparse.Namespace) -> None:
    with heavy_imports():
        from rd_hf.search import run_search

    summary = run_search(options_from(SearchSettings, args), show_progress=not args.quiet)
    print(f"{summary}\nwritten to {args.output}")
    if args.labels is not None:
        print(f"labels written to {labels_path(args.output)}")


def _derived(args: argparse.Namespace) -> dict[str, Path]:
    if args.labels is None:
        return {}
    path = labels_path(args.output)
    return {f"{path}, where the labels of --output {args.output} go,": path}


main = command(
    build_parser, run, extra="search", derived=_derived, go_on="give the same command again, what was computed is kept,"
)

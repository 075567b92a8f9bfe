"""The engine of an embedding job, for commands that run one: processes here, or a Ray cluster."""

from __future__ import annotations

import argparse

from rd_hf.embedding.ray import RaySettings
from rd_hf.options import add_options


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add ``--engine`` and the options of a cluster."""
    cluster = parser.add_argument_group("cluster")
    cluster.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this process, or those of accelerate launch (default); ray: workers of Ray Data, on this machine "
        "or with --address on a cluster. Either takes up what the other left off: the folder is the same",
    )
    add_options(cluster, RaySettings)

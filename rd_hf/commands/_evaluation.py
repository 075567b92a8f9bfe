"""Command-line arguments that the evaluations share. Imports nothing heavy."""

from __future__ import annotations

import argparse
from pathlib import Path

from rd_hf.options import whole


def add_fit_arguments(parser: argparse._ActionsContainer, *, required: bool) -> None:
    """``--fit-data``, ``--fit-sequences`` and ``--fit-seed``: the sequences that baselines are fitted on."""
    parser.add_argument(
        "--fit-data",
        required=required,
        nargs="+",
        help="FASTA, table or dataset the model's bases were fitted on" + ("" if required else " (for pca and rd_all)"),
    )
    parser.add_argument(
        "--fit-sequences", type=whole(1), help="sequences drawn from it (default: as the model records)"
    )
    parser.add_argument("--fit-seed", type=int, help="seed of the draw (default: as the model records, or 0)")


def add_family_arguments(parser: argparse._ActionsContainer) -> None:
    """``--model`` and ``--backbones``: whose embeddings are judged."""
    parser.add_argument(
        "--model",
        nargs="+",
        default=(),
        help="reverse-distilled families or plain ESM-2 models: folders or Hub ids",
    )
    parser.add_argument(
        "--backbones",
        nargs="+",
        metavar="NAME=REPO[@REVISION]",
        help="a chain of any models, as rd-hf fit --backbones takes it, for example hub_configs/rd-esm2-mini "
        "8M=my-esm2-8M; its bases are fitted on --fit-data",
    )


def add_run_arguments(parser: argparse._ActionsContainer) -> None:
    """``--device``, ``--batch-tokens`` and ``--cache``: where and how the backbones run."""
    parser.add_argument("--device", default="cpu", help="where backbones run: cpu (default), cuda, mps")
    parser.add_argument("--batch-tokens", type=whole(1), default=4096, help="tokens a forward pass (default 4096)")
    parser.add_argument("--cache", type=Path, help="folder of states, shared by runs (default: OUTPUT/cache)")


def add_chain_arguments(parser: argparse._ActionsContainer) -> None:
    """``--train-chains`` and ``--validation-chains``: how much of a residue task is used."""
    parser.add_argument("--train-chains", type=whole(1), default=400, help="training chains drawn (default 400)")
    parser.add_argument("--validation-chains", type=whole(1), default=100, help="validation chains drawn (default 100)")

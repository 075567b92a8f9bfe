"""What a push and an import are asked to do. Imports nothing heavy: the commands' arguments are made of it."""

from __future__ import annotations

import argparse
import re
from dataclasses import MISSING, dataclass
from pathlib import Path

from rd_hf.families import ESM2
from rd_hf.flags import FOLDER, flag
from rd_hf.options import option, whole


def esm2_level(word: str) -> str:
    """The largest level of the family of ESM-2 that was typed by its name, or by that level."""
    level = word.removeprefix("rd-esm2-")
    levels = [member.name for member in ESM2[1:]]
    if level not in levels:
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join(f'rd-esm2-{name}' for name in levels)}")
    return level


def published_number(word: str) -> str:
    """A number of sequences as the published files have it in their names: 0.5k for 500."""
    if re.fullmatch(r"\d+(\.\d+)?k", word):
        return word
    return f"{whole(1)(word) / 1000:g}k"


@dataclass(frozen=True)
class PushOptions:
    """How a folder goes to the Hub."""

    private: bool | None = option(None, "make a new repo private", action="store_true")
    revision: str | None = option(
        None,
        "branch to push to, made where it does not exist (default: main)",
        flags=("--branch",),
        former=("--revision",),
        metavar="BRANCH",
    )
    create_pr: bool = option(False, "open a pull request instead of committing")
    commit_message: str | None = option(None, "commit message", flags=("--message",), metavar="TEXT")
    license: str | None = flag("license", None, " (default: mit), or of embeddings (default: none is stated)")
    token: str | bool | None = option(
        None, "Hub token (default: the one of 'hf auth login', or HF_TOKEN)", metavar="TOKEN"
    )
    check_level: str | None = option(
        None, "fetch and compare up to this level only, where the whole model is too large here", metavar="LEVEL"
    )
    check: bool = option(True, "do not fetch and compare (default: do)", flags=("--no-check",))


@dataclass(frozen=True)
class PushSettings:
    """What goes to the Hub, and where."""

    repo_id: str = flag("repo_id", MISSING, ", made where it does not exist", required=True)
    embeddings: str | None = flag("embeddings", None, ": what rd-hf embed finished, to be a dataset", nargs="?")
    model: str | Path | None = flag("model", None, ": a folder, such as rd-hf fit makes, or rd-esm2-mini", kind=Path)
    dry_run: bool = option(False, "list the files and print the card; push nothing")


@dataclass(frozen=True)
class ImportSettings:
    """Which of the first publication's weights become a checkpoint, and where."""

    weights: str | Path = option(
        MISSING, "folder with the published .npz files", kind=Path, required=True, metavar="DIR"
    )
    level: str = flag(
        "config",
        MISSING,
        ": rd-esm2-35M, -150M, -650M, -3B or -15B",
        kind=esm2_level,
        required=True,
        former=("--level",),
    )
    output: str | Path = flag("output", MISSING, f": {FOLDER}", kind=Path, required=True, metavar="DIR")
    regressor: str | None = option(None, "where --weights has several", choices=("pcr", "linear", "ridge"))
    pca: str | None = option(None, "where --weights has several", choices=("incremental", "fbpca"))
    sequences: str | None = flag(
        "num_sequences",
        None,
        " for the fit: 500, 1000, 5000 or 10000, where --weights has several",
        kind=published_number,
        former=("--sequences",),
    )
    license: str = flag("license", "mit")

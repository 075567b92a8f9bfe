"""What a push and an import are asked to do. Imports nothing heavy: the commands' arguments are made of it."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from rd_hf.options import option


@dataclass(frozen=True)
class PushOptions:
    """How a checkpoint folder goes to the Hub."""

    private: bool | None = option(None, "make a new repo private", action="store_true")
    revision: str | None = option(None, "branch to push to, made where it does not exist (default: main)")
    create_pr: bool = option(False, "open a pull request instead of committing")
    commit_message: str | None = option(None, "commit message", flags=("--message",), metavar="MESSAGE")
    license: str = option("mit", "Hub licence id of the bases, for the card")
    token: str | bool | None = option(None, "Hub token (default: the one of 'hf auth login', or HF_TOKEN)")
    check_level: str | None = option(
        None, "fetch and compare up to this level only, where the whole model is too large here"
    )
    check: bool = option(True, "do not fetch and compare (default: do)", flags=("--no-check",))


@dataclass(frozen=True)
class ImportSettings:
    """Which of the first publication's weights become a checkpoint, and where."""

    weights: str | Path = option(MISSING, "folder with the published .npz files", kind=Path, required=True)
    level: str = option(MISSING, "largest level: 35M, 150M, 650M, 3B or 15B", required=True)
    output: str | Path = option(MISSING, "folder for the checkpoint", kind=Path, required=True)
    regressor: str | None = option(None, "where --weights has several", choices=("pcr", "linear", "ridge"))
    pca: str | None = option(None, "where --weights has several", choices=("incremental", "fbpca"))
    sequences: str | None = option(None, "0.5k, 1k, 5k or 10k, where --weights has several")
    license: str = option("mit", "Hub licence id for the card (default: the publication's, mit)")

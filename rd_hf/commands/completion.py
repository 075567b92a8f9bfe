"""Values that the shell completes, by flag: what a user would look up is offered at the press of a key.

Read off names and small JSON files, since it must answer while somebody waits: nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rd_hf.carried import CHECKPOINTS, model_place
from rd_hf.embedding.options import WHITENED
from rd_hf.families import NAMED

# By what a model's folder, and one of embeddings, are known.
MODEL, EMBEDDINGS = "config.json", "_manifest.json"


def complete(parser: argparse.ArgumentParser) -> None:
    """Tell the library that completes what values to offer for flags of a command that do not list their choices."""
    for action in parser._actions:
        for name in action.option_strings or [str(action.metavar)]:
            if name in COMPLETERS and action.choices is None:
                action.completer = COMPLETERS[name]  # type: ignore[attr-defined]


def _folders(prefix: str, holding: Collection[str]) -> Iterator[str]:
    """Folders that begin so, with a slash; those with one of these files in them without."""
    # As it was typed, ./ and all.
    before, slash, begun = prefix.rpartition("/")
    with suppress(OSError):
        for entry in sorted(Path(before + slash).iterdir()):
            if entry.is_dir() and entry.name.startswith(begun) and not entry.name.startswith("."):
                name = f"{before}{slash}{entry.name}"
                yield name if any((entry / file).is_file() for file in holding) else f"{name}/"


def _one_of(names: Iterable[str], *holding: str) -> Callable[..., list[str]]:
    """What offers these names, and folders where it is said which file one holds."""

    def offered(prefix: str, **_: Any) -> list[str]:
        named = [name for name in names if name.startswith(prefix)]
        return [*named, *(_folders(prefix, holding) if holding else ())]

    return offered


def levels(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Levels of the model or of the folder of embeddings that was typed already."""
    for name in ("model", "extend", "database", "embeddings"):
        place = Path(model_place(getattr(parsed_args, name, None) or ""))
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads((place / MODEL).read_bytes())["nested_dims"])
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads((place / EMBEDDINGS).read_bytes())["model"]["nested_dims"])
    return []


COMPLETERS = {
    "--config": _one_of(NAMED, MODEL),
    "--model": _one_of(CHECKPOINTS, MODEL),
    "--level": levels,
    "--shortlist-level": levels,
    "--check-level": levels,
    "--extend": _one_of((), EMBEDDINGS),
    "EMBEDDINGS": _one_of((), EMBEDDINGS),
    "EMBEDDINGS_OR_MODEL": _one_of([*NAMED, *CHECKPOINTS], MODEL, EMBEDDINGS),
    "--device": _one_of(("cpu", "cuda", "cuda:0", "cuda:1", "mps")),
    "--whiten": _one_of(WHITENED),
}

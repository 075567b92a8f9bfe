"""Values that the shell completes, by flag: what a user would look up is offered at the press of a key.

Read off names and small JSON files, since it must answer while somebody waits: nothing heavy is imported.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rd_hf.carried import CHECKPOINTS, model_place
from rd_hf.embedding.options import WHITENED
from rd_hf.families import NAMED

DEVICES = ("cpu", "cuda", "cuda:0", "cuda:1", "mps")


def complete(parser: argparse.ArgumentParser) -> None:
    """Tell the library that completes what values to offer for flags of a command."""
    for action in parser._actions:
        for name in action.option_strings or [str(action.metavar)]:
            if name in COMPLETERS:
                action.completer = COMPLETERS[name]  # type: ignore[attr-defined]


def _folders(prefix: str, holding: str) -> Iterator[str]:
    """Folders that begin so, with a slash; those with such a file in them without."""
    # As it was typed, ./ and all.
    before, slash, begun = prefix.rpartition("/")
    with suppress(OSError):
        for entry in sorted(Path(before + slash).iterdir()):
            if entry.is_dir() and entry.name.startswith(begun) and not entry.name.startswith("."):
                name = f"{before}{slash}{entry.name}"
                yield name if (entry / holding).is_file() else f"{name}/"


def families(prefix: str, **_: Any) -> list[str]:
    """Names of families, and folders."""
    return [*(name for name in NAMED if name.startswith(prefix)), *_folders(prefix, "config.json")]


def models(prefix: str, **_: Any) -> list[str]:
    """Checkpoints that have a name, and folders."""
    return [*(name for name in CHECKPOINTS if name.startswith(prefix)), *_folders(prefix, "config.json")]


def embeddings(prefix: str, **_: Any) -> list[str]:
    """Folders of embeddings among all."""
    return list(_folders(prefix, "_manifest.json"))


def looked_at(prefix: str, **_: Any) -> list[str]:
    """What ``rd-hf info`` looks at."""
    return list(dict.fromkeys([*families(prefix), *models(prefix), *embeddings(prefix)]))


def levels(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Levels of the model or of the folder of embeddings that was typed already."""
    for name in ("model", "extend", "database", "embeddings"):
        given = getattr(parsed_args, name, None) or ""
        for file, keys in (("config.json", ()), ("_manifest.json", ("model",))):
            with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
                found = json.loads((Path(model_place(given)) / file).read_bytes())
                for key in keys:
                    found = found[key]
                return list(found["nested_dims"])
    return []


def whitenings(prefix: str, action: argparse.Action, **_: Any) -> list[str]:
    """What this command whitens by."""
    return [word for word in action.choices or WHITENED if word.startswith(prefix)]


COMPLETERS = {
    "--config": families,
    "--model": models,
    "--level": levels,
    "--shortlist-level": levels,
    "--check-level": levels,
    "--extend": embeddings,
    "EMBEDDINGS": embeddings,
    "EMBEDDINGS_OR_MODEL": looked_at,
    "--device": lambda prefix, **_: [name for name in DEVICES if name.startswith(prefix)],
    "--whiten": whitenings,
}

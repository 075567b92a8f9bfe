"""What a command writes replaces nothing that it reads, and no part of a folder of embeddings: seen before it runs.

Every argument of every command that takes text is named here, as what it is: a test walks all parsers, so that a new
one is not forgotten.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from rd_hf.carried import CHECKPOINTS, input_place, model_place, refuse_writing
from rd_hf.files import FolderError

OUTPUTS = frozenset({"output", "table"})
# Files, folders, or names of what may lie in one.
INPUTS = frozenset(
    {
        *("assays", "backbones", "config", "data", "database", "embeddings", "extend", "fit_data", "folds", "ids"),
        *("input", "inputs", "labels", "metal_binding", "model", "queries", "reference", "secondary_structure"),
        *("sequences", "weights", "what", "wild_type"),
    }
)
# Where a name such as NAME=FOLDER@REVISION:LEVEL#LAYER may end.
_ENDS = "@:#"


def refuse(parser: argparse.ArgumentParser, args: argparse.Namespace, derived: Mapping[str, str | os.PathLike]) -> None:
    """Stop before a command runs that would replace what it reads; ``derived`` is written beside its outputs."""
    outputs = {**dict(_given(parser, args, OUTPUTS)), **derived}
    if outputs:
        refuse_replacing(outputs, dict(_given(parser, args, INPUTS)))


def refuse_replacing(outputs: Mapping[str, str | os.PathLike], inputs: Mapping[str, str | os.PathLike]) -> None:
    """Stop if an output is an input, holds one, or lies in a folder of embeddings; the FolderError names both.

    Links, and names that a file system takes for the same, are looked through.

    Args:
        outputs: files and folders, there or not, by what a user calls them.
        inputs: likewise; what is not there is on the Hub, or found missing later.
    """
    read = [(words, place) for words, value in inputs.items() for place in _places(value)]
    for words, place in list(read):
        made_of = (_manifest(place) or {"job": {}})["job"].get("inputs", [])
        read += [(f"{one}, which {words} was made of", Path(one)) for one in made_of if _is_there(one)]
    for output, where in outputs.items():
        refuse_writing(where)
        flag = "--table" if output.startswith("--table ") else "--output"
        place = Path(os.path.realpath(where))
        for words, one in read:
            if _same(place, one) and not _is_family(words, one):
                raise FolderError(f"{output} would replace {words}: choose another {flag}")
            if place.is_dir() and place in Path(os.path.realpath(one)).parents:
                raise FolderError(f"{output} is a folder that holds {words}: choose an --output of its own")
        for parent in place.parents:
            if _manifest(parent) is not None:
                raise FolderError(
                    f"{output} lies in {parent}, a folder of embeddings, and could replace a part of it: choose "
                    f"another {flag}, elsewhere"
                )


def _given(
    parser: argparse.ArgumentParser, args: argparse.Namespace, names: Iterable[str]
) -> Iterator[tuple[str, str]]:
    """Values of these arguments, by what was typed."""
    for action in parser._actions:
        value = getattr(args, action.dest, None) if action.dest in names else None
        for one in value if isinstance(value, list | tuple) else [] if value is None else [value]:
            flag = f"{action.option_strings[-1]} " if action.option_strings else ""
            yield f"{flag}{one}", str(one)


def _places(value: str | os.PathLike) -> Iterator[Path]:
    """The file or folder that a value names, if any is there."""
    text = model_place(input_place(value))
    for name in dict.fromkeys((text, text.partition("=")[2])):
        while name and not _is_there(name):
            name = name[: max(name.rfind(end) for end in _ENDS)] if set(name) & set(_ENDS) else ""
        if name:
            yield Path(name)
            return


def _is_there(name: str) -> bool:
    try:
        return os.path.lexists(name)
    except ValueError:  # a zero in it
        return False


def _same(one: Path, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _is_family(words: str, place: Path) -> bool:
    """Whether a family's name is meant, not the folder of that name that an earlier run of the command made."""
    if "--config " not in words:
        return False
    from rd_hf.families import NAMED

    return str(place) in {*NAMED, *CHECKPOINTS}


def _manifest(folder: Path) -> dict | None:
    """Of a folder of embeddings; None for any other."""
    from rd_hf.embedding.folder import JobError, OutputFolder

    try:
        return OutputFolder(folder).manifest() if folder.is_dir() else None
    except (JobError, OSError):
        return None

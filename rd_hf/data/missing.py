"""What to say of an input that is no file: what it looks like instead, and what to give."""

from __future__ import annotations

import os
import re
from difflib import get_close_matches
from pathlib import Path

from rd_hf.carried import CHECKPOINTS, PROTEINS
from rd_hf.data.records import InputError

_SEQUENCE = re.compile(r"[A-Za-z*]{6,}")
_RESIDUES = frozenset("ACDEFGHIKLMNPQRSTVWYXBZUOJ*")


def no_such_file(source: str | os.PathLike) -> InputError:
    """Return the error for an input that is not there."""
    text = os.fspath(source)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        name = text.rpartition("/")[2].partition("?")[0] or "proteins.fasta"
        return InputError(
            f"{text} is an address, and a file is wanted (proteins and tables may lie at hf://, https:// or s3://): "
            f"fetch it (curl -L -o {name} ...) and give {name}"
        )
    if _SEQUENCE.fullmatch(text) and _RESIDUES.issuperset(text):
        return InputError(
            f"{text[:40]} is no file here and reads as a sequence: put it into a FASTA file, a line >name above it, or "
            f"pipe it in and give - as the input"
        )
    if set(text) & set("*?["):
        return InputError(f"{text}: no file here matches (relative to {Path.cwd()})")
    if text in CHECKPOINTS:
        return InputError(f"{text} is a model: give proteins, for example {next(iter(PROTEINS))}, which is carried")
    near = get_close_matches(Path(text).name, _beside(Path(text)), n=1, cutoff=0.75)
    meant = f"did you mean {Path(text).parent / near[0]}? " if near else ""
    return InputError(f"{text}: no such file; {meant}check the path (relative to {Path.cwd()})")


def no_file(folder: Path) -> InputError:
    """Return the error for a folder where a file is wanted."""
    if (folder / "_manifest.json").is_file():
        return InputError(
            f"{folder} is a folder of embeddings, computed already: rd-hf search, map, export and info read it; give "
            "the proteins that it was made of to embed them anew"
        )
    if (folder / "config.json").is_file():
        return InputError(f"{folder} is the folder of a model: give proteins, for example {next(iter(PROTEINS))}")
    return InputError(f"{folder} is a folder; give the files in it, for example {folder}/*.fasta.gz")


def _beside(path: Path) -> list[str]:
    """Names in the folder that a file was looked for in, and of what is carried."""
    try:
        return [*os.listdir(path.parent), *(PROTEINS if path.parent == Path() else ())]
    except (OSError, ValueError):
        return []

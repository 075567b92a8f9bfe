"""What the package carries under a name: the checkpoint ``rd-esm2-mini``, the proteins ``example``, and 50 others in a
table, ``example-labelled``, whose column ``place`` says whether they lie in a membrane.

What lies in the working directory under such a name goes before: a folder ``rd-esm2-mini`` with a ``config.json``, a
file ``example``. A path that is written as one (``./example``, or a :class:`~pathlib.Path`) is never a name. Imports
nothing heavy.
"""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
# In an installed package within it; in a clone beside it.
_INSTALLED = _PACKAGE / "hub_configs"
CHECKPOINTS = ("rd-esm2-mini",)
PROTEINS = {
    "example": _PACKAGE / "data" / "examples" / "proteins_1000.fasta.gz",
    "example-labelled": _PACKAGE / "data" / "examples" / "labelled_50.csv",
}


def checkpoint(name: str) -> str:
    """Return the folder of a checkpoint that the package carries, for ``AutoModel.from_pretrained``.

    Nothing is fetched or written; the folder is part of the installed package and is to be read only. A ValueError if
    no checkpoint of this name is carried.

    Args:
        name: ``"rd-esm2-mini"``, three small models (0.3M, 1.2M and 2.7M parameters) with their bases.
    """
    if name not in CHECKPOINTS:
        raise ValueError(f"the package carries no checkpoint {name!r}: it carries {', '.join(CHECKPOINTS)}")
    return str(next(place for place in (_INSTALLED, _PACKAGE.parent / "hub_configs") if place.is_dir()) / name)


def is_carried_model(name: str | os.PathLike) -> bool:
    """Whether a model's name stands for a carried checkpoint: no folder here of that name holds a model."""
    return name in CHECKPOINTS and not (Path(name) / "config.json").is_file()


def model_place(name: str | os.PathLike) -> str:
    """Return where a model is to be loaded from: the folder of a carried one, or the name as it is."""
    return checkpoint(str(name)) if is_carried_model(name) else os.fspath(name)


def is_carried_input(source: str | os.PathLike) -> bool:
    """Whether the name of an input stands for carried proteins: there is no file here of that name."""
    return source in PROTEINS and not Path(source).is_file()


def input_place(source: str | os.PathLike) -> str:
    """Return the path of an input: of carried proteins, or the name as it is."""
    return str(PROTEINS[str(source)]) if is_carried_input(source) else os.fspath(source)


def refuse_writing(folder: str | os.PathLike) -> None:
    """Raise a ValueError if a folder lies in the installed package, whose carried files are read only."""
    place = Path(os.path.realpath(folder))
    if _INSTALLED in (place, *place.parents):
        raise ValueError(f"{folder} is a part of the installed package, which is not written to: choose another folder")

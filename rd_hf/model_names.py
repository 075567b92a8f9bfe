"""What can be seen of a model's name before anything is fetched or computed: that it is none's, or of no checkpoint.

Imports nothing heavy unless there is something to say.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from rd_hf.carried import CHECKPOINTS, is_carried_model
from rd_hf.data.records import InputError
from rd_hf.families import FAMILIES, NAMED

_MANIFEST = "_manifest.json"
_CARRIED = CHECKPOINTS[0]


def check_model_name(name: str | os.PathLike, fitted: bool = True) -> None:
    """Raise an InputError where a name is no model's (folder, Hub id, or known here), as far as this machine knows.

    Where it has to be ``fitted``, a named family and a folder with nothing but a ``config.json`` are none.
    """
    text, place = os.fspath(name), Path(name)
    if is_carried_model(name):
        return
    if place.is_dir():
        if _is_here(place / "config.json"):
            if fitted and _is_unfitted(place):
                raise InputError(_unfitted(text, f"{text} holds a config.json and no bases"))
            return
        if not _is_here(place / _MANIFEST) and text not in NAMED:
            raise InputError(
                f"{text} holds no config.json, so no model: give a folder that rd-hf fit wrote, a Hub id (owner/name) "
                f"or {_CARRIED}"
            )
    if text in NAMED:
        if fitted:
            raise InputError(_unfitted(text, f"{text} is a family by name, of which no checkpoint is here"))
    elif place.is_dir():
        raise InputError(f"{text} is a folder of embeddings, not a model: give the model{_maker(place)}")
    elif place.is_file():
        raise InputError(
            f"{text} is a file, and a model is a folder or a Hub id: give {_CARRIED} to try, or what rd-hf fit wrote; "
            "proteins are given as --input"
        )
    elif "://" in text:
        raise InputError(f"{text} is an address: give a model of the Hub as owner/name")
    elif _is_path(text) or (isinstance(name, os.PathLike) and "/" not in text):
        raise InputError(f"{text}: no such folder; check the path (relative to {Path.cwd()}), or give {_CARRIED}")
    elif "/" not in text and (single := _single(text)) is not None:
        raise InputError(single)
    elif "/" not in text:
        near = get_close_matches(text, [*NAMED, *CHECKPOINTS, *_models_here()], n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        known = ", ".join((*CHECKPOINTS, *(one for one in NAMED if one.startswith("rd-esm2-") and one.count("-") == 2)))
        raise InputError(
            f"{text} is no folder here, no family known by name ({known}) and no Hub id (owner/name): {meant}"
            f"give {_CARRIED} to try, which is carried"
        )


def _single(text: str) -> str | None:
    """What is said of the smallest member of a family, which is no family by itself; None of any other name."""
    for family in FAMILIES.values():
        first, second = family.members[:2]
        if text == f"{family.prefix}-{first.name}":
            return (
                f"{text} would be {first.repo_id} alone, and a family has two levels or more: the smallest is "
                f"{family.prefix}-{second.name}, whose first level is {first.name}"
            )
    return None


def _is_here(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:
        return False


def _is_path(text: str) -> bool:
    """Whether it can only be meant as a path: a Hub id has one slash, between two names."""
    return text.startswith((".", "/", "~", "\\")) or text.endswith("/") or text.count("/") > 1 or "\\" in text


def _models_here() -> list[str]:
    """Folders of the working directory that hold a config.json."""
    try:
        return [one.name for one in Path().iterdir() if _is_here(one / "config.json")]
    except OSError:
        return []


def _is_unfitted(folder: Path) -> bool:
    """Whether a folder describes a reverse-distilled family, without any weights."""
    if any(next(folder.glob(pattern), None) for pattern in ("*.safetensors", "*.bin")):
        return False
    try:
        if json.loads((folder / "config.json").read_bytes()).get("model_type") != "rd_esm":
            return False
        from rd_hf.model.configuration_rd_esm import RDEsmConfig

        RDEsmConfig.from_pretrained(folder)
    except (ValueError, OSError, AttributeError, RecursionError):
        return False  # damaged: whoever reads it says how
    return True


def _maker(folder: Path) -> str:
    """The model that a folder of embeddings was made with, as its manifest says."""
    try:
        return f" that made it, {json.loads((folder / _MANIFEST).read_bytes())['model']['name']}"
    except (ValueError, OSError, KeyError, TypeError, RecursionError):
        return " that made it"


def _unfitted(text: str, what: str) -> str:
    """The sentence on a family without bases: what a fit takes, and what there is instead."""
    from rd_hf.families import named_config
    from rd_hf.hub.checkpoint import read_config
    from rd_hf.hub.plan import carried_plan

    takes = ""
    # Whatever else is wrong with it, the fit will say.
    with suppress(OSError, ValueError, KeyError, TypeError):
        takes = f" ({carried_plan(named_config(text) or read_config(text)).sentence()})"
    return (
        f"{what}: fit one with rd-hf fit --config {text}{takes}, give the Hub id of a fitted one (owner/"
        f"{Path(text).name}), or take {_CARRIED}, which is carried"
    )

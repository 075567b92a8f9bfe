"""Where models come from, a folder or a repo of the Hub, and the small files in either that say what a model is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError
from yaml import YAMLError

from rd_hf.carried import model_place
from rd_hf.model.files_rd_esm import fetch_again


def is_hub_id(name: str | None) -> bool:
    """Whether a name reads as ``owner/name`` on the Hub, not as a path or a file."""
    return name is not None and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is not None


def check_hub_id(repo_id: str) -> None:
    """Raise a ValueError unless a repo that is to be made has a name that the Hub takes."""
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r} is no Hub id: write it as owner/name")


def can_be_fetched(entry: dict[str, Any]) -> bool:
    """Whether others could fetch a level's backbone: it comes from the Hub, not from a folder of this machine."""
    return is_hub_id(entry["repo_id"]) and not Path(entry["repo_id"]).is_dir()


def find_file(source: str | Path, name: str, revision: str | None = None, **hub: Any) -> Path | None:
    """Return the path of a file of a model, fetched if need be; None if the model has none of that name.

    ``source`` is a folder, the name of a carried checkpoint, or a Hub id; ``hub`` are ``token``, ``cache_dir`` and
    ``local_files_only``. Raises HfHubHTTPError or OSError if the repo cannot be had, or without a network not the file.
    """
    place = Path(model_place(source))
    if place.is_dir():
        path = place / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(source), name, revision=revision, **hub))
    except LocalEntryNotFoundError:
        raise
    except EntryNotFoundError:
        return None


def resolve_commit(repo_id: str, revision: str | None = None, **hub: Any) -> str | None:
    """Return the commit that a revision (by default the main branch) stands for; ``None`` for a folder.

    Raises and takes what :func:`find_file` does.
    """
    if Path(model_place(repo_id)).is_dir():
        return None
    if revision is not None and re.fullmatch(r"[0-9a-f]{40}", revision):
        return revision
    # The cache keeps files at snapshots/<commit>/<name>; this works offline too.
    path = Path(hf_hub_download(repo_id, "config.json", revision=revision, **hub))
    return path.parts[path.parts.index("snapshots") + 1]


def read_json(path: Path) -> Any:
    """Return what a JSON file of a model holds; a damaged one is a ValueError that says what to delete or fetch."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}): {fetch_again(str(path))}") from error


def stated_license(where: str, revision: str | None, **hub: Any) -> str | None:
    """Return the licence that a model's own card states, as its Hub id (``license_name`` if that is "other").

    None where there is no card, or it states none; arguments as in :func:`find_file`.
    """
    try:
        path = find_file(where, "README.md", revision, **hub)
        fields = (path and metadata_load(path)) or {}
    except (OSError, HfHubHTTPError, ValueError, YAMLError, RecursionError):
        return None
    found = fields.get("license")
    stated = (fields.get("license_name") or found) if found == "other" else found
    return stated if isinstance(stated, str) else None

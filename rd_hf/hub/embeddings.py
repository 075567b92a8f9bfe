"""Publishing a folder of embeddings as a dataset of the Hub: its parts first, then what says that they are there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, DatasetCardData, HfApi, get_session

from rd_hf.data.records import InputError
from rd_hf.data.remote import MANIFEST, REJECTS, is_remote
from rd_hf.embedding.folder import OutputFolder
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.embedding.storage import covering
from rd_hf.hub.card import dataset_card, read_card
from rd_hf.hub.checkpoint import CARD_FILE
from rd_hf.hub.options import PushOptions
from rd_hf.hub.push import PushPlan, PushResult, made_repo, sending
from rd_hf.hub.sources import check_hub_id
from rd_hf.network import hub_asked_once

TAGS = ("biology", "protein", "embeddings", "reverse-distillation", "matryoshka")
# Parts in a commit: at 256 MB each, what a connection carries in an hour or so. The client's own way for large folders,
# which 2.0 has merged into the plain one, tried again without end before.
_TOGETHER = 256
# Of the Hub: the least number of rows that each is too small for.
_SIZES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}
_SIZES |= {10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B", 10**11: "10B<n<100B"}


@dataclass(frozen=True)
class EmbeddingsPlan(PushPlan):
    """What a push of embeddings would do; ``small`` has the content of the files that are made for it, card included.

    ``parts`` are the names of the others, with the SHA-256 of each.
    """

    small: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


def plan_embeddings(folder: str | os.PathLike, repo_id: str, *, license: str | None = None) -> EmbeddingsPlan:
    """Check a finished folder, make its card for this repo, and list what would be pushed; the folder is not changed.

    A ValueError if it is not an ``owner/name``, no finished folder of embeddings, its parts are not as they were
    written, or a README.md is no card.
    """
    check_hub_id(repo_id)
    if is_remote(folder):
        raise InputError(f"{folder} is published already: give a folder of this machine")
    stored = EmbeddingFolder(folder)
    stored.check_files(())
    notes = []
    # Where inputs lay is this machine's business.
    files = stored.manifest.get("files")
    noted = [
        one if isinstance(one, dict) and is_remote(one.get("path", "")) else None
        for one in (files if isinstance(files, list) else [])
    ]
    small = {MANIFEST: (json.dumps({**stored.manifest, "files": noted}, indent=1) + "\n").encode()}
    rejects = Path(stored.rejects_path)
    if rejects.is_file():
        private = next(filter(_is_private, (one.source for one in OutputFolder(folder).rejects())), None)
        if private is None:
            small[REJECTS] = rejects.read_bytes()
        else:
            notes.append(f"{rejects.name} stays here: it names {private}, a path of this machine")
    named = [*stored.inputs, stored.model.name]
    if private := next(filter(_is_private, named), None):
        notes.append(
            f"{private}, a path of this machine, stands in the files as it was given: embed with names that you want "
            "others to see"
        )
    own = read_card(stored.path / CARD_FILE)
    card = _card(stored, repo_id, license, REJECTS in small) if own is None else own
    kept = None if own is None else f"{stored.path / CARD_FILE} is your own and goes up as it is"
    small[CARD_FILE] = card.encode()
    parts = {part["file"]: part["sha256"] for part in stored.parts}
    sizes = {part["file"]: part["bytes"] for part in stored.parts}
    sizes |= {name: len(content) for name, content in small.items()}
    left_out = sorted(path.name for path in stored.path.iterdir() if path.name not in sizes)
    return EmbeddingsPlan(repo_id, dict(sorted(sizes.items())), left_out, card, kept, tuple(notes), small, parts)


def push_embeddings(folder: str | os.PathLike, repo_id: str, **options: Any) -> PushResult:
    """Push a finished folder of embeddings as a dataset; given again after an interruption, it goes on.

    Args:
        folder: that an embedding job finished; it is not changed.
        repo_id: ``owner/name``; made if it does not exist.
        options: fields of :class:`rd_hf.hub.options.PushOptions`: ``private``, ``revision``, ``commit_message``,
            ``license``, ``token``.

    Raises:
        ValueError: see :func:`plan_embeddings`; an option that is a model's; what arrived is not as it was written; or
            the Hub does not take the card.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    asked = PushOptions(**options)
    if asked.create_pr or asked.check_level:
        raise ValueError("--create-pr and --check-level are for models: leave them out, or name a --branch")
    plan = plan_embeddings(folder, repo_id, license=asked.license)
    api = HfApi(token=asked.token)
    _check_card(api, plan)
    repo_id = made_repo(api, repo_id, asked, "dataset")
    where: dict[str, Any] = {"repo_id": repo_id, "repo_type": "dataset", "revision": asked.revision}
    lacking = _unlike(api, where, plan.parts, plan.files)
    message = asked.commit_message or "Reverse-distilled embeddings"
    if lacking:
        _upload(api, Path(folder), lacking, where, message)
    if damaged := _unlike(api, where, plan.parts, plan.files):
        raise InputError(
            f"{Path(folder) / damaged[0]} is not as it was written: give the command that wrote it again, then this one"
        )
    # Only now is there a folder of embeddings for whoever reads it, of these parts alone.
    there = api.list_repo_files(repo_id, repo_type="dataset", revision=asked.revision)
    stale = [name for name in there if name not in plan.files and Path(name).match("embeddings-*.parquet")]
    commit = api.create_commit(
        operations=[
            *(CommitOperationAdd(name, content) for name, content in plan.small.items()),
            *(CommitOperationDelete(name) for name in stale),
        ],
        commit_message=message,
        **where,
    )
    return PushResult(commit.commit_url, commit.oid, plan)


def _check_card(api: HfApi, plan: EmbeddingsPlan) -> None:
    """Raise an InputError where the Hub does not take the card's metadata; it is asked before anything is sent."""
    with hub_asked_once(plan.repo_id, instead=None):
        asked = {"repoType": "dataset", "content": plan.card}
        answer = get_session().post(f"{api.endpoint}/api/validate-yaml", json=asked)
    if answer.status_code == 400:
        why = "; ".join(str(one.get("message")) for one in answer.json().get("errors", []))
        raise InputError(f"the Hub does not take the card: {why}; give another --license, or mend the README.md")
    answer.raise_for_status()


def _unlike(api: HfApi, where: dict[str, Any], parts: dict[str, str], sizes: dict[str, int]) -> list[str]:
    """Parts that a repo lacks, or has with another content."""
    found: dict[str, Any] = {one.path: one for one in api.list_repo_tree(**where) if hasattr(one, "size")}

    def is_there(name: str) -> bool:
        if name not in found or found[name].size != sizes[name]:
            return False
        # Of a repo that keeps Parquet files as text, the Hub tells no SHA-256.
        lfs: Any = found[name].lfs
        return lfs is None or lfs.sha256 == parts[name]

    return [name for name in parts if not is_there(name)]


def _upload(api: HfApi, folder: Path, names: Sequence[str], where: dict[str, Any], message: str) -> None:
    """Upload parts, some hundred in a commit; of what arrived in an earlier run the client sends nothing again."""
    for first in range(0, len(names), _TOGETHER):
        # A folder of these alone: no other file of the user's can go up, and the client leaves no notes in theirs.
        with tempfile.TemporaryDirectory(prefix="rd_hf-push-") as staged:
            for name in names[first : first + _TOGETHER]:
                os.symlink((folder / name).resolve(), Path(staged, name))
            with sending():
                api.upload_folder(folder_path=staged, commit_message=message, **where)


def _card(stored: EmbeddingFolder, repo_id: str, license: str | None, has_rejects: bool) -> str:
    def level(name: str, width: int) -> dict[str, Any]:
        columns = covering(stored.columns, width)
        names = [column.name for column in columns]
        return {"name": name, "width": width, "columns": names, "is_cut": columns[-1].stop > width}

    levels = [level(*one) for one in stored.levels.items()]
    chosen = ["id", *levels[0]["columns"]]
    data = DatasetCardData(
        license=license,
        pretty_name=repo_id.rsplit("/", 1)[-1],
        tags=list(TAGS),
        size_categories=[next((words for most, words in _SIZES.items() if stored.rows < most), "100B<n<1T")],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "embeddings-*.parquet"}]}],
    )
    name = Path(stored.model.name).name if _is_private(stored.model.name) else stored.model.name
    return dataset_card(
        data,
        title=data.pretty_name,
        repo_id=repo_id,
        license=license,
        stored=stored,
        options=stored.options,
        records=sum(part["records"] for part in stored.parts),
        model=name,
        levels=levels,
        chosen=json.dumps(chosen),
        quoted=", ".join(f'"{column}"' for column in chosen),
        has_rejects=has_rejects,
    )


def _is_private(name: str) -> bool:
    """Whether a name tells how a machine's folders are called."""
    return os.path.isabs(name) or name.startswith(("~", "..")) or "\\" in name

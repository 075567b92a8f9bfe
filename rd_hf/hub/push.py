"""Pushing a checkpoint folder to the Hub, and checking that what arrived is what was sent."""

from __future__ import annotations

import gc
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi
from transformers import AutoModel

from rd_hf.data.batching import collate
from rd_hf.hub.card import is_hub_id
from rd_hf.hub.checkpoint import FIGURE_FILE, REPORT_FILE, save_checkpoint, write_card
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.origin_rd_esm import decide_form

# What a repo of this project is made of; anything else in the folder stays at home.
PUSHED = (
    *("config.json", "*_rd_esm.py", "modules.json", "sentence_bert_config.json", "README.md"),
    *("model.safetensors", "model.*.safetensors", "model.safetensors.index*.json"),
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *(REPORT_FILE, FIGURE_FILE, "LICENSE*", "*.md"),
)
# Weights of the other form, which an earlier push may have left there.
WEIGHTS = ("model.safetensors", "model.*.safetensors", "model.safetensors.index*.json")
# Two proteins of different length, so that padding is checked too.
CHECK_SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV", "GSHMASMTGGQQMGRXBZUO")


@dataclass(frozen=True)
class PushPlan:
    """What a push would do.

    Attributes:
        repo_id: where to.
        files: name and size of each file, sorted.
        left_out: names in the folder that stay at home.
        card: text of the card.
    """

    repo_id: str
    files: dict[str, int]
    left_out: list[str]
    card: str

    def __str__(self) -> str:
        lines = [f"{size:>15,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>15,}  bytes to {self.repo_id}")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    Attributes:
        url: of the commit or pull request.
        revision: what to load: the commit, or `refs/pr/N`.
        plan: the files.
        checked: levels whose reloaded output was equal to the local model's, bit for bit.
    """

    url: str
    revision: str
    plan: PushPlan
    checked: list[str] = field(default_factory=list)


class PushedModelDiffersError(ValueError):
    """What was reloaded from the Hub does not compute what the local model does."""


def plan_push(folder: str | Path, repo_id: str, *, license: str = "mit") -> PushPlan:
    """Check a folder, give its card the repo's name, and list what would be pushed.

    Raises:
        ValueError: not an ``owner/name``, no checkpoint, a link out of the folder, or bases whose backbones
            nobody else can fetch.
    """
    folder = Path(folder)
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r} is no Hub id: write it as owner/name")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no checkpoint (no config.json); rd-hf fit makes one")
    config = RDEsmConfig.from_pretrained(folder)
    if not config.backbones_in_checkpoint:
        for entry in config.levels:
            if not is_hub_id(entry["repo_id"]) or Path(entry["repo_id"]).is_dir():
                raise ValueError(
                    f"level {entry['name']} takes its backbone from {entry['repo_id']}, which is no Hub id: save the "
                    f"full form (--form full), or publish that backbone and put its id and commit in config.json"
                )
            if entry["revision"] is None:
                raise ValueError(
                    f"level {entry['name']} does not say which commit of {entry['repo_id']} its basis was fitted "
                    f"with: put it in config.json as 'revision' (load_family and rd-hf fit record it)"
                )
    card = write_card(folder, repo_id=repo_id, license=license)
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pushed = [path for path in names if path.is_file() and any(path.match(pattern) for pattern in PUSHED)]
    for path in pushed:
        if path.is_symlink() and folder.resolve() not in path.resolve().parents:
            raise ValueError(f"{path} is a link out of its folder (to {path.resolve()}): put the file itself there")
    return PushPlan(
        repo_id,
        {path.name: path.stat().st_size for path in pushed},
        [path.name for path in names if path not in pushed],
        card,
    )


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    license: str = "mit",
    token: str | bool | None = None,
    check_level: str | None = None,
    check: bool = True,
) -> PushResult:
    """Push a checkpoint folder, then load it from the Hub and compare its output with the folder's.

    Args:
        folder: written by :func:`rd_hf.hub.save_checkpoint` (or ``rd-hf fit``).
        repo_id: ``owner/name``; made where it does not exist.
        private: whether a new repo is private (default: the owner's setting).
        revision: branch to push to; made where it does not exist.
        create_pr: open a pull request instead of committing.
        commit_message: of the commit.
        license: Hub licence id for the card.
        token: Hub token; by default the one of ``hf auth login``.
        check, check_level: reload what was pushed, up to this level (default: all), and compare.

    Raises:
        ValueError: the folder cannot be pushed (see :func:`plan_push`).
        PushedModelDiffersError: the reloaded model is another one.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    plan = plan_push(folder, repo_id, license=license)
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        allow_patterns=list(plan.files),
        # A repo that held the other form keeps none of its weights.
        delete_patterns=list(WEIGHTS),
        revision=revision,
        create_pr=create_pr,
        commit_message=commit_message or "Reverse-distilled embeddings",
    )
    loaded_revision = commit.pr_revision or commit.oid
    checked = compare_with_hub(folder, repo_id, loaded_revision, level=check_level, token=token) if check else []
    return PushResult(commit.pr_url or commit.commit_url, loaded_revision, plan, checked)


def compare_with_hub(
    folder: str | Path,
    repo_id: str,
    revision: str,
    *,
    level: str | None = None,
    token: str | bool | None = None,
    sequential: bool = False,
) -> list[str]:
    """Load a revision from the Hub as a user does, and compare its output with that of a local folder.

    Args:
        level: largest level to compare.
        token: of the Hub.
        sequential: hold one backbone at a time.

    Returns:
        Names of the levels compared.

    Raises:
        PushedModelDiffersError: they differ.
    """
    input_ids, attention_mask = collate(CHECK_SEQUENCES)
    outputs = []
    for source, where in ((str(folder), {}), (repo_id, {"revision": revision, "token": token})):
        # One after the other: two 3B models at once may not fit. The code that runs is what was just pushed.
        model = AutoModel.from_pretrained(source, trust_remote_code=True, level=level, sequential=sequential, **where)
        with torch.inference_mode():
            outputs.append(model(input_ids, attention_mask))
        del model
        # A backbone refers to itself (by its load hook), so that dropping it alone frees nothing.
        gc.collect()
    local, remote = outputs
    # The same machine, weights and batch: nothing may differ in a single bit.
    if not torch.equal(local.last_hidden_state, remote.last_hidden_state):
        difference = (local.last_hidden_state - remote.last_hidden_state).abs().max()
        raise PushedModelDiffersError(
            f"{repo_id} at {revision} does not compute what {folder} does (largest difference {difference:.3g}); the "
            f"push is there, but should not be used"
        )
    return list(local.nested_dims)


def push_model(
    model: RDEsmModel,
    repo_id: str,
    *,
    backbones: bool | None = None,
    max_shard_size: int | str = "5GB",
    **push: Any,
) -> PushResult:
    """Push a model in memory: bases only, or with its backbones; by default bases only where its backbones still are
    those of the Hub repos that its config names.

    The fit report and figure come along from the folder the model was loaded from.

    Args:
        model: with its backbones attached.
        repo_id: ``owner/name``.
        backbones, max_shard_size: as in :func:`rd_hf.hub.save_checkpoint`.
        push: as in :func:`push_folder`.
    """
    source = Path(getattr(model.config, "name_or_path", "") or ".")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in (REPORT_FILE, FIGURE_FILE):
            if (source / name).is_file():
                (folder / name).write_bytes((source / name).read_bytes())
        if backbones is None:
            backbones = decide_form(model, model.state_dict(), None, full=False, push=True)
        save_checkpoint(model, folder, backbones=backbones, max_shard_size=max_shard_size, repo_id=repo_id)
        return push_folder(folder, repo_id, **push)

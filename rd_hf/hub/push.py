"""Pushing a checkpoint folder to the Hub, and checking that what arrived is what was sent."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from rd_hf.carried import model_place
from rd_hf.data.batching import collate
from rd_hf.data.records import InputError
from rd_hf.files import error_text
from rd_hf.hub.checkpoint import CARD_FILE, FIGURE_FILE, REPORT_FILE, TRAINING_FILE, make_card, save_checkpoint
from rd_hf.hub.options import PushOptions
from rd_hf.hub.sources import can_be_fetched, check_hub_id
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.heads_rd_esm import RDEsmForSequenceClassification, RDEsmForTokenClassification
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model.saving_rd_esm import decide_form
from rd_hf.model_names import check_model_name
from rd_hf.network import hub_asked_once
from rd_hf.trust import missing_code, refuse_foreign_code, strange_code

WEIGHTS = ("model.safetensors", "model.*.safetensors", "model.safetensors.index*.json")
# What a loaded model depends on beside its weights.
COMPARED = (
    *("config.json", "*_rd_esm.py", "modules.json", "sentence_bert_config.json"),
    *("tokenizer.json", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
# What a repo of this project is made of; anything else in the folder is left out.
TRAINED = (TRAINING_FILE, "training_*.png", "out_of_fold.parquet", "left_out.tsv")
PUSHED = (*COMPARED, *WEIGHTS, REPORT_FILE, FIGURE_FILE, *TRAINED, "LICENSE*", "*.md")
# Two proteins of different length, so that padding is checked too.
CHECK_SEQUENCES = ("MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV", "GSHMASMTGGQQMGRXBZUO")


@dataclass(frozen=True)
class PushPlan:
    """What a push would do: sizes of the files that go up, names of those that do not, and the text of the card.

    ``card_kept`` is why the card is the folder's own README.md; None if it was made anew. ``notes`` is what else the
    user should know.
    """

    repo_id: str
    files: dict[str, int]
    left_out: list[str]
    card: str
    card_kept: str | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{size:>15,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>15,}  bytes to {self.repo_id}")
        if self.left_out:
            lines.append(f"left out: {', '.join(self.left_out)}")
        if self.card_kept:
            lines.append(self.card_kept)
        lines += self.notes
        return "\n".join(lines)


@dataclass(frozen=True)
class PushResult:
    """What a push did.

    The revision, a commit or `refs/pr/N`, is what to load; ``checked`` are levels whose reloaded output was equal to
    the local model's, bit for bit.
    """

    url: str
    revision: str
    plan: PushPlan
    checked: list[str] = field(default_factory=list)


class PushedModelDiffersError(ValueError):
    """What was reloaded from the Hub does not compute what the local model does."""


def plan_push(folder: str | Path, repo_id: str, *, license: str | None = None) -> PushPlan:
    """Check a folder, make its card for this repo, and list what would be pushed; the folder is not changed.

    A ValueError if it is not an ``owner/name``, no checkpoint, has code that no version of this package wrote or that
    the settings fetch from elsewhere, a link out of the folder, a card that is no text, or bases whose backbones nobody
    else can fetch.
    """
    check_hub_id(repo_id)
    check_model_name(folder)
    folder = Path(model_place(folder))
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no checkpoint (no config.json); rd-hf fit makes one")
    _check_code(folder)
    config = RDEsmConfig.from_pretrained(folder)
    if not config.backbones_in_checkpoint:
        for entry in config.levels:
            if not can_be_fetched(entry):
                raise ValueError(
                    f"level {entry['name']} takes its backbone from {entry['repo_id']}, which is no Hub id: save the "
                    f"full form (--form full), or publish that backbone and put its id and commit in config.json"
                )
            if entry["revision"] is None:
                raise ValueError(
                    f"level {entry['name']} does not say which commit of {entry['repo_id']} its basis was fitted "
                    f"with: put it in config.json as 'revision' (load_family and rd-hf fit record it)"
                )
    card, kept = make_card(folder, repo_id=repo_id, license=license or "mit")
    names = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    pushed = [path for path in names if path.is_file() and any(path.match(pattern) for pattern in PUSHED)]
    for path in pushed:
        if path.is_symlink() and folder.resolve() not in path.resolve().parents:
            raise ValueError(f"{path} is a link out of its folder (to {path.resolve()}): put the file itself there")
    sizes = {path.name: path.stat().st_size for path in pushed} | {CARD_FILE: len(card.encode())}
    left_out = [path.name for path in names if path not in pushed]
    return PushPlan(repo_id, dict(sorted(sizes.items())), left_out, card, kept)


def _check_code(folder: Path) -> None:
    """Raise unless what would run where the folder is loaded is this project's code, one version of it, all of it."""
    if strange := strange_code(folder):
        raise ValueError(
            f"{folder / strange[0]} is not as any version of rd_hf wrote it{_others(strange)}, and would run where the "
            f"model is loaded: save the model again with this package, which writes its own code"
        )
    if missing := missing_code(folder):
        raise ValueError(
            f"{folder} lacks {missing[0]}{_others(missing)}, without which nobody could load it: save the model again"
        )
    refuse_foreign_code(folder)


def _others(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def push_folder(folder: str | Path, repo_id: str, **options: Any) -> PushResult:
    """Push a checkpoint folder, which is not changed, then compare what arrived with it.

    Args:
        folder: written by :func:`rd_hf.hub.save_checkpoint` (or ``rd-hf fit``).
        repo_id: ``owner/name``; made if it does not exist.
        options: fields of :class:`rd_hf.hub.options.PushOptions`: ``private``, ``revision``, ``create_pr``,
            ``commit_message``, ``license``, ``token``, ``check``, ``check_level``.

    Raises:
        ValueError: see :func:`plan_push`; or the repo is there and not private (or public) as asked.
        PushedModelDiffersError: what arrived is another model.
        huggingface_hub.errors.HfHubHTTPError: the Hub refused.
    """
    check_model_name(folder)
    folder, asked = Path(model_place(folder)), PushOptions(**options)
    plan = plan_push(folder, repo_id, license=asked.license)
    api = HfApi(token=asked.token)
    repo_id = made_repo(api, repo_id, asked)
    # A repo that held the other form keeps none of its weights.
    there = api.list_repo_files(repo_id, revision=asked.revision)
    stale = [name for name in there if name not in plan.files and any(fnmatch(name, pattern) for pattern in WEIGHTS)]
    contents: dict[str, str | bytes] = {name: str(folder / name) for name in plan.files}
    contents[CARD_FILE] = plan.card.encode()
    with sending():
        commit = api.create_commit(
            repo_id,
            [
                *(CommitOperationAdd(name, content) for name, content in contents.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            revision=asked.revision,
            create_pr=asked.create_pr,
            commit_message=asked.commit_message or "Reverse-distilled embeddings",
        )
    pushed = commit.pr_revision or commit.oid
    result = PushResult(commit.pr_url or commit.commit_url, pushed, plan)
    if not asked.check:
        return result
    checked = compare_with_hub(folder, repo_id, pushed, level=asked.check_level, token=asked.token)
    return replace(result, checked=checked)


@contextmanager
def sending() -> Iterator[None]:
    """Turn what the client says of a file that did not arrive into a sentence."""
    try:
        yield
    except RuntimeError as error:
        why = error_text(error.__cause__ or error)
        raise InputError(
            f"{error_text(error)} ({why}): give the same command again, what arrived is not sent again"
        ) from error


def made_repo(api: HfApi, repo_id: str, asked: PushOptions, repo_type: str = "model") -> str:
    """Make a repo and its branch where they are not there; its id. A ValueError if it is more or less private."""
    with hub_asked_once(repo_id, instead=None):
        repo_id = api.create_repo(repo_id, repo_type=repo_type, private=asked.private, exist_ok=True).repo_id
    if asked.private is not None and bool(api.repo_info(repo_id, repo_type=repo_type).private) != asked.private:
        raise ValueError(
            f"{repo_id} is there already and is {'public' if asked.private else 'private'}: change that in its "
            f"settings on the Hub first, or leave the choice out; nothing was pushed"
        )
    if asked.revision is not None:
        api.create_branch(repo_id, repo_type=repo_type, branch=asked.revision, exist_ok=True)
    return repo_id


def compare_with_hub(
    folder: str | Path, repo_id: str, revision: str, *, level: str | None = None, token: str | bool | None = None
) -> list[str]:
    """Compare a revision on the Hub with a local folder: settings and code byte for byte, the output bit for bit.

    Both are loaded by this package's own classes, one backbone at a time. No code that was fetched runs, so that no
    code in a repo sees a token. Returns the names of the levels compared, up to ``level``; a PushedModelDiffersError if
    they differ.
    """
    folder = Path(folder)
    names = [path.name for path in folder.iterdir() if path.is_file() and any(path.match(it) for it in COMPARED)]
    there = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=names))
    for name in sorted(names):
        if not (there / name).is_file() or (there / name).read_bytes() != (folder / name).read_bytes():
            raise PushedModelDiffersError(
                f"{name} of {repo_id} at {revision} is not that of {folder}; the push is there, but should not be used"
            )
    input_ids, attention_mask = collate(CHECK_SEQUENCES)
    outputs = []
    for source, where in ((str(folder), {}), (repo_id, {"revision": revision, "token": token})):
        # One after the other, and one backbone of each at a time: what a fit needed is enough.
        model = RDEsmModel.from_pretrained(source, level=level, sequential=True, **where)
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
    _compare_heads(folder, repo_id, revision, token)
    return list(local.nested_dims)


def _compare_heads(folder: Path, repo_id: str, revision: str, token: str | bool | None) -> None:
    """Raise a PushedModelDiffersError unless the heads of all levels arrived as they are in the folder."""
    heads = RDEsmConfig.from_pretrained(folder).heads
    if not heads:
        return
    kinds = (RDEsmForSequenceClassification, RDEsmForTokenClassification)
    kind = next(kind for kind in kinds if kind.heads_of == heads["of"])
    level = heads["levels"][-1]
    found = []
    for source, where in ((str(folder), {}), (repo_id, {"revision": revision, "token": token})):
        # The bases alone, without a backbone.
        model = kind.from_pretrained(source, level=level, above=level, **where)
        found.append(model.classifier.state_dict())
    local, remote = found
    if differing := [name for name, tensor in local.items() if not torch.equal(tensor, remote[name])]:
        raise PushedModelDiffersError(
            f"the heads of {repo_id} at {revision} are not those of {folder} ({differing[0]}); the push is there, but "
            f"should not be used"
        )


def push_model(
    model: RDEsmModel, repo_id: str, *, backbones: bool | None = None, max_shard_size: int | str = "5GB", **options: Any
) -> PushResult:
    """Push a model in memory with its backbones, or its bases only (the default, if its backbones are the Hub's).

    The fit report and figure come along from the folder the model was loaded from. Arguments as in
    :func:`rd_hf.hub.save_checkpoint` and :func:`push_folder`.
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
        return push_folder(folder, repo_id, **options)

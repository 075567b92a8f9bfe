"""Checkpoint folders: what a Hub repo of this project holds, written and read.

============================================  ==========================================================
``config.json``                               the family, its widths, where backbones come from
``configuration_rd_esm.py``, ``modeling_...`` the remote code
``model.safetensors``                         bases only: the projections, and a head
``model.projections.safetensors``,            full: the projections (and a head), each backbone, and an index over all
``model.backbone-150M.safetensors``, ...
``tokenizer.json``, ``tokenizer_config.json`` the tokenizer, which cleans sequences as the jobs do
``vocab.txt``                                 its vocabulary, for ``EsmTokenizer``
``fit_report.json``, ``fit_report.png``       how the fit went, where there was one
``training.json``                             how heads were trained, where they were (``rd-hf train``)
``README.md``                                 the card
============================================  ==========================================================
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError

from rd_hf.bases.chain import FitReport
from rd_hf.carried import model_place, refuse_writing
from rd_hf.families import named_config
from rd_hf.files import explain_errors, replacing, write_json, write_text
from rd_hf.hub.card import GENERATED, PLACEHOLDER_OWNER, is_generated, read_card, renamed, render_card
from rd_hf.hub.sources import find_file, read_json, resolve_commit, stated_license
from rd_hf.hub.tokenizer import save_tokenizer
from rd_hf.model.configuration_rd_esm import RDEsmConfig
from rd_hf.model.families_rd_esm import check_alphabet
from rd_hf.model.files_rd_esm import is_own
from rd_hf.model.modeling_rd_esm import RDEsmModel
from rd_hf.model_names import check_model_name
from rd_hf.network import asks_hub
from rd_hf.trust import refuse_foreign_code

logger = logging.getLogger(__name__)

SENTENCE_TRANSFORMERS_FILES = {
    # The transformer, then a mean over residues.
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_ResiduePooling", "type": "modeling_rd_esm.ResiduePooling"},
    ],
    # Sequences beyond what backbones were trained on in windows, as the jobs compute them.
    "sentence_bert_config.json": {"model_args": {"long_input": "window"}},
}
REPORT_FILE = "fit_report.json"
FIGURE_FILE = "fit_report.png"
TRAINING_FILE = "training.json"
CARD_FILE = "README.md"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILES = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def is_checkpoint(folder: str | Path) -> bool:
    """Whether a folder is one of this project's, by its ``config.json``."""
    return is_own(str(Path(folder) / "config.json"))


def refuse_foreign(folder: str | Path) -> None:
    """Raise a ValueError if saving a checkpoint would replace a file of others, or go into the installed package.

    A folder whose ``config.json`` is a reverse-distilled model's is an earlier checkpoint, card and tokenizer too.
    """
    folder = Path(folder)
    refuse_writing(folder)
    if is_checkpoint(folder):
        return
    for name in ("config.json", *SENTENCE_TRANSFORMERS_FILES, *TOKENIZER_FILES, REPORT_FILE, FIGURE_FILE, CARD_FILE):
        path = folder / name
        if os.path.lexists(path):
            raise ValueError(
                f"{path} is no file of a reverse-distilled model, and saving would replace or describe it: save into "
                "another folder, or move it elsewhere"
            )


def save_checkpoint(
    model: RDEsmModel,
    folder: str | Path,
    *,
    backbones: bool | None,
    report: Sequence[FitReport] | None = None,
    figure: str | Path | None = None,
    max_shard_size: int | str = "5GB",
    repo_id: str | None = None,
    license: str = "mit",
) -> Path:
    """Write everything that a Hub repo of this model holds.

    Args:
        folder: made if it does not exist; files of an earlier save are replaced.
        backbones: ``True`` for the full form, each backbone in files of its own; ``False`` for the bases only;
            ``None`` for what ``model.save_pretrained`` does by itself.
        report: for ``fit_report.json`` and the card's table of levels.
        figure: a PNG of the fit, for ``fit_report.png`` and the card.
        max_shard_size: largest weights file ("5GB", "7MB" or bytes).
        repo_id: what the card's examples load; pushing puts the right one there.
        license: Hub licence id, for the card.

    Raises:
        ValueError: bases only, but a level names no ``repo_id`` or its backbone is no longer the one there; full, but
            the backbones are not there; the folder holds files of others, or cannot be written to.
    """
    folder = Path(folder)
    refuse_foreign(folder)
    with explain_errors(folder):
        model.save_pretrained(folder, backbones=backbones, max_shard_size=max_shard_size)
        save_tokenizer(folder)
        for name, content in SENTENCE_TRANSFORMERS_FILES.items():
            write_json(folder / name, content, indent=2)
        if report is not None:
            write_json(folder / REPORT_FILE, [level.to_dict() for level in report])
        if figure is not None:
            with replacing(folder / FIGURE_FILE) as fresh:
                shutil.copyfile(figure, fresh)
        write_card(folder, repo_id=repo_id, license=license)
    return folder


def make_card(folder: Path, *, repo_id: str | None = None, license: str = "mit") -> tuple[str, str | None]:
    """Return the text of a checkpoint folder's card for a repo, and why it was not made anew (None if it was).

    A ``README.md`` that is no card of this package's, or that somebody has edited, is the card as it stands: in an
    edited one the name of the repo is set, and no more. A ValueError if it or its front matter cannot be read, or no
    card can be made.
    """
    path = folder / CARD_FILE
    # As part of an example in Python, a folder's name may not hold just anything.
    wanted = repo_id or f"{PLACEHOLDER_OWNER}/{re.sub(r'[^A-Za-z0-9_.-]+', '-', folder.resolve().name)}"
    found = read_card(path)
    if found is not None and not is_generated(found):
        anew = f"move it elsewhere to have a card made from config.json and {REPORT_FILE}"
        if GENERATED not in found:
            return found, f"{path} is your own and is kept as it is; {anew}"
        return renamed(found, wanted), f"{path} has edits (or is an earlier version's) and is kept with them; {anew}"
    config = RDEsmConfig.from_pretrained(folder)
    report_file = folder / REPORT_FILE
    full = config.backbones_in_checkpoint
    bases = folder / ("model.projections.safetensors" if full else WEIGHTS_FILE)
    try:
        text = render_card(
            config,
            repo_id=wanted,
            full=full,
            report=json.loads(report_file.read_text(encoding="utf-8")) if report_file.exists() else None,
            figure=FIGURE_FILE if (folder / FIGURE_FILE).exists() else None,
            weights_bytes=bases.stat().st_size if bases.exists() else None,
            license=license,
            training=read_json(folder / TRAINING_FILE) if (folder / TRAINING_FILE).exists() else None,
        )
    except (ValueError, TypeError, KeyError, AttributeError, TemplateError) as error:
        raise ValueError(
            f"no card can be made of {folder / 'config.json'} and {report_file} ({error!r}), which say what a fit does "
            f"not: fit or save the model again, or put a README.md of your own there"
        ) from error
    return text, None


def write_card(folder: Path, *, repo_id: str | None = None, license: str = "mit") -> str:
    """Write ``README.md`` from what lies in a checkpoint folder, and return it; one that has edits is left alone."""
    text, kept = make_card(folder, repo_id=repo_id, license=license)
    if kept is None:
        write_text(folder / CARD_FILE, text)
    else:
        logger.warning("%s", kept)
    return text


def read_config(source: str | Path, revision: str | None = None, **hub: Any) -> RDEsmConfig:
    """Return the config of a folder or a Hub model; ValueError if its settings name code of others.

    Arguments as in :func:`rd_hf.hub.sources.find_file`.
    """
    source = model_place(source)
    path = find_file(source, "config.json", revision, **hub)
    if path is not None:
        read_json(path)
    refuse_foreign_code(source if path is None else path.parent)
    return RDEsmConfig.from_pretrained(source, revision=revision, **hub)


def by_name(source: str | Path) -> RDEsmConfig | None:
    """Return the config that a family's name stands for, None for a folder or any other name."""
    # A folder of a family's name that is no model yet is where it is being fitted.
    return None if (Path(source) / "config.json").is_file() else named_config(str(source))


@asks_hub
def load_family(
    source: str | Path | RDEsmConfig,
    *,
    level: str | None = None,
    revision: str | None = None,
    revisions: Mapping[str, str] | None = None,
    dtype: str | torch.dtype = "auto",
    device_map: Any = None,
    attn_implementation: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    sequential: bool = False,
) -> RDEsmModel:
    """Load a model with its backbones attached, ready to be fitted; bases that are not there yet are zero.

    Where backbones are fetched from repos of their own, ``model.config.levels[i]["revision"]`` is the commit
    that was really loaded, so that a checkpoint saved later pins it.

    Args:
        source: folder or Hub id with a ``config.json`` (``hub_configs/rd-esm2-650M`` has nothing else), the name of a
            family (``rd-esm2-650M``) or of a carried checkpoint (``rd-esm2-mini``), or a config whose backbones lie in
            repos of their own.
        level: largest level to load; by default all.
        revision: of ``source``.
        revisions: by level, of backbones in repos of their own, over those that the config pins.
        dtype, device_map, attn_implementation, token, cache_dir, local_files_only: as in transformers.
        sequential: hold one backbone at a time, each loaded when its turn comes.

    Raises:
        ValueError, OSError: a config, backbone or revision that cannot be had or does not fit.
    """
    hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    settings: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "sequential": sequential, **hub}
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    if not isinstance(source, RDEsmConfig):
        check_model_name(source, fitted=False)
        source = by_name(source) or source
    if isinstance(source, RDEsmConfig):
        config, place = copy.deepcopy(source), None
    else:
        config, place = read_config(model_place(source), revision, **hub), model_place(source)
    config.level_index(level)
    config.level = level
    for name, commit in (revisions or {}).items():
        if config.backbones_in_checkpoint:
            raise ValueError(f"{place} holds its backbones itself, so that level {name} has no revision of its own")
        # Levels that are layers of one backbone go together.
        index = config.level_index(name)
        for member in next(levels for levels in config.backbone_groups if index in levels):
            config.levels[member]["revision"] = commit
    if place is None or not config.backbones_in_checkpoint:
        for entry in config.levels[: config.level_index(level) + 1]:
            _pin(entry, place, hub)
        if place is None or find_file(place, WEIGHTS_FILE, revision, **hub) is None:
            model = RDEsmModel._from_config(config, build_backbones=False, **attention)
            model.eval()
            model.load_backbones(**settings)
            return model
    return RDEsmModel.from_pretrained(place, config=config, revision=revision, **attention, **settings)


def _pin(entry: dict[str, Any], place: str | None, hub: dict[str, Any]) -> None:
    """Note the commit and the licence of a level's backbone, after a look at its tokens."""
    if entry["repo_id"] is None:
        raise ValueError(f"level {entry['name']} of {place} names no repo_id to fetch its backbone from")
    entry["revision"] = resolve_commit(entry["repo_id"], entry["revision"], **hub)
    if "level_of_repo" not in entry:
        repo, commit = entry["repo_id"], entry["revision"]
        check_alphabet(f"{repo}, the backbone of level {entry['name']},", repo, commit, entry["backbone"], **hub)
        if stated := entry.get("license") or stated_license(repo, commit, **hub):
            entry["license"] = stated

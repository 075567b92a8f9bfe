"""Whose code a model's files name: this project's own, and nobody else's.

A checkpoint's settings may name classes that transformers or sentence-transformers import and run (``auto_map`` with
``trust_remote_code=True``, ``custom_pipelines``, ``modules.json``), from the folder or from any repo of the Hub. The
commands run the installed package's classes and no others, so that such an entry decides nothing here; but whoever
loads the folder another way, or from where it was pushed, would run what it names.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

OWN_CLASSES = {
    "AutoConfig": "configuration_rd_esm.RDEsmConfig",
    "AutoModel": "modeling_rd_esm.RDEsmModel",
    "AutoModelForSequenceClassification": "heads_rd_esm.RDEsmForSequenceClassification",
    "AutoModelForTokenClassification": "heads_rd_esm.RDEsmForTokenClassification",
}
# What sentence-transformers may put together: its own modules, and this project's.
OWN_MODULE = re.compile(r"sentence_transformers(\.\w+)+|modeling_rd_esm\.ResiduePooling")
# The files of a model's folder that the libraries read settings from.
SETTINGS = (
    *("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "modules.json"),
    *("processor_config.json", "preprocessor_config.json", "generation_config.json", "adapter_config.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json"),
)
CODE = "*_rd_esm.py"


def refuse_foreign_code(folder: str | Path) -> None:
    """Raise a ValueError before anything of a folder is used if its settings name code that is not this project's.

    A warning names code files in it that no version of this project wrote: they are not used.
    """
    for name in SETTINGS:
        path = Path(folder) / name
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue  # not there, or damaged: whoever needs it raises
        for entry, what in _foreign(content, name):
            raise ValueError(
                f"{path} names code that is not this project's ({entry}: {what}), which whoever loads the model with "
                f"trust_remote_code=True would run: take the entry out, or save the model again with this package"
            )
    if strange := strange_code(folder):
        logger.warning(
            "%s: %s: not as any version of rd_hf wrote it, and not used: the installed rd_hf runs its own code",
            folder,
            ", ".join(strange),
        )


def strange_code(folder: str | Path) -> list[str]:
    """Names of a folder's code files that are not those of one version of this project, this or an earlier one."""
    found = _digests(folder)
    # The version that most of them are of, or where that is none, any: files of two do not fit together.
    nearest = max(_versions(), key=lambda version: sum(version.get(name) == digest for name, digest in found.items()))
    return [name for name, digest in found.items() if nearest.get(name) != digest]


def missing_code(folder: str | Path) -> list[str]:
    """Names of code files that a folder lacks of the version that its own are of."""
    found = _digests(folder)
    for version in _versions():
        if found.items() <= version.items():
            return sorted(version.keys() - found.keys())
    return []


@cache
def this_code() -> dict[str, str]:
    """SHA-256 of each code file of this version."""
    return _digests(Path(__file__).parent / "model")


@cache
def earlier_code() -> dict[str, dict[str, str]]:
    """The same of earlier versions, by version."""
    found: dict[str, dict[str, str]] = json.loads(files("rd_hf").joinpath("earlier_code.json").read_bytes())
    return found


def _versions() -> list[dict[str, str]]:
    return [this_code(), *earlier_code().values()]


def _digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each code file of a folder, with plain line ends, whichever git gave it."""
    paths = [path for path in sorted(Path(folder).glob(CODE)) if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes().replace(b"\r\n", b"\n")).hexdigest() for path in paths}


def _foreign(content: Any, file: str) -> Iterator[tuple[str, Any]]:
    """Each entry, however deep, that names a class of others, and what it names."""
    if file == "modules.json":
        for module in content if isinstance(content, list) else [content]:
            kind = module.get("type") if isinstance(module, dict) else module
            if not isinstance(kind, str) or not OWN_MODULE.fullmatch(kind):
                yield "type", kind
    unseen = [content]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict):
            if entries := value.get("auto_map"):
                named = entries.items() if isinstance(entries, dict) else [("auto_map", entries)]
                yield from ((f"auto_map {key}", what) for key, what in named if OWN_CLASSES.get(key) != what)
            if value.get("custom_pipelines"):
                yield "custom_pipelines", value["custom_pipelines"]
        unseen.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())

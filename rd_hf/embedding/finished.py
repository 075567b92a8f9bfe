"""The manifest of a finished folder: refused where this version cannot know what is there."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from rd_hf.data.records import InputError
from rd_hf.embedding.fields import unfinished
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.options import LAYOUTS, OUTPUT_DTYPES, EmbeddingOptions
from rd_hf.embedding.storage import FORMATS, format_of
from rd_hf.options import options_from


def stored_options(job: dict[str, Any]) -> EmbeddingOptions:
    """Return how a manifest's job embedded; raises a ValueError where no options are so."""
    args = Namespace()
    vars(args).update(job)
    return options_from(EmbeddingOptions, args)


def finished_manifest(folder: OutputFolder) -> dict[str, Any]:
    """Return it; raises an InputError where there is none that can be read."""
    path = folder.path
    if not folder.manifest_path.is_file():
        raise InputError(
            f"{path} is no folder of embeddings (it holds no {folder.manifest_path.name}): make one with rd-hf embed"
        )
    try:
        manifest = folder.manifest() or {}
    except JobError as error:
        raise InputError(str(error)) from error
    layout = manifest["job"].get("layout", LAYOUTS[0])
    if layout not in LAYOUTS:
        raise InputError(
            f"{path} is in layout {layout!r}, and this version of rd_hf knows {' and '.join(LAYOUTS)}: update rd_hf"
        )
    dtype = manifest["job"].get("output_dtype", OUTPUT_DTYPES[0])
    if dtype not in OUTPUT_DTYPES:
        raise InputError(
            f"{path} is stored in {dtype!r}, and this version of rd_hf knows {', '.join(OUTPUT_DTYPES)}: update rd_hf"
        )
    if manifest["format"] not in FORMATS:
        raise InputError(f"{path} was written by another version of rd_hf: embed its input again")
    if manifest.get("status") != "complete":
        raise InputError(f"{path} is not finished: give its embed command again, then this one")
    wrong = unfinished(manifest)
    try:
        if wrong is None:
            options, given = stored_options(manifest["job"]), manifest["format"]
            if given != format_of(options):
                wrong = (
                    f"format is {given}, and its layout {options.layout!r} and dtype {options.output_dtype!r} are not"
                )
    except ValueError as error:
        wrong = str(error)
    if wrong is not None:
        raise InputError(folder.not_as_written(wrong))
    return manifest

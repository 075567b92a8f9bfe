"""A folder of embeddings as one h5 file: a dataset a protein, as biotrainer and protspace keep them.

A dataset's name is the protein's id where ids serve as names, and else the hash of its sequence that biotrainer looks
embeddings up by, SHA-256 over ``SEQUENCE_LENGTH``; the attribute ``original_id`` is the id in both cases. Records of
one sequence share a dataset by hash: its attribute ``original_ids`` lists all their ids, as JSON. The file's attribute
``model_name`` is what protspace calls the embedding.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rd_hf.conversion.h5 import writing
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.files import replacing

KEYS = ("auto", "id", "hash")


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: datasets, rows that shared one, what names them, and the level."""

    datasets: int
    repeated: int
    key: str
    level: str
    width: int


def sequence_hash(sequence: str) -> str:
    """Name of a sequence's dataset: hexadecimal SHA-256 of the sequence, ``_`` and its length."""
    return hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()


def export_h5(
    folder: str,
    output: str,
    level: str | None = None,
    key: str = "auto",
    inputs: tuple[str, ...] = (),
    on_record: Callable[[int], None] = lambda count: None,
) -> Exported:
    """Write the embeddings of a finished folder to an h5 file.

    Args:
        folder: that ``rd-hf embed`` or ``rd-hf convert`` wrote; mean, max or cls, or a row a residue.
        output: the file; replaced where it exists, and not before the new one is whole.
        level: to write, by default the largest that the folder holds.
        key: ``id``, ``hash`` (of the sequences, which are read again), or ``auto``: ids unless one repeats or cannot
            be the name of a dataset.
        inputs: what the folder was made of, where that lies elsewhere now.
        on_record: told after each row.

    Raises:
        JobError: the folder has no such level, ids that cannot be names, or inputs that changed.
        InputError: the folder is not finished or not as it was written, or an input cannot be read.
        ModuleNotFoundError: h5py is not installed.
        ValueError: an unknown ``key``.
    """
    if key not in KEYS:
        raise ValueError(f"key must be one of {', '.join(KEYS)}, not {key!r}")
    stored = EmbeddingFolder(folder, with_journal=True)
    column, width, level = stored.column_of(level)
    trouble = None if key == "hash" else _trouble(folder, stored)
    if trouble and key == "id":
        raise JobError(f"{trouble}: choose --key hash")
    by_hash = bool(trouble) or key == "hash"
    rows = _with_sequences(stored, column, inputs) if by_hash else stored.all_rows(column)
    written = 0
    # Of names that several records share: the ids of all of them.
    shared: dict[str, list[str]] = {}
    with replacing(Path(output), kind=JobError) as temporary, writing(temporary) as (file, check):
        model = stored.manifest["model"]
        file.attrs["model_name"] = f"{Path(model['name']).name} {level}"
        file.attrs["revision"] = model["revision"] or model["fingerprint"]
        if model.get("one_pass"):
            # Not to be mixed with the exact embeddings of the same revision.
            file.attrs["one_pass"] = True
        for row, value in rows:
            name = sequence_hash(row["sequence"]) if by_hash else row["id"]
            if name in file:  # the same sequence once more, which has the same embedding
                shared.setdefault(name, [file[name].attrs["original_id"]]).append(row["id"])
            else:
                file.create_dataset(name, data=value[..., :width]).attrs["original_id"] = row["id"]
                written += 1
            check()
            on_record(1)
        for name, ids in shared.items():
            # One text, for an array in an attribute holds 64 kB.
            file[name].attrs["original_ids"] = json.dumps(ids, ensure_ascii=False)
    repeated = sum(len(ids) - 1 for ids in shared.values())
    return Exported(written, repeated, "hash" if by_hash else "id", level, width)


def _trouble(folder: str, stored: EmbeddingFolder) -> str | None:
    """Why ids do not serve as names of datasets, or None."""
    seen: set[str] = set()
    for one in stored.ids():
        if one in seen:
            return f"{folder} has the id {one!r} more than once"
        # A slash makes groups, a dot alone is the group itself, and C strings end at a zero.
        if not one or "/" in one or "\0" in one or one in (".", ".."):
            return f"{folder} has the id {one!r}, which cannot be the name of an h5 dataset"
        seen.add(one)
    return None


def _with_sequences(
    stored: EmbeddingFolder, column: str, inputs: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Rows with their cleaned sequences, which are those that were embedded."""
    rows = stored.all_rows(column)
    pending = next(rows, None)
    for number, (_, record) in enumerate(stored.records(inputs), start=1):
        if pending is None or pending[0]["record"] != number:
            continue
        try:
            sequence = clean_sequence(record.letters())
        except RejectedSequenceError as error:
            raise JobError(f"record {number:,} was embedded, but is no protein now: {error}") from error
        yield {**pending[0], "sequence": sequence}, pending[1]
        pending = next(rows, None)

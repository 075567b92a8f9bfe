"""A folder of embeddings as one h5 file: a dataset per protein, as biotrainer and protspace keep them.

A dataset's name is the protein's id where ids serve as names, and else the hash of its sequence that biotrainer looks
embeddings up by, SHA-256 over ``SEQUENCE_LENGTH``; the attribute ``original_id`` is the id in both cases. Records of
one sequence share a dataset by hash: its attribute ``original_ids`` lists all their ids, as JSON. The file's attribute
``model_name`` is what protspace calls the embedding.

The h5 library writes what it holds back when a file is closed, and what then fails is reported to nobody: it leaves a
broken file behind and ends the process. Here it writes through a file of our own, which never fails.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rd_hf.conversion.settings import ExportSettings
from rd_hf.data.records import OnRead
from rd_hf.data.residues import RejectedSequenceError, clean_sequence
from rd_hf.embedding.folder import JobError
from rd_hf.embedding.reader import EmbeddingFolder
from rd_hf.files import Seekable, replacing


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote: datasets, rows that shared one, what names them, and the level."""

    datasets: int
    repeated: int
    key: str
    level: str
    width: int

    def __str__(self) -> str:
        shared = f" ({self.repeated:,} rows repeat a sequence: original_ids)" if self.repeated else ""
        return f"{self.datasets:,} datasets{shared} named by {self.key}, level {self.level}, {self.width:,} dimensions"


def sequence_hash(sequence: str) -> str:
    """Return the name of a sequence's dataset: hexadecimal SHA-256 of the sequence, ``_`` and its length."""
    return hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest()


def export_h5(settings: ExportSettings, on_record: OnRead = lambda count: None) -> Exported:
    """Write the embeddings of a finished folder to an h5 file, and call ``on_record`` with 1 after each row.

    A JobError if the folder has no such level, ids that cannot be names, or inputs that changed; an InputError if it is
    not finished or not as it was written, or an input cannot be read.
    """
    stored = EmbeddingFolder(settings.embeddings, with_journal=True)
    width, level = stored.width_of(settings.level)
    trouble = None if settings.key == "hash" else _trouble(settings.embeddings, stored)
    if trouble and settings.key == "id":
        raise JobError(f"{trouble}: choose --key hash")
    by_hash = bool(trouble) or settings.key == "hash"
    rows = _with_sequences(stored, width, settings.input) if by_hash else stored.all_rows(width)
    written = 0
    # Of names that several records share: the ids of all of them.
    shared: dict[str, list[str]] = {}
    with replacing(Path(settings.output), kind=JobError) as temporary, _writing(temporary) as (file, check):
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
                file.create_dataset(name, data=value).attrs["original_id"] = row["id"]
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
    stored: EmbeddingFolder, width: int, inputs: tuple[str, ...]
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Rows with their cleaned sequences, which are those that were embedded."""
    rows = stored.all_rows(width)
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


class _NeverFailing(Seekable):
    """A file that accepts every write: from the first that fails on, what is written is kept in memory."""

    failure: OSError | None = None

    def __init__(self, path: Path) -> None:
        self._raw = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._kept: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the error of the first write that failed, if any did; until it is called, the rest is kept."""
        if self.failure is not None:
            raise self.failure

    def write(self, data: Any) -> int:
        written = bytes(data)
        try:
            self.check()
            self._raw.seek(self.at)
            rest = memoryview(written)
            while rest:
                rest = rest[self._raw.write(rest) :]
        except OSError as error:
            self.failure = error
        if self.failure is not None:
            self._kept.append((self.at, written))
        self.at += len(written)
        self.size = max(self.size or 0, self.at)
        return len(written)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._raw.seek(self.at)
        found = self._raw.read(len(view)) or b""
        view[:] = found.ljust(len(view), b"\0")
        for place, kept in self._kept:
            start, stop = max(place, self.at), min(place + len(kept), self.at + len(view))
            if start < stop:
                view[start - self.at : stop - self.at] = kept[start - place : stop - place]
        self.at += len(view)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        end = self.size = self.at if size is None else size
        try:
            self.check()
            self._raw.truncate(end)
        except OSError as error:
            self.failure = error
        return end

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        self._raw.close()
        super().close()


@contextmanager
def _writing(path: Path) -> Iterator[tuple[Any, Callable[[], None]]]:
    """Open an h5 file over an empty one, and give a function, to be called now and then, that raises failed writes."""
    import h5py

    with _NeverFailing(path) as under:
        with h5py.File(under, "w") as file:
            yield file, under.check
        under.check()

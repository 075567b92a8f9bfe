"""The output folder: what is in it, who may write to it, what of it is finished.

    OUTPUT/
      embeddings-000000.parquet     one file per part (a run of consecutive input records), in input order
      _rejects.tsv                  what was not embedded, and why
      _manifest.json                model, options, counts, checksums; "complete" once all parts are there
      .job/000000.json              the journal: one entry per finished part, written after its Parquet file
      .job/rd_hf.json, .job/lock    whose folder this is; held while a job runs

Readers of a folder of Parquet files (pyarrow, pandas, Spark) pass over names that begin with an underscore or a dot.
Folders from before that was so have ``rejects.tsv`` and ``manifest.json``, and keep them.

Every file is written in ``.job``, flushed to the disk and then renamed: a file that is there is whole. A part
counts as finished when its journal entry is there and the checksum in it fits the Parquet file.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rd_hf.embedding.fields import ENTRY, MANIFEST, misfit
from rd_hf.files import FolderError, Workspace, explain_errors, file_sha256

_REJECTS_COLUMNS = ("source", "record", "id", "reason")
_REJECTS_HEADER = "\t".join(_REJECTS_COLUMNS).encode() + b"\n"


class JobError(FolderError):
    """The job cannot start or go on; the message is one sentence that names the cause and the mend."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that was not embedded."""

    source: str  # input that it came from, as given
    record: int  # number among all records of the job, counted from 1
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A finished part, as the journal has it."""

    index: int  # number of the part, counted from 0
    first_record: int  # number of its first input record, counted from 1
    records: int  # written and rejected ones
    written: int  # rows of the Parquet file
    rejected: int
    unique: int  # different sequences among those written
    long: int  # sequences that were windowed or truncated
    residues: int  # of the written records
    digest: str  # of the input records
    file: str  # the Parquet file's name, hash and size
    sha256: str
    bytes: int
    rejects: tuple[Reject, ...]
    clipped: int = 0  # numbers beyond the grid that they are stored on

    @classmethod
    def from_json(cls, text: str) -> PartEntry:
        """Read what :meth:`to_json` wrote; ValueError, TypeError or KeyError for anything else."""
        fields = json.loads(text)
        if (wrong := misfit(fields, ENTRY)) is not None:
            raise ValueError(wrong)
        return cls(**{**fields, "rejects": tuple(Reject(**reject) for reject in fields["rejects"])})

    def to_json(self) -> str:
        """Write it as the journal has it."""
        # Versions that know of no grid take up folders without one.
        return json.dumps({name: one for name, one in asdict(self).items() if name != "clipped" or one}, indent=1)


class OutputFolder:
    """A job's folder; see the module for what is in it."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.journal = self.path / ".job"
        self.workspace = Workspace(self.journal, "an embedding job", JobError)
        is_older = (self.path / "manifest.json").is_file() and not (self.path / "_manifest.json").exists()
        before = "" if is_older else "_"
        self.manifest_path = self.path / f"{before}manifest.json"
        self.rejects_path = self.path / f"{before}rejects.tsv"

    def part_path(self, index: int) -> Path:
        """Parquet file of part ``index``."""
        return self.path / f"embeddings-{index:06d}.parquet"

    def entry_path(self, index: int) -> Path:
        """Journal entry of part ``index``."""
        return self.journal / f"{index:06d}.json"

    def claim(self) -> None:
        """Make the folder and keep other jobs out of it until :meth:`leave` or the end of this process.

        Raises:
            JobError: it is somebody else's (nothing is changed then), cannot be written to, or another job has it.
        """
        if self.manifest() is None:
            self.workspace.refuse_others()
        start = b""
        with suppress(OSError), self.rejects_path.open("rb") as handle:
            start = handle.read(len(_REJECTS_HEADER))
        if start != _REJECTS_HEADER and os.path.lexists(self.rejects_path):
            raise self._not_ours(self.rejects_path)
        self.workspace.claim()

    def leave(self) -> None:
        """Let other jobs in."""
        self.workspace.leave()

    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest of an earlier run, whose fields are of the types that a job writes; None without one.

        Raises:
            JobError: it cannot be understood, or is no embedding job's.
        """
        try:
            with explain_errors(self.path, JobError):
                if not self.manifest_path.exists():
                    return None
                content = json.loads(self.manifest_path.read_bytes())
        except (ValueError, RecursionError) as error:
            if isinstance(error, JobError):
                raise
            raise JobError(
                f"{self.manifest_path} is damaged ({error}): restore it, or embed again into another folder"
            ) from error
        if not (isinstance(content, dict) and {"format", "model", "job"} <= set(content)):
            raise JobError(f"{self.manifest_path} is no embedding job's: choose another --output")
        if (wrong := misfit(content, MANIFEST)) is not None:
            raise JobError(self.not_as_written(wrong))
        return content

    def not_as_written(self, wrong: str) -> str:
        """Return the sentence for a manifest that no job writes so."""
        return (
            f"{self.manifest_path} is not as an embedding job writes it ({wrong}): restore it, or embed again into "
            "another folder"
        )

    def holds_work(self) -> bool:
        """Whether anything that a job computed is there: without it, the folder is free for another job."""
        # Parts without their entry, and what workers of Ray computed for many parts, count too.
        computed = (*self.path.glob("embeddings-*.parquet"), *self.journal.glob("staged/shared-*/block-*.npy"))
        return bool(computed) or bool(self.noted_parts()) or self.rejects_path.exists()

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        self.write(self.manifest_path, lambda handle: handle.write((json.dumps(content, indent=1) + "\n").encode()))

    def write_entry(self, entry: PartEntry) -> None:
        """Note a part as finished."""
        self.write(self.entry_path(entry.index), lambda handle: handle.write((entry.to_json() + "\n").encode()))

    def adopt(self, written: str | os.PathLike, entry: PartEntry) -> None:
        """Put a part that another process wrote, on the same file system, in its place, and note it as finished."""
        self.refuse_foreign_part(entry.index)
        with explain_errors(self.path, JobError):
            os.replace(written, self.part_path(entry.index))
        self.write_entry(entry)

    def entry(self, index: int) -> PartEntry | None:
        """Return the journal's entry of a part; None if it is not finished, or its entry is damaged or another's."""
        try:
            entry = PartEntry.from_json(self.entry_path(index).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError, TypeError, KeyError, RecursionError):
            return None
        return entry if (entry.index, entry.file) == (index, self.part_path(index).name) else None

    def noted_parts(self) -> list[int]:
        """Numbers of all parts that have a journal entry, in order."""
        return sorted(int(path.stem) for path in self.journal.glob("*.json") if path.stem.isdecimal())

    def holds(self, entry: PartEntry) -> bool:
        """Whether the part's Parquet file is there and has the content it was written with."""
        path = self.path / entry.file
        return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256

    def refuse_foreign_part(self, index: int) -> None:
        """Raise a JobError if the file of a part that is to be written is there, and is no embedding job's."""
        # One that a kill left without its journal entry says in its schema that it is.
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.part_path(index)
        if not os.path.lexists(path) or self.entry(index) is not None:
            return
        try:
            known = b"rd_hf" in (pq.read_schema(path).metadata or {})
        except (OSError, pa.ArrowException):
            known = False
        if not known:
            raise self._not_ours(path)

    @staticmethod
    def _not_ours(path: Path) -> JobError:
        return JobError(
            f"{path} would be replaced, and is no embedding job's: move it elsewhere, or choose another --output"
        )

    def write_rejects(self, rejects: Iterator[Reject]) -> None:
        """Replace the rejects file: tab-separated, quoted where an id holds a tab or a line end."""

        self.write(self.rejects_path, lambda handle: fill_rejects(handle, rejects))

    def rejects(self) -> Iterator[Reject]:
        """Read what :meth:`write_rejects` wrote."""
        with self.rejects_path.open(encoding="utf-8", newline="") as handle:
            for row in csv.DictReader(handle, dialect="excel-tab"):
                yield Reject(row["source"], int(row["record"]), row["id"], row["reason"])

    def write(self, path: Path, fill: Callable[[IO[bytes]], Any]) -> tuple[str, int]:
        """Write a file so that it appears whole or not at all, even if the power fails; return its SHA-256 and size.

        Raises:
            JobError: the disk is full or the folder cannot be written to.
        """
        with self.workspace.replacing(path) as temporary:
            with temporary.open("wb") as handle:
                fill(handle)
            return file_sha256(temporary), temporary.stat().st_size


def fill_rejects(handle: IO[bytes], rejects: Iterable[Reject]) -> None:
    """Write the content of a rejects file."""
    text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
    writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
    writer.writerow(_REJECTS_COLUMNS)
    writer.writerows((reject.source, reject.record, reject.id, reject.reason) for reject in rejects)
    text.flush()
    text.detach()


def is_folder_of_embeddings(path: str | os.PathLike) -> bool:
    """Whether a job's manifest lies in a folder."""
    return OutputFolder(path).manifest_path.is_file()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """What differs between two descriptions of a job, one phrase each."""
    return [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]

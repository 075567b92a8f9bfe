"""The output folder: what is in it, who may write to it, what of it is finished.

    OUTPUT/
      embeddings-000000.parquet     one file a part (a run of consecutive input records), in input order
      rejects.tsv                   what was not embedded, and why
      manifest.json                 model, options, counts, checksums; "complete" once all parts are there
      .job/000000.json              the journal: one entry a finished part, written after its Parquet file
      .job/lock                     held while a job runs

Every file is written beside its name, flushed to the disk and then renamed: a file that is there is whole. A part
counts as finished when its journal entry is there and the checksum in it fits the Parquet file.
"""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from rd_hf.embedding.checkpoint import file_sha256

TEMPORARY = ".tmp"


class JobError(RuntimeError):
    """The job cannot start or go on; the message is one sentence that names the cause and the mend."""


@dataclass(frozen=True, slots=True)
class Reject:
    """A record that was not embedded.

    Attributes:
        source: input it came from, as given.
        record: number among all records of the job, counted from 1.
        id: as the input has it.
        reason: in words.
    """

    source: str
    record: int
    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PartEntry:
    """A finished part, as the journal has it.

    Attributes:
        index: number of the part, counted from 0.
        first_record: number of its first input record, counted from 1.
        records, written, rejected: input records, rows of the Parquet file, rejects; the first is the sum of the
            others.
        unique: different sequences among those written.
        long: sequences that were windowed or truncated.
        residues: of the written records.
        digest: of the input records; tells a changed input.
        file: name of the Parquet file.
        sha256: of that file.
        bytes: of that file.
        rejects: the rejected records.
    """

    index: int
    first_record: int
    records: int
    written: int
    rejected: int
    unique: int
    long: int
    residues: int
    digest: str
    file: str
    sha256: str
    bytes: int
    rejects: tuple[Reject, ...]


class OutputFolder:
    """A job's folder; see the module for what is in it."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.journal = self.path / ".job"
        self.manifest_path = self.path / "manifest.json"
        self.rejects_path = self.path / "rejects.tsv"
        self._lock: Any = None

    def part_path(self, index: int) -> Path:
        """Parquet file of part ``index``."""
        return self.path / f"embeddings-{index:06d}.parquet"

    def entry_path(self, index: int) -> Path:
        """Journal entry of part ``index``."""
        return self.journal / f"{index:06d}.json"

    def claim(self) -> None:
        """Make the folder and keep other jobs out of it until this process ends, however it ends.

        Raises:
            JobError: it cannot be made or written to, or another job has it.
        """
        from filelock import FileLock, Timeout

        with explained(self.path):
            self.journal.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.journal / "lock")
            try:
                self._lock.acquire(timeout=0)
            except Timeout as error:
                raise JobError(
                    f"{self.path} is in use by another embedding job: wait for it, or choose another --output"
                ) from error
            for stale in [*self.path.glob(f"*{TEMPORARY}"), *self.journal.glob(f"*{TEMPORARY}")]:
                stale.unlink()

    def manifest(self) -> dict[str, Any] | None:
        """The manifest of an earlier run, None if there was none.

        Raises:
            JobError: it cannot be understood, or the folder holds something else.
        """
        if not self.manifest_path.exists():
            others = [path.name for path in self.path.iterdir() if path != self.journal]
            if others:
                raise JobError(
                    f"{self.path} holds other files ({others[0]}, ...) and no manifest.json of an embedding job: "
                    "choose an empty --output"
                )
            return None
        try:
            content = json.loads(self.manifest_path.read_text())
            return dict(content)
        except (ValueError, TypeError) as error:
            raise JobError(
                f"{self.manifest_path} is damaged ({error}): restore it, or choose another --output"
            ) from error

    def write_manifest(self, content: Mapping[str, Any]) -> None:
        """Replace the manifest."""
        self._write_json(self.manifest_path, content)

    def write_entry(self, entry: PartEntry) -> None:
        """Note a part as finished."""
        self._write_json(self.entry_path(entry.index), asdict(entry))

    def entry(self, index: int) -> PartEntry | None:
        """Journal entry of a part, None if it is not finished (or the entry is damaged)."""
        try:
            fields = json.loads(self.entry_path(index).read_text())
            fields["rejects"] = tuple(Reject(**reject) for reject in fields["rejects"])
            return PartEntry(**fields)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):
            return None

    def noted_parts(self) -> list[int]:
        """Numbers of all parts that have a journal entry, in order."""
        return sorted(int(path.stem) for path in self.journal.glob("*.json"))

    def holds(self, entry: PartEntry) -> bool:
        """Whether the part's Parquet file is there and has the content it was written with."""
        path = self.path / entry.file
        return path.is_file() and path.stat().st_size == entry.bytes and file_sha256(path) == entry.sha256

    def write_rejects(self, rejects: Iterator[Reject]) -> None:
        """Replace the rejects file: tab-separated, quoted where an id holds a tab or a line end."""

        def write(handle: IO[bytes]) -> None:
            import io

            text = io.TextIOWrapper(handle, encoding="utf-8", newline="")
            writer = csv.writer(text, dialect="excel-tab", lineterminator="\n")
            writer.writerow(("source", "record", "id", "reason"))
            writer.writerows((reject.source, reject.record, reject.id, reject.reason) for reject in rejects)
            text.flush()
            text.detach()

        self.write(self.rejects_path, write)

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        self.write(path, lambda handle: handle.write((json.dumps(content, indent=1) + "\n").encode()))

    def write(self, path: Path, fill: Callable[[IO[bytes]], Any]) -> tuple[str, int]:
        """Write a file so that it appears whole or not at all, even if the power fails.

        Returns:
            SHA-256 and size of what was written.

        Raises:
            JobError: the disk is full or the folder cannot be written to.
        """
        temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
        with explained(self.path):
            try:
                with temporary.open("wb") as handle:
                    fill(handle)
                    handle.flush()
                    os.fsync(handle.fileno())
                written = file_sha256(temporary), temporary.stat().st_size
                os.replace(temporary, path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
            _sync_folder(path.parent)
        return written


def _sync_folder(path: Path) -> None:
    """Make a rename last; not every system lets a folder be opened."""
    with suppress(PermissionError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what the file system says into one sentence with a mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise JobError(
                f"{path} is full ({os.strerror(error.errno)}): free some space and give the same command again; "
                "the parts that are finished are kept"
            ) from error
        raise JobError(
            f"{path} cannot be written to ({error.strerror or error}): check its owner and permissions, or choose "
            "another --output"
        ) from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    """What differs between two descriptions of a job, one phrase each."""
    return [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name)
    ]

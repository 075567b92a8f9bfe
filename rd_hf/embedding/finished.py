"""A finished folder of embeddings, read: its rows by record, and the sequences that they were made of."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np

from rd_hf.data.fasta import FastaRecord
from rd_hf.data.text import readable
from rd_hf.embedding.folder import JobError, OutputFolder
from rd_hf.embedding.manifest import MANIFEST_FORMAT
from rd_hf.embedding.options import EmbeddingOptions
from rd_hf.embedding.parts import cut_parts, read_all
from rd_hf.embedding.settings import JobSettings

# What the manifest says of a job under the names of an embedding's options, and of its tables' columns.
OPTIONS = ("pooling", "positions", "normalize", "dtype", "output_dtype", "long", "max_length", "overlap", "whiten")
COLUMNS = ("sequence_column", "id_column", "positions_column")


@dataclass(slots=True)
class Finished:
    """A finished folder.

    Attributes:
        folder: where it is.
        manifest: of it.
        settings: of the job that wrote it, as far as they say what it holds and how its input was read and cut.
        level, width, column: the widest that it holds.
        verified: parts whose files were found to be as they were written.
    """

    folder: OutputFolder
    manifest: dict[str, Any]
    settings: JobSettings
    level: str
    width: int
    column: str
    verified: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, path: str) -> Finished:
        """Read the manifest of a folder.

        Raises:
            JobError: there is no finished job of this version in it.
        """
        folder = OutputFolder(path)
        if not folder.manifest_path.is_file():
            raise JobError(f"{path} holds no _manifest.json of an embedding job: name a folder that rd-hf embed wrote")
        manifest = folder.manifest() or {}
        job = manifest.get("job", {})
        if manifest.get("format") != MANIFEST_FORMAT:
            raise JobError(f"{path} was written by another version of rd_hf: embed its input again")
        if manifest.get("status") != "complete":
            raise JobError(f"the job of {path} is not finished: give its own command again, then this one")
        if not folder.noted_parts():
            raise JobError(f"{path} has lost its journal (the folder .job): copy the folder whole")
        column, widest = max(manifest["columns"].items(), key=lambda item: item[1]["width"])
        options: dict[str, Any] = {name: job[name] for name in OPTIONS if name in job}
        options |= {"positions": tuple(job["positions"]), "width": job.get("width")}
        settings = JobSettings(
            model=manifest["model"]["name"],
            inputs=tuple(job["inputs"]),
            output=path,
            options=EmbeddingOptions(**options),
            part_records=job["part_records"],
            part_bytes=job["part_bytes"],
            **{name: job[name] for name in COLUMNS},
        )
        return cls(folder, manifest, settings, widest["level"], widest["width"], column)

    @property
    def digest(self) -> str:
        """Changes whenever one of its files does."""
        return hashlib.sha256("".join(part["sha256"] for part in self.manifest["parts"]).encode()).hexdigest()

    @property
    def converted(self) -> bool:
        """Whether it was made of stored embeddings, so that its sequences are not known."""
        return "converted" in self.manifest["job"]

    def column_of(self, level: str | None = None) -> tuple[str, int, str]:
        """Column whose first dimensions are a level, that level's width, and its name; by default the largest's.

        Raises:
            JobError: the folder does not hold the level.
        """
        if level is None:
            return self.column, self.width, self.level
        for column, held in self.manifest["columns"].items():
            if held["level"] == level:
                return column, held["width"], level
        width = self.manifest["model"]["nested_dims"].get(level)
        if width is None or width > self.width:
            raise JobError(f"{self.folder.path} holds level {self.level}, which does not have level {level} within it")
        if self.settings.options.normalize:
            raise JobError(
                f"{self.folder.path} holds level {self.level} normalised: embed with --level {level} {self.level} to "
                f"have level {level} normalised for itself"
            )
        return self.column, width, level

    def rows(self, first: int, count: int) -> dict[int, np.ndarray]:
        """Stored embeddings of ``count`` records from number ``first`` on, by number.

        Returns:
            The widest level of each record that was written: (width,) or (rows, width).

        Raises:
            JobError: a file is not as it was written.
        """
        wanted = [("record", ">=", first), ("record", "<", first + count)]
        found: dict[int, np.ndarray] = {}
        for index, part in enumerate(self.manifest["parts"]):
            if part["first_record"] < first + count and part["first_record"] + part["records"] > first:
                found |= {row["record"]: value for row, value in self._part_rows(index, self.column, wanted)}
        return found

    def all_rows(self, column: str) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        """``record`` and ``id`` of every row, in order, with its embedding in a column.

        Raises:
            JobError: a file is not as it was written.
        """
        for index in range(len(self.manifest["parts"])):
            yield from self._part_rows(index, column, None)

    def ids(self) -> Iterator[str]:
        """Ids of all rows, in order."""
        import pyarrow.parquet as pq

        for part in self.manifest["parts"]:
            yield from pq.read_table(self.folder.path / part["file"], columns=["id"])["id"].to_pylist()

    def _part_rows(self, index: int, column: str, wanted: Any) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
        import pyarrow.parquet as pq

        path = self.folder.path / self.manifest["parts"][index]["file"]
        entry = self.folder.entry(index)
        if index not in self.verified and (entry is None or not self.folder.holds(entry)):
            raise JobError(f"{path} is not as it was written: give the command that wrote it again")
        self.verified.add(index)
        table = pq.read_table(path, columns=["record", "id", column], filters=wanted)
        for batch in table.to_batches():
            yield from zip(batch.select(["record", "id"]).to_pylist(), self._arrays(batch[column]), strict=True)

    def _arrays(self, column: Any) -> list[np.ndarray]:
        """An Arrow column as one array a record, each a view."""
        if self.settings.options.one_row:
            return list(np.asarray(column.flatten()).reshape(len(column), column.type.list_size))
        values = np.asarray(column.values.flatten()).reshape(len(column.values), column.type.value_type.list_size)
        return [values[start:stop] for start, stop in pairwise(column.offsets.to_pylist())]

    def records(
        self,
        inputs: tuple[str, ...] = (),
        called: tuple[str, ...] = (),
        on_read: Callable[[int], None] = lambda count: None,
        say: Callable[[str], None] | None = None,
    ) -> Iterator[tuple[str, FastaRecord]]:
        """The records of the inputs, each once it was found to be what the folder was made of.

        Args:
            inputs: where they lie now; by default where they lay then.
            called: what they are called now; by default as they are given.
            on_read: told the number of bytes each time some are read.
            say: told in a sentence what a user should know of an input.

        Raises:
            JobError: they are not the same, or not known.
        """
        path, known = self.folder.path, self.manifest["parts"]
        if self.converted:
            raise JobError(f"{path} was converted from stored embeddings, so that its sequences are not known")
        inputs = inputs or self.settings.inputs
        if len(inputs) != len(self.settings.inputs):
            raise JobError(
                f"{path} was made of {len(self.settings.inputs)} inputs ({', '.join(self.settings.inputs)}), not of "
                f"{len(inputs)}: give the same, in the same order"
            )
        # What was embedded is known by the names that its inputs had then.
        sources: deque[str] = deque()

        def renamed() -> Iterator[tuple[str, FastaRecord]]:
            for name, source, now in zip(self.settings.inputs, inputs, called or inputs, strict=True):
                for _, record in read_all(replace(self.settings, inputs=(source,)), on_read, say):
                    sources.append(readable(now))
                    yield readable(name), record

        changed, mend = f"the input is not what {path} was made of: it", "give the same input, or embed it from scratch"
        count = 0
        for part in cut_parts(renamed(), self.settings, {self.level: self.width}):
            entry = self.folder.entry(part.index) if part.index < len(known) else None
            if entry is None or entry.digest != part.digest:
                raise JobError(f"{changed} differs from record number {part.first_record:,} on; {mend}")
            for _, record in part.records:
                yield sources.popleft(), record
            count += 1
        if count < len(known):
            raise JobError(f"{changed} ends before record number {known[count]['first_record']:,}; {mend}")
